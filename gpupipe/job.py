"""One rendering job: everything opened and cached, and the stages that turn batches into finished frames."""

from __future__ import annotations

import warnings
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, get_args

import numpy as np
from numpy.typing import NDArray

from gpupipe import pipeline
from gpupipe.backend import BackendOptions, DeviceChoice, ProviderChoice, Reader, open_backend
from gpupipe.character import Character, GpupipeWarning, read_features
from gpupipe.compositor import MAX_BATCH, PixelFormat
from gpupipe.errors import InferenceError, OptionError, PackageError
from gpupipe.frame_cache import FrameSpec
from gpupipe.geometry import SPEECH_WIDTH, frame_order
from gpupipe.gpu_clock import GpuClock
from gpupipe.inference import Model, Signature
from gpupipe.machine import cpu_count
from gpupipe.pipeline import Item, Stage
from gpupipe.trace import Trace
from gpupipe.video import read_frames


@dataclass(frozen=True)
class JobOptions:
    """What to render, and on what.

    Attributes:
        features: speech features, float32 `[N, 512]` or the path of a `.npy` file; None for the character's own.
        model: ONNX file; None for the character's own.
        device: where to composite.
        provider: where to run the model.
        batch: frames in a batch.
        workers: compositing threads on the CPU; None for one a core, 4 at most.
        frames: the most output frames to render; None for as many as there are rows of features.
        start_frame: position in the ping-pong order at which to start.
        masked_video: take the model's inputs from the recorded videos instead of masking the crops.
        inference_threads: CPU threads for the model; None for one a core.
        tf32: let the CUDA provider use TF32.
        fp16: let TensorRT use float16.
    """

    features: Path | str | NDArray[np.float32] | None = None
    model: Path | str | None = None
    device: DeviceChoice = "auto"
    provider: ProviderChoice = "auto"
    batch: int = 8
    workers: int | None = None
    frames: int | None = None
    start_frame: int = 0
    masked_video: bool = False
    inference_threads: int | None = None
    tf32: bool = False
    fp16: bool = False

    def check(self) -> None:
        """Raise an OptionError for a number that is out of range, or a choice that there is not."""
        OptionError.unless_within("--batch", self.batch, 1, MAX_BATCH)
        OptionError.unless_within("--workers", self.workers, 1, 1024)
        OptionError.unless_within("--frames", self.frames, 1, 1 << 31)
        OptionError.unless_within("--start-frame", self.start_frame, 0, 1 << 31)
        OptionError.unless_within("--inference-threads", self.inference_threads, 1, 1024)
        OptionError.unless_among("--device", self.device, get_args(DeviceChoice))
        OptionError.unless_among("--provider", self.provider, get_args(ProviderChoice))


class Batch(NamedTuple):
    """Output frames `start` to `start + frames`; the arrays are padded to the full batch size."""

    start: int
    frames: int
    source: NDArray[np.int32]
    speech: NDArray[np.int32]


class Job:
    """A job, ready to run. A context manager: leaving it releases models, threads and buffers.

    Args:
        character: whom to render.
        pixel_format: of the finished frames.
        options: what to render, and on what.
        trace: where times go.

    Attributes:
        total: output frames.
        spec: the finished frames' shape and the cached frames' sizes.
        backend: what it runs on.
        workers: compositing threads.
        warnings: what is odd about the character.
    """

    def __init__(self, character: Character, pixel_format: PixelFormat, options: JobOptions, trace: Trace) -> None:
        options.check()
        OptionError.unless_among("--pixel-format", pixel_format, get_args(PixelFormat))
        self.options, self.trace = options, trace
        features = load_features(character, options.features)
        self.total = min(options.frames or len(features), len(features))
        self.order = frame_order(self.total, *_available(character, options))
        self.spec = _spec(character, pixel_format, int(self.order.max()) + 1, options.masked_video)
        self.workers = min(options.workers or min(4, cpu_count()), options.batch)
        self.threads = options.inference_threads or cpu_count()
        with self.trace.span("load", self.spec.count):
            self.backend = open_backend(
                self.spec,
                features,
                lambda: frame_readers(character, self.spec),
                BackendOptions(
                    model=character.model_path if options.model is None else Path(options.model),
                    device=options.device,
                    provider=options.provider,
                    batch=options.batch,
                    workers=self.workers,
                    inference_threads=self.threads,
                    tf32=options.tf32,
                    fp16=options.fp16,
                    check_model=lambda model: check_model_size(model, character),
                ),
            )
        self.warnings = character.notes
        self._compositor, self._model = self.backend.compositor, self.backend.model
        self._bindings = {id(s): self._model.bind(s.visual, s.audio, s.prediction) for s in self.backend.slots}
        self._clock: GpuClock | None = None
        if self.backend.gpu is not None:
            trace.marker = trace.marker or self.backend.gpu.marker
            self._clock = GpuClock(self.backend.gpu, trace, model_on_device=self.backend.provider != "cpu")
            for slot in self.backend.slots:
                self._clock.add(slot)

    def run(self, *more: Stage[Any, Batch]) -> Generator[Item[Any, Batch], None, None]:
        """Do the job; `more` stages follow the compositing of each batch, each in its own thread.

        Yields:
            Each batch in order, with its slot; `finish` gives the frames.

        Raises:
            InferenceError: the model failed.
        """
        stages = [Stage("prepare", self._prepare), Stage("infer", self._infer), Stage("paste", self._paste)]
        if self.backend.gpu is not None:
            # On a GPU these only queue work: one thread keeps the stream in order.
            stages = [Stage("compute", self._compute)]
        yield from pipeline.run(self._batches(), self.backend.slots, [*stages, *more])

    def finish(self, slot: Any, batch: Batch) -> NDArray[np.uint8]:
        """Wait for the frames of a slot.

        Returns:
            uint8 `[n, *frame_shape]`, valid until the slot is used again.

        Raises:
            InferenceError: the model gave NaN.
        """
        has_nan = self._compositor.finish(slot)[: batch.frames]
        if self._clock is not None:
            self._clock.collect(slot, batch.frames)
        if has_nan.any():
            raise InferenceError(
                "the model gave NaN",
                file=self._model.path,
                field=f"output frame {batch.start + int(np.argmax(has_nan))}",
                remedy="check the model and the features; a float16 export may overflow",
            )
        frames: NDArray[np.uint8] = slot.frames[: batch.frames]
        return frames

    def close(self) -> None:
        """Release everything."""
        self._bindings.clear()
        self.backend.close()

    def __enter__(self) -> Job:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _batches(self) -> Iterator[Batch]:
        size = self.options.batch
        for start in range(0, self.total, size):
            # The tail is padded with the last frame: one batch size for the whole render.
            frames = np.minimum(np.arange(start, start + size), self.total - 1).astype(np.int32)
            yield Batch(start, min(size, self.total - start), self.order[frames], frames)

    def _prepare(self, slot: Any, batch: Batch) -> None:
        with self._step("prepare", slot, batch):
            self._compositor.prepare(slot, batch.source, batch.speech)

    def _infer(self, slot: Any, batch: Batch) -> None:
        self._compositor.ready(slot)
        with self._step("infer", slot, batch):
            self._model.run(self._bindings[id(slot)])

    def _paste(self, slot: Any, batch: Batch) -> None:
        with self._step("paste", slot, batch):
            self._compositor.paste(slot)

    def _compute(self, slot: Any, batch: Batch) -> None:
        self._prepare(slot, batch)
        self._infer(slot, batch)
        self._paste(slot, batch)

    @contextmanager
    def _step(self, name: str, slot: Any, batch: Batch) -> Iterator[None]:
        """Time a step: by the host's clock if the host does it, by the GPU's if it is only queued."""
        if self._clock is None or (name == "infer" and self.backend.provider == "cpu"):
            with self.trace.span(name, batch.frames):
                yield
        else:
            self._clock.mark(slot, name, end=False)
            with self.trace.span(f"queue {name}"):
                yield
            self._clock.mark(slot, name, end=True)


def load_features(character: Character, features: Path | str | NDArray[np.float32] | None) -> NDArray[np.float32]:
    """Speech features from an array, a file, or the character's own, float32 `[N, 512]`.

    Raises:
        PackageError: they are missing or wrong.
    """
    if not isinstance(features, np.ndarray):
        return read_features(character.features_path if features is None else Path(features))
    if features.dtype != np.float32 or features.ndim != 2 or features.shape[1] != SPEECH_WIDTH or not len(features):
        raise PackageError(
            "wrong shape or type",
            field="features",
            value=f"{features.dtype} {features.shape}",
            remedy=f"give float32 [N, {SPEECH_WIDTH}]",
        )
    if not np.isfinite(features).all():
        raise PackageError("holds NaN or infinity", field="features", remedy="compute the features again")
    return features


def check_model_size(model: Model | Signature, character: Character) -> None:
    """Raise an InferenceError if the model does not fit the character's crops."""
    if model.size not in (None, character.layout.model_size):
        raise InferenceError(
            f"the model is for {model.size}x{model.size} images, the crops "
            f"({character.layout.crop_size}x{character.layout.crop_size}) hold {character.layout.model_size}",
            file=model.path,
            field="model",
            remedy="use the model that belongs to the character",
        )


def _available(character: Character, options: JobOptions) -> tuple[int, int]:
    """Frames that can be used, and the position at which to start."""
    count = character.count
    if options.masked_video:
        if character.recorded is None:
            raise PackageError(
                "the recorded model inputs are missing",
                file=character.path,
                field="--masked-video",
                remedy="add rois_320_video.mp4 and model_inputs_video.mp4, or leave --masked-video out",
            )
        shortest = min(info.frames for info in character.recorded)
        if shortest < count:
            note = f"{character.path}: recorded model inputs end after {shortest} of {count} frames; those are used"
            warnings.warn(note, GpupipeWarning, stacklevel=4)
            count = shortest
    if options.start_frame >= count:
        raise OptionError(
            f"the character has {count} frames",
            field="--start-frame",
            value=options.start_frame,
            remedy=f"give 0 to {count - 1}",
        )
    return count, options.start_frame


def _spec(character: Character, pixel_format: PixelFormat, count: int, recorded: bool) -> FrameSpec:
    body = character.body
    if pixel_format == "nv12" and (body.width % 2 or body.height % 2):
        raise PackageError(
            "nv12 needs an even width and height",
            file=body.path,
            field="size",
            value=f"{body.width}x{body.height}",
            remedy="write images with --pixel-format bgr24, or crop the body video",
        )
    return FrameSpec(
        layout=character.layout,
        pixel_format=pixel_format,
        width=body.width,
        height=body.height,
        rects=character.rects[:count],
        colour=body.colour,
        recorded=recorded,
    )


def frame_readers(character: Character, spec: FrameSpec) -> tuple[Reader, Reader, Reader | None]:
    """Readers of the body, the crops, and the recorded inputs (or None), as `HostFrames.load` takes them."""
    body = read_frames(character.body.path, spec.pixel_format, spec.count)
    crops = read_frames(character.crops.path, "bgr24", spec.count)
    if not spec.recorded or character.recorded is None:
        return body, crops, None
    roi, masked = (read_frames(info.path, "bgr24", spec.count) for info in character.recorded)
    return body, crops, (np.concatenate(pair, axis=2) for pair in zip(roi, masked, strict=True))
