"""Where a job runs: the model and the compositor, opened on the CPU or on a GPU."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from gpupipe.compose.cpu import CpuCompositor
from gpupipe.compose.device_frames import DeviceFrames
from gpupipe.compose.frames import FrameSpec, HostFrames
from gpupipe.compose.gpu import GpuCompositor, model_shapes
from gpupipe.errors import DeviceError, OptionError, ProviderError
from gpupipe.geometry import CropLayout
from gpupipe.gpu.device import Device, open_device
from gpupipe.machine import cache_folder
from gpupipe.model.model import Model
from gpupipe.model.runtime import Provider, SessionOptions

DeviceChoice = Literal["auto", "cpu", "cuda"]
ProviderChoice = Literal["auto", "cpu", "cuda", "tensorrt"]

HOST_SLOTS = 3
"""Batches under way on the CPU: one is inferred, one is pasted or encoded, one is prepared."""
DEVICE_SLOTS = 3
"""Batches under way on a GPU: one is computed, one is copied to the host, one is encoded."""

SPARE_BYTES = 64_000_000
"""Device memory that a job leaves free: the driver rounds every allocation up to whole pages, and keeps some itself."""

Reader = Iterator[NDArray[np.uint8]]


@dataclass
class Backend:
    """What a job runs on, opened. Close it to release everything.

    Attributes:
        device: "cpu", or "cuda" and the name of the GPU.
        provider: the execution provider in use.
        model: the lip-sync model.
        compositor: a `compositor.Compositor`.
        slots: the buffers of the batches under way.
        batch: frames in each of them.
        gpu: the GPU, or None.
        notes: what was picked on its own, and why.
    """

    device: str
    provider: Provider
    model: Model
    compositor: Any
    slots: list[Any]
    batch: int
    gpu: Device | None = None
    notes: tuple[str, ...] = ()
    closing: ExitStack = field(default_factory=ExitStack)

    def close(self) -> None:
        """Release models, threads and buffers."""
        self.slots.clear()
        self.closing.close()


@dataclass(frozen=True)
class BackendOptions:
    """How to open a backend.

    Attributes:
        model: the ONNX file.
        device: where to composite.
        provider: where to run the model.
        batch: frames in a batch; on the CPU no more than the model runs at a time.
        workers: compositing threads on the CPU.
        inference_threads: CPU threads for the model.
        tf32: let the CUDA provider use TF32.
        fp16: let TensorRT use float16.
        check_model: raises for a model that does not fit the character.
    """

    model: Path
    device: DeviceChoice
    provider: ProviderChoice
    batch: int
    workers: int
    inference_threads: int
    tf32: bool
    fp16: bool
    check_model: Callable[[Model], None]


def open_backend(
    spec: FrameSpec,
    features: Callable[[SessionOptions], NDArray[np.float32]],
    readers: Callable[[], tuple[Reader, Reader, Reader | None]],
    options: BackendOptions,
) -> Backend:
    """Open the model and the compositor, and cache the character's frames where they are composited.

    Args:
        spec: the frames to cache.
        features: makes the speech features, float32 `[N, 512]`, with the model's own session options.
        readers: opens the body's, the crops' and the recorded inputs' frames.
        options: how.

    Raises:
        DeviceError: the GPU that was asked for cannot be used, or its memory does not suffice.
        InferenceError: the model, or the provider that was asked for, cannot be opened.
    """
    gpu, notes = _pick_device(options)
    with ExitStack() as closing:
        model, more = _open_model(options, gpu)
        closing.callback(model.close)
        options.check_model(model)
        speech = features(model.options)
        batch = options.batch
        if gpu is None:
            # No more frames than the model runs at a time: what one step has written is still in the processor's
            # cache when the next one reads it.
            batch = min(batch, model.runs * model.chunk)
            compositor: Any = CpuCompositor(
                HostFrames.load(spec, *readers()),
                speech,
                batch=batch,
                dtype=model.dtype,
                workers=options.workers,
            )
        else:
            placed: dict[str, Any] = {
                "batch": batch,
                "dtype": model.dtype,
                "model_on_device": model.provider != "cpu",
            }
            if placed["model_on_device"]:
                warm_up(model, gpu, spec.layout, batch)
            wanted = GpuCompositor.bytes_wanted(spec, slots=DEVICE_SLOTS, speech_rows=len(speech), **placed)
            frames = DeviceFrames.load(gpu, spec, *readers(), others=wanted | {"spare": SPARE_BYTES})
            closing.callback(frames.close)
            compositor = GpuCompositor(gpu, frames, speech, **placed)
        closing.callback(compositor.close)
        slots = [compositor.new_slot() for _ in range(HOST_SLOTS if gpu is None else DEVICE_SLOTS)]
        name = "cpu" if gpu is None else f"cuda ({gpu.name})"
        return Backend(name, model.provider, model, compositor, slots, batch, gpu, (*notes, *more), closing.pop_all())
    raise AssertionError("unreachable")


def warm_up(model: Model, gpu: Device, layout: CropLayout, batch: int) -> None:
    """Run a model that runs on the device, so that the memory that it works in is no longer counted as free.

    ONNX Runtime takes that memory as it runs, and keeps it. Searching for algorithms and loading kernels, which the
    first runs do too, is done then as well.

    Raises:
        DeviceMemoryError: the GPU's memory does not suffice.
        InferenceError: the model failed.
    """
    buffers = [gpu.empty(shape, model.dtype, "the model's buffers") for shape in model_shapes(layout, batch)]
    try:
        for buffer in buffers:
            buffer.data.memset_async(0, buffer.nbytes, gpu.compute_stream)
        bound = model.bind(*buffers)
        for _ in range(2):
            model.run(bound)
    finally:
        gpu.synchronize()


def _pick_device(options: BackendOptions) -> tuple[Device | None, tuple[str, ...]]:
    if options.device == "cpu":
        return None, ()
    try:
        return open_device(), ()
    except DeviceError as error:
        if options.device == "cuda":
            raise
        return None, (f"compositing on the CPU: {error}",)


def _open_model(options: BackendOptions, gpu: Device | None) -> tuple[Model, tuple[str, ...]]:
    def opened(provider: Provider) -> Model:
        settings = SessionOptions(
            provider,
            threads=options.inference_threads,
            device_id=0 if gpu is None else gpu.index,
            stream=None if gpu is None else int(gpu.compute_stream.ptr),
            tf32=options.tf32,
            fp16=options.fp16,
            engine_cache=cache_folder() / "tensorrt",
        )
        return Model(options.model, settings, batch=options.batch)

    if gpu is None:
        if options.provider not in ("auto", "cpu"):
            raise OptionError(
                "needs a GPU to composite on",
                field="--provider",
                value=options.provider,
                remedy="use --device cuda (see `gpupipe doctor`), or --provider cpu",
            )
        return opened("cpu"), ()
    if options.provider != "auto":
        return opened(options.provider), ()
    try:
        return opened("cuda"), ()
    except ProviderError as error:
        return opened("cpu"), (f"running the model on the CPU: {error}",)
