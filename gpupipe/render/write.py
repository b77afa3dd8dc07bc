"""One render on an engine: a session, and the file or folder that its frames go into."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from gpupipe.character.folder import Character
from gpupipe.colour import PixelFormat
from gpupipe.engine.core import EngineCore
from gpupipe.engine.session import Session
from gpupipe.options import ModelOptions, OutputOptions, SpeechOptions
from gpupipe.render.output import is_video, open_output
from gpupipe.render.plan import Plan
from gpupipe.render.stats import OnProgress, RenderStats, progress_of, stats_of
from gpupipe.speech.rows import SpeechRows
from gpupipe.trace import FINISH, SAVE, Trace

JobOptions = tuple[ModelOptions, SpeechOptions, OutputOptions]


def write(
    engine: EngineCore,
    character: Character,
    output: Path | str,
    options: JobOptions,
    *,
    workers: int,
    notes: tuple[str, ...] = (),
    trace: Trace | None = None,
    progress: OnProgress | None = None,
    opened: Callable[[Session], None] | None = None,
) -> RenderStats:
    """Render a character speaking into a video or a folder of images.

    Args:
        engine: that draws it.
        character: whom.
        output: where.
        options: of the model, the speech and the output.
        workers: images encoded at a time.
        notes: what was picked on its own before.
        trace: collects the times of every stage.
        progress: called after each frame is written.
        opened: given the session once there is one.

    Raises:
        GpupipeError: one of its kinds; nothing is left of the output then.
    """
    began = time.perf_counter()
    trace = trace or Trace()
    model, said, writing = options
    video = is_video(output)
    pixel_format = pixel_format_of(writing, video=video)
    plan = Plan.make(character, pixel_format, model, said, sound=said.sound and video)
    gpu = engine.backend.gpu
    sink = open_output(
        output,
        character.body,
        pixel_format,
        writing,
        workers=workers,
        sound=plan.speech.sound,
        gpu=None if gpu is None else gpu.index,
    )
    try:
        with opened_session(engine, plan, trace) as session:
            if opened is not None:
                opened(session)
            first = time.perf_counter()
            for surface in session:
                with trace.span(SAVE, 1):
                    sink.write(surface)
                if progress is not None:
                    progress(progress_of(trace, surface.index + 1, plan.total, time.perf_counter() - first))
            with trace.span(FINISH):
                sink.commit()
    except BaseException:
        sink.abort()
        raise
    return stats_of(plan, session, output, engine.backend.name, workers, notes, time.perf_counter() - began)


def pixel_format_of(options: OutputOptions, *, video: bool) -> PixelFormat:
    """The pixel format of finished frames: what was asked for, else nv12 for a video and bgr24 for images."""
    return options.pixel_format or ("nv12" if video else "bgr24")


@contextmanager
def opened_session(engine: EngineCore, plan: Plan, trace: Trace) -> Iterator[Session]:
    """The session of a plan, for as long as a with block lasts."""
    with engine.open_session(
        plan.order, lambda open_encoder: SpeechRows(plan.speech.rows(open_encoder)), trace=trace
    ) as session:
        yield session
