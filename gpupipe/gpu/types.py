"""What the rest of the house needs to know of CuPy's arrays, streams and events, without importing CuPy."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np


class Pointer(Protocol):
    """Device memory: `cupy.cuda.MemoryPointer`."""

    @property
    def ptr(self) -> int:
        """The address."""


class DeviceArray(Protocol):
    """A C-contiguous array in device memory: `cupy.ndarray`."""

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
    def data(self) -> Pointer:
        """Where it begins."""

    def __getitem__(self, key: Any) -> DeviceArray:
        """A part of it, in the same memory."""

    def __len__(self) -> int:
        """Its first dimension."""


class Stream(Protocol):
    """A queue of work: `cupy.cuda.Stream`."""

    @property
    def ptr(self) -> int:
        """CUDA's handle."""

    def synchronize(self) -> None:
        """Wait for all that is queued."""


class Event(Protocol):
    """A mark in a queue: `cupy.cuda.Event`."""

    @property
    def ptr(self) -> int:
        """CUDA's handle."""

    def synchronize(self) -> None:
        """Wait until the mark is reached."""
