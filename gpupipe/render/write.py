"""One render: sessions on one engine or several, and the file or folder that their frames go into."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import copy_context
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from gpupipe.character.folder import Character
from gpupipe.colour import PixelFormat
from gpupipe.engine.core import EngineCore
from gpupipe.engine.session import Session
from gpupipe.errors import Cancelled
from gpupipe.log import Log, job
from gpupipe.options import OutputOptions, SpeechOptions
from gpupipe.render.fingerprint import fingerprint
from gpupipe.render.manifest import Manifest
from gpupipe.render.output import Output, Writer, is_video, open_output
from gpupipe.render.plan import Plan
from gpupipe.render.segments import Segments
from gpupipe.render.stats import OnProgress, RenderStats, progress_of, stats_of
from gpupipe.render.tuned import Tuned
from gpupipe.speech.rows import SpeechRows
from gpupipe.speech.speech import OpenEncoder
from gpupipe.threads import Worker, join_started, start_and_wait
from gpupipe.trace import FINISH, SAVE, Trace

_log = Log(__name__)

JobOptions = tuple[Tuned, SpeechOptions, OutputOptions]


def write(
    engines: Sequence[EngineCore],
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

    Each encoder has a session on one of the engines, and takes a segment whenever it is done with one.

    Args:
        engines: that draw it.
        character: whom.
        output: where.
        options: of the model, and what else is tuned; of the speech; of the output.
        workers: images encoded at a time.
        notes: what was picked on its own before.
        trace: collects the times of every stage.
        progress: called after each frame is written.
        opened: given each session once there is one.

    Raises:
        GpupipeError: one of its kinds; nothing has the output's name then, and what is finished of it is kept beside
            it, for `resume`.
    """
    with job(str(output)), _log.timed("render ended", character=character.path) as told:
        _log.event("render begun", character=character.path)
        stats = _write(engines, character, output, options, workers, notes, trace or Trace(), progress, opened)
        told |= {"frames": stats.frames, "fps": stats.fps, "notes": stats.notes}
        return stats


def outline(
    engines: Sequence[EngineCore], character: Character, output: Path | str, options: JobOptions
) -> tuple[Plan, Manifest]:
    """What a render would draw, and what its output is known again by; see `write`.

    Raises:
        GpupipeError: one of its kinds.
    """
    tuned, said, writing = options
    video = is_video(output)
    pixel_format = pixel_format_of(writing, video=video)
    plan = Plan.make(character, pixel_format, tuned.model, said, sound=said.sound and video)
    plan = replace(plan, order=tuned.ordered(plan.order))
    manifest = Manifest(
        fingerprint(plan, tuned.model, said, writing, engines, video=video),
        plan.total,
        writing.segment_frames,
        fps=str(character.body.fps) if video else None,
        sound=None if plan.speech.sound is None else str(plan.speech.sound.resolve()),
    )
    return plan, manifest


def _write(
    engines: Sequence[EngineCore],
    character: Character,
    output: Path | str,
    options: JobOptions,
    workers: int,
    notes: tuple[str, ...],
    trace: Trace,
    progress: OnProgress | None,
    opened: Callable[[Session], None] | None,
) -> RenderStats:
    began = time.perf_counter()
    tuned, _, writing = options
    plan, manifest = outline(engines, character, output, options)
    video, pixel_format = is_video(output), plan.order.spec.pixel_format
    segments = Segments(plan.total, writing.segment_frames, writing.segments)
    sink = open_output(
        output,
        character.body,
        pixel_format,
        writing,
        segments=segments,
        manifest=manifest,
        workers=workers,
        sound=plan.speech.sound,
        gpus=[engine.backend.gpu for engine in engines],
    )
    drawn, chosen = (segments.count_outputs(some) for some in (segments.left, segments.chosen))
    try:
        left = [segments.outputs(number) for number in segments.left] or [range(1)]
        plan = replace(plan, order=plan.order.needing(left))
        takers = _Takers(plan, segments, sink, trace, progress, opened)
        each = tuned.encoders if video else 1
        takers.run([engine for _ in range(each) for engine in engines][: max(1, len(segments.left))])
        with trace.span(FINISH):
            if writing.segments is None:
                sink.commit()
            else:
                sink.leave()
    except BaseException:
        sink.leave()
        raise
    device = ", ".join(dict.fromkeys(engine.backend.name for engine in engines))
    notes = (*notes, *tuned.notes, *sink.notes)
    if drawn < chosen:
        notes += (f"{chosen - drawn} of {chosen} frames were finished before",)
    if writing.segments is not None:
        notes += (f"segments {writing.segments} of {len(segments.all)}, kept for `gpupipe join`",)
    first = None if takers.first_drawn is None else takers.first_drawn - began
    seconds = time.perf_counter() - began
    return stats_of(plan, takers.first, output, device, workers, notes, seconds, drawn, first)


class _Takers:
    """Who takes the frames of a render: one thread for each encoder, the caller's own if there is one.

    Attributes:
        first_drawn: when the first finished frame came, seconds of `time.perf_counter`.
    """

    def __init__(
        self,
        plan: Plan,
        segments: Segments,
        sink: Output,
        trace: Trace,
        progress: OnProgress | None,
        opened: Callable[[Session], None] | None,
    ) -> None:
        self._plan, self._segments, self._sink, self._trace = plan, segments, sink, trace
        self._progress, self._opened = progress, opened
        self._lock = threading.Lock()
        self._sessions: list[Session] = []
        self._error: BaseException | None = None
        self._written = segments.total - segments.count_outputs(segments.left)
        self._began = 0.0
        self._shared = False
        self.first_drawn: float | None = None
        self._features: NDArray[np.float32] | None = None
        self._encoding = threading.Lock()

    @property
    def first(self) -> Session:
        """The session that was opened first."""
        return self._sessions[0]

    def run(self, engines: Sequence[EngineCore]) -> None:
        """Take every frame, with an encoder on each of the engines named.

        Raises:
            GpupipeError: the first that any of them raised, once all have ended.
        """
        self._shared = len(engines) > 1
        if not self._shared:
            self._take(engines[0], self._writer(engines[0]))
            return
        threads = [
            # In a copy of the context, with the log's job.
            Worker("encode", copy_context().run, self._take_alone, engine, self._writer(engine))
            for engine in engines
        ]
        try:
            start_and_wait(threads)
        except BaseException as error:
            self._fail(error)
            raise
        finally:
            join_started(threads)
        if self._error is not None:
            raise self._error

    def _writer(self, engine: EngineCore) -> Writer:
        return self._sink.writer(engine.backend.gpu)

    def _take_alone(self, engine: EngineCore, writer: Writer) -> None:
        try:
            self._take(engine, writer)
        except BaseException as error:
            self._fail(error)

    def _take(self, engine: EngineCore, writer: Writer) -> None:
        try:
            order = replace(
                self._plan.order,
                segments=self._segments.take,
                shared=self._shared,
                on_host=writer.on_host,
                kept=writer.kept,
            )
            with engine.open_session(order, self._speech, trace=self._trace) as session:
                self._enter(session)
                for surface in session:
                    self.first_drawn = self.first_drawn or time.perf_counter()
                    try:
                        with self._trace.span(SAVE, 1):
                            writer.write(surface)
                    except BaseException:
                        writer.abort()  # first: until then a frame may still be read
                        surface.release()
                        raise
                    self._tell()
                with self._trace.span(FINISH):  # before the session gives back the memory that is encoded from
                    writer.close()
        except BaseException:
            writer.abort()
            raise

    def _speech(self, open_encoder: OpenEncoder) -> SpeechRows:
        """What the character says, made once for all sessions."""
        with self._encoding:
            if self._features is None:
                self._features = self._plan.speech.rows(open_encoder)
        return SpeechRows(self._features)

    def _enter(self, session: Session) -> None:
        with self._lock:
            self._sessions.append(session)
            self._began = self._began or time.perf_counter()
            error = self._error
        if error is not None:
            session.fail(Cancelled("another encoder of this render has failed"))
        elif self._opened is not None:
            self._opened(session)

    def _fail(self, error: BaseException) -> None:
        """Let the others end too."""
        with self._lock:
            if self._error is None:
                self._error = error
            sessions = list(self._sessions)
        for session in sessions:
            session.fail(Cancelled("another encoder of this render has failed"))

    def _tell(self) -> None:
        with self._lock:
            self._written += 1
            if self._progress is not None:
                seconds = time.perf_counter() - self._began
                self._progress(progress_of(self._trace, self._written, self._plan.total, seconds))


def pixel_format_of(options: OutputOptions, *, video: bool) -> PixelFormat:
    """The pixel format of finished frames: what was asked for, else nv12 for a video and bgr24 for images."""
    return options.pixel_format or ("nv12" if video else "bgr24")


@contextmanager
def opened_session(engine: EngineCore, plan: Plan, trace: Trace) -> Iterator[Session]:
    """A session that draws all of a plan, for as long as a with block lasts."""

    def speech(open_encoder: OpenEncoder) -> SpeechRows:
        return SpeechRows(plan.speech.rows(open_encoder))

    with engine.open_session(plan.order, speech, trace=trace) as session:
        yield session
