"""CuPy's arrays, streams, events and kernels, and copies between them, as types that need no CuPy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray


class Pointer(Protocol):
    """Device memory: `cupy.cuda.MemoryPointer`."""

    @property
    def ptr(self) -> int:
        """The address."""


class Gpu(Protocol):
    """Where an array is: `cupy.cuda.Device`."""

    @property
    def id(self) -> int:
        """Its number, as CUDA numbers the visible ones."""


class Flags(Protocol):
    """How an array lies in memory."""

    @property
    def c_contiguous(self) -> bool:
        """Whether it lies row by row, without gaps."""


class DeviceArray(Protocol):
    """An array in device memory: `cupy.ndarray`; C-contiguous unless it is part of another."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Its dimensions."""

    @property
    def dtype(self) -> np.dtype[Any]:
        """Its type."""

    @property
    def nbytes(self) -> int:
        """Its bytes."""

    @property
    def strides(self) -> tuple[int, ...]:
        """Bytes from one element to the next, for each dimension."""

    @property
    def flags(self) -> Flags:
        """How it lies in memory."""

    @property
    def data(self) -> Pointer:
        """Where it begins."""

    @property
    def device(self) -> Gpu:
        """Where it is."""

    def __getitem__(self, key: Any) -> DeviceArray:
        """A part of it, in the same memory."""

    def __len__(self) -> int:
        """Its first dimension."""


Array = DeviceArray | NDArray[Any]
"""An array on either side: on the device, or made by `Device.pinned`."""


@dataclass(frozen=True)
class PitchedRows:
    """Rows to copy as `cudaMemcpy2D` does: `rows` of `width` bytes, which start `source_pitch` and `target_pitch` bytes
    apart."""

    rows: int
    width: int
    source_pitch: int
    target_pitch: int

    @property
    def contiguous(self) -> bool:
        """Whether neither side has gaps between its rows."""
        return self.source_pitch == self.width == self.target_pitch


class Stream(Protocol):
    """A queue of work: `cupy.cuda.Stream`."""

    @property
    def ptr(self) -> int:
        """CUDA's handle."""

    @property
    def done(self) -> bool:
        """Whether all that was queued has been done."""

    def synchronize(self) -> None:
        """Wait for all that is queued."""

    def wait_event(self, event: Any) -> None:
        """Let what is queued from now on run after an event."""


class Event(Protocol):
    """A mark in a queue: `cupy.cuda.Event`."""

    @property
    def ptr(self) -> int:
        """CUDA's handle."""

    @property
    def done(self) -> bool:
        """Whether the mark has been reached, or never been set."""

    def record(self, stream: Any) -> None:
        """Set the mark behind all that is queued on a stream."""

    def synchronize(self) -> None:
        """Wait until the mark is reached."""


class Kernel(Protocol):
    """A compiled kernel: `cupy.RawKernel`."""

    def __call__(
        self, grid: tuple[int, ...], block: tuple[int, ...], args: tuple[Any, ...], *, stream: Any = None
    ) -> None:
        """Queue a launch of `grid` blocks of `block` threads on a stream."""
