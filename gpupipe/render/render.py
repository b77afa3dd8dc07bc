"""Rendering: a character and speech in, a finished video, a folder of images, or a stream of frames out."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from gpupipe.character.folder import Character
from gpupipe.colour import PixelFormat
from gpupipe.engine.backend import DeviceChoice, ProviderChoice
from gpupipe.engine.job import Job
from gpupipe.engine.pipeline import Stage
from gpupipe.machine import cpu_count, peak_rss_bytes
from gpupipe.media.encoders import DEFAULT_THREADS, EncoderOptions
from gpupipe.media.images import ImageFormat
from gpupipe.render.output import SEGMENT_FRAMES, OutputOptions, is_video, open_output
from gpupipe.render.plan import Batch, JobOptions, Plan
from gpupipe.trace import COMPOSITE, FINISH, INFER, LOAD, SAVE, StageTimes, Trace


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


def render(
    character: Character | Path | str,
    output: Path | str,
    *,
    features: Path | str | NDArray[np.float32] | None = None,
    audio: Path | str | None = None,
    audio_encoder: Path | str | None = None,
    model: Path | str | None = None,
    device: DeviceChoice = "auto",
    provider: ProviderChoice = "auto",
    batch: int = 8,
    workers: int | None = None,
    frames: int | None = None,
    start_frame: int = 0,
    sound: bool = True,
    encoder: str = "libx264",
    crf: int | None = None,
    preset: str | None = None,
    encoder_threads: int | None = None,
    pixel_format: PixelFormat | None = None,
    image_format: ImageFormat = "jpg",
    jpeg_quality: int = 95,
    segment_frames: int = SEGMENT_FRAMES,
    masked_video: bool = False,
    inference_threads: int | None = None,
    tf32: bool = False,
    fp16: bool = False,
    overwrite: bool = False,
    trace: Trace | None = None,
    progress: Callable[[Progress], None] | None = None,
) -> RenderStats:
    """Render a character speaking into a video or a folder of images.

    Args:
        character: the character, or its folder.
        output: a video (`.mp4`, `.mkv`), or a folder (existing, or ending in `/`) for images.
        features: speech features, float32 `[N, 512]` or a `.npy` file; None for those of `audio`, or the character's
            own.
        audio: the speech, any file that FFmpeg reads; None for the one the character was filmed with.
        audio_encoder: ONNX file that makes features of `audio`; None for the character's own.
        model: ONNX file; None for the character's own.
        device: where to composite; "auto" takes a GPU if there is one.
        provider: where to run the model; "auto" takes the device's.
        batch: frames in a batch; on the CPU no more than the model runs at a time.
        workers: compositing threads on the CPU, and images encoded at a time.
        frames: the most output frames to render.
        start_frame: position in the ping-pong order at which to start.
        sound: put the speech's sound into a video.
        encoder: FFmpeg's name of the video encoder.
        crf: constant quality, lower is better; None for 20 with libx264.
        preset: speed against size, by the encoder's own names; None for veryfast with libx264.
        encoder_threads: encoder threads; None for the same number on every machine.
        pixel_format: "nv12" (the default for video) or "bgr24" (for images).
        image_format: "jpg" or "png".
        jpeg_quality: 1 to 100.
        segment_frames: frames encoded on their own, from a keyframe.
        masked_video: take the model's inputs from the recorded videos.
        inference_threads: CPU threads for the model.
        tf32: let the CUDA provider use TF32.
        fp16: let TensorRT use float16.
        overwrite: replace an existing output.
        trace: collects the times of every stage.
        progress: called after each batch is written, in the encoder's thread.

    Returns:
        What was done, with times.

    Raises:
        GpupipeError: one of its kinds; nothing is left of the output then.
    """
    began = time.perf_counter()
    trace = trace or Trace()
    pixel_format = pixel_format or ("nv12" if is_video(output) else "bgr24")
    options = JobOptions(
        features=features,
        audio=audio,
        audio_encoder=audio_encoder,
        sound=sound and is_video(output),
        model=model,
        device=device,
        provider=provider,
        batch=batch,
        workers=workers,
        frames=frames,
        start_frame=start_frame,
        masked_video=masked_video,
        inference_threads=inference_threads,
        tf32=tf32,
        fp16=fp16,
    )
    options.check()
    writing = OutputOptions(
        encoder=EncoderOptions(encoder, crf, preset, DEFAULT_THREADS if encoder_threads is None else encoder_threads),
        segment_frames=segment_frames,
        image_format=image_format,
        jpeg_quality=jpeg_quality,
        image_workers=workers or cpu_count(),
        overwrite=overwrite,
    )
    character = character if isinstance(character, Character) else Character.load(character)
    plan = Plan.make(character, pixel_format, options)
    sink = open_output(output, character.body, pixel_format, writing, sound=plan.speech.sound)
    try:
        with Job(plan, trace) as job:
            first = time.perf_counter()

            def save(slot: Any, batch: Batch) -> None:
                ready = job.finish(slot, batch)
                with trace.span(SAVE, batch.frames):
                    sink.write(ready)
                if progress:
                    progress(_progress(trace, batch.start + batch.frames, plan.total, time.perf_counter() - first))

            for _ in job.run(Stage(SAVE, save)):
                pass
            with trace.span(FINISH):
                sink.commit()
    except BaseException:
        sink.abort()
        raise
    return _stats(job, output, trace, time.perf_counter() - began)


def frames(
    character: Character | Path | str,
    *,
    features: Path | str | NDArray[np.float32] | None = None,
    audio: Path | str | None = None,
    audio_encoder: Path | str | None = None,
    model: Path | str | None = None,
    device: DeviceChoice = "auto",
    provider: ProviderChoice = "auto",
    batch: int = 8,
    workers: int | None = None,
    frames: int | None = None,
    start_frame: int = 0,
    pixel_format: PixelFormat = "nv12",
    masked_video: bool = False,
    inference_threads: int | None = None,
    tf32: bool = False,
    fp16: bool = False,
    trace: Trace | None = None,
) -> Iterator[NDArray[np.uint8]]:
    """Render a character speaking, frame by frame, for those who show or stream the frames elsewhere.

    Args: as `render`.

    Yields:
        Finished frames in order, uint8: nv12 `[H * 3 // 2, W]` or bgr24 `[H, W, 3]`. Each is the caller's to keep.

    Raises:
        GpupipeError: one of its kinds.
    """
    options = JobOptions(
        features=features,
        audio=audio,
        audio_encoder=audio_encoder,
        sound=False,
        model=model,
        device=device,
        provider=provider,
        batch=batch,
        workers=workers,
        frames=frames,
        start_frame=start_frame,
        masked_video=masked_video,
        inference_threads=inference_threads,
        tf32=tf32,
        fp16=fp16,
    )
    character = character if isinstance(character, Character) else Character.load(character)
    with Job(Plan.make(character, pixel_format, options), trace or Trace()) as job:
        for slot, done in job.run():
            for frame in job.finish(slot, done):
                yield frame.copy()


def _progress(trace: Trace, done: int, total: int, seconds: float) -> Progress:
    infer, composite, save = (trace.mean_ms(*stages) for stages in ((INFER,), COMPOSITE, (SAVE,)))
    return Progress(done, total, seconds, infer, composite, save)


def _stats(job: Job, output: Path | str, trace: Trace, seconds: float) -> RenderStats:
    plan = job.plan
    infer = trace.times(INFER)
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
        load_seconds=trace.times(LOAD).total_seconds,
        fps=plan.total / seconds,
        inference_fps=infer.frames / infer.total_seconds if infer.total_seconds else 0.0,
        stages={"inference": infer, "composite": trace.times(*COMPOSITE), "save": trace.times(SAVE)},
        peak_rss_bytes=peak_rss_bytes(),
        cache_bytes=plan.spec.cache_bytes,
        warnings=plan.character.notes,
        notes=job.backend.notes,
    )
