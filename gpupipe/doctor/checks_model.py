"""Checks of the model's providers: which open, what runs where, and what comes out."""

from __future__ import annotations

import importlib.util
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from gpupipe.doctor.check import Check, Found, NotPossible, Subject
from gpupipe.doctor.checks_frames import rendered
from gpupipe.doctor.on_device import BATCH, OnDevice, cpu_prediction, random_inputs
from gpupipe.doctor.scenes import differing
from gpupipe.errors import GpupipeError
from gpupipe.machine import cpu_count
from gpupipe.model.model import Model
from gpupipe.model.runtime import PROVIDER_NAMES, TF32_OVERRIDE, Provider, SessionOptions, runtime

FLOAT32_ERROR = 1e-4
"""The most by which a float32 prediction may differ from the CPU's: rounding, in another order of additions."""
ROUNDED_ERROR = 2e-2
"""The same where numbers are rounded to 10 bits: TF32, float16."""
PIXEL_ERROR = 2
"""The most by which a finished pixel may differ where predictions differ by rounding: one level, resized."""

ON_GPU: tuple[Provider, ...] = ("cuda", "tensorrt")

Work = Callable[[Subject, Provider], Found]


def on(provider: Provider, work: Work) -> Callable[[Subject], Found]:
    """A check of one provider; not possible where it does not open."""

    def check(subject: Subject) -> Found:
        subject.need(provider)
        return work(subject, provider)

    return check


def opens(provider: Provider) -> Callable[[Subject], Found]:
    """A check that a provider opens the model; what it finds decides which other checks are possible."""

    def check(subject: Subject) -> Found:
        if PROVIDER_NAMES[provider] not in runtime().get_available_providers():
            subject.problems[provider] = "this ONNX Runtime was built without it"
            raise NotPossible(subject.problems[provider] or "")
        began = time.perf_counter()
        try:
            if provider == "cpu":
                Model(subject.model, SessionOptions(threads=cpu_count()), batch=BATCH).close()
            else:
                OnDevice(subject, provider).close()
        except GpupipeError as error:
            subject.problems[provider] = error.on_command_line()
            if provider == "tensorrt" and importlib.util.find_spec("tensorrt_libs") is None:  # nor found elsewhere
                raise NotPossible("TensorRT is not installed: pip install tensorrt-cu12, or -cu13") from error
            raise
        subject.problems[provider] = None
        seconds = time.perf_counter() - began
        return Found(True, f"opened in {seconds:.2f} s", {"seconds": seconds})

    return check


def assignment(subject: Subject, provider: Provider) -> Found:
    """Which provider runs each node."""
    with OnDevice(subject, provider) as opened:
        nodes = opened.model.nodes
    if not nodes:
        raise NotPossible("this ONNX Runtime does not tell which provider runs a node")
    said = ", ".join(f"{count} by {name}" for name, count in nodes.items())
    return Found(set(nodes) == {PROVIDER_NAMES[provider]}, f"nodes: {said}", {"nodes": nodes})


def compared(subject: Subject, provider: Provider, path: Path | None = None, **options: Any) -> dict[str, float]:
    """How far predictions are from the CPU's, for the same random inputs: `largest` and `mean`."""
    with OnDevice(subject, provider, path, **options) as opened:
        inputs = random_inputs(opened.model, opened.layout, np.random.default_rng(2))
        found = opened.predict(inputs)
    difference = np.abs(found.astype(np.float64) - cpu_prediction(subject, inputs, path).astype(np.float64))
    return {"largest": float(difference.max()), "mean": float(difference.mean())}


def tolerance(subject: Subject, provider: Provider) -> float:
    """The most by which predictions may differ from the CPU's."""
    model = Model(subject.model, SessionOptions(), batch=BATCH)
    model.close()
    rounds = provider == "tensorrt" and subject.gpu.compute_capability >= (8, 0)
    rounds &= os.environ.get(TF32_OVERRIDE) != "0"
    return ROUNDED_ERROR if rounds or model.dtype == np.float16 else FLOAT32_ERROR


def predictions(subject: Subject, provider: Provider) -> Found:
    """Predictions against the CPU's, and the frames that are drawn of them."""
    limit = tolerance(subject, provider)
    found = compared(subject, provider)
    pair = (rendered(subject, subject.device_name, each, "bgr24") for each in ("cpu", provider))
    changed = total = furthest = 0
    for one, other in zip(*pair, strict=True):
        distance = np.abs(one.astype(np.int16) - other).max(axis=2)
        changed, total = changed + int(np.count_nonzero(distance)), total + distance.size
        furthest = max(furthest, int(distance.max()))
    most = PIXEL_ERROR if limit == FLOAT32_ERROR else round(255 * limit) + PIXEL_ERROR
    measured = (
        f"largest {found['largest']:.2g} of {limit:g}, mean {found['mean']:.2g}; "
        f"{100 * changed / total:.3f} % of pixels changed, by {furthest} of {most} levels at most"
    )
    numbers = {**found, "changed_pixels": changed, "pixels": total, "largest_level": furthest}
    return Found(found["largest"] <= limit and furthest <= most, measured, numbers)


def tf32(subject: Subject) -> Found:
    """Float32 is float32 unless TF32 is asked for."""
    subject.need("cuda")
    exact, rounded = (compared(subject, "cuda", tf32=tf32)["largest"] for tf32 in (False, True))
    numbers = {"without": exact, "with": rounded}
    if exact > FLOAT32_ERROR:
        return Found(False, f"without TF32 predictions differ by {exact:.2g}", numbers)
    if rounded <= 2 * exact:
        raise NotPossible(f"TF32 changes nothing here ({exact:.2g} without, {rounded:.2g} with it)")
    return Found(True, f"largest difference {exact:.2g} without TF32, {rounded:.2g} with it", numbers)


def binding(subject: Subject, provider: Provider) -> Found:
    """A run reads what is in the bound buffers when it runs."""
    rng = np.random.default_rng(3)
    with OnDevice(subject, provider) as opened, OnDevice(subject, provider) as anew:
        first, second = (random_inputs(opened.model, opened.layout, rng) for _ in range(2))
        before, after = opened.predict(first).copy(), opened.predict(second).copy()
        wanted = anew.predict(second)
    moved, wrong = differing(before, after), differing(after, wanted)
    share = 100 * moved / before.size
    measured = f"new inputs changed {share:.0f} % of the values; {wrong} are not those of a new binding"
    return Found(moved > before.size // 2 and not wrong, measured, {"changed": moved, "differing": wrong})


def tensorrt_cache(subject: Subject) -> Found:
    """Engines of models with one name and graph are kept apart, and half of one is built anew."""
    subject.need("tensorrt")
    if subject.other_model is None:
        raise NotPossible("needs two models of one graph: leave the character out")
    for path in (subject.model, subject.other_model):
        found = compared(subject, "tensorrt", path)["largest"]
        if found > tolerance(subject, "tensorrt"):
            return Found(False, f"the {path.parent.name} model's predictions differ by {found:.2g}", {"largest": found})
    engines = [path for path in (subject.folder / "engines").rglob("*.engine") if path.is_file()]
    for path in engines:
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    found = compared(subject, "tensorrt")["largest"]
    measured = f"{len(engines)} engines for two models; after half of each was cut off: {found:.2g}"
    return Found(len(engines) >= 2 and found <= tolerance(subject, "tensorrt"), measured, {"largest": found})


OPENING = tuple(Check(f"{name} opens", "the model opens with it", opens(name)) for name in PROVIDER_NAMES)
"""Made first: what opens decides which other checks are possible."""

CHECKS = (
    *(Check(f"node assignment: {name}", f"every node runs on {name}", on(name, assignment)) for name in ON_GPU),
    *(
        Check(f"predictions: {name}", "within rounding of the CPU's, and so the frames", on(name, predictions))
        for name in ON_GPU
    ),
    Check("tf32 off is exact", f"within {FLOAT32_ERROR:g} of the CPU's without TF32, and further with it", tf32),
    Check("binding is in place", "a run reads new inputs, and gives what a new binding gives", on("cuda", binding)),
    Check("tensorrt cache", "each model has its own engine; half of one is built anew", tensorrt_cache),
)
"""In the order in which they are made."""
