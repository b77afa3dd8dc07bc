"""Folding an exported graph: what does not depend on the inputs' values is computed once, and what does nothing leaves.

Exporters write the shapes that they meet as chains of Shape, Gather, Slice and more, which end in the sides of a Pad or
the shape of a Reshape. ONNX Runtime's own optimiser folds such a chain only if the whole shape is known, which it is
not while the batch is open (`ConstantFolding::ApplyImpl`, constant_folding.cc). Here the tensors that depend on nothing
but weights and shapes, found by data flow, are computed for several batches (and several sizes, where the size is
open), by ONNX Runtime itself; those that never differ are constants.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gpupipe.errors import InferenceError
from gpupipe.geometry import CropLayout
from gpupipe.model.graph import (
    Graph,
    Node,
    add_weight,
    attribute,
    check,
    clean,
    consumers,
    copied,
    refill,
    rename,
    session_of,
    subgraphs,
    weights,
)
from gpupipe.model.samples import noise, predict, runs
from gpupipe.model.signature import Signature

BATCHES = (1, 2, 3)
"""Batches for which what may be a constant is computed."""
OPEN_SIZES = (64, 96)
"""Sides of images for which it is, where the model leaves them open; each of five halvings leaves them whole."""

RANDOM = ("RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Multinomial", "Bernoulli")

EXACT = {"float32": 1e-5, "float16": 3e-2}
"""The most by which predictions of a folded graph may differ: BatchNorm in Conv rounds once where it was twice."""


def fold(model: Graph, path: Path) -> Graph:
    """A graph that computes the same with fewer nodes: constants folded, Pads of nothing and the like removed,
    BatchNormalization inside the convolution before it. An open batch stays open.

    Args:
        model: from `read_graph`; left as it is.
        path: its file, for errors.

    Raises:
        InferenceError: it is no lip-sync model, or folding would change what it draws.
    """
    before = session_of(model)
    signature = Signature(path, before)
    folded = copied(model)
    _fold_constants(folded, signature)
    _remove_idle(folded)
    clean(folded)
    check(folded)
    _fold_batch_norms(folded)
    clean(folded)
    check(folded)
    difference = _difference(before, folded, signature)
    if not difference <= EXACT[signature.dtype.name]:
        raise InferenceError(
            f"folding changes its predictions by {difference:.2g}, which it must not",
            file=path,
            field="model",
            remedy="use it as it is, with --precision fp32 or tf32",
        )
    return folded


def _difference(before: Any, folded: Graph, signature: Signature) -> float:
    """The largest difference between the predictions, for a batch that was not used to fold."""
    size = signature.size or OPEN_SIZES[0]
    count = signature.batch or 1 + max(BATCHES)
    samples = noise(CropLayout(size), count, 3)
    pair = [predict(session, signature, samples) for session in (before, session_of(folded))]
    return float(np.abs(pair[0] - pair[1]).max())


def _fold_constants(model: Graph, signature: Signature) -> None:
    """Make initializers of the tensors that are the same whatever the inputs are."""
    outputs = {value.name for value in model.graph.output}
    steady = {tensor.name for tensor in model.graph.initializer}
    wanted = []
    for node in model.graph.node:
        if subgraphs(node) or node.op_type in RANDOM or len(node.output) != 1:
            continue
        if node.op_type in ("Shape", "Size") or all(name in steady for name in node.input if name):
            steady.add(node.output[0])
            if node.output[0] not in outputs:
                wanted.append(node.output[0])
    if not wanted:
        return
    found = _computed(model, signature, wanted)
    constant = {name for name, values in found.items() if all(_same(values[0], value) for value in values[1:])}
    for name in constant:
        add_weight(model, name, found[name][0])
    refill(model.graph.node, [node for node in model.graph.node if not constant.intersection(node.output)])


def _computed(model: Graph, signature: Signature, names: list[str]) -> dict[str, list[NDArray[Any]]]:
    """The values of tensors, for every batch and size."""
    session = session_of(model, outputs=names)
    sizes = (signature.size,) if signature.size else OPEN_SIZES
    found: dict[str, list[NDArray[Any]]] = {name: [] for name in names}
    for size in sizes:
        for batch in (signature.batch,) if signature.batch else BATCHES:
            samples = noise(CropLayout(size), batch, 0)
            for values in runs(session, _as_one(signature, batch), samples, names):
                for name, value in zip(names, values, strict=True):
                    if isinstance(value, np.ndarray):  # not a sequence
                        found[name].append(value)
    return {name: values for name, values in found.items() if values}


def _as_one(signature: Signature, batch: int) -> Signature:
    """The signature of a model that takes so many frames at a time."""
    made = object.__new__(Signature)
    made.__dict__.update(vars(signature), batch=batch)
    return made


def _same(one: NDArray[Any], other: NDArray[Any]) -> bool:
    return one.dtype == other.dtype and one.shape == other.shape and one.tobytes() == other.tobytes()


def _remove_idle(model: Graph) -> None:
    """Remove nodes that give what they get."""
    known = weights(model)
    outputs = {value.name for value in model.graph.output}
    made_by = {name: node for node in model.graph.node for name in node.output}
    fixed = outputs | {value.name for value in model.graph.input} | known.keys()
    names: dict[str, str] = {}
    for node in model.graph.node:
        if not _idle(node, known):
            continue
        given, taken = node.output[0], node.input[0]
        while taken in names:
            taken = names[taken]
        if given not in outputs:
            names[given] = taken
        elif taken not in fixed and taken in made_by:  # the output keeps its name: what gave it takes it over
            maker = made_by[taken]
            maker.output[list(maker.output).index(taken)] = given
            del node.output[:]
            names[taken] = given
            fixed.add(given)
    refill(model.graph.node, [node for node in model.graph.node if node.output])
    rename(model, names)


def _idle(node: Node, known: dict[str, NDArray[Any]]) -> bool:
    """Whether a node gives what it gets, with the constants that are known."""
    match node.op_type:
        case "Identity":
            return True
        case "Dropout":  # of which inference keeps everything; a mask that is read is another output
            trains = len(node.input) > 2 and node.input[2]
            return len(node.output) == 1 and not (trains and known.get(node.input[2], np.array(True)).any())
        case "Pad":
            pads = known.get(node.input[1]) if len(node.input) > 1 else np.array(attribute(node, "pads", [1]))
            return pads is not None and not pads.any()
        case "Slice" if len(node.input) > 2:
            starts, ends = (known.get(name) for name in node.input[1:3])
            steps = known.get(node.input[4]) if len(node.input) > 4 and node.input[4] else np.array(1)
            if starts is None or ends is None or steps is None:
                return False
            return not starts.any() and bool((ends >= np.iinfo(np.int32).max).all()) and bool((steps == 1).all())
    return False


def _fold_batch_norms(model: Graph) -> None:
    """Let a convolution do what the BatchNormalization after it does, in float32 and in ONNX Runtime's order of
    operations (`ConvBNFusion::Apply`, conv_bn_fusion.cc), so that what it would fuse itself becomes the same bits."""
    known, read = weights(model), consumers(model)
    made_by = {name: node for node in model.graph.node for name in node.output}
    for norm in model.graph.node:
        conv = made_by.get(norm.input[0]) if norm.op_type == "BatchNormalization" else None
        if conv is None or conv.op_type != "Conv" or read[conv.output[0]] != 1:
            continue
        trains = attribute(norm, "training_mode", 0) or len([name for name in norm.output if name]) > 1
        if trains or not all(name in known for name in (*conv.input[1:], *norm.input[1:]) if name):
            continue
        dtype = known[conv.input[1]].dtype
        w, scale, offset, mean, variance = (known[name].astype(np.float32) for name in (conv.input[1], *norm.input[1:]))
        factor = scale / np.sqrt(variance + np.float32(attribute(norm, "epsilon", 1e-5)))
        if len(conv.input) > 2 and conv.input[2]:
            bias = (known[conv.input[2]].astype(np.float32) - mean) * factor + offset
        else:
            bias = offset - mean * factor
        inputs = [
            conv.input[0],
            add_weight(model, f"{conv.output[0]}_weight", (w * factor.reshape(-1, *[1] * (w.ndim - 1))).astype(dtype)),
            add_weight(model, f"{conv.output[0]}_bias", bias.astype(dtype)),
        ]
        del conv.input[:]
        conv.input.extend(inputs)
        # The convolution takes the name of what it now gives, which may be the model's output.
        conv.output[0] = norm.output[0]
        norm.output[0] = f"{norm.output[0]}_unused"
