"""What the model is to see instead of cached crops, on its way to the device."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gpupipe.compose.protocol import Drawing
from gpupipe.gpu.device import Device
from gpupipe.gpu.types import DeviceArray


class GivenInputs:
    """The page-locked memory of a slot for inputs that are given: taken by the first of them, which few sessions have.

    Args:
        device: where to.
        shape: of the slot's inputs, `[B, 6, S, S]`.
        dtype: likewise, float32 or float16.
    """

    def __init__(self, device: Device, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
        self._device, self._shape, self._dtype = device, shape, dtype
        self._staging: NDArray[Any] | None = None

    def copy(self, visual: DeviceArray, frames: Sequence[Drawing[Any, Any]]) -> None:
        """Queue the copies for a batch, once the one before is finished.

        Args:
            visual: the slot's inputs.
            frames: of each place.

        Raises:
            DeviceMemoryError: the host has not so much memory that can be locked.
        """
        for place, frame in enumerate(frames):
            if frame.visual is not None:
                if self._staging is None:
                    self._staging = self._device.pinned(self._shape, self._dtype, "inputs that are given")
                np.copyto(self._staging[place], frame.visual, casting="same_kind")
                self._device.copy(visual[place], self._staging[place], self._device.compute_stream)
