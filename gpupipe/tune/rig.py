"""Engines that stay open, one for each of the settings under comparison, and the time of a short render on them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gpupipe.character.folder import Character
from gpupipe.engine.core import EngineCore
from gpupipe.errors import GpupipeError
from gpupipe.machine import memory_available_bytes
from gpupipe.options import BATCH, ModelOptions, SpeechOptions, TuneKeywords, declared
from gpupipe.render.engine import Engine
from gpupipe.render.plan import Plan
from gpupipe.render.stats import RenderStats
from gpupipe.render.tuning import Settings
from gpupipe.render.write import opened_session
from gpupipe.trace import Trace

FIRST_FRAMES = 16
"""Of the first render, which tells how many frames there is time for."""


class EngineRig:
    """Renders short videos of a character; see `search.Rig`.

    An engine for each settings but the encoders: engines share nothing, so what is measured is what a render gets.

    Args:
        character: whom.
        folder: for the videos, which are rendered over and over.
        options: what a tuning is for.
        encoders: the most that are compared: a video has a segment for each.

    Attributes:
        frames: of a render.
        break_even: how often a frame must be shown for its features to be worth keeping, once it is known.
    """

    def __init__(self, character: Character, folder: Path, options: TuneKeywords, encoders: int) -> None:
        self._character, self._output, self._options = character, folder / "tune.mp4", options
        self._encoders = encoders
        self._model = {name: value for name, value in options.items() if name in declared(ModelOptions)}
        self._engines: dict[Settings, Engine] = {}
        self.frames = FIRST_FRAMES
        self.break_even: float | None = None

    def resize(self, frames: int) -> None:
        """Let renders have so many frames from now on."""
        self.keep([])
        self.frames = frames

    def keep(self, settings: Sequence[Settings]) -> None:
        """See `search.Rig`."""
        wanted = {_alike(each) for each in settings}
        for key in self._engines.keys() - wanted:
            self._engines.pop(key).close()

    def engine(self, settings: Settings) -> Engine:
        """The engine for settings, opened unless it is open."""
        key = _alike(settings)
        if key not in self._engines:
            self._engines[key] = self._open(key)
        return self._engines[key]

    def prepare(self, settings: Settings) -> None:
        """See `search.Rig`. Features that are kept are made by the warming up: a long speech shows frames again."""
        if _alike(settings) in self._engines:
            return
        try:
            engine = self.engine(settings)
            if settings.feature_cache == "auto":
                self.break_even = self._break_even(engine, settings)
            self.render(settings)
        except BaseException:
            opened = self._engines.pop(_alike(settings), None)
            if opened is not None:
                opened.close()
            raise

    def measure(self, settings: Settings) -> float:
        """See `search.Rig`."""
        stats = self.render(settings)
        return stats.total_seconds / stats.frames

    def render(self, settings: Settings) -> RenderStats:
        """One render."""
        options: dict[str, Any] = {
            **{name: value for name, value in self._options.items() if name in ("features", "encoder")},
            **self._model,
            "batch": settings.batch,
            "runs": settings.runs,
            "encoders": settings.encoders,
            "frames": self.frames,
            "segment_frames": -(-self.frames // self._encoders),
        }
        return self.engine(settings).render(self._character, self._output, sound=False, overwrite=True, **options)

    def close(self) -> None:
        """Close every engine."""
        self.keep([])

    def _open(self, settings: Settings) -> Engine:
        keeping = settings.feature_cache == "auto"
        return Engine(
            device=self._options.get("device", "auto"),
            max_memory=self._options.get("max_memory"),
            workers=settings.workers,
            # By size, for "auto" would keep nothing for so short a speech.
            feature_cache=str((memory_available_bytes() or 0) // 4) if keeping else "off",
        )

    def _break_even(self, engine: EngineCore, settings: Settings) -> float:
        """How often a frame must be shown for its features to be worth keeping.

        Raises:
            GpupipeError: they cannot be kept, or never are.
        """
        chosen: dict[str, Any] = self._model | {"batch": settings.batch or BATCH, "runs": settings.runs}
        speech = SpeechOptions(features=self._options.get("features"), frames=self.frames)
        plan = Plan.make(self._character, "nv12", ModelOptions(**chosen), speech, sound=False)
        with opened_session(engine, plan, Trace()) as session:
            split = session.lane.split
            if session.features is None or split is None:
                raise GpupipeError(session.notes[-1])
            found = split.break_even
        if found == float("inf"):
            raise GpupipeError("the model is no faster with them")
        return found


def _alike(settings: Settings) -> Settings:
    """What settings have in common whose renders can share an engine."""
    return settings._replace(encoders=None)
