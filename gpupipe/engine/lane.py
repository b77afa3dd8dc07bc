"""Lanes: what frames must share to go in one batch, opened: a model, a compositor, and slots for batches."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from gpupipe.compose.protocol import BatchKind, Compositor, Slot
from gpupipe.model.model import Bindings, Model

SLOTS = 3
"""Batches of a lane under way: one is computed, one is finished or prepared, one is copied or pasted."""

_SMOOTHING = 0.2

SlotT = TypeVar("SlotT", bound=Slot)


@dataclass
class LaneSlot(Generic[SlotT]):
    """A compositor's slot, and the model's bindings to its buffers."""

    buffers: SlotT
    bindings: Bindings


class Lane:
    """An opened model with a compositor for it, and the slots that batches go through.

    Args:
        model: opened.
        compositor: of the engine's device.
        closed: called when the lane is.

    Attributes:
        free: slots that no batch uses.
        latency: seconds from the start of a batch until it was finished, smoothed over the last ones.
    """

    def __init__(self, model: Model, compositor: Compositor[Any, Any, Any], closed: Callable[[], None]) -> None:
        self.model, self.compositor, self._closed = model, compositor, closed
        self.latency = 0.0
        self.free: list[LaneSlot[Any]] = []
        for _ in range(SLOTS):
            slot = compositor.new_slot()
            self.free.append(LaneSlot(slot, model.bind(slot.visual, slot.audio, slot.prediction)))

    @property
    def kind(self) -> BatchKind:
        """Of its batches."""
        return self.compositor.kind

    @property
    def batch(self) -> int:
        """The most frames in a batch."""
        return self.kind.batch

    def took(self, seconds: float) -> None:
        """A batch was finished so many seconds after it had been started."""
        self.latency = seconds if not self.latency else self.latency + _SMOOTHING * (seconds - self.latency)

    def close(self) -> None:
        """Release slots and compositor."""
        self.free.clear()
        self.compositor.close()
        self._closed()
