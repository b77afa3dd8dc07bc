"""What a GPU can do at most, by its maker's numbers, and the least time that work takes for them."""

from __future__ import annotations

from typing import NamedTuple

from gpupipe.gpu.driver import load_cupy

WARP = 32
SCHEDULERS = 4
"""Of a multiprocessor, each of which issues one instruction of one warp a cycle, from compute capability 7.0 on (CUDA
C++ Programming Guide, "Compute Capabilities")."""


class Limits(NamedTuple):
    """The data sheet's numbers; None for what is not known.

    Attributes:
        bandwidth: bytes a second of device memory.
        multiprocessors: how many.
        clock: hertz, the highest.
    """

    bandwidth: float | None
    multiprocessors: int
    clock: float | None

    def memory_seconds(self, moved: float) -> float | None:
        """Seconds that so many bytes, read and written together, take at least.

        >>> Limits(320e9, 40, 1.59e9).memory_seconds(32e6)
        0.0001
        """
        return moved / self.bandwidth if self.bandwidth else None

    def issue_seconds(self, instructions: float) -> float | None:
        """Seconds that so many instructions, counted for each thread, take at least.

        >>> Limits(None, 40, 1.6e9).issue_seconds(8192e6)
        0.001
        """
        a_second = self.multiprocessors * SCHEDULERS * (self.clock or 0)
        return instructions / WARP / a_second if a_second else None


def limits_of(index: int) -> Limits:
    """What the driver says of a GPU. Memory moves two words a clock: its bandwidth is 2 * clock * width
    (https://developer.nvidia.com/blog/how-implement-performance-metrics-cuda-cc/), which is the data sheet's number for
    GDDR6, GDDR6X and HBM alike."""
    told = load_cupy().cuda.runtime.getDeviceProperties(index)
    # Kilohertz and bits; CUDA 13 has taken the clocks out of the structure.
    memory_clock, width, clock = (told.get(name) or 0 for name in ("memoryClockRate", "memoryBusWidth", "clockRate"))
    return Limits(2e3 * memory_clock * width / 8 or None, int(told["multiProcessorCount"]), 1e3 * clock or None)
