"""Rendering in one call: an engine with one session."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Unpack, cast

import numpy as np
from numpy.typing import NDArray

from gpupipe.options import FramesKeywords, JobFramesKeywords, RenderKeywords, divided, documented
from gpupipe.render.engine import AnyCharacter, Engine
from gpupipe.render.stats import OnProgress, RenderStats
from gpupipe.trace import Trace


@documented(RenderKeywords)
def render(
    character: AnyCharacter,
    output: Path | str,
    *,
    trace: Trace | None = None,
    progress: OnProgress | None = None,
    **options: Unpack[RenderKeywords],
) -> RenderStats:
    """Render a character speaking into a video or a folder of images.

    Args:
        character: the character, or its folder.
        output: a video (`.mp4`, `.mkv`), or a folder (existing, or ending in `/`) for images.
        trace: collects the times of every stage.
        progress: called after each frame is written.

    Returns:
        What was done, with times.

    Raises:
        GpupipeError: one of its kinds; nothing is left of the output then.
    """
    engine_options, job_options = divided(options, RenderKeywords, by="render()")
    devices = engine_options.get("device", "auto").split(",")
    with ExitStack() as closing:
        engine, *others = (
            closing.enter_context(Engine(parallel=1, **engine_options | {"device": device})) for device in devices
        )
        return engine.render(character, output, beside=others, trace=trace, progress=progress, **job_options)


@documented(FramesKeywords)
def frames(
    character: AnyCharacter, *, trace: Trace | None = None, **options: Unpack[FramesKeywords]
) -> Iterator[NDArray[np.uint8]]:
    """Render a character speaking, frame by frame, for those who show or stream the frames elsewhere.

    Args:
        character: the character, or its folder.
        trace: collects the times of every stage.

    Yields:
        Finished frames in order, uint8: nv12 `[H * 3 // 2, W]` or bgr24 `[H, W, 3]`. Each is the caller's to keep.

    Raises:
        GpupipeError: one of its kinds.
    """
    engine_options, job_options = divided(options, FramesKeywords, by="frames()")
    with Engine(**engine_options) as engine:
        yield from engine.frames(character, trace=trace, **cast(JobFramesKeywords, job_options))
