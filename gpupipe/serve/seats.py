"""Who is in: talks under way, what they take, and whether one more may come."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from gpupipe.character.folder import Character
from gpupipe.machine import cpu_count
from gpupipe.render.engine import Engine
from gpupipe.serve.admission import Demand, admits, load_of
from gpupipe.serve.costs import Costs
from gpupipe.serve.limits import ServeLimits
from gpupipe.serve.order import TalkOrder
from gpupipe.serve.refusals import Refused
from gpupipe.serve.talk import Talk

LATE_SHARE: Final = 0.005
"""Of the pictures of the last seconds that were late, or passed over: beyond it nobody comes in."""

WATCH_SECONDS: Final = 1.0


@dataclass(eq=False)
class Seat:
    """A talk that is under way, or being opened; or a place that is held for talks, one after another.

    Attributes:
        engine: that draws it.
        order: what was asked for.
        character: who speaks.
        demand: what it takes each second, if it is realtime and has no place that is held for it.
        talk: once it is open.
        holder: the place that is held for it.
        seen: its pictures, and those that were late by the server's fault, when it was last looked at.
    """

    engine: Engine
    order: TalkOrder
    character: Character
    demand: Demand | None = None
    talk: Talk | None = None
    holder: Seat | None = None
    seen: tuple[int, int] = field(default=(0, 0))


@dataclass(frozen=True)
class Counts:
    """Of a character's talks, since the server was started.

    Attributes:
        talks: opened.
        pictures: given out, with those that repeat another.
        late: finished after they were due.
        repeated: that stand for others, which would have been late.
        seconds: of speech that were heard.
    """

    talks: int = 0
    pictures: int = 0
    late: int = 0
    repeated: int = 0
    seconds: float = 0.0

    def __add__(self, other: Counts) -> Counts:
        """The sum of both."""
        return Counts(
            self.talks + other.talks,
            self.pictures + other.pictures,
            self.late + other.late,
            self.repeated + other.repeated,
            self.seconds + other.seconds,
        )

    @classmethod
    def of(cls, talk: Talk) -> Counts:
        """Of one talk, so far."""
        return cls(1, talk.pictures_given, talk.late, talk.dropped, talk.seconds)


class Seats:
    """The talks of a server. Every method may be called from any thread.

    Args:
        engines: that draw.
        costs: what has been measured.
        limits: of clients.
        most_load: of the time there is, what realtime talks may take; 1 lets everybody in.

    Attributes:
        refused: talks that were refused so far, by the reason: "sessions", "load" or "closing".
    """

    def __init__(self, engines: Sequence[Engine], costs: Costs, limits: ServeLimits, most_load: float) -> None:
        self._engines, self._costs, self._limits, self._most_load = engines, costs, limits, most_load
        self.refused: Counter[str] = Counter()
        self._seats: set[Seat] = set()
        self._left: dict[str, Counts] = {}
        self._condition = threading.Condition()
        self._closing = False
        self._late_share = 0.0

    @property
    def closing(self) -> bool:
        """Whether no more talks are taken."""
        return self._closing

    @property
    def talks(self) -> list[Talk]:
        """Those that are under way."""
        with self._condition:
            return [seat.talk for seat in self._seats if seat.talk is not None]

    @property
    def late_share(self) -> float:
        """Of the pictures of the last seconds, those that were late or passed over by the server's fault."""
        return self._late_share

    @property
    def room(self) -> bool:
        """Whether one more talk may come, if it takes little."""
        with self._condition:
            full = sum(seat.holder is None for seat in self._seats) >= self._limits.sessions
        if self._closing or full:
            return False
        return self._most_load >= 1 or (self._late_share <= LATE_SHARE and self.load_share() < self._most_load)

    def counts(self) -> dict[str, Counts]:
        """Since the server was started, by the characters' names."""
        with self._condition:
            found = dict(self._left)
            for seat in self._seats:
                if seat.talk is not None:
                    name = seat.talk.order.character
                    found[name] = found.get(name, Counts()) + Counts.of(seat.talk)
            return found

    def take(self, order: TalkOrder, character: Character) -> Seat:
        """A place for a talk on one of the engines.

        Raises:
            Refused: it would make others late, or there are as many as may be.
        """
        with self._condition:
            if self._closing:
                raise self._is_closing()
            if sum(seat.holder is None for seat in self._seats) >= self._limits.sessions:
                raise self._refusal("sessions", f"{self._limits.sessions} talks are under way, as many as may be")
            seat = Seat(self.pick(character), order, character)
            self.judge(seat)
            self._seats.add(seat)
            return seat

    def judge(self, seat: Seat) -> None:
        """See whether a place may stay, by what it is known to take now.

        Raises:
            Refused: it would make others late, or no more talks are taken.
        """
        with self._condition:
            if self._closing:
                raise self._is_closing()
            seat.demand = None
            if not seat.order.realtime:
                return
            demand = self._demand(seat.order, seat.character, seat.engine)
            if self._most_load < 1:
                others = [each.demand for each in self._seats if each.engine is not seat.engine and each.demand]
                if self._late_share > LATE_SHARE or not admits(
                    self._demands(seat.engine), others, demand, cpu_count(), self._most_load
                ):
                    raise self._refusal("load", "one more talk would make others late")
            seat.demand = demand

    def within(self, holder: Seat) -> Seat:
        """A place for a talk, for which one is held.

        Raises:
            Refused: no more talks are taken.
        """
        with self._condition:
            if self._closing:
                raise self._is_closing()
            seat = Seat(holder.engine, holder.order, holder.character, holder=holder)
            self._seats.add(seat)
            return seat

    def give(self, seat: Seat, talk: Talk) -> None:
        """A talk is open; it sits there until `leave`.

        Raises:
            Refused: no more talks are taken; it has been closed.
        """
        with self._condition:
            seat.talk = talk
            closing = self._closing
        if closing:
            talk.close()
            raise self._is_closing()

    def leave(self, seat: Seat) -> None:
        """A talk has ended, or was not opened."""
        with self._condition:
            if seat in self._seats and seat.talk is not None:
                name = seat.talk.order.character
                self._left[name] = self._left.get(name, Counts()) + Counts.of(seat.talk)
            self._seats.discard(seat)
            self._condition.notify_all()

    def pick(self, character: Character) -> Engine:
        """The engine for a character: that has it, else any; of these the least loaded."""
        with self._condition:
            ready = [engine for engine in self._engines if engine.holds(character)]

            def taken(engine: Engine) -> tuple[float, int]:
                seats = [seat for seat in self._seats if seat.engine is engine]
                return load_of(self._demands(engine), cpu_count()).worst, len(seats)

            best = min(ready or self._engines, key=taken)
            if taken(best)[0] > self._most_load / 2:
                best = min(self._engines, key=taken)
            return best

    def load_share(self) -> float:
        """What realtime talks take of what is scarcest, 1 for all of it."""
        with self._condition:
            cores = load_of((seat.demand for seat in self._seats if seat.demand), cpu_count()).cores
            devices = [load_of(self._demands(engine), cpu_count()).device for engine in self._engines]
        return max(cores, *devices)

    def watch(self) -> bool:
        """Wait a second, end talks whose clients do nothing, and see who is late; False once all is over."""
        with self._condition:
            if self._condition.wait_for(lambda: self._closing and not self._seats, WATCH_SECONDS):
                return False
            for seat in self._seats:  # a place that is held, too: what it takes is known better from talk to talk
                if seat.demand is not None:
                    seat.demand = self._demand(seat.order, seat.character, seat.engine)
            seats = [seat for seat in self._seats if seat.talk is not None]
        pictures = late = 0
        for seat in seats:
            assert seat.talk is not None
            now = (seat.talk.pictures_given, seat.talk.behind)
            if seat.talk.order.realtime:
                pictures += now[0] - seat.seen[0]
                late += now[1] - seat.seen[1]
            seat.seen = now
            if seat.engine.backend.gpu is not None:
                self._costs.drawn(seat.talk.order.character, seat.talk.device_seconds, None)
            seat.talk.check(time.monotonic())
        self._late_share = 0.5 * self._late_share + 0.5 * (late / pictures if pictures else 0.0)
        return True

    def close(self, grace: float) -> None:
        """Take no more talks, give those that are under way so many seconds to end, then tell them, and end them."""
        self.refuse_all()
        with self._condition:
            self._condition.wait_for(lambda: not self._seats, grace)
            self._seats = {seat for seat in self._seats if seat.talk is not None}
        for talk in self.talks:
            talk.fail(self._is_closing())

    def refuse_all(self) -> None:
        """Take no more talks."""
        with self._condition:
            self._closing = True
            self._condition.notify_all()

    def _demands(self, engine: Engine) -> list[Demand]:
        return [seat.demand for seat in self._seats if seat.engine is engine and seat.demand is not None]

    def _demand(self, order: TalkOrder, character: Character, engine: Engine) -> Demand:
        fps, pixels = float(character.body.fps), character.body.width * character.body.height
        device = 0.0 if engine.backend.gpu is None else self._costs.device(order.character) or 0.0
        cores = (self._costs.cores(order.character) or 0.0) + self._costs.encoding(order.output, pixels)
        return Demand(fps * device, fps * cores + self._costs.hearing())

    def _refusal(self, reason: str, why: str) -> Refused:
        self.refused[reason] += 1
        return Refused(why, remedy="ask again later, or another server")

    def _is_closing(self) -> Refused:
        self.refused["closing"] += 1
        return Refused("the server is being shut down", closing=True, remedy="ask another server")
