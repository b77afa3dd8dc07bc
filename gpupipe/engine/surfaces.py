"""Surfaces lent to sessions: made once, used again by whoever comes next.

Those that their taker wants on the host, and those that he takes from a GPU, are kept apart.
"""

from __future__ import annotations

import threading
from collections import defaultdict
from math import prod
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from gpupipe.compose.surface import SurfaceFormat
from gpupipe.compose.table import device_shape
from gpupipe.gpu.device import Device
from gpupipe.gpu.types import DeviceArray

KEPT_BYTES = 512_000_000
"""Of surfaces that nobody uses: what more is given back is freed."""


class Memory(NamedTuple):
    """Where a surface lies: on the GPU, if there is one, and on the host (page-locked then), where it is wanted."""

    host: NDArray[np.uint8] | None
    device: DeviceArray | None


class SurfacePool:
    """Memory for finished frames.

    Args:
        gpu: the GPU that draws them; None: the CPU does.
    """

    def __init__(self, gpu: Device | None) -> None:
        self._gpu = gpu
        self._free: dict[tuple[SurfaceFormat, bool], list[Memory]] = defaultdict(list)
        self._lock = threading.Lock()

    def bytes_wanted(self, format: SurfaceFormat, count: int, *, on_host: bool = True) -> int:
        """Bytes, on the device or, without one, on the host, that borrowing `count` surfaces takes anew."""
        with self._lock:
            missing = max(0, count - len(self._free[format, on_host]))
        return missing * (format.nbytes if self._gpu is None else prod(device_shape(format)))

    def borrow(self, format: SurfaceFormat, count: int, *, on_host: bool = True) -> list[Memory]:
        """Memory for `count` surfaces.

        Args:
            format: what they look like.
            count: how many.
            on_host: whether they are wanted on the host; only those of a GPU need not be.

        Raises:
            DeviceMemoryError: the GPU's memory, or what the host can lock, does not suffice.
        """
        with self._lock:
            free = self._free[format, on_host]
            taken = [free.pop() for _ in range(min(count, len(free)))]
        try:
            while len(taken) < count:
                taken.append(self._new(format, on_host))
        except BaseException:
            self.give_back(format, taken, on_host=on_host)
            raise
        return taken

    def give_back(self, format: SurfaceFormat, memory: list[Memory], *, on_host: bool = True) -> None:
        """Take back what was borrowed. The list is emptied: who still holds it, as a traceback may, holds no memory."""
        with self._lock:
            kind = format, on_host
            self._free[kind] += memory
            memory.clear()
            kept = sum(each.nbytes * len(free) for (each, _), free in self._free.items())
            for each in [*(other for other in self._free if other != kind), kind]:
                while kept > KEPT_BYTES and self._free[each]:
                    self._free[each].pop()
                    kept -= each[0].nbytes

    def trim(self) -> None:
        """Free what nobody uses."""
        with self._lock:
            self._free.clear()

    def _new(self, format: SurfaceFormat, on_host: bool) -> Memory:
        if self._gpu is None:
            return Memory(np.zeros(format.shape, np.uint8), None)
        drawn = self._gpu.empty(device_shape(format), np.uint8, "finished frames")
        return Memory(self._gpu.pinned(format.shape, np.uint8, "finished frames") if on_host else None, drawn)
