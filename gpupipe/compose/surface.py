"""Surfaces: where finished frames lie, from the compositor that draws them to the sink that takes them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from gpupipe.colour import PixelFormat
from gpupipe.gpu.types import DeviceArray


class SurfaceFormat(NamedTuple):
    """What a finished frame looks like: its pixel format, and its width and height in pixels."""

    pixel_format: PixelFormat
    width: int
    height: int

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the array on the host: `[H * 3 // 2, W]` for nv12 (Y, then Cb and Cr in turn), else `[H, W, 3]`."""
        if self.pixel_format == "nv12":
            return (self.height * 3 // 2, self.width)
        return (self.height, self.width, 3)

    @property
    def rows(self) -> int:
        """Rows of bytes."""
        return self.shape[0]

    @property
    def row_bytes(self) -> int:
        """Bytes of a row that hold pixels."""
        return self.width if self.pixel_format == "nv12" else 3 * self.width

    @property
    def nbytes(self) -> int:
        """Bytes of a frame, without gaps between its rows."""
        return self.rows * self.row_bytes


@dataclass
class Surface:
    """One finished frame, the taker's until `release`.

    Attributes:
        format: what it looks like.
        host: uint8 `[*format.shape]`, if the frame is on the host (in page-locked memory where a GPU has drawn it).
        device: uint8 `[rows, pitch]`, if the frame is on a GPU.
        index: which output frame of its session it is.
        finished: when it was finished, seconds of `time.monotonic`.
    """

    format: SurfaceFormat
    host: NDArray[np.uint8] | None
    device: DeviceArray | None = None
    index: int = -1
    finished: float = field(default=0.0, init=False)
    _give_back: Callable[[Surface], None] | None = field(default=None, repr=False)

    def release(self) -> None:
        """Give it back; its memory may be drawn on again from now on. Once is enough; a second call does nothing."""
        give_back, self._give_back = self._give_back, None
        if give_back is not None:
            self.host = self.device = None  # whoever still holds it, as an error's traceback does, holds no memory
            give_back(self)
