"""Who takes part in the comparison, and why somebody does not."""

from __future__ import annotations

from gpupipe.bench import torch_way as bench_torch
from gpupipe.bench.entrants import Entrant, PlainEntrant, TorchEntrant
from gpupipe.bench.gpupipe_way import GpupipeEntrant
from gpupipe.bench.scene import Scene
from gpupipe.bench.ways import parallel, sequential, tuned_cpu
from gpupipe.colour import PixelFormat
from gpupipe.gpu import device

WAYS = ("sequential", "parallel", "tuned-cpu", "gpupipe-cpu", "gpupipe-cuda", "pytorch")
"""What `--ways` takes; gpupipe's take part in both pixel formats."""

FORMATS: tuple[PixelFormat, ...] = ("nv12", "bgr24")


def line_up(scene: Scene) -> list[Entrant]:
    """Every way that can run here, not opened."""
    batch, workers = scene.batch, scene.workers
    entrants: list[Entrant] = [
        PlainEntrant(
            "sequential",
            "one frame after the other, one thread: copy crop, place, resize, copy body, paste, save",
            scene,
            sequential,
            opencv=False,
        ),
        PlainEntrant(
            "parallel",
            f"batches of {batch}, composited by {workers} threads of a pool made for each; "
            "one stage after the other, as the published benchmarks do",
            scene,
            parallel,
            batch=batch,
            threads=workers,
            opencv=False,
        ),
        PlainEntrant(
            "tuned-cpu",
            "the fastest plain OpenCV: contiguous prediction, paste in place and restore, no buffer made twice, "
            "converted by OpenCV where the stream's colours are BT.601",
            scene,
            tuned_cpu,
            opencv=True,
        ),
    ]
    about = {"nv12": "body planes as decoded, only the rectangle is converted", "bgr24": "images, converted to encode"}
    absent = absences()
    for kind in ("cpu", "cuda"):
        if f"gpupipe-{kind}" not in absent:
            entrants += [
                GpupipeEntrant(
                    f"gpupipe-{kind}-{pixel_format}", f"gpupipe in {pixel_format}: {about[pixel_format]}", scene,
                    "cuda" if kind == "cuda" else "cpu", pixel_format,
                )
                for pixel_format in FORMATS
            ]  # fmt: skip
    if "pytorch" not in absent:
        entrants.append(
            TorchEntrant("pytorch", "the model by PyTorch on the CPU, by onnx2torch", scene, sequential, opencv=False)
        )
    return entrants


def absences() -> dict[str, str]:
    """The ways that cannot run here, and why."""
    found = {"gpupipe-cuda": device.describe()["problem"], "pytorch": bench_torch.problem()}
    return {way: reason for way, reason in found.items() if reason is not None}


def way_of(name: str) -> str:
    """The way, as `--ways` has it, of an entrant's name.

    >>> way_of("gpupipe-cpu-nv12"), way_of("tuned-cpu")
    ('gpupipe-cpu', 'tuned-cpu')
    """
    return next((name.removesuffix(f"-{f}") for f in FORMATS if name.endswith(f"-{f}")), name)
