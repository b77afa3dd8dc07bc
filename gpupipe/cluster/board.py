"""Which engine takes which segment next, and what is tried again. Plain rules, told of what happens; no network."""

from __future__ import annotations

import threading
import time
from bisect import insort
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from gpupipe.cluster.ledger import Ledger, Work, too_long

TRIES: Final = 3
"""How often a segment may be lost with its engine before its job fails."""
ALONE_AFTER: Final = 2
"""So often lost, a segment is drawn alone on its engine, so that no other one is lost with it."""
WAKE_SECONDS: Final = 1.0
"""How often an engine that has nothing to do sees whether a segment has become slow."""


class Pending(NamedTuple):
    """What is not done yet: jobs that nobody has opened, by number, and how many segments wait, or are being drawn."""

    unopened: tuple[int, ...]
    waiting: int
    running: int


@dataclass
class _Engine:
    slots: int
    running: int = 0
    alone: bool = False
    held: set[str] = field(default_factory=set)


class Board:
    """The jobs of a run, and the engines that take their segments as they become free. Used from any thread.

    An engine goes on with a job that it has begun; else it takes a job that nobody has begun, whose character it holds,
    or nobody does; else it helps with what others have begun. What was lost with an engine goes to another one, if
    there is one. What is left at the end goes to those who have least to do.

    Who finds nothing left begins a second time what another engine is slow at, the one that is under way the longest:
    who is first is kept. These are the backup tasks of MapReduce (Dean and Ghemawat, OSDI 2004, section 3.6).

    Args:
        characters: of each job, in order, what tells it.
        clock: tells the time, in seconds.
    """

    def __init__(self, characters: Iterable[str], clock: Callable[[], float] = time.monotonic) -> None:
        self._jobs = [Ledger(character) for character in characters]
        self._left = dict(enumerate(self._jobs))
        self._engines: dict[str, _Engine] = {}
        self._seconds: list[float] = []
        self._clock = clock
        self._stopped = False
        self._changed = threading.Condition()

    def wait(self, seconds: float) -> bool:
        """Wait for so long at most; whether every job has ended, or all were stopped."""
        with self._changed:
            return self._changed.wait_for(self._is_over, seconds)

    def join(self, engine: str, slots: int) -> None:
        """An engine takes part, with room for so many segments at a time; started anew, it holds nothing."""
        with self._changed:
            self._engines.setdefault(engine, _Engine(slots)).held.clear()
            self._changed.notify_all()

    def leave(self, engine: str) -> None:
        """An engine takes part no more; what it drew was told by `lost`."""
        with self._changed:
            self._engines.pop(engine, None)
            self._changed.notify_all()

    def take(self, engine: str) -> Work | None:
        """What an engine is to do next, once there is something; None: nothing more will come."""
        with self._changed:
            while not self._is_over() and engine in self._engines:
                if (work := self._offer(engine)) is not None:
                    return work
                self._changed.wait(WAKE_SECONDS)
            return None

    def offer(self, engine: str) -> Work | None:
        """What an engine is to do next; None: nothing now."""
        with self._changed:
            return self._offer(engine)

    def opened(self, work: Work, segments: Collection[int]) -> None:
        """A job has been opened, and these segments of it are to be drawn; told before `done`."""
        with self._changed:
            self._jobs[work.job].waiting = sorted(segments)

    def done(self, work: Work, engine: str) -> bool:
        """An engine has done what it took, or another was faster, or its job has ended meanwhile.

        Returns:
            Whether that was the last of the job's segments; the job ends by `end`.
        """
        with self._changed:
            job, segment = self._jobs[work.job], work.segment
            since = job.leave(segment, engine)
            self._given_back(engine)
            if job.ended or segment is None or segment in job.drawn:
                return False
            seconds = 0.0 if since is None else self._clock() - since
            job.keep(segment, seconds)
            insort(self._seconds, seconds)
            return job.is_complete

    def late(self, work: Work) -> tuple[str, ...]:
        """Who still draws a segment that is there."""
        with self._changed:
            job, segment = self._jobs[work.job], work.segment
            return tuple(job.running.get(segment, ())) if segment is not None and segment in job.drawn else ()

    def behind(self) -> set[str]:
        """The engines that still draw segments that are there."""
        with self._changed:
            return {
                engine
                for job in self._jobs
                for segment, drawing in job.running.items()
                if segment in job.drawn
                for engine in drawing
            }

    def ended(self, number: int) -> bool:
        """Whether a job is finished, or has failed."""
        with self._changed:
            return self._jobs[number].ended

    def failed(self, work: Work, engine: str) -> bool:
        """An engine was told that what it took cannot be done.

        Returns:
            Whether the job has to end: not if another engine draws the same segment, or has.
        """
        with self._changed:
            job = self._jobs[work.job]
            job.leave(work.segment, engine)
            job.blame(work.segment, engine)
            self._given_back(engine)
            return not (job.ended or job.goes_on(work.segment))

    def lost(self, work: Work, engine: str, *, blamed: bool = True) -> int:
        """What an engine did has been lost; it is tried again, unless another one draws the same segment, or has.

        Args:
            work: what it did.
            engine: which.
            blamed: whether that counts: what was not begun has not ended the engine.

        Returns:
            How often it was lost, of `TRIES`, after which the job has to end; 0: no more is to be done.
        """
        with self._changed:
            job = self._jobs[work.job]
            job.leave(work.segment, engine)
            if blamed:
                job.blame(work.segment, engine)
            self._given_back(engine)
            if job.ended or job.goes_on(work.segment):
                return 0
            job.lost[work.segment] += blamed
            job.put_back(work.segment)
            return job.lost[work.segment]

    def end(self, number: int) -> bool:
        """A job is finished, or has failed; whether it had not ended yet."""
        with self._changed:
            job = self._jobs[number]
            first, job.ended = not job.ended, True
            self._left.pop(number, None)
            if job.waiting:
                job.waiting.clear()
            self._changed.notify_all()
            return first

    def stop(self) -> None:
        """Give out nothing more."""
        with self._changed:
            self._stopped = True
            self._changed.notify_all()

    def pending(self) -> Pending:
        """What is not done yet."""
        with self._changed:
            left = self._left.values()
            unopened = tuple(number for number, job in self._left.items() if job.waiting is None)
            return Pending(unopened, sum(len(job.waiting or ()) for job in left), sum(job.undrawn for job in left))

    def _is_over(self) -> bool:
        return self._stopped or not self._left

    def _offer(self, engine: str) -> Work | None:
        me = self._engines[engine]
        if me.running >= me.slots or me.alone:
            return None
        if (found := self._best(engine, me)) is None:
            found = self._slowest(engine, me)
        elif self._better_placed(found, me):
            return None
        if found is None:
            return None
        job = self._jobs[found.job]
        if found.segment is None:
            job.opening = engine
        else:
            job.begin(found.segment, engine, self._clock())
            me.alone = job.lost[found.segment] >= ALONE_AFTER
        job.engines.add(engine)
        me.held.add(job.character)
        me.running += 1
        return found

    def _best(self, engine: str, me: _Engine) -> Work | None:
        """What suits an engine most."""
        here: list[Work] = []
        elsewhere: list[Work] = []
        for number, job in self._left.items():
            if (segment := self._next(engine, me, job)) is not None:
                (here if engine in job.engines else elsewhere).append(Work(number, segment))
        if here:
            return here[0]
        held = {character for other in self._engines.values() for character in other.held}
        fresh = [
            (job.character not in me.held, job.character in held, number)
            for number, job in self._left.items()
            if job.is_fresh and self._may(engine, job, None)
        ]
        if fresh:
            return Work(min(fresh)[2], None)
        return min(elsewhere, key=lambda work: self._jobs[work.job].character not in me.held, default=None)

    def _next(self, engine: str, me: _Engine, job: Ledger) -> int | None:
        """The first segment of a job that an engine may draw."""
        for segment in job.waiting or ():
            if self._may(engine, job, segment) and not (job.lost[segment] >= ALONE_AFTER and me.running):
                return segment
        return None

    def _may(self, engine: str, job: Ledger, segment: int | None) -> bool:
        """Whether an engine may try: it has not lost the same before, unless all have."""
        lost_on = job.lost_on.get(segment, set())
        return engine not in lost_on or not (self._engines.keys() - lost_on)

    def _slowest(self, engine: str, me: _Engine) -> Work | None:
        """What another engine is slow at, to be begun here too: nothing that was lost here, or more than once, and
        nothing that somebody may begin who has less to do."""
        now = self._clock()
        found: list[tuple[float, Work]] = []
        for number, job in self._left.items():
            if not job.running or (most := too_long(job.seconds, self._seconds)) is None:
                continue
            for segment, other, since in job.drawn_once():
                if now - since <= most or job.lost[segment] >= ALONE_AFTER:
                    continue
                barred = {other, *job.lost_on.get(segment, ())}
                less = any(each.running < me.running for name, each in self._engines.items() if name not in barred)
                if engine not in barred and not less:
                    found.append((since, Work(number, segment, second=True)))
        return min(found)[1] if found else None

    def _better_placed(self, work: Work, me: _Engine) -> bool:
        """Whether what is left is for others, who have less to do."""
        if not me.running:
            return False
        less = sum(other.running < me.running for other in self._engines.values())
        unopened = sum(job.is_fresh for job in self._left.values())
        return unopened + sum(len(job.waiting or ()) for job in self._left.values()) <= less

    def _given_back(self, engine: str) -> None:
        if engine in self._engines:
            me = self._engines[engine]
            me.running, me.alone = max(0, me.running - 1), False
        self._changed.notify_all()
