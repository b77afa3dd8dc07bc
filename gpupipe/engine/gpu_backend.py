"""What an engine asks of a GPU; see `backend.Backend`."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gpupipe.compose.device_frames import DeviceFrames, DeviceRing, bytes_wanted, ring_bytes_wanted
from gpupipe.compose.device_memory import place_bytes
from gpupipe.compose.device_speech import DeviceSpeech
from gpupipe.compose.frames import FrameSpec
from gpupipe.compose.gpu import GpuCompositor
from gpupipe.compose.protocol import BatchKind, Coming
from gpupipe.compose.surface import SurfaceFormat
from gpupipe.engine.backend import Opened
from gpupipe.engine.flight import Flight, Steps
from gpupipe.engine.order import Readers
from gpupipe.engine.pipeline import Stage
from gpupipe.errors import OptionError, ProviderError
from gpupipe.gpu.device import Device
from gpupipe.gpu.driver import end_capture, opening_lock
from gpupipe.machine import cache_folder, cpu_count
from gpupipe.model.graphs import why_not
from gpupipe.model.layout import open_model
from gpupipe.model.model import Bindings, Model
from gpupipe.model.runtime import PROVIDER_NAMES, TF32_OVERRIDE, Provider, SessionOptions, runtime
from gpupipe.model.signature import model_shapes
from gpupipe.options import BATCH, ModelOptions
from gpupipe.speech.rows import SpeechRows

SPARE_BYTES = 64_000_000
"""Device memory that is left free: the driver rounds every allocation up to whole pages, and keeps some itself."""


class GpuBackend:
    """A GPU.

    Args:
        gpu: opened.
    """

    def __init__(self, gpu: Device) -> None:
        self.gpu = gpu
        self.name = f"cuda:{gpu.index} ({gpu.name})"

    def check(self, options: ModelOptions) -> None:
        """See `Backend`. What is quantised for the CPU's kernels is for them: CUDA has none (`model/quantise.py`)."""
        cuda = PROVIDER_NAMES["cuda"] in runtime().get_available_providers()
        if options.precision == "int8" and options.provider != "cpu" and (options.provider != "auto" or cuda):
            raise OptionError(
                "runs on the CPU only",
                field="--precision",
                value="int8",
                remedy="use fp16, or --provider cpu",
            )

    def open_model(self, path: Path, options: ModelOptions) -> Opened:
        """Open a lip-sync model with the provider that was asked for; "auto" is CUDA, or, saying so, the CPU."""

        def opened(provider: Provider) -> Opened:
            settings = SessionOptions(
                provider,
                threads=options.inference_threads or cpu_count(),
                device_id=self.gpu.index,
                stream=int(self.gpu.compute_stream.ptr),
                tf32=options.tf32,
                fp16=options.fp16,
                engine_cache=cache_folder() / "tensorrt" / _folder_name(self.gpu),
            )
            batch = options.batch or BATCH
            if provider != "cuda":
                model, layout = Model(path, settings, batch=batch, runs=options.runs or 0), None
            else:
                timed = cache_folder() / "layouts" / _folder_name(self.gpu)
                model, layout = open_model(self.gpu, path, settings, batch, timed)
            elsewhere_notes = elsewhere(model.nodes, model.provider, "the model")
            return Opened(model, (*elsewhere_notes, *filter(None, [layout])))

        if options.provider != "auto":
            model, notes = opened(options.provider)
            return Opened(model, (*notes, *self._tf32_notes(options)))
        try:
            return opened("cuda")
        except ProviderError as error:
            return Opened(opened("cpu").model, (f"running the model on the CPU: {error.brief()}",))

    def opening(self) -> AbstractContextManager[Any]:
        """See `Backend`. Where no graph can be captured, nobody need wait for another to open something."""
        possible = why_not(SessionOptions("cuda")) is None
        return opening_lock(self.gpu.index) if possible else nullcontext()

    def _tf32_notes(self, options: ModelOptions) -> tuple[str, ...]:
        if options.provider != "tensorrt" or options.tf32 or options.fp16 or self.gpu.compute_capability < (8, 0):
            return ()
        if os.environ.get(TF32_OVERRIDE) == "0":
            return ()
        return (
            f"TensorRT computes in TF32 here, whatever --precision is; {TF32_OVERRIDE}=0 in the environment forbids it",
        )

    def warm_up(self, model: Model, kind: BatchKind) -> None:
        """Run a model that runs on the device, so that the memory that it works in is no longer counted as free.

        ONNX Runtime takes that memory as it runs, and keeps it. Searching for algorithms and loading kernels, which
        the first runs do too, is done then as well, and a CUDA graph is made to see what one takes.

        Raises:
            DeviceMemoryError: the GPU's memory does not suffice.
            InferenceError: the model failed.
        """
        if model.provider == "cpu":
            return
        gpu = self.gpu
        buffers = [
            gpu.empty(shape, model.dtype, "the model's buffers") for shape in model_shapes(kind.layout, kind.batch)
        ]
        try:
            for buffer in buffers:
                gpu.clear(buffer, gpu.compute_stream)
            bound = model.bind(*buffers)
            for _ in range(2):
                model.run(bound, kind.batch)
            gpu.synchronize()
            before, graphs = gpu.free_bytes, model.graphs
            self.capture(model, [bound])
            if model.graphs > graphs:
                model.graph_bytes = max(0, before - gpu.free_bytes)
        finally:
            gpu.synchronize()

    def capture(self, model: Model, slots: Iterable[Bindings]) -> None:
        """See `Backend`."""
        with self.gpu.capturing:
            if not all(model.capture(bindings) for bindings in slots):
                end_capture(self.gpu.compute_stream)

    def closing(self) -> AbstractContextManager[Any]:
        """See `Backend`. A graph that is destroyed while another is captured ends the process
        (https://github.com/microsoft/onnxruntime/pull/32081)."""
        return self.gpu.capturing

    def batch(self, model: Model, options: ModelOptions) -> int:
        """As many as were asked for."""
        return options.batch or BATCH

    def compositor(self, kind: BatchKind, model: Model, workers: int | None = None) -> GpuCompositor:
        """See `Backend`."""
        return GpuCompositor(self.gpu, kind, model_on_device=model.provider != "cpu")

    def lane_bytes(self, kind: BatchKind, model: Model, slots: int) -> dict[str, int]:
        """See `Backend`."""
        wanted = GpuCompositor.bytes_wanted(kind, slots=slots, model_on_device=model.provider != "cpu")
        return wanted | {"CUDA graphs": slots * model.graph_bytes}

    def frame_bytes(self, spec: FrameSpec) -> dict[str, int]:
        """See `Backend`."""
        return bytes_wanted(spec)

    def ring_bytes(self, spec: FrameSpec, slots: int) -> dict[str, int]:
        """See `Backend`."""
        return ring_bytes_wanted(spec, slots)

    def place_bytes(self, spec: FrameSpec) -> int:
        """See `Backend`."""
        return place_bytes(spec)

    def speech_bytes(self, speech: SpeechRows) -> dict[str, int]:
        """See `Backend`."""
        return DeviceSpeech.bytes_wanted(speech)

    def load(self, spec: FrameSpec, readers: Readers) -> DeviceFrames:
        """Frames that are uploaded while the first of them are drawn."""
        return DeviceFrames.loading(self.gpu, spec, *readers)

    def coming(self, frames: DeviceFrames) -> Coming:
        """See `Backend`."""
        return frames

    def ring(self, kept: DeviceFrames, spec: FrameSpec, slots: int) -> DeviceRing:
        """See `Backend`."""
        return DeviceRing(kept, spec, slots)

    def unload(self, frames: DeviceFrames) -> None:
        """See `Backend`."""
        frames.close()

    def host_buffer(self, format: SurfaceFormat) -> NDArray[np.uint8]:
        """Page-locked."""
        buffer: NDArray[np.uint8] = self.gpu.pinned(format.shape, np.uint8, "filmed frames")
        return buffer

    def copy_filmed(self, frames: DeviceFrames, source: int, target: NDArray[np.uint8]) -> None:
        """See `Backend`; on the copy stream, and waited for."""
        frames.download(source, target, self.gpu.copy_stream)

    def place(self, speech: SpeechRows) -> DeviceSpeech:
        """A speech in device memory."""
        return DeviceSpeech(self.gpu, speech)

    def unplace(self, placed: DeviceSpeech) -> None:
        """See `Backend`."""
        placed.close()

    def cache_bytes(self) -> int:
        """See `Backend`."""
        return self.gpu.free_bytes // 2

    def fits(self, wanted: Mapping[str, int]) -> bool:
        """See `Backend`."""
        return sum(wanted.values()) + SPARE_BYTES <= self.gpu.free_bytes

    def require(self, wanted: Mapping[str, int]) -> None:
        """See `Backend`.

        Raises:
            DeviceMemoryError: it does not fit; gives the bytes wanted and free, and the ways out.
        """
        self.gpu.require(dict(wanted) | {"spare": SPARE_BYTES})

    def stages(self, steps: Steps, finish: Callable[[Flight], None]) -> list[Stage[Flight]]:
        """One thread queues the steps, which keeps the stream in order; another waits for what comes out."""
        return [Stage("compute", steps.compute), Stage("finish", finish)]

    def close(self) -> None:
        """Wait for what is queued."""
        self.gpu.synchronize()


def _folder_name(gpu: Device) -> str:
    """A name for what belongs to one kind of GPU: "nvidia-geforce-rtx-4090-8-9-24"."""
    told = f"{gpu.name} {gpu.compute_capability} {round(gpu.total_bytes / (1 << 30))}"
    return re.sub(r"[^a-z0-9]+", "-", told.lower()).strip("-")


def elsewhere(nodes: Mapping[str, int], provider: Provider, what: str) -> tuple[str, ...]:
    """What to say of a model that does not run where it was asked to, or not all of it.

    Args:
        nodes: how many each provider runs, as `Model.nodes`.
        provider: the one that was asked for.
        what: whose nodes they are.
    """
    wanted = PROVIDER_NAMES[provider]
    others = ", ".join(f"{count} by {name}" for name, count in nodes.items() if name != wanted)
    if not others:
        return ()
    return (f"of {sum(nodes.values())} nodes of {what} {nodes.get(wanted, 0)} are run by {wanted}, {others}",)
