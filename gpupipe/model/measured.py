"""The type and shape of every tensor in a graph, and the multiply-adds of every node, found by running it.

Shapes that a graph computes for itself (Shape, Gather, Pad, Resize) defeat shape inference now and then; a run does not
guess. Two runs, of one frame and of two, tell how each dimension grows with the batch.
"""

from __future__ import annotations

import importlib
import json
import tempfile
from collections import defaultdict
from collections.abc import Iterator
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from gpupipe.errors import GpupipeError, InferenceError, reason
from gpupipe.geometry import SPEECH_SHAPE
from gpupipe.model.cost import node_macs
from gpupipe.model.runtime import failures, runtime
from gpupipe.model.signature import Signature

if TYPE_CHECKING:
    import onnx

DTYPES: dict[str, np.dtype[Any]] = {
    f"tensor({name})": np.dtype(kind)
    for name, kind in {"float": "f4", "double": "f8", "float16": "f2", "bool": "?"}.items()
} | {f"tensor({sign}int{bits})": np.dtype(f"{sign}int{bits}") for sign in ("", "u") for bits in (8, 16, 32, 64)}
"""ONNX Runtime's words for the types of tensors that NumPy has too."""

NODE = "gpupipe.node."
"""Nodes are called this and their number, in the copy that is run: the profile tells nodes by name."""


class Measured(NamedTuple):
    """The type and shape of a tensor: dimension i is `fixed[i] + batch * each[i]`.

    >>> Measured(np.dtype("f4"), (0, 3, 8), (1, 0, 0)).frame_shape
    (3, 8)
    """

    dtype: np.dtype[Any]
    fixed: tuple[int, ...]
    each: tuple[int, ...]

    @property
    def frame_shape(self) -> tuple[int, ...] | None:
        """What one frame has of it, if the first dimension is the batch, and no other one grows with it."""
        of_frames = self.each[:1] == (1,) and self.fixed[0] == 0 and not any(self.each[1:])
        return self.fixed[1:] if of_frames else None

    @property
    def frame_bytes(self) -> int:
        """Bytes in a batch of one."""
        return self.dtype.itemsize * prod(fixed + each for fixed, each in zip(self.fixed, self.each, strict=True))


class Measurement(NamedTuple):
    """What running a model has told.

    Attributes:
        signature: of the model.
        tensors: by name, those that were tensors of a known type and had one shape for each batch; no constants.
        macs: of a frame, by the node's place in the graph.
    """

    signature: Signature
    tensors: dict[str, Measured]
    macs: dict[int, int]


def onnx_package() -> Any:
    """The `onnx` package, imported on first use: only rewriting a graph needs it.

    Raises:
        GpupipeError: it is not installed.
    """
    try:
        return importlib.import_module("onnx")
    except ImportError:
        raise GpupipeError(
            "rewriting a model needs the onnx package", remedy="pip install 'gpupipe[optimize]'"
        ) from None


def measure(model: onnx.ModelProto, *, file: Path, size: int | None = None) -> Measurement:
    """Run a lip-sync model on zeros with ONNX Runtime's CPU provider, as it stands, and look.

    Args:
        model: with its weights (`onnx.load` reads those beside the file too).
        file: what errors call it.
        size: side of its images in pixels, for a model that leaves it open.

    Raises:
        InferenceError: it is no lip-sync model, leaves its size open and none was given, or does not run.
        GpupipeError: the onnx package is not installed.
    """
    onnx_package()
    copy = type(model)()
    copy.CopyFrom(model)
    for number, node in enumerate(copy.graph.node):
        node.name = f"{NODE}{number}"
    try:
        runs, signature = _profile(copy.SerializeToString(), file, size)
        dtypes = _dtypes(copy)
    except failures() as error:
        raise InferenceError(
            f"does not run on the CPU: {reason(error)}", file=file, remedy="export it again, or see `gpupipe doctor`"
        ) from error
    tensors = dict(_of_inputs(signature, size))
    macs = {}
    for number, node in enumerate(model.graph.node):
        events = runs[f"{NODE}{number}"]
        if not events:  # a constant, or replaced by what its function is made of
            continue
        macs[number] = node_macs(events[0]) // (signature.batch or 1)
        outputs = [name for name in node.output if name]
        shapes = [[next(iter(entry.values())) for entry in event["output_type_shape"]] for event in events]
        if any(len(found) != len(outputs) for found in shapes):  # one of them is no tensor
            continue
        for name, *found in zip(outputs, *shapes, strict=True):
            grown = _growth(found, signature.batch)
            if grown is not None and name in dtypes:
                tensors[name] = Measured(dtypes[name], *grown)
    return Measurement(signature, tensors, macs)


def _profile(model: bytes, file: Path, size: int | None) -> tuple[dict[str, list[dict[str, Any]]], Signature]:
    """What a profile of one run for each batch tells of each node, in the order of the runs."""
    with tempfile.TemporaryDirectory() as folder:
        settings = runtime().SessionOptions()
        settings.graph_optimization_level = runtime().GraphOptimizationLevel.ORT_DISABLE_ALL
        settings.enable_profiling = True
        settings.add_session_config_entry("session.disable_prepacking", "1")  # packed weights have lost their shape
        settings.profile_file_prefix = str(Path(folder) / "profile")
        session = runtime().InferenceSession(model, settings, providers=["CPUExecutionProvider"])
        try:
            signature = Signature(file, session)
            shapes = [_input_shapes(signature, batch, size) for batch in _batches(signature.batch)]
            for inputs in shapes:
                session.run(None, {name: np.zeros(shape, signature.dtype) for name, shape in inputs.items()})
        finally:
            profile = Path(session.end_profiling())
        events = json.loads(profile.read_text("utf-8"))
    runs = defaultdict(list)
    for event in events:
        if "output_type_shape" in event.get("args", {}):
            runs[event["name"].removesuffix("_kernel_time")].append(event["args"])
    return runs, signature


def _batches(batch: int | None) -> tuple[int, ...]:
    return (1, 2) if batch is None else (batch,)


def _input_shapes(signature: Signature, batch: int, size: int | None) -> dict[str, tuple[int, ...]]:
    side = signature.size or size
    if side is None:
        raise InferenceError(
            "the model leaves its image size open", file=signature.path, remedy="export it with a fixed size"
        )
    return {signature.visual: (batch, 6, side, side), signature.audio: (batch, *SPEECH_SHAPE)}


def _of_inputs(signature: Signature, size: int | None) -> Iterator[tuple[str, Measured]]:
    for name, shape in _input_shapes(signature, 1, size).items():
        yield name, Measured(signature.dtype, (0, *shape[1:]), (1,) + (0,) * (len(shape) - 1))


def _growth(shapes: list[list[int]], batch: int | None) -> tuple[tuple[int, ...], tuple[int, ...]] | None:
    """The fixed part of each dimension, and how it grows with the batch; None if it is neither fixed nor in proportion.

    Where the model has one batch only, a first dimension of that size is taken for the batch.

    >>> _growth([[1, 3, 8], [2, 3, 16]], None)
    ((0, 3, 0), (1, 0, 8))
    >>> _growth([[4, 3]], 4)
    ((0, 3), (1, 0))
    """
    if batch is not None:
        (shape,) = shapes
        of_frames = shape[:1] == [batch]
        return tuple([0, *shape[1:]] if of_frames else shape), (int(of_frames),) * bool(shape) + (0,) * len(shape[1:])
    if len(shapes) != 2 or len(shapes[0]) != len(shapes[1]):
        return None
    fixed, each = [], []
    for one, two in zip(*shapes, strict=True):
        if two not in (one, 2 * one):
            return None
        fixed.append(one if one == two else 0)
        each.append(0 if one == two else one)
    return tuple(fixed), tuple(each)


def _dtypes(model: onnx.ModelProto) -> dict[str, np.dtype[Any]]:
    """The type of each node's outputs, as ONNX Runtime infers it; what is no tensor of NumPy's types is left out."""
    asked = type(model)()
    asked.CopyFrom(model)
    known = {value.name for value in asked.graph.output}
    for node in model.graph.node:
        for name in node.output:
            if name and name not in known:
                asked.graph.output.add().name = name
                known.add(name)
    settings = runtime().SessionOptions()
    settings.graph_optimization_level = runtime().GraphOptimizationLevel.ORT_DISABLE_ALL
    session = runtime().InferenceSession(asked.SerializeToString(), settings, providers=["CPUExecutionProvider"])
    return {node.name: DTYPES[node.type] for node in session.get_outputs() if node.type in DTYPES}
