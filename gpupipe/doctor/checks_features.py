"""Checks of features that stay with a frame: the model in two nets draws what the whole one does."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence

import numpy as np

from gpupipe.doctor.check import Check, Found, NotPossible, Subject
from gpupipe.doctor.checks_model import FLOAT32_ERROR, ON_GPU, ROUNDED_ERROR, on, tolerance
from gpupipe.doctor.on_device import BATCH, OnDevice, random_inputs
from gpupipe.doctor.scenes import on_host, put
from gpupipe.engine.features import SplitModel
from gpupipe.model.runtime import Provider
from gpupipe.model.split import NotSplit

FEATURES_ERROR = 1e-5
"""The most by which a float32 prediction from features may differ from the whole model's on the same GPU."""

BATCHES: tuple[Sequence[int], ...] = (
    range(BATCH),
    range(BATCH, 2 * BATCH),
    range(BATCH // 2, BATCH + BATCH // 2),
    range(BATCH - 1, -1, -1),
    (0, 0, *range(3, BATCH + 1)),
    range(2, BATCH // 2),
)
"""Cached frames: made, made, bound as they lie, gathered, gathered, and a batch that is not full."""


def features(subject: Subject, provider: Provider) -> Found:
    """Predictions from kept features, bound as they lie and gathered, against the whole model's."""
    if importlib.util.find_spec("onnx") is None:
        raise NotPossible("a model is cut in two with the onnx package: pip install 'gpupipe[optimize]'")
    limit = FEATURES_ERROR if tolerance(subject, provider) == FLOAT32_ERROR else ROUNDED_ERROR
    rng, gpu = np.random.default_rng(6), subject.gpu
    largest = 0.0
    with OnDevice(subject, provider) as opened:
        split = SplitModel.open(opened.model, gpu)
        if isinstance(split, NotSplit):
            raise NotPossible(f"the model is not split: {split.reason}")
        kept = split.keep(2 * BATCH)
        rest = split.bind(opened.audio, opened.prediction, opened.visual)
        cached = np.concatenate([random_inputs(opened.model, opened.layout, rng)[0] for _ in range(2)])
        try:
            for frames in BATCHES:
                _, audio = random_inputs(opened.model, opened.layout, rng)
                visual = np.zeros_like(cached[:BATCH])
                visual[: len(frames)] = cached[list(frames)]
                wanted = opened.predict((visual, audio))[: len(frames)]
                put(gpu, opened.prediction, np.zeros(opened.prediction.shape, opened.model.dtype))
                split.start(opened.bound, rest, opened.visual, [(kept, frame) for frame in frames])()
                found = on_host(gpu, opened.prediction)[: len(frames)]
                largest = max(largest, float(np.abs(found.astype(np.float64) - wanted).max()))
        finally:
            gpu.synchronize()
            split.close()
            kept.close()
    runs = {"made": split.source_runs, "as they lie": split.rest.direct, "gathered": split.rest.gathered}
    said = ", ".join(f"{count} {way}" for way, count in runs.items())
    measured = f"{len(BATCHES)} batches ({said}): largest difference {largest:.2g} of {limit:g}"
    numbers = {"largest": largest, "kept_bytes_a_frame": split.frame_bytes, **runs}
    return Found(largest <= limit, measured, numbers)


CHECKS = tuple(
    Check(f"features: {name}", "what is drawn from kept features is what the whole model draws", on(name, features))
    for name in ON_GPU
)
"""In the order in which they are made."""
