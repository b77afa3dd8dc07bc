"""Which engine takes which segment next, and what is tried again. Plain rules, told of what happens; no network."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final, NamedTuple

TRIES: Final = 3
"""How often a segment may be lost with its engine before its job fails."""
ALONE_AFTER: Final = 2
"""So often lost, a segment is drawn alone on its engine, so that no other one is lost with it."""


class Work(NamedTuple):
    """What an engine takes: to open a job (no segment), or to draw one of its segments."""

    job: int
    segment: int | None


@dataclass
class _Job:
    """A job on the board.

    Attributes:
        character: what tells it.
        waiting: the segments that nobody draws; None before it is opened.
        running: who draws each of the others.
        lost: how often each was lost, and on which engines.
        engines: who has drawn any.
        ended: whether it is finished, or has failed.
    """

    character: str
    waiting: list[int] | None = None
    opening: str | None = None
    running: dict[int, str] = field(default_factory=dict)
    lost: Counter[int | None] = field(default_factory=Counter)
    lost_on: dict[int | None, set[str]] = field(default_factory=dict)
    engines: set[str] = field(default_factory=set)
    ended: bool = False


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

    Args:
        characters: of each job, in order, what tells it.
    """

    def __init__(self, characters: Iterable[str]) -> None:
        self._jobs = [_Job(character) for character in characters]
        self._engines: dict[str, _Engine] = {}
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
                self._changed.wait()
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
        """An engine has done what it took, or its job has ended meanwhile.

        Returns:
            Whether that was the last of the job's segments; the job ends by `end`.
        """
        with self._changed:
            job = self._jobs[work.job]
            if work.segment is None:
                job.opening = None
            else:
                job.running.pop(work.segment, None)
            self._given_back(engine)
            return not (job.ended or work.segment is None or job.running or job.waiting)

    def lost(self, work: Work, engine: str, *, blamed: bool = True) -> bool:
        """What an engine did has been lost; whether it is tried again: else the job has to end.

        Args:
            work: what it did.
            engine: which.
            blamed: whether that counts: what was not begun has not ended the engine.
        """
        with self._changed:
            job = self._jobs[work.job]
            if blamed:
                job.lost[work.segment] += 1
                job.lost_on.setdefault(work.segment, set()).add(engine)
            if work.segment is None:
                job.opening = None
            else:
                job.running.pop(work.segment, None)
                if job.waiting is not None:
                    job.waiting = sorted([*job.waiting, work.segment])
            self._given_back(engine)
            return job.ended or job.lost[work.segment] < TRIES

    def end(self, number: int) -> bool:
        """A job is finished, or has failed; whether it had not ended yet."""
        with self._changed:
            job = self._jobs[number]
            first, job.ended = not job.ended, True
            if job.waiting:
                job.waiting.clear()
            self._changed.notify_all()
            return first

    def stop(self) -> None:
        """Give out nothing more."""
        with self._changed:
            self._stopped = True
            self._changed.notify_all()

    def left(self) -> Sequence[int]:
        """Jobs that have not ended."""
        with self._changed:
            return [number for number, job in enumerate(self._jobs) if not job.ended]

    def _is_over(self) -> bool:
        return self._stopped or all(job.ended for job in self._jobs)

    def _offer(self, engine: str) -> Work | None:
        me = self._engines[engine]
        if me.running >= me.slots or me.alone:
            return None
        found = self._best(engine, me)
        if found is None or self._better_placed(found, me):
            return None
        job = self._jobs[found.job]
        if found.segment is None:
            job.opening = engine
        else:
            assert job.waiting is not None
            job.waiting.remove(found.segment)
            job.running[found.segment] = engine
            me.alone = job.lost[found.segment] >= ALONE_AFTER
        job.engines.add(engine)
        me.held.add(job.character)
        me.running += 1
        return found

    def _best(self, engine: str, me: _Engine) -> Work | None:
        """What suits an engine most."""
        here: list[Work] = []
        elsewhere: list[Work] = []
        for number, job in enumerate(self._jobs):
            if (segment := self._next(engine, me, job)) is not None:
                (here if engine in job.engines else elsewhere).append(Work(number, segment))
        if here:
            return here[0]
        held = {character for other in self._engines.values() for character in other.held}
        fresh = [
            (job.character not in me.held, job.character in held, number)
            for number, job in enumerate(self._jobs)
            if not job.ended and job.waiting is None and job.opening is None and self._may(engine, job, None)
        ]
        if fresh:
            return Work(min(fresh)[2], None)
        return min(elsewhere, key=lambda work: self._jobs[work.job].character not in me.held, default=None)

    def _next(self, engine: str, me: _Engine, job: _Job) -> int | None:
        """The first segment of a job that an engine may draw."""
        for segment in job.waiting or ():
            if self._may(engine, job, segment) and not (job.lost[segment] >= ALONE_AFTER and me.running):
                return segment
        return None

    def _may(self, engine: str, job: _Job, segment: int | None) -> bool:
        """Whether an engine may try: it has not lost the same before, unless all have."""
        lost_on = job.lost_on.get(segment, set())
        return engine not in lost_on or not (self._engines.keys() - lost_on)

    def _better_placed(self, work: Work, me: _Engine) -> bool:
        """Whether what is left is for others, who have less to do."""
        if not me.running:
            return False
        less = sum(other.running < me.running for other in self._engines.values())
        unopened = sum(not job.ended and job.waiting is None and job.opening is None for job in self._jobs)
        return unopened + sum(len(job.waiting or ()) for job in self._jobs) <= less

    def _given_back(self, engine: str) -> None:
        if engine in self._engines:
            me = self._engines[engine]
            me.running, me.alone = max(0, me.running - 1), False
        self._changed.notify_all()
