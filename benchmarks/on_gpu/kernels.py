"""Copies, and our kernels one by one."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from kernel_scene import LAYOUT, GatherScene, KernelScene, features

from gpupipe.colour import PixelFormat
from gpupipe.compose.frames import FrameSpec
from gpupipe.compose.surface import SurfaceFormat
from gpupipe.compose.traffic import gathered_bytes, least_bytes
from gpupipe.gpu.limits import Limits
from gpupipe.gpu.types import Array
from gpupipe.model import rates
from on_gpu.bench import Bench, text_of
from on_gpu.table import Least, Row, Subject, timed

COUNTED = Path(__file__).resolve().parents[1] / "results" / "kernels.json"
"""Where `kernel_report.py` has put the instructions of the kernels."""

FORMATS: tuple[PixelFormat, ...] = ("bgr24", "nv12")
DTYPES = ("float32", "float16")


def copies(bench: Bench) -> Iterator[Row]:
    """Copies to the GPU, from it and within it: a large block, and finished frames; page-locked memory on the host."""
    block = rates.COPY_BYTES
    frames = [(f"{text_of(size)} nv12", SurfaceFormat("nv12", *size).nbytes) for size in bench.settings.sizes]
    for name, size in ((f"{block >> 20} MB", block), *frames):
        for way in ("up", "down", "within"):
            subject = Subject("copy", way, frame=name)
            yield bench.attempt(subject, partial(_copy, bench, subject, size))


def _copy(bench: Bench, subject: Subject, size: int) -> Row:
    gpu, stream = bench.gpu, bench.gpu.copy_stream
    host, first, second = gpu.pinned((size,), np.uint8), gpu.empty((size,), np.uint8), gpu.empty((size,), np.uint8)
    host[...] = 1
    for array in (first, second):
        gpu.clear(array, stream)
    ways: dict[str, tuple[Array, Array, str, int]] = {
        "up": (first, host, "to_device_bytes_per_second", 1),
        "down": (host, first, "to_host_bytes_per_second", 1),
        "within": (second, first, "copy_bytes_per_second", 2),
    }
    target, source, rate, times = ways[subject.name]
    seconds = bench.timer.seconds(lambda: gpu.copy(target, source, stream), stream, cold=True)
    moved = times * size
    nominal = bench.limits.memory_seconds(moved) if subject.name == "within" else None
    return timed(subject, seconds, 1, moved=moved, least=Least(moved / bench.rates[rate], nominal))


def kernels(bench: Bench) -> Iterator[Row]:
    """The kernels, alone, with cold caches. What prepare and gather do is the same for every body."""
    counted = json.loads(COUNTED.read_text("utf-8"))
    crop = text_of((bench.layout.model_size,) * 2)
    first = True
    for size in bench.settings.sizes:
        for pixel_format in FORMATS:
            with closing(KernelScene(bench.gpu, bench.spec(size, pixel_format))) as scene:
                wanted = [("prepare", crop)] * first + [(f"paste_{pixel_format}", text_of(size))]
                for name, frame in wanted:
                    for dtype in DTYPES:
                        for batch in bench.settings.batches:
                            subject = Subject("kernel", name, dtype, frame, batch)
                            yield bench.attempt(subject, partial(_kernel, bench, subject, scene, counted))
            first = False
    for dtype in DTYPES:
        for batch in bench.settings.batches:
            subject = Subject("kernel", "gather", dtype, crop, batch)
            yield bench.attempt(subject, partial(_gather, bench, subject, counted))


def _kernel(bench: Bench, subject: Subject, scene: KernelScene, counted: dict[str, Any]) -> Row:
    assert subject.batch is not None
    name, dtype, batch = subject.name, np.dtype(subject.dtype), subject.batch
    compositor, slot = scene.prepared(dtype, batch)
    with closing(compositor):
        launch = compositor.launch_prepare if name == "prepare" else compositor.launch_paste
        moved = least_bytes(name, scene.spec, dtype, range(batch))
        issued = instructions(name, scene.spec, dtype, counted)
        return _row(bench, subject, lambda: launch(slot), moved, issued)


def _gather(bench: Bench, subject: Subject, counted: dict[str, Any]) -> Row:
    assert subject.batch is not None
    dtype = np.dtype(subject.dtype)
    scene = GatherScene(bench.gpu, bench.layout, dtype, subject.batch)
    told = counted["kernels"].get(f"gather {dtype}") if bench.layout == LAYOUT else None
    issued = None if told is None else float(told["traffic"]["ptx_instructions"])
    return _row(bench, subject, scene.launch, gathered_bytes(features(bench.layout, dtype)), issued)


def _row(bench: Bench, subject: Subject, launch: Callable[[], None], moved: float, issued: float | None) -> Row:
    assert subject.batch is not None
    seconds = bench.timer.seconds(launch, bench.gpu.compute_stream, cold=True)
    least = kernel_least(moved, issued, bench.rates["copy_bytes_per_second"], bench.limits)
    return timed(subject, seconds, subject.batch, moved=moved, least=least)


def kernel_least(moved: float, issued: float | None, bandwidth: float, limits: Limits) -> Least:
    """The least seconds that a kernel takes a frame.

    Args:
        moved: bytes a frame.
        issued: instructions a frame, of all threads together.
        bandwidth: bytes a second, as measured.
        limits: of the GPU.
    """
    issue = None if issued is None else limits.issue_seconds(issued)
    return Least(moved / bandwidth, limits.memory_seconds(moved), issue)


def instructions(name: str, spec: FrameSpec, dtype: np.dtype[Any], counted: dict[str, Any]) -> float | None:
    """A frame's, as `kernel_report.py` has counted them; None for a size at which it has not."""
    told = counted["frame"]
    same_body = name == "prepare" or (spec.width, spec.height) == (told["width"], told["height"])
    if spec.layout != LAYOUT or not same_body:
        return None
    return float(counted["kernels"][f"{name} {dtype}"]["traffic"]["ptx_instructions"])
