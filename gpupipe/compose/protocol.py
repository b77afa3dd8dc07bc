"""The protocol that both compositors share. Types only.

A compositor is made for one character, one pixel format and one batch size. A batch goes through a *slot*:

    prepare(slot, …)      crops and speech → slot.visual, slot.audio
    ready(slot)           may the model read them? (waits only where the model runs on another device)
    … the model runs: slot.visual, slot.audio → slot.prediction …
    paste(slot)           slot.prediction → finished frames
    finish(slot)          slot.frames is complete on the host

Slots are independent of each other; the steps of one slot are called in this order.
"""

from __future__ import annotations

from typing import Any, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray


class Slot(Protocol):
    """The buffers of one batch in flight."""

    @property
    def visual(self) -> Any:
        """`[B, 6, S, S]`, float32 or float16, in the memory in which the model reads."""

    @property
    def audio(self) -> Any:
        """`[B, 32, 16, 16]`, like `visual`."""

    @property
    def prediction(self) -> Any:
        """`[B, 3, S, S]`, like `visual`: BGR planes, 0 to 1."""

    @property
    def frames(self) -> NDArray[np.uint8]:
        """`[B, *frame_shape]` on the host: `[H, W, 3]` for bgr24, `[H * 3 // 2, W]` for nv12."""


S = TypeVar("S", bound=Slot)


class Compositor(Protocol[S]):
    """Draws finished frames from cached frames and predictions."""

    def new_slot(self) -> S:
        """Allocate the buffers of one batch. Nothing is allocated after this."""

    def prepare(self, slot: S, source: NDArray[np.int32], speech: NDArray[np.int32]) -> None:
        """Fill the model's inputs.

        Args:
            slot: where.
            source: the cached frame of each output frame, int32 `[B]`.
            speech: the row of speech features that belongs to each output frame, int32 `[B]`.
        """

    def ready(self, slot: S) -> None:
        """Return once the model may be run on the slot, in the order of its own device's work."""

    def paste(self, slot: S) -> None:
        """Draw the predictions of the slot into its frames."""

    def finish(self, slot: S) -> NDArray[np.bool_]:
        """Wait until `slot.frames` is complete.

        Returns:
            bool `[B]`: whether the prediction of each frame held a NaN (drawn as 0).
        """

    def close(self) -> None:
        """Release every buffer."""
