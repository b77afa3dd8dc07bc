"""The ways that are compared, and why one of them cannot run here."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import product
from typing import Literal

from gpupipe.bench import torch_way
from gpupipe.bench.gpupipe_way import GpupipeWay
from gpupipe.bench.plain_ways import PlainWay, parallel, sequential, tuned_cpu
from gpupipe.bench.precisions import RUNS_ON
from gpupipe.bench.scene import Scene
from gpupipe.bench.way import Way
from gpupipe.colour import PixelFormat
from gpupipe.gpu import device

FAMILIES = ("sequential", "parallel", "tuned-cpu", "gpupipe-cpu", "gpupipe-cuda", "pytorch")
"""What `--ways` takes; each of gpupipe's is two ways, one in each pixel format, and in nv12 one more for each precision
and for features that are kept, since the model is all that these change."""

FORMATS: tuple[PixelFormat, ...] = ("nv12", "bgr24")


def ways_here(scene: Scene, families: Sequence[str] = FAMILIES) -> list[Way]:
    """Those of the families that can run here, not opened."""
    absent = absences(families)
    return [
        way
        for way in _all_ways(scene)
        if (family := family_of(way.name)) in families
        and family not in absent
        and (not isinstance(way, GpupipeWay) or way.precision in scene.options.precisions)
    ]


def way_named(scene: Scene, name: str) -> Way:
    """One way, not opened. Whether it can run here is not asked: asking loads what it would run on."""
    (found,) = (way for way in _all_ways(scene) if way.name == name)
    return found


def absences(families: Sequence[str] = FAMILIES) -> dict[str, str]:
    """Those of the families that cannot run here, and why."""
    problems = {"gpupipe-cuda": lambda: device.describe()["problem"], "pytorch": torch_way.problem}
    found = {family: ask() for family, ask in problems.items() if family in families}
    return {family: reason for family, reason in found.items() if reason is not None}


def family_of(name: str) -> str:
    """What `--ways` calls a way.

    >>> family_of("gpupipe-cpu-nv12-int8"), family_of("tuned-cpu")
    ('gpupipe-cpu', 'tuned-cpu')
    """
    return next((name.partition(f"-{f}")[0] for f in FORMATS if f"-{f}" in name), name)


def _all_ways(scene: Scene) -> list[Way]:
    pooled = PlainWay("parallel", "", scene, parallel, batch_size=scene.batch_size, threads=scene.workers)
    pooled.about = (
        f"batches of {pooled.batch_size}, composited by {pooled.threads['compose']} threads of a pool made for each; "
        "one stage after the other, as the published benchmarks do"
    )
    plain = [
        PlainWay(
            "sequential",
            "one frame after the other, one thread: copy crop, place, resize, copy body, paste, save",
            scene,
            sequential,
        ),
        pooled,
        PlainWay(
            "tuned-cpu",
            "the fastest plain OpenCV: contiguous prediction, paste in place and restore, no buffer made twice, "
            "converted by OpenCV where the stream's colours are BT.601",
            scene,
            tuned_cpu,
            opencv=True,
        ),
    ]
    devices: tuple[Literal["cpu", "cuda"], ...] = ("cpu", "cuda")
    about = {"nv12": "body planes as decoded, only the rectangle is converted", "bgr24": "images, converted to encode"}
    ours: list[Way] = []
    for kind in devices:
        for pixel_format in FORMATS:
            name = f"gpupipe-{kind}-{pixel_format}"
            ours.append(
                GpupipeWay(name, f"gpupipe in {pixel_format}: {about[pixel_format]}", scene, kind, pixel_format)
            )
        ours += _variants(scene, kind)
    return [*plain, *ours, torch_way.TorchWay(scene)]


def _variants(scene: Scene, kind: Literal["cpu", "cuda"]) -> Iterator[Way]:
    """gpupipe in nv12, in other precisions and with features that are kept."""
    kept = (False,) if scene.options.feature_cache == "off" else (False, True)
    for precision, keeps in product(RUNS_ON[kind], kept):
        reduced = precision != "fp32"
        if reduced or keeps:
            name = f"gpupipe-{kind}-nv12" + f"-{precision}" * reduced + "-features" * keeps
            about = ["gpupipe in nv12", *[f"the model in {precision}"] * reduced]
            about += ["what the model makes of a cached frame alone is kept with it"] * keeps
            yield GpupipeWay(name, "; ".join(about), scene, kind, "nv12", precision=precision, keeps_features=keeps)
