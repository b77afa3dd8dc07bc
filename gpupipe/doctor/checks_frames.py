"""Checks of what is drawn: the kernels, whole renders, and what they cost in steady state."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import product
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gpupipe.colour import PixelFormat
from gpupipe.compose.table import ROW
from gpupipe.doctor.check import Check, Found, Subject
from gpupipe.doctor.scenes import Case, Pair
from gpupipe.engine.gpu_backend import SPARE_BYTES
from gpupipe.errors import DeviceError
from gpupipe.geometry import CropLayout
from gpupipe.gpu.device import Device
from gpupipe.gpu.launch import status_words
from gpupipe.machine import megabytes
from gpupipe.model.runtime import Provider
from gpupipe.render.engine import Engine

SIZES = (32, 96, 252)
"""Model sizes of the random batches."""
ROUNDS = 4
BATCH = 8
RENDERED = 40
STEADY_BYTES = 2_000_000
"""What may be less free after many batches: a driver's page. The allocations themselves are counted."""
FORMATS: tuple[PixelFormat, ...] = ("nv12", "bgr24")


def kernels(part: str) -> Callable[[Subject], Found]:
    """A check that one kernel draws what the CPU does: "prepare" or "paste"."""

    def check(subject: Subject) -> Found:
        rng = np.random.default_rng(0)
        frames = 0
        wrong: dict[str, int] = {}
        for size, pixel_format, dtype, on_device in product(SIZES, FORMATS, (np.float32, np.float16), (True, False)):
            case = Case(CropLayout(size), pixel_format, dtype, on_device)
            pair = Pair(case, subject.gpu, rng, BATCH)
            try:
                for count in (BATCH, *rng.integers(1, BATCH + 1, ROUNDS - 1).tolist()):
                    found = pair.draw(count)
                    frames += count
                    bad = found[part] + (found["status"] if part == "paste" else 0)
                    if bad:
                        wrong[case.name] = wrong.get(case.name, 0) + bad
            finally:
                pair.close()
        first = "".join(f"; of {name}: {count}" for name, count in list(wrong.items())[:1])
        measured = (
            f"{frames} frames in mixed batches of 3 sizes, both formats and types: {sum(wrong.values())} values differ"
        )
        return Found(not wrong, measured + first, {"frames": frames, "differing": wrong})

    return check


def rendered(
    subject: Subject, device: str, provider: Provider, pixel_format: PixelFormat, cache: int | None = None
) -> list[NDArray[np.uint8]]:
    """The frames of a render, with a bound on the cached frames that stay or without."""
    with Engine(device=device, cache=cache) as engine:
        return list(
            engine.frames(
                subject.character,
                model=subject.model,
                provider=provider,
                pixel_format=pixel_format,
                frames=RENDERED,
                batch=BATCH,
            )
        )


def render_exact(subject: Subject) -> Found:
    """Renders composited on the GPU, with the model on the CPU, against one on the CPU alone: with all cached frames
    kept, and with all decoded ahead."""
    wrong = frames = 0
    for pixel_format in FORMATS:
        wanted = rendered(subject, "cpu", "cpu", pixel_format)
        for cache in (None, 0):
            for one, other in zip(
                wanted, rendered(subject, subject.device_name, "cpu", pixel_format, cache), strict=True
            ):
                frames += 1
                wrong += int(np.count_nonzero(one != other))
    return Found(not wrong, f"{frames} frames: {wrong} bytes differ", {"frames": frames, "differing": wrong})


@contextmanager
def counted(gpu: Device) -> Iterator[dict[str, int]]:
    """What is done with a device while a with block lasts: waits, bytes copied up and down, and allocations."""
    count = {"waits": 0, "up": 0, "down": 0, "allocations": 0}
    lock = threading.Lock()

    def counting(name: str, add: Callable[..., tuple[str, int]]) -> None:
        method = getattr(gpu, name)

        def call(*arguments: Any, **more: Any) -> Any:
            key, number = add(*arguments, **more)
            with lock:
                count[key] += number
            return method(*arguments, **more)

        vars(gpu)[name] = call

    def copied(target: Any, source: Any, *_: Any, rows: Any = None) -> tuple[str, int]:
        size = source.nbytes if rows is None else rows.rows * rows.width
        return ("up" if isinstance(source, np.ndarray) else "down"), size

    counting("copy", copied)
    counting("wait", lambda *_: ("waits", 1))
    for name in ("empty", "pinned"):
        counting(name, lambda *_, **__: ("allocations", 1))
    try:
        yield count
    finally:
        for name in ("copy", "wait", "empty", "pinned"):
            del vars(gpu)[name]


def budget(subject: Subject) -> Found:
    """The steady state: batches in the middle of a render."""
    gpu, batches = subject.gpu, 20
    case = Case(CropLayout(SIZES[1]), "nv12", np.float32, True)
    pair = Pair(case, gpu, np.random.default_rng(1), BATCH)
    try:
        pair.draw(BATCH)
        slot, compositor = pair.gpu_slot, pair.on_gpu
        drawings = pair.drawings(BATCH)[1]
        frame_bytes = sum(drawing.surface.format.nbytes for drawing in drawings)

        def batch() -> None:
            compositor.prepare(slot, drawings)
            compositor.ready(slot)
            compositor.paste(slot)
            compositor.finish(slot)
            slot.marks.collect()

        batch()
        before = gpu.free_bytes
        with counted(gpu) as count:
            for _ in range(batches):
                batch()
        lost = before - gpu.free_bytes
    finally:
        pair.close()
    status = 4 * status_words(BATCH)
    wanted = {
        "waits": batches,
        "up": batches * BATCH * ROW.itemsize,
        "down": batches * (frame_bytes + status),
        "allocations": 0,
    }
    measured = (
        f"a batch: {count['waits'] / batches:.2g} waits, {count['up'] / batches / BATCH:.0f} bytes a frame up, "
        f"{count['down'] / batches - frame_bytes:.0f} bytes beside the frames down; {count['allocations']} "
        f"allocations, {lost} bytes less free after {batches} batches"
    )
    return Found(count == wanted and lost <= STEADY_BYTES, measured, {**count, "batches": batches, "lost_bytes": lost})


def memory_check(subject: Subject) -> Found:
    """The least memory that is free while a job runs, against what the check before it left."""
    gpu = subject.gpu
    left: list[int] = []
    least = [gpu.total_bytes]
    done = threading.Event()

    def watch() -> None:
        while not done.wait(0.002):
            try:
                least[0] = min(least[0], gpu.free_bytes)
            except DeviceError:  # the job will say so
                return

    with Engine(device=subject.device_name) as engine:
        backend: Any = engine.backend
        require = backend.require

        def noted(wanted: Any) -> None:
            require(wanted)
            left.append(gpu.free_bytes - sum(wanted.values()))

        backend.require = noted
        watcher = threading.Thread(target=watch, name="watch")
        watcher.start()
        try:
            for _ in engine.frames(subject.character, model=subject.model, provider=subject.best, frames=RENDERED):
                pass
        finally:
            done.set()
            watcher.join()
    beyond = left[-1] - least[0]
    measured = f"{megabytes(max(0, beyond))} more than counted, with the model on {subject.best}"
    return Found(beyond <= SPARE_BYTES, measured, {"left_bytes": left[-1], "least_free_bytes": least[0]})


CHECKS = (
    Check("kernels exact: prepare", "every bit of the model's inputs is the CPU's", kernels("prepare")),
    Check("kernels exact: paste", "every bit of frames and status is the CPU's", kernels("paste")),
    Check("render exact", "frames composited on the GPU are the CPU's, with the CPU's predictions", render_exact),
    Check("budget", f"a batch: 1 wait, {ROW.itemsize} bytes a frame up, frames and status down, no memory", budget),
    Check("memory check", f"a job takes less than {megabytes(SPARE_BYTES)} more than was counted", memory_check),
)
"""In the order in which they are made."""
