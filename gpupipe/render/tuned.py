"""A job's options with what is tuned in the place of those that were not given."""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace
from typing import Final

from gpupipe.character.folder import Character
from gpupipe.compose.surface import SurfaceFormat
from gpupipe.engine.core import EngineCore
from gpupipe.engine.lane import SLOTS
from gpupipe.engine.order import SessionOrder
from gpupipe.errors import GpupipeError
from gpupipe.machine import cpu_count
from gpupipe.media.encoders import QUALITY_OPTION, EncoderOptions
from gpupipe.options import BATCH, EngineOptions, ModelOptions, OutputOptions
from gpupipe.render.tuning import Settings, Subject, recall

MOST_ENCODERS: Final = 8
"""Of a render, on each of its devices, unless it is told: each has surfaces of its own."""
ROOM_SHARE: Final = 8
"""Surfaces of encoders that nobody asked for take an eighth of what is free at most: the character needs room too."""


@dataclass(frozen=True)
class Tuned:
    """What a job is drawn with.

    Attributes:
        model: its options of the model.
        encoders: of its video.
        workers: threads that composite on the CPU; None: the engine's.
        break_even: how often a frame must be shown for its features to be kept, where the engine leaves it to this;
            None: they are not.
        notes: what was taken from a tuning.
    """

    model: ModelOptions
    encoders: int
    workers: int | None = None
    break_even: float | None = None
    notes: tuple[str, ...] = ()

    def ordered(self, order: SessionOrder) -> SessionOrder:
        """An order of the job, with what is tuned in it."""
        features = self.break_even is not None and order.shown >= self.break_even
        return replace(order, workers=self.workers, features=features)


def tuned(
    engine: EngineCore,
    asked: EngineOptions,
    character: Character,
    model: ModelOptions,
    output: OutputOptions | None = None,
    *,
    jobs: int = 1,
) -> Tuned:
    """What a job is drawn with: what was given, else what is remembered for it, else what suits most machines.

    Args:
        engine: that draws it.
        asked: the engine's options, as they were given.
        character: whom.
        model: the job's options of the model, as they were given.
        output: and those of its video; None: frames or images.
        jobs: see `spare_encoders`.
    """
    writing = output or OutputOptions()
    given = Settings(
        batch=model.batch,
        runs=model.runs,
        encoders=writing.encoders if output is not None else 1,
        workers=asked.workers,
        feature_cache=None if asked.feature_cache is None else "auto",
    )
    notes: tuple[str, ...] = ()
    found, taken = None, Settings()
    subject = Subject.of(engine, character, model, writing.encoder)
    try:
        found = None if subject is None else recall(subject)
    except GpupipeError as error:
        notes = (f"not tuned: {error.on_command_line()}",)
    if found is not None:
        taken = found.settings._replace(**dict.fromkeys(given.known()))
        notes = (f"tuned: {taken} (gpupipe tune, {found.day})",) if taken.known() else ()
    chosen = replace(model, batch=model.batch or taken.batch or BATCH, runs=model.runs or taken.runs)
    encoders = given.encoders or taken.encoders
    if encoders is None:
        frame = SurfaceFormat(writing.pixel_format or "nv12", character.body.width, character.body.height)
        surfaces, gpu = (SLOTS + 1) * (chosen.batch or BATCH), engine.backend.gpu
        room = 0 if gpu is None else min(gpu.free_bytes, asked.max_memory or sys.maxsize) // ROOM_SHARE
        encoders = max(1, min(spare_encoders(model, writing, jobs=jobs), room // (surfaces * frame.nbytes)))
    return Tuned(
        model=chosen,
        encoders=encoders,
        workers=taken.workers,
        break_even=found.break_even if found is not None and taken.feature_cache == "auto" else None,
        notes=notes,
    )


def spare_encoders(model: ModelOptions, writing: OutputOptions, *, jobs: int = 1) -> int:
    """How many encoders keep the cores busy that a GPU leaves free.

    Each takes about as many cores as it has threads. One where the model itself runs on the CPU, or NVENC encodes.

    Args:
        model: the options of the model.
        writing: of the video.
        jobs: that share the cores: jobs at a time on each device, times the devices.
    """
    if model.provider == "cpu" or writing.encoder in QUALITY_OPTION:
        return 1
    return max(1, min(MOST_ENCODERS, cpu_count() // (EncoderOptions.of(writing).threads * jobs)))
