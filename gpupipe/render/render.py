"""Rendering: a character and speech in, a finished video, a folder of images, or a stream of frames out."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple, Unpack, cast

import numpy as np
from numpy.typing import NDArray

from gpupipe.character.folder import Character
from gpupipe.colour import PixelFormat
from gpupipe.engine.backend import DeviceChoice
from gpupipe.engine.job import Job
from gpupipe.engine.pipeline import Stage
from gpupipe.errors import DeviceError
from gpupipe.machine import cpu_count, peak_rss_bytes
from gpupipe.media.encoders import EncoderOptions
from gpupipe.options import (
    EngineOptions,
    FramesKeywords,
    ModelOptions,
    RenderKeywords,
    SpeechOptions,
    documented,
    split,
)
from gpupipe.render.output import OutputOptions, is_video, open_output
from gpupipe.render.plan import Batch, JobOptions, Plan
from gpupipe.trace import StageTimes, Trace

COMPOSITE = ("prepare", "paste")


class Progress(NamedTuple):
    """How far a render is: frames written of all, seconds since the first batch began, milliseconds a frame so far."""

    done: int
    total: int
    seconds: float
    inference_ms: float
    composite_ms: float
    save_ms: float


@dataclass(frozen=True)
class RenderStats:
    """What a render did.

    Attributes:
        output: the finished file or folder.
        frames: output frames.
        width: pixels.
        height: pixels.
        pixel_format: of the finished frames.
        device: where frames were composited.
        provider: the ONNX Runtime provider that ran the model.
        batch: frames in a batch, as asked for; the CPU takes no more at once than the model runs at a time.
        workers: compositing threads.
        inference_threads: CPU threads for the model.
        total_seconds: the whole render, loading included.
        load_seconds: decoding and caching the character's frames.
        fps: frames over `total_seconds`.
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
    workers: int
    inference_threads: int
    total_seconds: float
    load_seconds: float
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


@documented(RenderKeywords)
def render(
    character: Character | Path | str,
    output: Path | str,
    *,
    trace: Trace | None = None,
    progress: Callable[[Progress], None] | None = None,
    **options: Unpack[RenderKeywords],
) -> RenderStats:
    """Render a character speaking into a video or a folder of images.

    Args:
        character: the character, or its folder.
        output: a video (`.mp4`, `.mkv`), or a folder (existing, or ending in `/`) for images.
        trace: collects the times of every stage.
        progress: called after each batch is written, in the encoder's thread.
        options: see below.

    Returns:
        What was done, with times.

    Raises:
        GpupipeError: one of its kinds; nothing is left of the output then.
    """
    began = time.perf_counter()
    trace = trace or Trace()
    engine, model, speech, writing = split(options, RenderKeywords, by="render()")
    pixel_format: PixelFormat = writing.pixel_format or ("nv12" if is_video(output) else "bgr24")
    files = OutputOptions(
        encoder=EncoderOptions.of(writing),
        segment_frames=writing.segment_frames,
        image_format=writing.image_format,
        jpeg_quality=writing.jpeg_quality,
        image_workers=engine.workers or cpu_count(),
        overwrite=writing.overwrite,
    )
    character = character if isinstance(character, Character) else Character.load(character)
    wanted = _job_options(engine, model, speech, sound=speech.sound and is_video(output))
    plan = Plan.make(character, pixel_format, wanted)
    sink = open_output(output, character.body, pixel_format, files, sound=plan.speech.sound)
    try:
        with Job(plan, trace) as job:
            first = time.perf_counter()

            def save(slot: Any, batch: Batch) -> None:
                ready = job.finish(slot, batch)
                with trace.span("save", batch.frames):
                    sink.write(ready)
                if progress:
                    progress(_progress(trace, batch.start + batch.frames, plan.total, time.perf_counter() - first))

            for _ in job.run(Stage("save", save)):
                pass
            with trace.span("finish"):
                sink.commit()
    except BaseException:
        sink.abort()
        raise
    return _stats(job, output, trace, time.perf_counter() - began)


@documented(FramesKeywords)
def frames(
    character: Character | Path | str,
    *,
    trace: Trace | None = None,
    **options: Unpack[FramesKeywords],
) -> Iterator[NDArray[np.uint8]]:
    """Render a character speaking, frame by frame, for those who show or stream the frames elsewhere.

    Args:
        character: the character, or its folder.
        trace: collects the times of every stage.
        options: see below; the pixel format is nv12 unless told.

    Yields:
        Finished frames in order, uint8: nv12 `[H * 3 // 2, W]` or bgr24 `[H, W, 3]`. Each is the caller's to keep.

    Raises:
        GpupipeError: one of its kinds.
    """
    engine, model, speech, picture = split(options, FramesKeywords, by="frames()")
    wanted = _job_options(engine, model, speech, sound=False)
    character = character if isinstance(character, Character) else Character.load(character)
    with Job(Plan.make(character, picture.pixel_format or "nv12", wanted), trace or Trace()) as job:
        for slot, done in job.run():
            for frame in job.finish(slot, done):
                yield frame.copy()


def _job_options(engine: EngineOptions, model: ModelOptions, speech: SpeechOptions, *, sound: bool) -> JobOptions:
    device = engine.device.removesuffix(":0")
    if device not in ("auto", "cpu", "cuda"):
        raise DeviceError(
            "only the first GPU can be used", field="--device", value=device, remedy="use --device cuda:0"
        )
    return JobOptions(
        features=speech.features,
        audio=speech.audio,
        audio_encoder=speech.audio_encoder,
        sound=sound,
        model=model.model,
        device=cast(DeviceChoice, device),
        provider=model.provider,
        batch=model.batch,
        workers=engine.workers,
        frames=speech.frames,
        start_frame=speech.start_frame,
        masked_video=speech.masked_video,
        inference_threads=model.inference_threads,
        tf32=model.tf32,
        fp16=model.fp16,
    )


def _progress(trace: Trace, done: int, total: int, seconds: float) -> Progress:
    infer, composite, save = (trace.mean_ms(*stages) for stages in (("infer",), COMPOSITE, ("save",)))
    return Progress(done, total, seconds, infer, composite, save)


def _stats(job: Job, output: Path | str, trace: Trace, seconds: float) -> RenderStats:
    plan = job.plan
    infer = trace.times("infer")
    return RenderStats(
        output=str(output),
        frames=plan.total,
        width=plan.spec.width,
        height=plan.spec.height,
        pixel_format=plan.spec.pixel_format,
        device=job.backend.device,
        provider=job.backend.provider,
        batch=plan.options.batch,
        workers=job.workers,
        inference_threads=job.threads,
        total_seconds=seconds,
        load_seconds=trace.times("load").total_seconds,
        fps=plan.total / seconds,
        inference_fps=infer.frames / infer.total_seconds if infer.total_seconds else 0.0,
        stages={"inference": infer, "composite": trace.times(*COMPOSITE), "save": trace.times("save")},
        peak_rss_bytes=peak_rss_bytes(),
        cache_bytes=plan.spec.cache_bytes,
        warnings=plan.character.notes,
        notes=job.backend.notes,
    )
