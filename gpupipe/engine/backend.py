"""What an engine asks of the device it owns: the CPU's answers, and the protocol. A GPU's are in `gpu_backend`."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, NamedTuple, Protocol
from weakref import WeakSet

import numpy as np
from numpy.typing import NDArray

from gpupipe.compose.cpu import CpuCompositor
from gpupipe.compose.frames import FrameSpec, HostFrames, HostRing
from gpupipe.compose.protocol import BatchKind, CachedFrames, Coming, Compositor, Ring
from gpupipe.compose.surface import SurfaceFormat
from gpupipe.engine.flight import Flight, Steps
from gpupipe.engine.order import Readers
from gpupipe.engine.pipeline import Stage
from gpupipe.errors import HostMemoryError, OptionError
from gpupipe.gpu.device import Device
from gpupipe.machine import cpu_count, megabytes, memory_available_bytes
from gpupipe.model.model import Bindings, Model
from gpupipe.model.runtime import SessionOptions
from gpupipe.options import BATCH, ModelOptions
from gpupipe.speech.rows import SpeechRows


class Opened(NamedTuple):
    """An opened model, and what was picked on its own."""

    model: Model
    notes: tuple[str, ...]


class Backend(Protocol):
    """A device."""

    @property
    def name(self) -> str:
        """For people: "cpu", or "cuda:0 (NVIDIA …)"."""

    @property
    def gpu(self) -> Device | None:
        """The GPU, if it is one."""

    def check(self, options: ModelOptions) -> None:
        """Raise if no model can be run so here: before one is made in that precision, or anything is decoded."""

    def open_model(self, path: Path, options: ModelOptions) -> Opened:
        """Open a lip-sync model."""

    def opening(self) -> AbstractContextManager[Any]:
        """Held while something of ONNX Runtime is opened, or captured; not by the thread that runs models."""

    def warm_up(self, model: Model, kind: BatchKind) -> None:
        """Let a model take the memory that it works in. On the thread that will run it."""

    def capture(self, model: Model, slots: Iterable[Bindings]) -> None:
        """Let the runs of a lane's slots be replayed, where that is possible. On the thread that will run them."""

    def closing(self) -> AbstractContextManager[Any]:
        """Held while a model is closed."""

    def batch(self, model: Model, options: ModelOptions) -> int:
        """Frames in a batch."""

    def compositor(self, kind: BatchKind, model: Model, workers: int | None = None) -> Compositor[Any, Any, Any]:
        """A compositor for batches that a model predicts; on the CPU with so many threads, None: with the engine's."""

    def lane_bytes(self, kind: BatchKind, model: Model, slots: int) -> dict[str, int]:
        """Memory that a lane takes besides its model, by name."""

    def frame_bytes(self, spec: FrameSpec) -> dict[str, int]:
        """Memory that a character's frames take, by name."""

    def ring_bytes(self, spec: FrameSpec, slots: int) -> dict[str, int]:
        """Memory that slots for frames that do not stay take besides, by name."""

    def place_bytes(self, spec: FrameSpec) -> int:
        """Memory that one of a character's frames takes, of which `--cache` says how much there is."""

    def speech_bytes(self, speech: SpeechRows) -> dict[str, int]:
        """Memory that `place` takes, by name."""

    def load(self, spec: FrameSpec, readers: Readers) -> Any:
        """A character's frames, decoded by the readers of its bodies, crops and recorded inputs, and kept. They come
        one by one."""

    def coming(self, frames: Any) -> Coming:
        """Which of a character's frames are there."""

    def ring(self, kept: Any, spec: FrameSpec, slots: int) -> Ring:
        """A character's frames, the first of which are kept, and slots for the others."""

    def unload(self, frames: Any) -> None:
        """Release them."""

    def host_buffer(self, format: SurfaceFormat) -> NDArray[np.uint8]:
        """Host memory for a body frame, uint8 `[*format.shape]`."""

    def copy_filmed(self, frames: Any, source: int, target: NDArray[np.uint8]) -> None:
        """Copy a body frame that is there, as it was filmed, to what `host_buffer` gave."""

    def place(self, speech: SpeechRows) -> Any:
        """A speech, where the compositor reads it."""

    def unplace(self, placed: Any) -> None:
        """Release it."""

    def cache_bytes(self) -> int | None:
        """How much of its memory may be taken by characters that nobody uses, where no number is given: half of what
        is free now."""

    def fits(self, wanted: Mapping[str, int]) -> bool:
        """Whether so much memory is free."""

    def require(self, wanted: Mapping[str, int]) -> None:
        """Raise unless so much memory is free."""

    def stages(self, steps: Steps, finish: Callable[[Flight], None]) -> list[Stage[Flight]]:
        """The threads that a batch goes through."""

    def close(self) -> None:
        """Wait for what is queued."""


class HostBackend:
    """The CPU.

    Args:
        workers: compositing threads.
        max_memory: bytes of host memory that may be taken; None: what is available.
    """

    name = "cpu"
    gpu: Device | None = None

    def __init__(self, workers: int, max_memory: int | None) -> None:
        self._workers, self._max_memory = workers, max_memory
        self._loading: WeakSet[HostFrames | HostRing] = WeakSet()
        self._loading_lock = threading.Lock()

    def check(self, options: ModelOptions) -> None:
        """See `Backend`."""
        if options.provider not in ("auto", "cpu"):
            raise OptionError(
                "needs a GPU to composite on",
                field="--provider",
                value=options.provider,
                remedy="use --device cuda (see `gpupipe doctor`), or --provider cpu",
            )

    def open_model(self, path: Path, options: ModelOptions) -> Opened:
        """See `Backend`."""
        threads = options.inference_threads or cpu_count()
        settings = SessionOptions("cpu", threads=threads, tf32=options.tf32)
        notes = ("the CPU computes a float16 model in float32, no faster than fp32",) if options.fp16 else ()
        return Opened(Model(path, settings, batch=options.batch or BATCH, runs=options.runs or 0), notes)

    def opening(self) -> AbstractContextManager[Any]:
        """Nothing: what is opened here disturbs nobody."""
        return nullcontext()

    def warm_up(self, model: Model, kind: BatchKind) -> None:
        """Nothing: the CPU's memory is not counted out in advance."""

    def capture(self, model: Model, slots: Iterable[Bindings]) -> None:
        """Nothing: the CPU has nothing to launch."""

    def closing(self) -> AbstractContextManager[Any]:
        """Nothing, likewise."""
        return nullcontext()

    def batch(self, model: Model, options: ModelOptions) -> int:
        """No more frames than the model runs at a time: what one step has written is still in the processor's cache
        when the next one reads it."""
        return min(options.batch or BATCH, model.runs * model.chunk)

    def compositor(self, kind: BatchKind, model: Model, workers: int | None = None) -> CpuCompositor:
        """See `Backend`."""
        return CpuCompositor(kind, workers=workers or self._workers)

    def lane_bytes(self, kind: BatchKind, model: Model, slots: int) -> dict[str, int]:
        """See `Backend`."""
        return {"slots": slots * CpuCompositor.slot_bytes(kind)}

    def frame_bytes(self, spec: FrameSpec) -> dict[str, int]:
        """See `Backend`."""
        scratch = CpuCompositor.scratch_bytes(spec, workers=self._workers)
        return {"cached frames": spec.cache_bytes, "resizing": scratch}

    def ring_bytes(self, spec: FrameSpec, slots: int) -> dict[str, int]:
        """See `Backend`."""
        scratch = CpuCompositor.scratch_bytes(spec, workers=self._workers)
        return {"frames decoded ahead": slots * self.place_bytes(spec), "resizing": scratch}

    def place_bytes(self, spec: FrameSpec) -> int:
        """See `Backend`."""
        return spec.cache_bytes // spec.count

    def speech_bytes(self, speech: SpeechRows) -> dict[str, int]:
        """None: it is read where it is."""
        return {}

    def load(self, spec: FrameSpec, readers: Readers) -> HostFrames:
        """Frames that are decoded while the first of them are drawn."""
        frames = HostFrames.loading(spec, *readers)
        with self._loading_lock:
            self._loading.add(frames)
        return frames

    def coming(self, frames: HostFrames) -> Coming:
        """See `Backend`."""
        return frames

    def ring(self, kept: HostFrames, spec: FrameSpec, slots: int) -> HostRing:
        """See `Backend`."""
        ring = HostRing(kept, spec, slots)
        with self._loading_lock:
            self._loading.add(ring)
        return ring

    def unload(self, frames: HostFrames) -> None:
        """Stop decoding them; dropping them is enough else."""
        frames.close()

    def host_buffer(self, format: SurfaceFormat) -> NDArray[np.uint8]:
        """See `Backend`."""
        return np.empty(format.shape, np.uint8)

    def copy_filmed(self, frames: CachedFrames, source: int, target: NDArray[np.uint8]) -> None:
        """See `Backend`."""
        copy_body(frames, source, target)

    def place(self, speech: SpeechRows) -> SpeechRows:
        """The CPU reads it where it is."""
        return speech

    def unplace(self, placed: SpeechRows) -> None:
        """Nothing."""

    def cache_bytes(self) -> int | None:
        """See `Backend`; None where the system does not say."""
        available = self._available()
        return None if available is None else available // 2

    def fits(self, wanted: Mapping[str, int]) -> bool:
        """See `Backend`."""
        available = self._available()
        return available is None or sum(wanted.values()) <= available

    def require(self, wanted: Mapping[str, int]) -> None:
        """See `Backend`.

        Raises:
            HostMemoryError: it does not fit; gives the bytes wanted and available, and the ways out.
        """
        if self.fits(wanted):
            return
        parts = ", ".join(f"{name} {megabytes(size)}" for name, size in wanted.items() if size)
        raise HostMemoryError(
            f"the job wants {megabytes(sum(wanted.values()))} of memory ({parts}) but "
            f"{megabytes(self._available() or 0)} are available",
            field="--max-memory" if self._max_memory is not None else None,
            remedy="use nv12 instead of bgr24, a smaller --cache, fewer --frames, fewer --workers, a larger "
            "--max-memory, or end other programs",
        )

    def stages(self, steps: Steps, finish: Callable[[Flight], None]) -> list[Stage[Flight]]:
        """One thread prepares batches and starts the model on them, whose own threads take them as they become free,
        so that none of them waits for the end of a batch; one waits for it; one pastes."""

        def paste(flight: Flight) -> None:
            steps.paste(flight)
            finish(flight)

        return [Stage("prepare", steps.begin), Stage("infer", steps.infer), Stage("paste", paste)]

    def close(self) -> None:
        """Nothing is queued."""

    def _available(self) -> int | None:
        if self._max_memory is not None:
            return self._max_memory
        available = memory_available_bytes()
        # The system counts a page as taken when it is first written to.
        with self._loading_lock:
            loading = tuple(self._loading)
        promised = sum(frames.missing_bytes for frames in loading)
        return None if available is None else max(0, available - promised)


def copy_body(frames: CachedFrames, source: int, target: NDArray[np.uint8]) -> None:
    """Copy a body frame that is there in host memory, as it was filmed, to uint8 `[*format.shape]`."""
    held, row = frames.at(source)
    np.copyto(target, held.body[row])
