"""Giving the channels of a tensor equal ranges before it is quantised, without changing what the model computes.

One scale stands for all channels of a quantised tensor, so that a channel that is small beside others is rounded away.
Convolutions are linear and ReLU keeps positive factors, so each channel can be divided by a factor where it is made and
multiplied by it where it is read, which changes no output. After M. Nagel et al., "Data-Free Quantization Through
Weight Equalization and Bias Correction" (ICCV 2019, https://arxiv.org/abs/1906.04721, section 4.1), with the ranges of
activations instead of weights: weights have a scale for each output channel anyway.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from gpupipe.model.graph import (
    STANDARD,
    Graph,
    Node,
    add_weight,
    attribute,
    check,
    clean,
    consumers,
    copied,
    subgraphs,
    weights,
)
from gpupipe.model.ranges import Range

SAME = ("Relu", "LeakyRelu", "Resize", "MaxPool", "AveragePool", "GlobalAveragePool", "Add")
"""Operators that keep channels apart, and commute with positive factors that all their tensors share."""


def equalise(model: Graph, ranges: Mapping[str, Range]) -> tuple[Graph, dict[str, Range]]:
    """A model whose tensors use their ranges evenly, and what its ranges are now.

    Channels that an Add, a Resize or a Concat ties together get one factor. Tensors that anything else reads or writes,
    and the model's inputs and output, stay as they are.

    Args:
        model: a folded float32 graph; left as it is.
        ranges: of its tensors, from `ranges.measure`.
    """
    made = copied(model)
    known = weights(made)
    convs = [node for node in made.graph.node if _scalable(node, known)]
    factors = _factors(made, convs, ranges)
    for conv in convs:
        taken, given = (factors.get(name) for name in (conv.input[0], conv.output[0]))
        values = known[conv.input[1]].astype(np.float64)
        if taken is not None:
            group = attribute(conv, "group", 1)
            rows = taken.reshape(group, -1).repeat(len(values) // group, axis=0)  # [out, in / group]
            values = values * rows.reshape(*rows.shape, *[1] * (values.ndim - 2))
        if given is not None:
            values = values / given.reshape(-1, *[1] * (values.ndim - 1))
            if len(conv.input) > 2 and conv.input[2]:
                bias = known[conv.input[2]] / given
                conv.input[2] = add_weight(made, f"{conv.output[0]} bias", bias.astype(np.float32))
        conv.input[1] = add_weight(made, f"{conv.output[0]} weight", values.astype(np.float32))
    clean(made)
    check(made)
    return made, {name: _divided(seen, factors.get(name)) for name, seen in ranges.items()}


def _divided(seen: Range, factors: NDArray[np.float64] | None) -> Range:
    if factors is None:
        return seen
    low, high = (np.asarray(each / factors, np.float32) for each in seen)
    return Range(low, high)


def _scalable(node: Node, known: Mapping[str, NDArray[np.float32]]) -> bool:
    """Whether a node is a convolution whose weights are known."""
    return node.op_type == "Conv" and node.domain in STANDARD and all(name in known for name in node.input[1:] if name)


def _factors(model: Graph, convs: list[Node], ranges: Mapping[str, Range]) -> dict[str, NDArray[np.float64]]:
    """The factor of each channel of each tensor that may have them: its range, or the largest of those tied to it."""
    starts: dict[str, int] = {}
    count = 0
    for name, seen in ranges.items():
        starts[name] = count
        count += len(seen.low)
    tied = _Tied(count + 1)  # the last stands for what must stay as it is
    constant = count

    def places(name: str) -> NDArray[np.int64]:
        return np.arange(starts[name], starts[name] + len(ranges[name].low)) if name in starts else np.array([constant])

    outside = [value.name for value in (*model.graph.input, *model.graph.output)]
    scaled = {node.output[0] for node in convs}
    for node in model.graph.node:
        names = [name for name in (*node.input, *node.output) if name in starts]
        if node.op_type == "Conv" and node.output[0] in scaled:
            continue
        if node.op_type in SAME and _alike(node, names, ranges):
            for name in names[1:]:
                tied.tie(places(names[0]), places(name))
        elif (
            node.op_type == "Concat" and attribute(node, "axis", 0) == 1 and all(name in starts for name in node.input)
        ):
            tied.tie(np.concatenate([places(name) for name in node.input]), places(node.output[0]))
        else:
            outside += names
            outside += [name for inner in subgraphs(node) for each in inner.node for name in each.input]
    for name in outside:
        for place in places(name):
            tied.tie(np.array([place]), np.array([constant]))
    roots = tied.roots()
    # What only a ReLU reads is never quantised: what counts is what the ReLU gives.
    read = consumers(model)
    before = {node.input[0] for node in model.graph.node if node.op_type == "Relu" and read[node.input[0]] == 1}
    spans = np.concatenate([_span(seen, counts=name not in before) for name, seen in ranges.items()] + [[1.0]])
    largest = np.zeros(count + 1)
    np.maximum.at(largest, roots, spans)
    factors = largest[roots]
    factors[factors < np.finfo(np.float32).tiny] = 1  # a channel that is 0 on all samples
    factors[roots == roots[constant]] = 1
    return {name: factors[places(name)] for name in starts}


def _span(seen: Range, *, counts: bool) -> NDArray[np.float32]:
    return (np.maximum(seen.high, 0) - np.minimum(seen.low, 0)) * np.float32(counts)


def _alike(node: Node, names: list[str], ranges: Mapping[str, Range]) -> bool:
    """Whether all floating-point tensors of a node have the same channels, and none of them is a weight."""
    if node.op_type == "Add" and len(names) != 3:
        return False
    return len({len(ranges[name].low) for name in names}) == 1 and len(names) >= 2


class _Tied:
    """Sets of places, joined two by two (union-find)."""

    def __init__(self, count: int) -> None:
        self._above = list(range(count))

    def tie(self, ones: NDArray[np.int64], others: NDArray[np.int64]) -> None:
        """Join the sets of each pair."""
        for one, other in zip(ones.tolist(), others.tolist(), strict=True):
            first, second = self._root(one), self._root(other)
            self._above[second] = first

    def roots(self) -> NDArray[np.int64]:
        """One place of each place's set."""
        return np.array([self._root(place) for place in range(len(self._above))])

    def _root(self, place: int) -> int:
        above = self._above
        while above[place] != place:
            above[place] = above[above[place]]
            place = above[place]
        return place
