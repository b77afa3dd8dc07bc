"""What the machine and its GPU can do: bytes a second of a copy, operations a second of a matrix product."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Literal

import numpy as np

from gpupipe.gpu.device import Device
from gpupipe.gpu.timer import Timer
from gpupipe.gpu.types import Array
from gpupipe.model.runtime import Provider, SessionOptions, open_session, runtime

COPY_BYTES = 128 << 20
"""Bytes copied to measure a bandwidth: more than a core's own caches hold."""
MATRIX_SIDE = 1536
DEVICE_MATRIX_SIDE = 4096
"""On a GPU: enough for a product to take longer than to queue it."""

Arithmetic = Literal["float32", "tf32", "float16", "int8"]
"""In which a product is computed; tf32 rounds what are float32 matrices, int8 multiplies unsigned by signed bytes, as
quantised models do."""

MATMUL = (
    b"\x08\x08\x12\x00:[\n\x11\n\x01a\n\x01b\x12\x01c\x22\x06MatMul\x12\x01g"
    b"Z\x15\n\x01a\x12\x10\n\x0e\x08\x01\x12\n\n\x03\x12\x01m\n\x03\x12\x01m"
    b"Z\x15\n\x01b\x12\x10\n\x0e\x08\x01\x12\n\n\x03\x12\x01m\n\x03\x12\x01m"
    b"b\x15\n\x01c\x12\x10\n\x0e\x08\x01\x12\n\n\x03\x12\x01m\n\x03\x12\x01mB\x04\n\x00\x10\r"
)
"""An ONNX model (IR version 8, opset 13) that multiplies two float32 matrices `[m, m]`."""
_FLOAT_MATRIX, _HALF_MATRIX = b"\x08\x01\x12\n\n\x03", b"\x08\n\x12\n\n\x03"
"""In it, the type of a matrix before its shape: 1 is float32, 10 float16."""
_BYTES = {
    b":[\n\x11": b":b\n\x18",  # as many bytes longer, the graph and the node, as the operator's name
    b'"\x06MatMul': b'"\rMatMulInteger',
    **{b"\x01%c\x12\x10\n\x0e\x08\x01" % name: b"\x01%c\x12\x10\n\x0e\x08%c" % (name, kind)
       for name, kind in zip(b"abc", (2, 3, 6), strict=True)},
}  # fmt: skip
"""What is another for matrices of bytes: 2 is uint8, 3 int8, 6 int32."""


def host_rates(threads: int) -> dict[str, float]:
    """Of this machine: bytes a second of a copy (read and written bytes together), by one thread and by `threads`
    threads together, and float32 operations a second of a matrix product in ONNX Runtime, by `threads` threads."""
    source, target = np.ones(COPY_BYTES, np.uint8), np.zeros(COPY_BYTES, np.uint8)
    pairs = list(zip(np.array_split(target, threads), np.array_split(source, threads), strict=True))
    with ThreadPoolExecutor(threads, "copy") as pool:
        together = _best(lambda: list(pool.map(lambda pair: np.copyto(*pair), pairs)))
    return {
        "copy_bytes_per_second": 2 * COPY_BYTES / _best(lambda: np.copyto(target, source)),
        "threads_copy_bytes_per_second": 2 * COPY_BYTES / together,
        "flops_per_second": _matrix_rate("cpu", threads),
    }


def device_rates(gpu: Device, provider: str) -> dict[str, float | None]:
    """Of a GPU: bytes a second of a copy within it (read and written together) and of copies to and from page-locked
    host memory, and float32 operations a second of ONNX Runtime there (None if the model runs on the CPU)."""
    first, second = (gpu.empty((COPY_BYTES,), np.uint8, "measuring") for _ in range(2))
    host = gpu.pinned((COPY_BYTES,), np.uint8, "measuring")
    host[:] = 1
    gpu.copy(first, host, gpu.copy_stream)
    gpu.synchronize()
    return {
        "copy_bytes_per_second": 2 * COPY_BYTES / _copy_seconds(gpu, second, first),
        "to_host_bytes_per_second": COPY_BYTES / _copy_seconds(gpu, host, first),
        "to_device_bytes_per_second": COPY_BYTES / _copy_seconds(gpu, first, host),
        "flops_per_second": device_matrix_rate(gpu, "float32") if provider == "cuda" else None,
    }


def host_matrix_rate(threads: int, arithmetic: Arithmetic) -> float:
    """Operations a second of a matrix product by ONNX Runtime's CPU provider, in `threads` threads."""
    return _matrix_rate("cpu", threads, arithmetic=arithmetic)


def device_matrix_rate(gpu: Device, arithmetic: Arithmetic) -> float:
    """Operations a second of a matrix product by ONNX Runtime's CUDA provider.

    Raises:
        ProviderError: it does not open.
    """
    return _matrix_rate("cuda", 1, gpu.index, arithmetic, DEVICE_MATRIX_SIDE)


def matmul(arithmetic: Arithmetic) -> bytes:
    """`MATMUL`, of the type of matrices that is multiplied so."""
    if arithmetic == "int8":
        made = MATMUL
        for part, other in _BYTES.items():
            made = made.replace(part, other)
        return made
    return MATMUL.replace(_FLOAT_MATRIX, _HALF_MATRIX) if arithmetic == "float16" else MATMUL


def _best(work: Callable[[], object], times: int = 5) -> float:
    """Seconds of the fastest of several calls: a floor is what the machine can do, not what it did while disturbed."""
    seconds = []
    for _ in range(times + 1):
        began = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - began)
    return min(seconds[1:])


def _copy_seconds(gpu: Device, target: Array, source: Array) -> float:
    stream = gpu.copy_stream
    return min(Timer(gpu, runs=3).seconds(lambda: gpu.copy(target, source, stream), stream))


def _matrix_rate(
    provider: Provider, threads: int, gpu: int = 0, arithmetic: Arithmetic = "float32", side: int | None = None
) -> float:
    side = side or MATRIX_SIDE
    options = SessionOptions(provider, threads=threads, device_id=gpu, tf32=arithmetic == "tf32")
    session = open_session(matmul(arithmetic), options)
    matrix = np.random.default_rng(0).random((side, side), np.float32)
    types = {"float16": ("f2", "f2"), "int8": ("u1", "i1")}.get(arithmetic, ("f4", "f4"))
    if arithmetic == "int8":
        matrix *= 127
    binding = session.io_binding()
    kind = "cpu" if provider == "cpu" else "cuda"
    for name, dtype in zip(("a", "b"), types, strict=True):
        value = runtime().OrtValue.ortvalue_from_numpy(matrix.astype(dtype), kind, gpu)
        binding.bind_ortvalue_input(name, value)
    binding.bind_output("c", kind, gpu)

    def work() -> None:
        session.run_with_iobinding(binding)
        binding.synchronize_outputs()

    return 2 * side**3 / _best(work)
