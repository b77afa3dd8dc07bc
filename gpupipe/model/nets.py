"""A model as one or more nets: graphs with named tensors, of which some stay with the cached frame.

Whole: visual, audio → prediction. Split: a *source* net, run once for each cached frame, visual → features; and a net
for the *rest*, features, audio (and visual, where it is still needed) → prediction.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, Literal

import numpy as np

Place = Literal["slot", "frame"]
"""Where a tensor lives: in a slot, written for every batch, or with the cached frame, written once."""


@dataclass(frozen=True)
class TensorSpec:
    """A net's input or output.

    Attributes:
        name: in the graph.
        shape: the first dimension is the batch, None if it is open.
        dtype: of its elements.
        place: where it lives.
    """

    name: str
    shape: tuple[int | None, ...]
    dtype: np.dtype[Any]
    place: Place = "slot"

    @property
    def frame_shape(self) -> tuple[int, ...]:
        """What one frame has of it."""
        return tuple(side or 0 for side in self.shape[1:])

    @property
    def frame_bytes(self) -> int:
        """Bytes of one frame.

        >>> TensorSpec("skip", (None, 32, 10, 10), np.dtype("f2"), "frame").frame_bytes
        6400
        """
        return self.dtype.itemsize * prod(self.frame_shape)


@dataclass(frozen=True)
class Net:
    """An ONNX graph in a file.

    Attributes:
        file: it, with its weights.
        inputs: in the order of the graph.
        outputs: likewise.
    """

    file: Path
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]

    @property
    def kept_bytes(self) -> int:
        """Bytes that stay with each cached frame, of its inputs and outputs together."""
        return sum(spec.frame_bytes for spec in (*self.inputs, *self.outputs) if spec.place == "frame")


@dataclass(frozen=True)
class Cost:
    """What a frame costs a net.

    Attributes:
        macs: multiply-adds of its convolutions and matrix products.
        activation_bytes: that its nodes read and write one after the other, as the graph stands: what a provider
            fuses moves less.
    """

    macs: int
    activation_bytes: int
