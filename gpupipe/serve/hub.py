"""The middle of a server: engines, characters, and the talks that are under way."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from gpupipe.character.folder import Character
from gpupipe.log import Log
from gpupipe.machine import cpu_count
from gpupipe.options import MOST_LOAD, EngineKeywords, ModelKeywords
from gpupipe.render.engine import Engine
from gpupipe.serve.characters import Characters
from gpupipe.serve.costs import Costs
from gpupipe.serve.limits import ServeLimits
from gpupipe.serve.loading import LOADING, Loader, NotLoaded
from gpupipe.serve.meter import Spent
from gpupipe.serve.order import TalkOrder
from gpupipe.serve.pool import Pool
from gpupipe.serve.seats import Seat, Seats
from gpupipe.serve.talk import Talk
from gpupipe.threads import Worker

__all__ = ["Hub", "Seat"]

OPENING: Final = 8
"""Talks that are opened at a time, of characters that are there."""

_log = Log(__name__)


class Hub:
    """Characters that speak for many clients at a time. Every method may be called from any thread; those that open,
    load or close something take their time, and are not for the event loop.

    Args:
        folder: of the characters.
        devices: "cpu", "cuda:0", …: an engine for each.
        engine: the engines' other options.
        model: how models are run.
        limits: of clients.
        most_load: of the time there is, what realtime talks may take; 1 lets everybody in.

    Attributes:
        engines: one a device.
        characters: by name.
        costs: what has been measured.
        limits: of clients.
        seats: the talks, and who may come in.
        opening: threads in which talks are opened, for the event loop; see `loading.in_turn`.
        loading: threads in which characters are loaded, likewise, so that nobody waits for another one's character.
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
        self._model = model
        self._numbers = itertools.count(1)
        self.engines: list[Engine] = []
        try:
            self.engines += [Engine(yields=True, **engine | {"device": device}) for device in devices]
            self.characters = Characters(folder, self.engines[0].limits)
        except BaseException:
            for each in self.engines:
                each.close()
            raise
        self.seats = Seats(self.engines, self.costs, self.limits, most_load)
        self.opening = Pool(OPENING, "open")
        self.loading = Pool(LOADING, "load")
        self.hearing = Pool(cpu_count(), "hear")
        self._loader = Loader(self.costs, model, self._spent)
        self._watch = Worker("talks", self._watching)
        self._watch.start()

    @property
    def talks(self) -> list[Talk]:
        """Those that are under way."""
        return self.seats.talks

    @property
    def closing(self) -> bool:
        """Whether no more talks are taken."""
        return self.seats.closing

    @property
    def refused(self) -> int:
        """Talks that were refused so far."""
        return self.seats.refused.total()

    def reserve(self, order: TalkOrder, *, loads: bool = True) -> Seat:
        """Hold a place for talks that are opened one after another, as somebody speaks, with the character loaded. It
        must be given back by `release`.

        Raises: as `open`.
        """
        return self._seated(order, self.characters.get(order.character), loads)

    def release(self, seat: Seat) -> None:
        """Give a place back. More than once is allowed."""
        self.seats.leave(seat)

    @contextmanager
    def guest(self, name: str) -> Iterator[tuple[Engine, Character]]:
        """The engine on which, in the with block, something is drawn of a character that is no talk, without deadlines;
        one of the talks that there may be is fewer meanwhile.

        Raises:
            NotFound: there is no such character.
            Refused: there are as many talks as may be, or the server is being shut down.
        """
        character = self.characters.get(name)
        seat = self.seats.take(TalkOrder(name, "jpeg", realtime=False), character)
        try:
            yield seat.engine, character
        finally:
            self.seats.leave(seat)

    def open(self, order: TalkOrder, reserved: Seat | None = None, *, loads: bool = True) -> Talk:
        """Open a talk.

        Args:
            order: what is asked for.
            reserved: the place that is held for it; None: it needs one.
            loads: whether the character is loaded if it must be.

        Raises:
            NotFound: there is no such character.
            Refused: it would make others late, or there are as many as may be.
            NotLoaded: its character must be loaded first, and `loads` is false.
            GpupipeError: its character cannot be loaded.
        """
        character = self.characters.get(order.character)
        seat = self._seated(order, character, loads) if reserved is None else self.seats.within(reserved)
        try:
            talk = Talk(
                seat.engine,
                character,
                order,
                self.limits,
                self._model,
                number=next(self._numbers),
                ended=lambda _: self.seats.leave(seat),
            )
        except BaseException:
            self.seats.leave(seat)
            raise
        self.seats.give(seat, talk)
        _log.event("talk opened", talk=talk.number, character=order.character, output=order.output)
        return talk

    @property
    def model(self) -> ModelKeywords:
        """How models are run."""
        return self._model

    def load(self, name: str) -> None:
        """Load a character ahead of its first talk, on the engine that has most room.

        Raises:
            NotFound: there is no such character.
            GpupipeError: it cannot be loaded.
        """
        character = self.characters.get(name)
        self._loader.load(name, character, self.seats.pick(character))

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
        return self.seats.load_share()

    def waiting(self) -> dict[str, int]:
        """What waits now: talks to be opened, characters to be loaded, sound to be heard, batches under way."""
        return {
            "opening": self.opening.waiting,
            "loading": self.loading.waiting,
            "hearing": self.hearing.waiting,
            "batches": sum(engine.timetable.under_way for engine in self.engines),
        }

    def close(self, grace: float = 0.0) -> None:
        """Take no more talks, give those that are under way so many seconds to end, and release everything."""
        self.seats.close(grace)
        self._watch.wait()
        self.opening.shutdown(cancel_futures=True)
        self.loading.shutdown(cancel_futures=True)
        self.hearing.shutdown(cancel_futures=True)
        for engine in self.engines:
            engine.close()

    def __enter__(self) -> Hub:
        """Begin a with block, which closes it."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close."""
        self.close()

    def _seated(self, order: TalkOrder, character: Character, loads: bool) -> Seat:
        """A place for a talk, whose character is loaded then. Nothing is loaded, and so nothing evicted, for who is
        refused by what is known; once it is known what the character costs, it is seen again whether there is room."""
        seat = self.seats.take(order, character)
        try:
            if not self._loader.ready(order.character, character, seat.engine):
                if not loads:
                    raise NotLoaded
                self._loader.load(order.character, character, seat.engine)
                self.seats.judge(seat)
        except BaseException:
            self.seats.leave(seat)
            raise
        return seat

    def _spent(self) -> Spent:
        """What was done so far."""
        counts = self.seats.counts()
        frames = {name: each.pictures - each.repeated for name, each in counts.items()}
        return Spent(
            cpu=time.process_time(),
            encoding=sum(self.costs.encoding_seconds().values()),
            hearing=self.hearing.cpu_seconds,
            heard=sum(each.seconds for each in counts.values()),
            frames=frames,
            others=sum(engine.timetable.frames for engine in self.engines) - sum(frames.values()),
        )

    def _watching(self) -> None:
        while self.seats.watch():
            self._loader.meter.look()
