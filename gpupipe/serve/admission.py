"""Who may come in: whoever makes no other late. No clock, no threads: everything is told."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Demand:
    """What a realtime talk takes, each second.

    Attributes:
        device: seconds of the GPU's time; 0 on the CPU.
        cores: CPU seconds.
    """

    device: float
    cores: float


@dataclass(frozen=True)
class Load:
    """Shares of the time there is that talks take, 1 for all of it."""

    device: float
    cores: float

    @property
    def worst(self) -> float:
        """The share of what is scarcest."""
        return max(self.device, self.cores)


def load_of(demands: Iterable[Demand], cores: int) -> Load:
    """What talks on one device take together, of it and of the machine's `cores`."""
    device = cpu = 0.0
    for each in demands:
        device += each.device
        cpu += each.cores
    return Load(device, cpu / cores)


def admits(here: Iterable[Demand], elsewhere: Iterable[Demand], wanted: Demand, cores: int, most: float) -> bool:
    """Whether one more talk makes none late.

    Args:
        here: of the realtime talks on the device that would draw it.
        elsewhere: of those on other devices, which share the cores.
        wanted: of the one that would come.
        cores: of the machine.
        most: the load that is taken at most, see `ServeOptions`.
    """
    mine = load_of([*here, wanted], cores)
    return mine.device <= most and mine.cores + load_of(elsewhere, cores).cores <= most
