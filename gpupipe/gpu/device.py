"""Pick and open the GPU: its streams and events, memory on both sides, copies between them, and every wait for it.

CuPy is imported when a device is opened, never before.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from math import prod
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from gpupipe.errors import DeviceError, DeviceMemoryError, reason
from gpupipe.gpu.driver import device_count, load_cupy, made_current, version_text
from gpupipe.gpu.types import Array, DeviceArray, Event, PitchedRows, Stream
from gpupipe.machine import megabytes

WAYS_OUT = (
    "use nv12 instead of bgr24, a smaller --batch, --cache or --feature-cache, fewer --frames, another GPU, or "
    "--device cpu, or end other programs that use this GPU"
)
# Flags of cudaHostAlloc: host memory that the GPU addresses too, in every CUDA context.
_MAPPED, _PORTABLE = 2, 1
_OUT_OF_MEMORY = 2  # cudaErrorMemoryAllocation


def open_device(index: int | None = None) -> Device:
    """Open a GPU.

    Args:
        index: which, as CUDA numbers the visible ones; None is the first.

    Raises:
        DeviceError: it cannot be used; says why and what to do.
    """
    cupy = load_cupy()
    count = device_count(cupy)
    number = 0 if index is None else index
    if not 0 <= number < count:
        raise DeviceError("no such GPU", field="GPU index", value=index, remedy=f"choose one of 0 to {count - 1}")
    try:
        return Device(cupy, number)
    except cupy.cuda.runtime.CUDARuntimeError as error:
        raise DeviceError(
            f"GPU {number} cannot be opened: {error}", remedy="see nvidia-smi, or use --device cpu"
        ) from error


def describe() -> dict[str, Any]:
    """What `gpupipe doctor` says about GPUs. Never raises.

    Returns:
        `cupy`: its version or None; `driver` and `runtime`: the CUDA versions, as text or None; `devices`: for each
        GPU its index, name, compute_capability, total_bytes and free_bytes; `problem`: why none can be used, or None.
    """
    found: dict[str, Any] = {"cupy": None, "driver": None, "runtime": None, "devices": [], "problem": None}
    try:
        cupy = load_cupy()
        found["cupy"] = cupy.__version__
        driver = cupy.cuda.runtime.driverGetVersion()
        found["driver"] = version_text(driver) if driver else None
        found["runtime"] = version_text(cupy.cuda.runtime.runtimeGetVersion())
        for index in range(device_count(cupy)):
            device = open_device(index)
            told = {"index": index, "name": device.name}
            told |= {"compute_capability": ".".join(map(str, device.compute_capability))}
            found["devices"].append(told | {"total_bytes": device.total_bytes, "free_bytes": device.free_bytes})
    except DeviceError as error:
        found["problem"] = error.on_command_line()  # which is where this is read
    except Exception as error:
        found["problem"] = reason(error)
    return found


class Device:
    """An open GPU; made by `open_device`.

    Every array is an allocation of its own, made outside CuPy's pools, so that dropping it returns its bytes at once.

    Attributes:
        index, name: as CUDA numbers the visible GPUs, and as the driver calls this one.
        compute_capability: (major, minor).
        total_bytes: of its memory.
        driver_version, runtime_version: CUDA versions of the driver and of CuPy's runtime, 12090 for 12.9.
        compute_stream, copy_stream, upload_stream: non-blocking `cupy.cuda.Stream`s: for kernels and the model, for
            finished frames on their way to the host, and for what is cached on its way from there.
        capturing: held while a graph is captured on `compute_stream`, and by whoever queues on it.
    """

    def __init__(self, cupy: ModuleType, index: int) -> None:
        self._cupy = cupy
        self._runtime = cupy.cuda.runtime
        self.index = index
        properties = self._runtime.getDeviceProperties(index)
        self.name: str = properties["name"].decode()
        self.compute_capability: tuple[int, int] = (int(properties["major"]), int(properties["minor"]))
        self.total_bytes = int(properties["totalGlobalMem"])
        self.driver_version = int(self._runtime.driverGetVersion())
        self.runtime_version = int(self._runtime.runtimeGetVersion())
        self.capturing = threading.RLock()
        with made_current(cupy, index):
            streams: list[Stream] = [cupy.cuda.Stream(non_blocking=True) for _ in range(3)]
        self.compute_stream, self.copy_stream, self.upload_stream = streams

    @contextmanager
    def use(self, stream: Stream | None = None) -> Iterator[None]:
        """Make this GPU the calling thread's current one, and, to queue on `stream`, wait while another captures it.

        Afterwards the one before is current again; but a thread that had used none stays on this one.

        Raises:
            DeviceError: what is done inside fails on the GPU (a fault, a GPU that has gone).
        """
        try:
            with (
                self.capturing if stream is self.compute_stream else nullcontext(),
                made_current(self._cupy, self.index),
            ):
                yield
        except (self._runtime.CUDARuntimeError, self._cupy.cuda.driver.CUDADriverError) as error:
            raise self._failure(error) from error

    @property
    def free_bytes(self) -> int:
        """Bytes of device memory that nothing uses now."""
        with self.use():
            return int(self._runtime.memGetInfo()[0])

    def require(self, wanted: Mapping[str, int]) -> None:
        """Check that a job fits, before anything is allocated.

        Args:
            wanted: bytes of each part of the job, by name.

        Raises:
            DeviceMemoryError: it does not fit; gives the bytes wanted and free, and the ways out.
        """
        total, free = sum(wanted.values()), self.free_bytes
        if total > free:
            parts = ", ".join(f"{name} {megabytes(size)}" for name, size in wanted.items() if size)
            raise DeviceMemoryError(
                f"the job wants {megabytes(total)} of GPU memory ({parts}) but {megabytes(free)} of "
                f"{megabytes(self.total_bytes)} are free on GPU {self.index} ({self.name})",
                remedy=WAYS_OUT,
            )

    def memory_error(self, what: str, wanted: int | None = None) -> DeviceMemoryError:
        """The error for an allocation that failed: what it was for, and its bytes where they are known."""
        amount = "" if wanted is None else f" of {megabytes(wanted)}"
        return DeviceMemoryError(
            f"GPU {self.index} ({self.name}) is out of memory: {what}{amount} does not fit in "
            f"{megabytes(self.free_bytes)} free of {megabytes(self.total_bytes)}",
            remedy=WAYS_OUT,
        )

    def empty(self, shape: tuple[int, ...], dtype: DTypeLike, what: str = "a buffer") -> DeviceArray:
        """A new `cupy.ndarray` in device memory, not initialised, 256-byte aligned.

        Raises:
            DeviceMemoryError: it does not fit.
        """
        size = max(1, prod(shape) * np.dtype(dtype).itemsize)
        with self.use():
            try:
                memory = self._cupy.cuda.Memory(size)
            except (self._runtime.CUDARuntimeError, self._cupy.cuda.memory.OutOfMemoryError) as error:
                self._raise_unless_memory(error)
                raise self.memory_error(what, size) from error
            return self._array(shape, dtype, memory)

    def pinned(self, shape: tuple[int, ...], dtype: DTypeLike, what: str = "a buffer") -> NDArray[Any]:
        """A new array in page-locked host memory, not initialised, which the GPU can copy from and to, and address.

        Raises:
            DeviceMemoryError: the host has not so much memory that can be locked.
        """
        count = prod(shape)
        size = max(1, count * np.dtype(dtype).itemsize)
        pinned_memory = self._cupy.cuda.pinned_memory
        with self.use():
            try:
                memory = pinned_memory.PinnedMemory(size, _MAPPED | _PORTABLE)
            except self._runtime.CUDARuntimeError as error:
                self._raise_unless_memory(error)
                raise DeviceMemoryError(
                    f"the host cannot lock {megabytes(size)} of memory for {what}",
                    remedy="use a smaller --batch, or end other programs",
                ) from error
        return np.frombuffer(pinned_memory.PinnedMemoryPointer(memory, 0), dtype, count).reshape(shape)

    def mapped(self, array: NDArray[Any]) -> DeviceArray:
        """A `cupy.ndarray` of the same memory as an array that `pinned` made: the GPU reads and writes it in place."""
        with self.use():
            pointer = self._runtime.pointerGetAttributes(array.ctypes.data).devicePointer
            memory = self._cupy.cuda.UnownedMemory(pointer, array.nbytes, array, self.index)
            return self._array(array.shape, array.dtype, memory)

    def _array(self, shape: tuple[int, ...], dtype: DTypeLike, memory: Any) -> DeviceArray:
        array: DeviceArray = self._cupy.ndarray(shape, dtype, memptr=self._cupy.cuda.MemoryPointer(memory, 0))
        return array

    def _raise_unless_memory(self, error: Exception) -> None:
        if getattr(error, "status", _OUT_OF_MEMORY) != _OUT_OF_MEMORY:
            raise self._failure(error) from error

    def _failure(self, error: Exception) -> DeviceError:
        return DeviceError(f"GPU {self.index} ({self.name}) failed: {error}", remedy="see nvidia-smi")

    def copy(self, target: Array, source: Array, stream: Stream, *, rows: PitchedRows | None = None) -> None:
        """Queue a copy between device arrays and arrays that `pinned` made. Both must be C-contiguous.

        Args:
            target: where to.
            source: where from.
            stream: the stream to queue it on.
            rows: the rows to copy where one side has gaps between them; else everything, of equal size on both.
        """
        default = self._runtime.memcpyDefault
        with self.use(stream):
            if rows is None or rows.contiguous:
                if target.nbytes != source.nbytes:
                    raise ValueError(f"target has {target.nbytes} bytes, source {source.nbytes}")
                self._runtime.memcpyAsync(_address(target), _address(source), source.nbytes, default, stream.ptr)
            else:
                sides = ((target, rows.target_pitch), (source, rows.source_pitch))
                for array, pitch in sides:
                    if (rows.rows - 1) * pitch + rows.width > array.nbytes:
                        raise ValueError(f"{rows} does not fit in an array of {array.nbytes} bytes")
                to, of = ((_address(array), pitch) for array, pitch in sides)
                self._runtime.memcpy2DAsync(*to, *of, rows.width, rows.rows, default, stream.ptr)

    def clear(self, array: DeviceArray, stream: Stream) -> None:
        """Queue the filling of a C-contiguous array with zeros."""
        with self.use(stream):
            self._runtime.memsetAsync(array.data.ptr, 0, array.nbytes, stream.ptr)

    def upload(self, host: NDArray[Any], what: str = "a table") -> DeviceArray:
        """A new device array with the contents of a small host array. Waits for the copy."""
        staging = self.pinned(host.shape, host.dtype, what)
        staging[...] = host
        array = self.empty(host.shape, host.dtype, what)
        self.copy(array, staging, self.upload_stream)
        self.wait_for_queued(self.upload_stream)
        return array

    def event(self, *, timing: bool = False) -> Event:
        """A new `cupy.cuda.Event`, which takes the time if asked to; a host thread that waits for it sleeps."""
        with self.use():
            event: Event = self._cupy.cuda.Event(block=True, disable_timing=not timing)
            return event

    def elapsed_seconds(self, start: Event, end: Event) -> float:
        """Seconds from one event to another, both made with `timing` and already past."""
        with self.use():
            return float(self._cupy.cuda.get_elapsed_time(start, end)) / 1e3

    def marker(self, name: str | None) -> None:
        """Open an NVTX range of that name in the calling thread, or close the innermost one (None)."""
        if name is None:
            self._cupy.cuda.nvtx.RangePop()
        else:
            self._cupy.cuda.nvtx.RangePush(name)

    def record(self, event: Event, stream: Stream) -> None:
        """Let `event` stand for all that is queued on `stream` now."""
        with self.use(stream):
            event.record(stream)

    def stream_waits_for(self, stream: Stream, event: Event) -> None:
        """Let what is queued on `stream` from now on run after `event`. The host does not wait."""
        with self.use(stream):
            stream.wait_event(event)

    def wait(self, event: Event) -> None:
        """Wait, on the host, for `event`."""
        with self.use():
            event.synchronize()

    def wait_for_queued(self, stream: Stream) -> None:
        """Wait, on the host, for what has been queued on `stream` by now, and not for what others queue meanwhile."""
        mark = self.event()
        self.record(mark, stream)
        self.wait(mark)

    def synchronize(self) -> None:
        """Wait, on the host, for everything queued on the streams."""
        for stream in (self.upload_stream, self.copy_stream, self.compute_stream):
            self.wait_for_queued(stream)


def _address(array: Array) -> int:
    return int(array.ctypes.data if isinstance(array, np.ndarray) else array.data.ptr)
