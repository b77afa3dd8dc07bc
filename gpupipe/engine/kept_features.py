"""What is kept of the features of a character's frames, and how much may be."""

from __future__ import annotations

import threading
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from gpupipe.model.features import ResidentFeatures


class FeatureBudget(NamedTuple):
    """How much of the model's work on cached frames is kept.

    Attributes:
        on_host: bytes for all characters together, of models that the CPU runs.
        on_device: likewise, of models that the GPU runs.
        always: for every frame that there is room for; else only where a frame is shown often enough for it to win.
        tuned: only of sessions that are tuned to it; see `SessionOrder.features`.
    """

    on_host: int
    on_device: int
    always: bool
    tuned: bool = False


class KeptFeatures:
    """The features of the first frames of a character, made as they are first shown.

    Args:
        features: room for those of so many frames.
        on_device: whether that is a GPU's memory.

    Attributes:
        making: for each frame, held by who makes its features on the CPU.
    """

    def __init__(self, features: ResidentFeatures, *, on_device: bool) -> None:
        self.features, self.on_device = features, on_device
        self.nbytes, self.frames = features.nbytes, features.frames
        self.making = [] if on_device else [threading.Lock() for _ in range(features.frames)]
        self._made: NDArray[np.bool_] = np.zeros(features.frames, np.bool_)

    def has_room(self, frame: int) -> bool:
        """Whether a cached frame is one of those whose features are kept."""
        return frame < self.frames

    def missing(self, frame: int) -> bool:
        """Whether a frame's are not made yet."""
        return not self._made[frame]

    def made(self, frame: int) -> None:
        """A frame's are there now, or will be for what is queued from now on."""
        self._made[frame] = True

    def forget(self) -> None:
        """Take none for made: whoever draws next makes them again. No session may be drawing."""
        self._made[:] = False

    def close(self) -> None:
        """Release the memory; whoever used it is done."""
        vars(self).pop("features", None)


Shown = tuple[KeptFeatures | None, int]
"""Where the features of a place's character are kept, if they are, and which cached frame the place shows."""
