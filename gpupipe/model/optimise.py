"""A model in another precision, made from its file, and judged: the steps in order."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from gpupipe.errors import InferenceError
from gpupipe.geometry import CropLayout, Rect
from gpupipe.machine import package_version
from gpupipe.model.equalise import equalise
from gpupipe.model.fold import fold
from gpupipe.model.graph import Graph, check, load_onnx, read_graph, session_of
from gpupipe.model.half import to_half
from gpupipe.model.quality import FLOOR_DB, WORST_FLOOR_DB, Quality, compare, mouth_region
from gpupipe.model.quantise import Quantiser, adds_without_saturating, operator_counts
from gpupipe.model.ranges import measure
from gpupipe.model.samples import Samples, SampleSet, predict
from gpupipe.model.sensitive import FRAMES, TRIALS, Search
from gpupipe.model.signature import PRECISION_KEY, Signature

Precision = Literal["fp32", "fp16", "int8"]
"""Of a file: folded only, float16, or quantised."""
PRECISIONS: Final = get_args(Precision)

REVISION: Final = 1
"""Counts up when a model is made in another way: what is cached is then made anew."""

Told = Callable[[str], None]


@dataclass(frozen=True)
class Optimised:
    """A model that was made, not written yet.

    Attributes:
        model: the `onnx.ModelProto`.
        quality: what it draws, compared with what the file it was made of draws.
        wanted, found: the predictions that were compared, float32 `[n, 3, S, S]`.
        samples: what they were predicted for.
        about: how it was made, JSON values.
    """

    model: Graph
    quality: Quality
    wanted: NDArray[np.float32]
    found: NDArray[np.float32]
    samples: Samples
    about: dict[str, Any] = field(default_factory=dict)


def settings_of(precision: Precision) -> dict[str, Any]:
    """What else tells how a model is made: the settings, the processor's abilities and the versions. JSON values."""
    packages = ("gpupipe", "onnx", "onnxruntime", "onnxruntime-gpu", "numpy")
    return {
        "precision": precision,
        "revision": REVISION,
        "saturating": precision == "int8" and not adds_without_saturating(),
        "trials": TRIALS if precision == "int8" else 0,
        "versions": {name: package_version(name) for name in packages},
    }


def optimise(path: Path, precision: Precision, samples: SampleSet, told: Told = lambda _: None) -> Optimised:
    """Make a model and judge it.

    Args:
        path: the ONNX file.
        precision: what to make.
        samples: what to calibrate it with and to judge it by.
        told: given a line now and then, for people who wait.

    Raises:
        InferenceError: the file is no lip-sync model, or cannot be converted.
        GpupipeError: the onnx package is not installed.
    """
    original = read_graph(path)
    before = session_of(original)
    signature = Signature(path, before)
    told("folding the graph")
    made = fold(original, path)
    about: dict[str, Any] = {"nodes_before": len(original.graph.node)}
    judging = samples.judging()
    layout = CropLayout(judging.visual.shape[-1])
    signature.check_size(layout)
    wanted = predict(before, signature, judging)
    if not np.isfinite(wanted).all():
        raise InferenceError("gives NaN or infinite numbers for the samples", file=path, field="model")
    region = mouth_region(layout, wanted, predict(before, signature, judging.with_other_speech()))
    if precision != "fp32":
        try:
            made, more = _reduced(made, signature, precision, samples, region, told)
        except InferenceError as error:
            raise error.naming(path) from error
        about |= more
    _label(made, precision)
    check(made)
    after = session_of(made)
    found = predict(after, Signature(path, after), judging)
    if not np.isfinite(found).all():
        raise InferenceError(
            f"gives NaN or infinite numbers in {precision}",
            file=path,
            field="--precision",
            value=precision,
            remedy="use fp32",
        )
    about |= {"nodes": len(made.graph.node), "bytes": made.ByteSize(), "judged by": samples.about}
    return Optimised(made, compare(wanted, found, region), wanted, found, judging, about)


def _reduced(
    model: Graph, signature: Signature, precision: Precision, samples: SampleSet, region: Rect, told: Told
) -> tuple[Graph, dict[str, Any]]:
    """A folded model in float16 or int8, and how it was made."""
    if signature.dtype == np.float16:
        if precision == "fp16":
            return model, {}
        raise InferenceError("is float16: int8 is made of a float32 model", field="model", remedy="give that one")
    calibration = samples.calibration()
    told(f"measuring ranges on {len(calibration)} frames")
    ranges = measure(model, signature, calibration)
    if precision == "fp16":
        return to_half(model, ranges), {"calibrated with": len(calibration)}
    if not samples.filmed:
        raise InferenceError(
            "int8 is calibrated with a character's own frames and speech, and there is none",
            field="--precision",
            value="int8",
            remedy="give the character's folder, and the model with --model",
        )
    equal, ranges = equalise(model, ranges)
    few = calibration.take(FRAMES)
    wanted = predict(session_of(model), signature, few)
    found = Search(Quantiser(equal, ranges), signature, few, wanted, region).run(told)
    return found.model, {
        "calibrated with": len(calibration),
        **operator_counts(found.model),
        "float_share": found.cost,
        "trials": found.trials,
        "search_seconds": found.seconds,
    }


def _label(model: Graph, precision: Precision) -> None:
    """Say in the file what it is."""
    kept = {entry.key: entry.value for entry in model.metadata_props} | {PRECISION_KEY: precision}
    load_onnx().helper.set_model_props(model, kept)


def below_floor(quality: Quality, precision: str, path: Path, remedy: str) -> InferenceError:
    """The error for a model that must not be used without a word."""
    return InferenceError(
        f"{precision} draws it with {quality.summary()}; the floor is {FLOOR_DB:.0f} and {WORST_FLOOR_DB:.0f} dB",
        file=path,
        field="--precision",
        value=precision,
        remedy=remedy,
    )
