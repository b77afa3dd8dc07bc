"""A character's first words, which nobody hears: what drawing it costs, before anybody is let in by that."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Final

import numpy as np

from gpupipe.character.folder import Character
from gpupipe.machine import cpu_count
from gpupipe.options import ModelKeywords
from gpupipe.render.engine import Engine
from gpupipe.speech.mel import SAMPLE_RATE

TRIAL_SECONDS: Final = 2.0
"""Of silence."""

LEAST_SHARE: Final = 0.25
"""Of the time that a batch takes, for which the CPU is busy with it at least: where others' work cannot be told apart
from it, this bounds the cost from below, and all of the cores from above."""


@dataclass(frozen=True)
class Trial:
    """What was drawn.

    Attributes:
        frames: how many.
        frame_seconds: of the device, or of the lane's threads, for each.
        hearing: CPU seconds for the sound.
    """

    frames: int
    frame_seconds: float
    hearing: float

    def cores(self, drawing: float) -> float:
        """CPU seconds a frame, where so many were counted for all of them, some of which may be others'."""
        return min(max(drawing / self.frames, LEAST_SHARE * self.frame_seconds), cpu_count() * self.frame_seconds)


def try_out(engine: Engine, character: Character, model: ModelKeywords) -> Trial:
    """Have a character speak for a while.

    Raises:
        GpupipeError: it cannot.
    """
    with engine.live(character, pixel_format="nv12", **model) as live:
        before = time.thread_time()
        live.push(np.zeros(round(TRIAL_SECONDS * SAMPLE_RATE), np.float32))
        live.finish()
        hearing = time.thread_time() - before
        frames = 0
        while (surface := live.take()) is not None:
            surface.release()
            frames += 1
        return Trial(frames, live.frame_seconds, hearing)
