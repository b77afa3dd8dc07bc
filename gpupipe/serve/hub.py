"""The middle of a server: engines, characters, and the talks that are under way."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import numpy as np

from gpupipe.character.folder import Character
from gpupipe.errors import GpupipeError
from gpupipe.log import Log
from gpupipe.machine import cpu_count
from gpupipe.options import EngineKeywords, ModelKeywords
from gpupipe.render.engine import Engine
from gpupipe.serve.admission import MOST_LOAD, Demand, admits, load_of
from gpupipe.serve.characters import Characters
from gpupipe.serve.costs import Costs
from gpupipe.serve.limits import ServeLimits
from gpupipe.serve.order import TalkOrder
from gpupipe.serve.refusals import Refused
from gpupipe.serve.talk import Talk
from gpupipe.speech.mel import SAMPLE_RATE
from gpupipe.threads import Worker

LATE_SHARE: Final = 0.005
"""Of the pictures of the last seconds that were late, or passed over: beyond it nobody comes in."""

WATCH_SECONDS: Final = 1.0

TRIAL_SECONDS: Final = 2.0
"""Of silence that a character speaks when it is loaded, to see what a frame costs."""

OPENING: Final = 8
"""Talks that are opened at a time, and characters loaded."""

_log = Log(__name__)


@dataclass(eq=False)
class Seat:
    """A talk that is under way, or being opened; or a place that is held for talks, one after another.

    Attributes:
        engine: that draws it.
        demand: what it takes each second, if it is realtime and has no place that is held for it.
        talk: once it is open.
        holder: the place that is held for it.
    """

    engine: Engine
    demand: Demand | None
    talk: Talk | None = None
    holder: Seat | None = None
    seen: tuple[int, int] = field(default=(0, 0))


class Hub:
    """Characters that speak for many clients at a time. Every method may be called from any thread; those that open,
    load or close something take their time, and are not for the event loop.

    Args:
        folder: of the characters.
        devices: "cpu", "cuda:0", …: an engine for each.
        engine: the engines' other options.
        model: how models are run.
        limits: of clients.
        most_load: of the time there is, what realtime talks may take.

    Attributes:
        engines: one a device.
        characters: by name.
        costs: what has been measured.
        limits: of clients.
        refused: talks that were refused so far.
        opening: threads in which talks are opened and characters loaded, for the event loop.
        hearing: threads in which sound becomes features, likewise.

    Raises:
        GpupipeError: a device cannot be opened, or there are no characters.
    """

    def __init__(
        self,
        folder: Path,
        devices: Sequence[str],
        engine: EngineKeywords,
        model: ModelKeywords,
        *,
        limits: ServeLimits | None = None,
        most_load: float = MOST_LOAD,
    ) -> None:
        self.limits = limits or ServeLimits()
        self.costs = Costs()
        self.refused = 0
        self._model, self._most_load = model, most_load
        self._seats: set[Seat] = set()
        self._numbers = itertools.count(1)
        self._condition = threading.Condition()
        self._closing = False
        self._late_share = 0.0
        self.engines: list[Engine] = []
        try:
            self.engines += [Engine(**engine | {"device": device}) for device in devices]
            self.characters = Characters(folder, self.engines[0].limits)
        except BaseException:
            for each in self.engines:
                each.close()
            raise
        self.opening = ThreadPoolExecutor(OPENING, "open")
        self.hearing = ThreadPoolExecutor(cpu_count(), "hear")
        self._watch = Worker("talks", self._watching)
        self._watch.start()

    @property
    def talks(self) -> list[Talk]:
        """Those that are under way."""
        with self._condition:
            return [seat.talk for seat in self._seats if seat.talk is not None]

    @property
    def closing(self) -> bool:
        """Whether no more talks are taken."""
        return self._closing

    def reserve(self, order: TalkOrder) -> Seat:
        """Hold a place for talks that are opened one after another, as somebody speaks. It must be given back by
        `release`.

        Raises: as `open`.
        """
        character = self.characters.get(order.character)
        seat = self._seated(order, character)
        try:
            self._load(order.character, character, seat.engine)
        except BaseException:
            self._leave(seat)
            raise
        return seat

    def release(self, seat: Seat) -> None:
        """Give a place back. More than once is allowed."""
        self._leave(seat)

    def open(self, order: TalkOrder, reserved: Seat | None = None) -> Talk:
        """Open a talk.

        Args:
            order: what is asked for.
            reserved: the place that is held for it; None: it needs one.

        Raises:
            NotFound: there is no such character.
            Refused: it would make others late, or there are as many as may be.
            GpupipeError: its character cannot be loaded.
        """
        character = self.characters.get(order.character)
        seat = self._seated(order, character) if reserved is None else self._seated_within(reserved)
        try:
            self._load(order.character, character, seat.engine)
            talk = Talk(
                seat.engine,
                character,
                order,
                self.limits,
                self._model,
                number=next(self._numbers),
                ended=lambda _: self._leave(seat),
            )
        except BaseException:
            self._leave(seat)
            raise
        with self._condition:
            seat.talk = talk
            closing = self._closing
        if closing:
            talk.close()
            raise self._is_closing()
        _log.event("talk opened", talk=talk.number, character=order.character, output=order.output)
        return talk

    def load(self, name: str) -> None:
        """Load a character ahead of its first talk, on the engine that has most room.

        Raises:
            NotFound: there is no such character.
            GpupipeError: it cannot be loaded.
        """
        character = self.characters.get(name)
        self._load(name, character, self._pick(character))

    def holders(self, name: str) -> list[int]:
        """Which engines, by their places, have a character loaded."""
        character = self.characters.get(name)
        return [place for place, engine in enumerate(self.engines) if engine.holds(character)]

    def unload(self, name: str) -> bool:
        """Release a character's frames on every engine, once no talk uses them; whether there were any.

        Raises:
            NotFound: there is no such character.
        """
        character = self.characters.get(name)
        return sum(engine.unload(character) for engine in self.engines) > 0

    def load_share(self) -> float:
        """What realtime talks take of what is scarcest, 1 for all of it."""
        with self._condition:
            cores = load_of((seat.demand for seat in self._seats if seat.demand), cpu_count()).cores
            devices = [load_of(self._demands(engine), cpu_count()).device for engine in self.engines]
        return max(cores, *devices)

    def close(self, grace: float = 0.0) -> None:
        """Take no more talks, give those that are under way so many seconds to end, and release everything."""
        with self._condition:
            self._closing = True
            self._condition.notify_all()
            self._condition.wait_for(lambda: not self._seats, grace)
            self._seats = {seat for seat in self._seats if seat.talk is not None}
        for talk in self.talks:
            talk.fail(self._is_closing())
        self._watch.wait()
        self.opening.shutdown(cancel_futures=True)
        self.hearing.shutdown(cancel_futures=True)
        for engine in self.engines:
            engine.close()

    def __enter__(self) -> Hub:
        """Begin a with block, which closes it."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close."""
        self.close()

    def _seated(self, order: TalkOrder, character: Character) -> Seat:
        """A place for a talk on one of the engines."""
        # What is not known yet is measured before anybody is let in by it.
        if order.realtime and self.costs.drawing(order.character) is None:
            self._load(order.character, character, self._pick(character))
        with self._condition:
            if self._closing:
                raise self._is_closing()
            if sum(seat.holder is None for seat in self._seats) >= self.limits.sessions:
                raise self._refusal(f"{self.limits.sessions} talks are under way, as many as may be")
            engine = self._pick(character)
            demand = self._demand(order, character, engine) if order.realtime else None
            if demand is not None:
                others = [seat.demand for seat in self._seats if seat.engine is not engine and seat.demand]
                if self._late_share > LATE_SHARE or not admits(
                    self._demands(engine), others, demand, cpu_count(), self._most_load
                ):
                    raise self._refusal("one more talk would make others late")
            seat = Seat(engine, demand)
            self._seats.add(seat)
            return seat

    def _seated_within(self, holder: Seat) -> Seat:
        """A talk for which a place is held."""
        with self._condition:
            if self._closing:
                raise self._is_closing()
            seat = Seat(holder.engine, None, holder=holder)
            self._seats.add(seat)
            return seat

    def _pick(self, character: Character) -> Engine:
        """The engine for a character: that has it, else any; of these the least loaded."""
        with self._condition:
            ready = [engine for engine in self.engines if engine.holds(character)]

            def taken(engine: Engine) -> tuple[float, int]:
                seats = [seat for seat in self._seats if seat.engine is engine]
                return load_of(self._demands(engine), cpu_count()).worst, len(seats)

            best = min(ready or self.engines, key=taken)
            if taken(best)[0] > self._most_load / 2:
                best = min(self.engines, key=taken)
            return best

    def _demands(self, engine: Engine) -> list[Demand]:
        return [seat.demand for seat in self._seats if seat.engine is engine and seat.demand is not None]

    def _demand(self, order: TalkOrder, character: Character, engine: Engine) -> Demand:
        fps, pixels = float(character.body.fps), character.body.width * character.body.height
        drawing = fps * (self.costs.drawing(order.character) or 0.0)
        encoding = fps * self.costs.encoding(order.output, pixels)
        if engine.backend.gpu is None:
            return Demand(0.0, drawing + encoding)
        return Demand(drawing, encoding)

    def _load(self, name: str, character: Character, engine: Engine) -> None:
        """Have a character on an engine, and know what a frame costs."""
        if not engine.holds(character):
            engine.load(character, **self._model)
        if self.costs.drawing(name) is None:
            self._try_out(name, character, engine)

    def _try_out(self, name: str, character: Character, engine: Engine) -> None:
        """Draw some frames, to see what they cost."""
        began, cpu = time.monotonic(), time.process_time()
        with engine.live(character, pixel_format="nv12", **self._model) as live:
            live.push(np.zeros(round(TRIAL_SECONDS * SAMPLE_RATE), np.float32))
            live.finish()
            frames = 0
            while (surface := live.take()) is not None:
                surface.release()
                frames += 1
            busy = live.batch_seconds / live.batch * frames
        seconds = busy if engine.backend.gpu is not None else time.process_time() - cpu
        self.costs.drawn(name, seconds, frames)
        _log.event("character tried out", character=name, frames=frames, seconds=time.monotonic() - began)

    def _leave(self, seat: Seat) -> None:
        with self._condition:
            self._seats.discard(seat)
            self._condition.notify_all()

    def _watching(self) -> None:
        """End talks whose clients do nothing, and see who is late."""
        while True:
            with self._condition:
                if self._condition.wait_for(lambda: self._closing and not self._seats, WATCH_SECONDS):
                    return
                seats = [seat for seat in self._seats if seat.talk is not None]
            pictures = late = 0
            for seat in seats:
                assert seat.talk is not None
                now = (seat.talk.pictures_given, seat.talk.late + seat.talk.dropped)
                if seat.talk.order.realtime:
                    pictures += now[0] - seat.seen[0]
                    late += now[1] - seat.seen[1]
                seat.seen = now
                seat.talk.check(time.monotonic())
            self._late_share = 0.5 * self._late_share + 0.5 * (late / pictures if pictures else 0.0)

    def _refusal(self, why: str) -> GpupipeError:
        self.refused += 1
        return Refused(why, remedy="ask again later, or another server")

    def _is_closing(self) -> GpupipeError:
        return Refused("the server is being shut down", closing=True, remedy="ask another server")
