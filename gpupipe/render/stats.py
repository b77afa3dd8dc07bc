"""What is told of a render: how far it is, and what it did."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

from gpupipe.colour import PixelFormat
from gpupipe.engine.session import Session
from gpupipe.machine import cpu_count, peak_rss_bytes
from gpupipe.render.plan import Plan
from gpupipe.trace import COMPOSITE, INFER, LOAD, SAVE, StageTimes, Trace


class Progress(NamedTuple):
    """How far a render is: frames written of all, seconds since its session was opened, milliseconds a frame so far."""

    done: int
    total: int
    seconds: float
    inference_ms: float
    composite_ms: float
    save_ms: float


OnProgress = Callable[[Progress], None]


def progress_of(trace: Trace, done: int, total: int, seconds: float) -> Progress:
    """How far a render is, with times from its trace."""
    infer, composite, save = (trace.mean_ms(*stages) for stages in ((INFER,), COMPOSITE, (SAVE,)))
    return Progress(done, total, seconds, infer, composite, save)


@dataclass(frozen=True)
class RenderStats:
    """What a render did.

    Attributes:
        output: the finished file or folder.
        frames: output frames, of all segments.
        width: pixels.
        height: pixels.
        pixel_format: of the finished frames.
        device: where frames were composited.
        provider: the ONNX Runtime provider that ran the model.
        batch: the most frames in a batch; on the CPU no more than the model runs at a time.
        runs: frames that the model runs at a time; 1 on a GPU.
        workers: compositing threads.
        inference_threads: CPU threads for the model.
        total_seconds: the whole render, loading included.
        load_seconds: opening and loading what was not there yet; frames are drawn while others are decoded.
        first_frame_seconds: from the start of the render to its first finished frame; None if nothing was left to draw.
        fps: frames that were drawn over `total_seconds`; those that were finished before do not count.
        inference_fps: frames over the time spent in the model.
        stages: times of `inference`, `composite` (preparing and pasting) and `save`, milliseconds a frame.
        peak_rss_bytes: the most resident memory of the process.
        cache_bytes: the cached frames.
        warnings: what is odd about the character, but does no harm.
        notes: what was picked on its own, and why.
    """

    output: str
    frames: int
    width: int
    height: int
    pixel_format: PixelFormat
    device: str
    provider: str
    batch: int
    runs: int
    workers: int
    inference_threads: int
    total_seconds: float
    load_seconds: float
    first_frame_seconds: float | None
    fps: float
    inference_fps: float
    stages: dict[str, StageTimes]
    peak_rss_bytes: int
    cache_bytes: int
    warnings: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """The same as plain JSON values."""
        return asdict(self) | {"stages": {name: times._asdict() for name, times in self.stages.items()}}


def stats_of(
    plan: Plan,
    session: Session,
    output: Path | str,
    device: str,
    workers: int,
    notes: tuple[str, ...],
    seconds: float,
    drawn: int,
    first_frame_seconds: float | None,
) -> RenderStats:
    """What a finished render did, of whose frames so many had to be drawn."""
    trace, spec, lane = session.trace, plan.order.spec, session.lane
    infer = trace.times(INFER)
    return RenderStats(
        output=str(output),
        frames=plan.total,
        width=spec.width,
        height=spec.height,
        pixel_format=spec.pixel_format,
        device=device,
        provider=lane.model.provider,
        batch=lane.batch,
        runs=lane.model.runs,
        workers=min(plan.order.workers or workers, lane.batch),
        inference_threads=plan.order.options.inference_threads or cpu_count(),
        total_seconds=seconds,
        load_seconds=trace.extent(LOAD),
        first_frame_seconds=first_frame_seconds,
        fps=drawn / seconds,
        inference_fps=infer.frames / infer.total_seconds if infer.total_seconds else 0.0,
        stages={"inference": infer, "composite": trace.times(*COMPOSITE), "save": trace.times(SAVE)},
        peak_rss_bytes=peak_rss_bytes(),
        cache_bytes=min(spec.cache_bytes, session.frames.cache_bytes),
        warnings=plan.character.notes,
        notes=(*notes, *plan.notes, *session.notes),
    )
