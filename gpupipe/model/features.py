"""The features of cached frames, where they stay: for each tensor one array of all frames, one behind the other.

Consecutive frames are one view of each array, so that a batch of them is bound as it lies. A batch that is not
consecutive (the turn of the ping-pong, one frame shown to two sessions, frames of several characters) is gathered.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

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
        address: where the first array begins; of what `allocate` made, where the block does.
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
        self.address = self._places[0][-1]

    @classmethod
    def allocate(cls, specs: Sequence[TensorSpec], frames: int, empty: Allocate = np.empty) -> ResidentFeatures:
        """Room for so many frames, in one block, in which each array begins at a multiple of `ALIGNMENT`: where a frame
        lies is told by the block's address, N and its row, which is what `kernels/gather.cu` is given."""
        starts = [0]
        for spec in specs:
            starts.append(-(-(starts[-1] + frames * spec.frame_bytes) // ALIGNMENT) * ALIGNMENT)
        block: Any = empty((starts[-1],), np.dtype(np.uint8))
        parts = zip(specs, starts, strict=False)
        return cls(
            specs,
            [
                block[start : start + frames * spec.frame_bytes].view(spec.dtype).reshape(frames, *spec.frame_shape)
                for spec, start in parts
            ],
        )

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


Gather = Callable[[Sequence[FeatureRow], ResidentFeatures], None]
"""Copies the features of each row to the row of its place in others; on a GPU it queues that on the model's stream, one
launch for all tensors and rows. Places beyond the rows may hold anything."""


def gather_on_host(rows: Sequence[FeatureRow], into: ResidentFeatures) -> None:
    """The `Gather` of arrays in host memory."""
    for number, (features, row) in enumerate(rows):
        for source, target in zip(features.arrays, into.arrays, strict=True):
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
