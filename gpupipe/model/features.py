"""The features of cached frames, where they stay: for each tensor one array of all frames.

Consecutive frames are one view of each array, so that a batch of them is bound as it lies. A batch that is not
consecutive (the way back of the ping-pong if its places are in the order of output, the turn itself, frames of several
characters) is gathered.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from gpupipe.gpu.types import Array
from gpupipe.model.nets import TensorSpec
from gpupipe.model.runner import place

Allocate = Callable[[tuple[int, ...], "np.dtype[np.generic]"], Array]
"""Memory for an array of a shape and type, C-contiguous: `numpy.empty`, `cupy.empty`, or from a budget."""

ALIGNMENT = 256
"""Bytes: where memory that CUDA gives out begins at least ("Device Memory Accesses" in the CUDA C++ Programming Guide),
and so what kernels with vector loads may count on."""


class ResidentFeatures:
    """The features of some frames of a character, row by row.

    Args:
        specs: of the features.
        arrays: for each of them `[N, *frame_shape]`, C-contiguous, all on the same side.

    Attributes:
        frames: N.
    """

    def __init__(self, specs: Sequence[TensorSpec], arrays: Sequence[Array]) -> None:
        self.specs, self.arrays = tuple(specs), tuple(arrays)
        self.frames = len(arrays[0])
        for spec, array in zip(specs, arrays, strict=True):
            if array.dtype != spec.dtype or array.shape != (self.frames, *spec.frame_shape):
                raise ValueError(
                    f"{spec.name}: {array.dtype}{list(array.shape)} instead of "
                    f"{spec.dtype}{[self.frames, *spec.frame_shape]}"
                )
            if not array.flags.c_contiguous:
                raise ValueError(f"{spec.name}: its rows do not follow one another")
        self._places = [place(array) for array in arrays]

    @classmethod
    def allocate(cls, specs: Sequence[TensorSpec], frames: int, empty: Allocate = np.empty) -> ResidentFeatures:
        """Room for so many frames."""
        return cls(specs, [empty((frames, *spec.frame_shape), spec.dtype) for spec in specs])

    @property
    def nbytes(self) -> int:
        """Bytes of all frames."""
        return sum(array.nbytes for array in self.arrays)

    def rows(self, start: int, count: int) -> list[Array]:
        """Some consecutive frames: a view of each array."""
        return [array[start : start + count] for array in self.arrays]

    def bind(self, binding: object, start: int, count: int) -> None:
        """Bind some consecutive frames as they lie: no byte moves.

        Some 14 µs for six tensors. Values made beforehand for every frame (`OrtValue`) would take 3, of a run of
        milliseconds.
        """
        for spec, (device, number, dtype, _, address) in zip(self.specs, self._places, strict=True):
            at = address + start * spec.frame_bytes
            binding.bind_input(  # type: ignore[attr-defined]
                spec.name, device, number, dtype, (count, *spec.frame_shape), at
            )


class FeatureRow(NamedTuple):
    """Where the features of one frame are."""

    features: ResidentFeatures
    row: int


Gather = Callable[[Sequence[FeatureRow], Sequence[Array]], None]
"""Copies the features of each row to the same place in arrays `[B, *frame_shape]`, one for each tensor; on a GPU it
queues that on the model's stream, one launch for all tensors and rows. Places beyond the rows may hold anything."""


def gather_on_host(rows: Sequence[FeatureRow], into: Sequence[Array]) -> None:
    """The `Gather` of arrays in host memory."""
    for number, (features, row) in enumerate(rows):
        for source, target in zip(features.arrays, into, strict=True):
            assert isinstance(source, np.ndarray)
            assert isinstance(target, np.ndarray)
            target[number] = source[row]


def consecutive(rows: Sequence[FeatureRow], count: int, alignment: int = 1) -> int | None:
    """The first row, if `count` rows that begin with these lie next to each other, and the first one is aligned in each
    array; else None.

    Fewer rows than `count` (a batch that is not full) will do if there are others behind them, which are read and
    count for nothing.
    """
    features, start = rows[0]
    if any(row != FeatureRow(features, start + number) for number, row in enumerate(rows)):
        return None
    if any(spec.frame_bytes * start % alignment for spec in features.specs):
        return None
    return start if start + count <= features.frames else None
