"""Characters that come onto engines: loaded and tried out apart from the talks of those that are there already."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Final, TypeVar

from gpupipe.character.folder import Character
from gpupipe.log import Log
from gpupipe.options import ModelKeywords
from gpupipe.render.engine import Engine
from gpupipe.serve.costs import Costs
from gpupipe.serve.meter import Meter, Spent
from gpupipe.serve.pool import Pool
from gpupipe.serve.trial import try_out

T = TypeVar("T")

LOADING: Final = 4
"""Characters that are loaded, or tried out, at a time for the event loop."""

_log = Log(__name__)


class NotLoaded(Exception):
    """A character must be loaded first, by a thread that may take its time."""


async def in_turn(opening: Pool, loading: Pool, work: Callable[[bool], T]) -> T:
    """Have something done that may need a character: at once if it is there, else among those that are loaded.

    Args:
        opening: threads that load nothing.
        loading: threads that load.
        work: told whether it may load; raises `NotLoaded` if it may not, and must.
    """
    loop = asyncio.get_running_loop()
    try:
        return await loop.run_in_executor(opening, work, False)
    except NotLoaded:
        return await loop.run_in_executor(loading, work, True)


class Loader:
    """Loads characters, and measures what their frames cost. Every method may be called from any thread.

    Args:
        costs: where it is kept.
        model: how models are run.
        spent: tells what was done so far.

    Attributes:
        meter: keeps the costs as they are, and leaves out the time of loading.
    """

    def __init__(self, costs: Costs, model: ModelKeywords, spent: Callable[[], Spent]) -> None:
        self._costs, self._model, self._told = costs, model, spent
        self._busy = 0
        self._trying, self._counting = threading.Lock(), threading.Lock()
        self.meter = Meter(costs, self._spent)

    def ready(self, name: str, character: Character, engine: Engine) -> bool:
        """Whether an engine has a character, and what a frame costs is known."""
        return engine.holds(character) and self._costs.cores(name) is not None

    def load(self, name: str, character: Character, engine: Engine) -> None:
        """Have a character on an engine, and know what a frame costs.

        Raises:
            GpupipeError: it cannot be loaded, or drawn.
        """
        if self.ready(name, character, engine):
            return
        with self._counted_as_busy():
            if not engine.holds(character):
                engine.load(character, **self._model)
            with self._trying:  # one at a time, so that none is taken for another
                if self._costs.cores(name) is None:
                    self._try_out(name, character, engine)

    def _try_out(self, name: str, character: Character, engine: Engine) -> None:
        """Draw some frames, to see what they cost."""
        before = self._spent()
        trial = try_out(engine, character, self._model)
        done = self._spent().since(before)
        cores = trial.cores(done.drawing - trial.hearing - self.meter.expected(done.frames))
        self._costs.drawn(name, None if engine.backend.gpu is None else trial.frame_seconds, cores)
        _log.event(
            "character tried out",
            character=name,
            frames=trial.frames,
            frame_seconds=trial.frame_seconds,
            cpu_seconds=cores,
        )

    def _spent(self) -> Spent:
        return replace(self._told(), busy=self._busy > 0)

    @contextmanager
    def _counted_as_busy(self) -> Iterator[None]:
        with self._counting:
            self._busy += 1
        try:
            yield
        finally:
            with self._counting:
                self._busy -= 1
