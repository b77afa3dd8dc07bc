"""How large the numbers inside a model become, channel by channel, measured on samples."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from gpupipe.model.graph import Graph, add_weight, copied, float_types, load_onnx, opset, session_of
from gpupipe.model.samples import Samples, runs
from gpupipe.model.signature import Signature

AXES_AS_INPUT = 18
"""The first opset in which ReduceMin and ReduceMax take their axes as an input."""


class Range(NamedTuple):
    """The least and the greatest value of each channel: float32 `[C]`; of a tensor without channels `[1]`."""

    low: NDArray[np.float32]
    high: NDArray[np.float32]

    @property
    def greatest(self) -> float:
        """The greatest magnitude; NaN where there was one."""
        return float(max(np.abs(self.low).max(), np.abs(self.high).max()))


def measure(model: Graph, signature: Signature, samples: Samples) -> dict[str, Range]:
    """The range of every tensor of floating-point numbers.

    Args:
        model: a folded graph.
        signature: its own.
        samples: what it is run on.

    Raises:
        InferenceError: the model failed.
    """
    helper = load_onnx().helper
    watched = copied(model)
    names, asked = list(ranks := float_types(model)), []
    axes = {
        rank: add_weight(watched, f"axes of {rank}", np.arange(2, rank)) for rank in set(ranks.values()) if rank > 2
    }
    as_input = opset(model) >= AXES_AS_INPUT
    for name in names:
        for kind in ("ReduceMin", "ReduceMax"):
            # Pixel by pixel of one channel, which lie together, is what ONNX Runtime reduces fast.
            inputs = [name, axes[ranks[name]]] if as_input and ranks[name] > 2 else [name]
            along = {"axes": list(range(2, ranks[name]))} if ranks[name] > 2 and not as_input else {}
            asked.append(f"{name} {kind}")
            watched.graph.node.append(helper.make_node(kind, inputs, asked[-1:], asked[-1], keepdims=0, **along))
    session = session_of(watched, outputs=asked)
    found: dict[str, Range] = {}
    for values in runs(session, signature, samples, asked):
        for place, name in enumerate(names):
            low, high = (np.atleast_2d(value.astype(np.float32)) for value in values[2 * place : 2 * place + 2])
            seen = Range(low.min(axis=0), high.max(axis=0))
            known = found.get(name, seen)
            found[name] = Range(np.minimum(known.low, seen.low), np.maximum(known.high, seen.high))
    return found
