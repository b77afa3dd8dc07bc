"""Which parts of a model do not bear eight bits: found by quantising a part alone, and looking at what is drawn.

Errors of parts are taken to add up: those that cost most for what they gain are left in float until the rest is small
enough, and the whole is then measured. A part that costs much is halved to find what in it is to blame.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from gpupipe.geometry import Rect
from gpupipe.model.graph import Graph, check, session_of
from gpupipe.model.quality import FLOOR_DB, WORST_FLOOR_DB, drawn, psnr
from gpupipe.model.quantise import Quantiser
from gpupipe.model.samples import Samples, predict
from gpupipe.model.signature import Signature

MARGIN_DB: Final = 3.0
"""How far above the floor the samples of the search must be: the frames that judge are others."""
PARTS: Final = 12
"""How many parts of equal cost there are at first."""
SMALL: Final = 0.005
"""The share of a model's cost below which a part is not halved: to leave it in float costs little."""
FRAMES: Final = 3
"""Frames that the search looks at."""
TRIALS: Final = 60
"""After so many models nothing more is halved."""
SEARCH_SECONDS: Final = 600.0
"""Nor after so long, on a machine that is too slow for that."""

MACS_A_VALUE: Final = 32
"""Multiplications that cost about as much as reading or writing a value."""


Unit = tuple[str, ...]


class Part(NamedTuple):
    """Nodes that lie together.

    Attributes:
        units: their names, those together that must stay so (`Quantiser.units`).
        cost: their share of the model's.
        error: the mean squared error in the mouth region if they alone are quantised, levels squared.
    """

    units: tuple[Unit, ...]
    cost: float
    error: float

    @property
    def nodes(self) -> list[str]:
        """The names of its nodes."""
        return [name for unit in self.units for name in unit]


@dataclass(frozen=True)
class Found:
    """What the search found.

    Attributes:
        model: the int8 model.
        in_float: nodes of it that were left in float, by their names.
        cost: their share of the cost.
        trials: models that were made and looked at.
        seconds: it took.
    """

    model: Graph
    in_float: tuple[str, ...]
    cost: float
    trials: int
    seconds: float


class Search:
    """The search for one model.

    Args:
        quantiser: of the model.
        signature: its own.
        samples: what it is tried on.
        wanted: what the float32 model predicts for them.
        region: the mouth region.
        trials, seconds: after so many nothing more is halved.
    """

    def __init__(
        self,
        quantiser: Quantiser,
        signature: Signature,
        samples: Samples,
        wanted: NDArray[np.float32],
        region: Rect,
        *,
        trials: int = TRIALS,
        seconds: float = SEARCH_SECONDS,
    ) -> None:
        self._quantiser, self._signature, self._samples = quantiser, signature, samples
        self._inside = np.s_[..., region.y1 : region.y2, region.x1 : region.x2]
        self._wanted = drawn(wanted)[self._inside]
        self._costs = node_costs(quantiser.model, quantiser.nodes)
        self._began = time.monotonic()
        self._end = self._began + seconds
        self._trials, self._most = 0, trials

    def run(self, told: Callable[[str], None] = lambda _: None) -> Found:
        """Search.

        Args:
            told: given a line now and then, for people who wait.
        """
        model, ratios = self._tried(set())
        told(f"all in int8: {np.mean(ratios):.1f} dB")
        if _enough(ratios):
            check(model)
            return self._found(model, [])
        goal = 255**2 / 10 ** ((FLOOR_DB + MARGIN_DB) / 10)
        parts = [self._part(units) for units in self._divided(self._quantiser.units, PARTS)]
        while self._trials < self._most and time.monotonic() < self._end:
            kept = _left(parts, goal)
            large = [part for part in kept if len(part.units) > 1 and part.cost > SMALL]
            if not large:
                break
            blamed = max(large, key=lambda part: part.cost)
            parts.remove(blamed)
            parts += [self._part(units) for units in self._divided(blamed.units, 2)]
            told(f"{self._trials} trials: {100 * sum(part.cost for part in _left(parts, goal)):.0f} % stays in float")
        kept = _left(parts, goal)
        rest = sorted((part for part in parts if part not in kept), key=_blame)
        while True:
            model, ratios = self._tried({name for part in kept for name in part.nodes})
            told(f"{len(kept)} parts in float: {np.mean(ratios):.1f} dB, worst {min(ratios):.1f} dB")
            if _enough(ratios) or not rest:
                check(model)
                return self._found(model, kept)
            kept.append(rest.pop())

    def _found(self, model: Graph, kept: Sequence[Part]) -> Found:
        nodes = tuple(name for part in kept for name in part.nodes)
        seconds = time.monotonic() - self._began
        return Found(model, nodes, sum(part.cost for part in kept), self._trials, seconds)

    def _part(self, units: Sequence[Unit]) -> Part:
        nodes = [name for unit in units for name in unit]
        _, ratios = self._tried(set(self._quantiser.nodes).difference(nodes))
        error = float(np.mean([255**2 / 10 ** (ratio / 10) for ratio in ratios]))
        return Part(tuple(units), sum(self._costs[name] for name in nodes), error)

    def _tried(self, in_float: set[str]) -> tuple[Graph, list[float]]:
        """The model with nodes left in float, and its PSNR in the mouth region, frame by frame."""
        self._trials += 1
        model = self._quantiser.quantised(in_float, checked=False)
        found = drawn(predict(session_of(model), self._signature, self._samples))[self._inside]
        return model, [psnr(one, other) for one, other in zip(self._wanted, found, strict=True)]

    def _divided(self, units: Sequence[Unit], count: int) -> list[Sequence[Unit]]:
        """Units in parts of about equal cost."""
        costs = np.cumsum([sum(self._costs[name] for name in unit) for unit in units])
        owner = np.minimum((costs - 1e-9) / costs[-1] * count, count - 1).astype(int)
        parts = [[unit for unit, mine in zip(units, owner, strict=True) if mine == part] for part in range(count)]
        parts = [part for part in parts if part]
        if len(parts) == 1 and len(units) > 1:  # one unit is nearly all of it
            at = int(np.argmax(np.diff(costs, prepend=0))) or 1
            parts = [list(units[:at]), list(units[at:])]
        return list(parts)


def _blame(part: Part) -> float:
    """How much leaving a part in float gains for what it costs."""
    return part.error / max(part.cost, 1e-6)


def _left(parts: Sequence[Part], goal: float) -> list[Part]:
    """The parts to leave in float so that the errors of the others add up to the goal."""
    rest = sum(part.error for part in parts)
    kept = []
    for part in sorted(parts, key=_blame, reverse=True):
        if rest <= goal:
            break
        kept.append(part)
        rest -= part.error
    return kept


def _enough(ratios: Sequence[float]) -> bool:
    return float(np.mean(ratios)) >= FLOOR_DB + MARGIN_DB and min(ratios) >= WORST_FLOOR_DB + MARGIN_DB


def node_costs(model: Graph, names: Sequence[str]) -> dict[str, float]:
    """The share of each node in what the named nodes cost together, by what it reads, writes and multiplies.

    Args:
        model: with inferred shapes.
        names: of nodes.
    """
    graph = model.graph
    shapes = {
        value.name: [dim.dim_value or 1 for dim in value.type.tensor_type.shape.dim]
        for value in (*graph.input, *graph.output, *graph.value_info)
    }
    weights = {tensor.name: list(tensor.dims) for tensor in graph.initializer}
    costs = {}
    for node in graph.node:
        moved = sum(prod(shapes[name]) for name in (*node.input, *node.output) if name in shapes)
        macs = 0
        if node.op_type == "Conv" and node.input[1] in weights and node.output[0] in shapes:
            macs = prod(shapes[node.output[0]]) * prod(weights[node.input[1]][1:])
        costs[node.name] = moved + macs / MACS_A_VALUE
    total = sum(costs[name] for name in names) or 1.0
    return {name: costs[name] / total for name in names}
