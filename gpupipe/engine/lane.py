"""Lanes: what frames must share to go in one batch, opened: a model, a compositor, and slots for batches."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from gpupipe.compose.protocol import BatchKind, Compositor, Slot
from gpupipe.engine.timetable import Pace
from gpupipe.model.model import Bindings, Model

SLOTS = 3
"""Batches of a lane under way: one is computed, one is finished or prepared, one is copied or pasted."""

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
        pace: how long its batches take on the device.
    """

    def __init__(self, model: Model, compositor: Compositor[Any, Any, Any], closed: Callable[[], None]) -> None:
        self.model, self.compositor, self._closed = model, compositor, closed
        self.pace = Pace()
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

    def close(self) -> None:
        """Release slots and compositor."""
        self.free.clear()
        self.compositor.close()
        self._closed()
