"""What the parts of a render take, beside the least that they can take on this GPU: for reading."""

from __future__ import annotations

import statistics
import tempfile
from pathlib import Path

import numpy as np

from gpupipe.compose.traffic import least_bytes
from gpupipe.doctor.check import Check, Found, Subject
from gpupipe.doctor.on_device import BATCH, OnDevice
from gpupipe.doctor.scenes import Case, Pair
from gpupipe.gpu.timer import Timer
from gpupipe.model.cost import ModelFloor, model_cost, moved_bytes
from gpupipe.model.rates import device_rates
from gpupipe.render.engine import Engine
from gpupipe.trace import PASTE, PREPARE

RUNS = 20
RENDERED = 250
"""The most frames of the render that is timed."""


def rates(subject: Subject) -> dict[str, float | None]:
    """What the GPU can do; measured once."""
    if not subject.rates:
        subject.rates.update(device_rates(subject.gpu, subject.best))
    return subject.rates


def beside(name: str, milliseconds: float, floor: float | None) -> str:
    """A time and its floor, for people."""
    if not floor:
        return f"{name} {milliseconds:.4f} ms a frame"
    return f"{name} {milliseconds:.4f} ms a frame, {milliseconds / floor:.1f}x the least of {floor:.4f}"


def kernels(subject: Subject) -> Found:
    """The two kernels, a batch at a time."""
    case = Case(subject.character.layout, "nv12", np.float32, True)
    pair = Pair(case, subject.gpu, np.random.default_rng(9), BATCH)
    try:
        drawings = pair.drawings(BATCH)[1]
        times: dict[str, list[float]] = {}
        for _ in range(RUNS):
            pair.on_gpu.prepare(pair.gpu_slot, drawings)
            pair.on_gpu.paste(pair.gpu_slot)
            pair.on_gpu.finish(pair.gpu_slot)
            for step in pair.gpu_slot.marks.collect():
                times.setdefault(step.name, []).append((step.end - step.start) * 1e3 / BATCH)
    finally:
        pair.close()
    speed = rates(subject)["copy_bytes_per_second"]
    assert speed is not None
    found = {name: statistics.median(each) for name, each in times.items()}
    floors = {}
    for name, kernel in ((PREPARE, "prepare"), (PASTE, f"paste_{case.pixel_format}")):
        moved = (least_bytes(kernel, drawing.frames.spec, case.dtype, [drawing.source]) for drawing in drawings)
        floors[name] = statistics.mean(moved) / speed * 1e3
    measured = "; ".join(beside(name, each, floors[name]) for name, each in found.items())
    return Found(True, measured, {"ms": found, "floor_ms": floors})


def model(subject: Subject) -> Found:
    """The model in batches, if it runs on the GPU."""
    subject.need("cuda")
    with OnDevice(subject, "cuda") as opened:
        seconds = Timer(subject.gpu, runs=RUNS, warm_up=3).seconds(opened.run, subject.gpu.compute_stream)
        number_bytes = opened.model.dtype.itemsize
    cost, speed = model_cost(subject.model, subject.character.layout), rates(subject)
    milliseconds = statistics.median(seconds) * 1e3 / BATCH
    bandwidth = speed["copy_bytes_per_second"]
    assert bandwidth is not None
    moved = moved_bytes(cost, number_bytes, BATCH)
    floor = ModelFloor.of(cost["macs"], moved, speed["flops_per_second"], bandwidth).ms
    return Found(True, beside("model", milliseconds, floor), {"ms": milliseconds, "floor_ms": floor, **cost})


def copies(subject: Subject) -> Found:
    """Bandwidth within the GPU and to the host, and what a finished frame's way down costs at least."""
    found, body = rates(subject), subject.character.body
    inside, down = found["copy_bytes_per_second"], found["to_host_bytes_per_second"]
    assert inside is not None
    assert down is not None
    frame = body.width * body.height * 3 / 2 / down * 1e3
    measured = f"{inside / 1e9:.1f} GB/s within the GPU, {down / 1e9:.1f} GB/s to the host: {frame:.4f} ms a frame"
    return Found(True, measured, {**found, "frame_to_host_ms": frame})


def render(subject: Subject) -> Found:
    """A whole render into a video, after one that loads everything."""
    with tempfile.TemporaryDirectory() as folder, Engine(device=subject.device_name) as engine:
        for number, frames in enumerate((BATCH, RENDERED)):
            stats = engine.render(
                subject.character,
                Path(folder) / f"{number}.mp4",
                model=subject.model,
                provider=subject.best,
                batch=BATCH,
                frames=frames,
                sound=False,
            )
    stages = {name: each.mean_ms for name, each in stats.stages.items()}
    parts = ", ".join(f"{name} {ms:.3f}" for name, ms in stages.items())
    measured = f"{stats.frames} frames of {stats.width}x{stats.height}: {stats.fps:.1f} a second; ms a frame: {parts}"
    return Found(True, measured + f" (model on {subject.best})", {"fps": stats.fps, "stages_ms": stages})


CHECKS = tuple(Check(f"times: {work.__name__}", "none: for reading", work) for work in (copies, kernels, model, render))
"""In the order in which they are made."""
