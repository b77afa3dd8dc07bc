"""Lanes: what frames must share to go in one batch, opened: a model, a compositor, and slots for batches."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from gpupipe.compose.protocol import BatchKind, Compositor, Slot
from gpupipe.engine.features import SplitModel
from gpupipe.engine.timetable import Pace
from gpupipe.model.model import Bindings, Model
from gpupipe.model.split_model import RestBinding

SLOTS = 3
"""Batches of a lane under way where the model has one at a time: one is computed, one is finished or prepared, one is
copied or pasted."""

SlotT = TypeVar("SlotT", bound=Slot)


def slots_of(model: Model, batch: int) -> int:
    """Batches of a lane under way: two more than the model runs at a time."""
    return SLOTS - 1 + -(-model.runs * model.chunk // batch)


@dataclass
class LaneSlot(Generic[SlotT]):
    """A compositor's slot, and the bindings to its buffers of the model, and of the rest of one in two nets."""

    buffers: SlotT
    bindings: Bindings
    rest: Sequence[RestBinding] = ()


class Lane:
    """An opened model with a compositor for it, and the slots that batches go through.

    Args:
        model: opened.
        compositor: of the engine's device.
        closed: called when the lane is.
        split: the model in two nets, if features are kept; like the model, closed by who opened it.

    Attributes:
        slots: how many there are.
        free: those that no batch uses.
        pace: how long its batches take on the device.
    """

    def __init__(
        self,
        model: Model,
        compositor: Compositor[Any, Any, Any],
        closed: Callable[[], None],
        split: SplitModel | None = None,
    ) -> None:
        self.model, self.compositor, self._closed, self.split = model, compositor, closed, split
        self.pace = Pace()
        self.free: list[LaneSlot[Any]] = []
        for _ in range(slots_of(model, compositor.kind.batch)):
            slot = compositor.new_slot()
            rest = () if split is None else split.bind(slot.audio, slot.prediction, slot.visual)
            self.free.append(LaneSlot(slot, model.bind(slot.visual, slot.audio, slot.prediction), rest))

        self.slots = len(self.free)

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
