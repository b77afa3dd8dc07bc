"""The least time that each stage can take here: bytes that must move over the measured bandwidth, and floating-point
operations over the measured matrix rate."""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Callable
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from gpupipe.bench.scene import Scene
from gpupipe.colour import PixelFormat
from gpupipe.geometry import SPEECH_SHAPE, CropLayout
from gpupipe.gpu.device import Device, open_device
from gpupipe.model.runtime import Provider, SessionOptions, open_session, runtime
from gpupipe.model.signature import Signature

COPY_BYTES = 128 << 20
"""Bytes copied to measure a bandwidth: more than a core's own caches hold."""
MATRIX_SIDE = 1536

MATMUL = (
    b"\x08\x08\x12\x00:[\n\x11\n\x01a\n\x01b\x12\x01c\x22\x06MatMul\x12\x01g"
    b"Z\x15\n\x01a\x12\x10\n\x0e\x08\x01\x12\n\n\x03\x12\x01m\n\x03\x12\x01m"
    b"Z\x15\n\x01b\x12\x10\n\x0e\x08\x01\x12\n\n\x03\x12\x01m\n\x03\x12\x01m"
    b"b\x15\n\x01c\x12\x10\n\x0e\x08\x01\x12\n\n\x03\x12\x01m\n\x03\x12\x01mB\x04\n\x00\x10\r"
)
"""An ONNX model (IR version 8, opset 13) that multiplies two float32 matrices `[m, m]`."""


def host_rates(threads: int) -> dict[str, float]:
    """Of this machine: bytes a second of a copy (read and written bytes together), by one thread, and float32
    operations a second of a matrix product in ONNX Runtime, by `threads` threads."""
    source, target = np.ones(COPY_BYTES, np.uint8), np.zeros(COPY_BYTES, np.uint8)
    copy_seconds = _best(lambda: np.copyto(target, source))
    return {"copy_bytes_per_second": 2 * COPY_BYTES / copy_seconds, "flops_per_second": _matrix_rate("cpu", threads)}


def device_rates(provider: str) -> dict[str, float | None]:
    """Of the GPU: bytes a second of a copy within it (read and written together) and of a copy to page-locked host
    memory, and float32 operations a second of ONNX Runtime there (None if the model runs on the CPU)."""
    gpu = open_device()
    first, second = (gpu.empty((COPY_BYTES,), np.uint8, "measuring") for _ in range(2))
    host = gpu.pinned((COPY_BYTES,), np.uint8, "measuring")
    host[:] = 1
    gpu.copy(first, host, gpu.copy_stream)
    gpu.synchronize()
    return {
        "copy_bytes_per_second": 2 * COPY_BYTES / _copy_seconds(gpu, second, first),
        "to_host_bytes_per_second": COPY_BYTES / _copy_seconds(gpu, host, first),
        "flops_per_second": _matrix_rate("cuda", 1) if provider == "cuda" else None,
    }


def _best(work: Callable[[], object], times: int = 5) -> float:
    """Seconds of the fastest of several calls: a floor is what the machine can do, not what it did while disturbed."""
    seconds = []
    for _ in range(times + 1):
        began = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - began)
    return min(seconds[1:])


def _copy_seconds(gpu: Device, target: Any, source: Any) -> float:
    begin, end = gpu.event(timing=True), gpu.event(timing=True)
    seconds = []
    for _ in range(4):
        gpu.record(begin, gpu.copy_stream)
        gpu.copy(target, source, gpu.copy_stream)
        gpu.record(end, gpu.copy_stream)
        gpu.wait(end)
        seconds.append(gpu.elapsed_seconds(begin, end))
    return min(seconds[1:])


def _matrix_rate(provider: Provider, threads: int) -> float:
    session = open_session(MATMUL, SessionOptions(provider, threads=threads))
    matrix = np.random.default_rng(0).random((MATRIX_SIDE, MATRIX_SIDE), np.float32)
    binding = session.io_binding()
    kind = "cpu" if provider == "cpu" else "cuda"
    for name in ("a", "b"):
        binding.bind_ortvalue_input(name, runtime().OrtValue.ortvalue_from_numpy(matrix, kind, 0))
    binding.bind_output("c", kind)

    def work() -> None:
        session.run_with_iobinding(binding)
        binding.synchronize_outputs()

    return 2 * MATRIX_SIDE**3 / _best(work)


def model_cost(path: Path, layout: CropLayout) -> dict[str, int]:
    """What one frame costs the model: multiply-adds ("macs") of its convolutions and matrix products, counted in one
    run of the graph as it stands, and the bytes of its weights."""
    with tempfile.TemporaryDirectory() as folder:
        settings = runtime().SessionOptions()
        settings.graph_optimization_level = runtime().GraphOptimizationLevel.ORT_DISABLE_ALL
        settings.enable_profiling = True
        settings.profile_file_prefix = str(Path(folder) / "profile")
        session = runtime().InferenceSession(str(path), settings, providers=["CPUExecutionProvider"])
        signature = Signature(path, session)
        batch = signature.batch or 1
        shapes = signature.visual, (batch, 6, layout.model_size, layout.model_size)
        audio = signature.audio, (batch, *SPEECH_SHAPE)
        session.run(None, {name: np.zeros(shape, signature.dtype) for name, shape in (shapes, audio)})
        events = json.loads(Path(session.end_profiling()).read_text("utf-8"))
    macs = sum(_macs(event["args"]) for event in events if "output_type_shape" in event.get("args", {}))
    return {"macs": macs // batch, "weight_bytes": path.stat().st_size}


def _macs(node: dict[str, Any]) -> int:
    """Multiply-adds of one node of an ONNX Runtime profile, from its shapes."""

    def shape(entry: dict[str, list[int]]) -> list[int]:
        return next(iter(entry.values()))

    inputs, outputs = node["input_type_shape"], node["output_type_shape"]
    match node.get("op_name"):
        case "Conv" | "FusedConv":
            return prod(shape(outputs[0])) * prod(shape(inputs[1])[1:])
        case "ConvTranspose":
            return prod(shape(inputs[0])) * prod(shape(inputs[1])[1:])
        case "MatMul" | "Gemm":
            return prod(shape(outputs[0])) * shape(inputs[0])[-1]
    return 0


def stage_bytes(scene: Scene, pixel_format: PixelFormat) -> dict[str, int]:
    """Bytes a frame that must be read and written in each stage, whoever does it.

    prepare: the roi read, both inputs and the speech written; paste: the prediction, the crop's border and the body
    read, and the frame written, in the format that the encoder takes; encode: the frame read.
    """
    info, size, crop = scene.body_info, scene.layout.model_size, scene.layout.crop_size
    speech = 4 * prod(SPEECH_SHAPE)
    encoded = info.width * info.height * 3 // 2
    body = encoded if pixel_format == "nv12" else 2 * encoded
    prepare = 3 * size**2 + 4 * 6 * size**2 + 2 * speech
    paste = 4 * 3 * size**2 + 3 * (crop**2 - size**2) + body + encoded
    return {"prepare": prepare, "paste": paste, "encode": encoded, "to_host": body}


def floors(
    scene: Scene, pixel_format: PixelFormat, host: dict[str, float], gpu: dict[str, float | None] | None, macs: int
) -> dict[str, float | None]:
    """The least milliseconds a frame of each stage; None where a rate is not known.

    On the host stages share the cores, so that a whole render takes their sum; on a GPU they run side by side, and the
    longest decides.
    """
    moved = stage_bytes(scene, pixel_format)
    flops = 2 * macs
    encode = moved["encode"] / host["copy_bytes_per_second"] * 1e3
    if gpu is None:
        compose = (moved["prepare"] + moved["paste"]) / host["copy_bytes_per_second"] * 1e3
        infer = flops / host["flops_per_second"] * 1e3
        found: dict[str, float | None] = {"compose": compose, "infer": infer, "encode": encode}
        found["render"] = compose + infer + encode
    else:
        assert gpu["copy_bytes_per_second"] is not None
        assert gpu["to_host_bytes_per_second"] is not None
        drawn = (moved["prepare"] + moved["paste"]) / gpu["copy_bytes_per_second"] * 1e3
        to_host = moved["to_host"] / gpu["to_host_bytes_per_second"] * 1e3
        rate = gpu["flops_per_second"] or host["flops_per_second"]
        found = {"compose": drawn + to_host, "infer": flops / rate * 1e3, "encode": encode}
        found["render"] = max(value for value in found.values() if value is not None)
    return {name: None if value is None else round(value, 4) for name, value in found.items()}
