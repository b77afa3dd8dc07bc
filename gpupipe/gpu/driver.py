"""CuPy, and the NVIDIA driver under it: whether they are there, and how many GPUs they find."""

from __future__ import annotations

import ctypes
import sys
import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from types import ModuleType

from gpupipe.errors import DeviceError
from gpupipe.gpu.types import Stream

INSTALL = "pip install 'gpupipe[cuda]', or use --device cpu"


def load_cupy() -> ModuleType:
    """The `cupy` module.

    Raises:
        DeviceError: it is not installed, or cannot be imported.
    """
    try:
        import cupy
    except ModuleNotFoundError as error:
        missing = "CuPy is not installed" if error.name == "cupy" else f"CuPy cannot be imported: {error}"
        raise DeviceError(missing, remedy=INSTALL) from error
    except ImportError as error:
        reason = str(error).strip().splitlines()[-1] if str(error).strip() else type(error).__name__
        raise DeviceError(f"CuPy cannot be imported: {reason}", remedy=f"install it again: {INSTALL}") from error
    return cupy  # type: ignore[no-any-return]


def version_text(number: int) -> str:
    """A CUDA version for people: 12090 is `12.9`."""
    return f"{number // 1000}.{number % 1000 // 10}"


def device_count(cupy: ModuleType) -> int:
    """How many GPUs can be used; at least one.

    Raises:
        DeviceError: none can; says why and what to do.
    """
    runtime = cupy.cuda.runtime
    driver, wanted = runtime.driverGetVersion(), runtime.runtimeGetVersion()
    if driver == 0:
        raise DeviceError(
            "no NVIDIA driver is installed (libcuda was not found)",
            remedy="install the driver of your GPU (nvidia-smi shows whether it works), or use --device cpu",
        )
    if driver // 1000 < wanted // 1000:
        raise DeviceError(
            f"the NVIDIA driver is too old: it supports CUDA {version_text(driver)}, CuPy needs CUDA {wanted // 1000}",
            remedy="update the driver, or use --device cpu",
        )
    try:
        count = int(runtime.getDeviceCount())
    except runtime.CUDARuntimeError as error:
        raise DeviceError(
            f"the NVIDIA driver finds no usable GPU: {error}",
            remedy="see nvidia-smi and the variable CUDA_VISIBLE_DEVICES, or use --device cpu",
        ) from error
    if count == 0:
        raise DeviceError(
            "there is no NVIDIA GPU in this machine",
            remedy="see the variable CUDA_VISIBLE_DEVICES, or use --device cpu",
        )
    return count


_CAPTURE_MODE_THREAD_LOCAL = 1  # CU_STREAM_CAPTURE_MODE_THREAD_LOCAL
_thread = threading.local()


def let_others_capture() -> None:
    """Let the calling thread allocate and copy while another thread captures a CUDA graph.

    ONNX Runtime captures in the global mode (`CUDAGraphManager::CaptureBegin`, cuda_graph.cc), in which an allocation,
    or the query of an event, in any thread of the process fails, and breaks the capture, unless that thread has chosen
    the thread-local mode for itself (`cuThreadExchangeStreamCaptureMode`, CUDA driver API, "Stream Management").
    """
    if not getattr(_thread, "lets_others_capture", False):
        mode = ctypes.c_int(_CAPTURE_MODE_THREAD_LOCAL)
        ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1").cuThreadExchangeStreamCaptureMode(
            ctypes.byref(mode)
        )
        _thread.lets_others_capture = True


@cache
def opening_lock(index: int) -> threading.Lock:
    """What is held by whoever opens a session of ONNX Runtime on a GPU, and by whoever has a graph captured there.

    Opening one waits for the whole device (`CUDAExecutionProvider`, constructor), which fails, and breaks the capture,
    while a stream of it is captured (https://docs.nvidia.com/dl-cuda-graph/cuda-graph-basics/constraints.html).
    """
    return threading.Lock()


def end_capture(stream: Stream) -> None:
    """End a capture that has failed, where it was left open; else every later call on the stream would fail.

    ONNX Runtime ends it in `OnRunEnd`, which a run does not reach if it throws (`InferenceSession::Run`, 003b97d).
    """
    runtime = load_cupy().cuda.runtime
    with suppress(runtime.CUDARuntimeError):  # it is not captured, or what was captured is broken
        runtime.graphDestroy(runtime.streamEndCapture(stream.ptr))


@contextmanager
def made_current(cupy: ModuleType, index: int) -> Iterator[None]:
    """Make a GPU the calling thread's current one, and go back only to a GPU that the thread has used.

    `cupy.cuda.Device` always goes back (its `__exit__`, CuPy 14.2.0), and setting a device makes its context since
    CUDA 12 (`cudaSetDevice`): a job on GPU 1 would take hundreds of MB on GPU 0, which a thread has by default.
    """
    runtime = cupy.cuda.runtime
    used = bool(cupy.cuda.driver.ctxGetCurrent())
    before = runtime.getDevice()
    if before != index or not used:  # the driver's own calls, a kernel's launch among them, need a context
        runtime.setDevice(index)
    let_others_capture()
    try:
        yield
    finally:
        if before != index and used:
            runtime.setDevice(before)


def current_gpu() -> int:
    """The number of the GPU that is the calling thread's current one."""
    return int(load_cupy().cuda.runtime.getDevice())


def make_current(index: int) -> None:
    """Make a GPU the calling thread's current one, as a program does that uses CuPy itself."""
    load_cupy().cuda.runtime.setDevice(index)


def unique_id(index: int) -> str:
    """How NVIDIA's tools call a GPU: "GPU-8-4-4-4-12" hexadecimal digits. Uses no GPU."""
    found = bytes(load_cupy().cuda.runtime.getDeviceProperties(index)["uuid"])
    return f"GPU-{uuid.UUID(bytes=found[:16])}"
