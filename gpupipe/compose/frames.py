"""A character's frames, where a compositor needs them: put there once, before the first frame is drawn.

Crops are kept as planes, as the model takes them; body frames as finished frames are, so that what the rectangle does
not cover is copied and never converted.
"""

from __future__ import annotations

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from gpupipe.colour import FRACTION_BITS, Colour, PixelFormat
from gpupipe.compose.surface import SurfaceFormat
from gpupipe.geometry import CropLayout, Rect

Frame = NDArray[np.uint8]


@dataclass(frozen=True)
class FrameSpec:
    """What is kept of a character: sizes, rectangles and colours, without the pixels.

    Attributes:
        layout: the layout of the crops.
        pixel_format: of the body frames and so of the finished ones.
        width: of the body, pixels.
        height: of the body, pixels.
        rects: where each crop belongs, body pixels; one for each frame kept.
        colour: how the body stream describes its colours (used with nv12).
        recorded: whether recorded model inputs are kept too, instead of cutting and masking them from the crops.
    """

    layout: CropLayout
    pixel_format: PixelFormat
    width: int
    height: int
    rects: tuple[Rect, ...]
    colour: Colour = field(default_factory=Colour)
    recorded: bool = False

    @property
    def count(self) -> int:
        """Frames kept."""
        return len(self.rects)

    @property
    def format(self) -> SurfaceFormat:
        """Of body frames and finished frames."""
        return SurfaceFormat(self.pixel_format, self.width, self.height)

    @property
    def crop_shape(self) -> tuple[int, int, int]:
        """One crop: `[3, C, C]`, planes B, G, R."""
        return (3, self.layout.crop_size, self.layout.crop_size)

    @property
    def recorded_shape(self) -> tuple[int, int, int]:
        """The recorded inputs of one frame: `[6, S, S]`, planes B, G, R of the roi, then of the masked roi."""
        return (6, self.layout.model_size, self.layout.model_size)

    @property
    def largest_rect(self) -> int:
        """Pixels of the largest rectangle."""
        return max((rect.width * rect.height for rect in self.rects), default=0)

    @property
    def cache_bytes(self) -> int:
        """Bytes of all that is kept."""
        each = self.format.nbytes + int(np.prod(self.crop_shape))
        return self.count * (each + (int(np.prod(self.recorded_shape)) if self.recorded else 0))


@dataclass(frozen=True, eq=False)
class HostFrames:
    """A character's frames in host memory.

    Attributes:
        spec: what the arrays hold.
        body: uint8 `[N, *format.shape]`.
        crops: uint8 `[N, 3, C, C]`.
        recorded: uint8 `[N, 6, S, S]` or None.
    """

    spec: FrameSpec
    body: Frame
    crops: Frame
    recorded: Frame | None = None

    @cached_property
    def ycbcr_weights(self) -> NDArray[np.float32]:
        """`Colour.from_bgr` as float32 `[3, 4]`, multiples of 2^-14."""
        return self.spec.colour.from_bgr.astype(np.float32) / np.float32(1 << FRACTION_BITS)

    @classmethod
    def load(
        cls, spec: FrameSpec, body: Iterable[Frame], crops: Iterable[Frame], recorded: Iterable[Frame] | None = None
    ) -> HostFrames:
        """Fill the cache from decoded frames, the body in one thread and the rest in another.

        Args:
            spec: what to keep.
            body: frames as in `format.shape`.
            crops: uint8 `[C, C, 3]`, bgr24.
            recorded: uint8 `[S, S, 6]`: the roi, then the masked roi, both bgr24.
        """
        with ThreadPoolExecutor(1, "decode") as pool:
            planes = pool.submit(
                lambda: (
                    _stack(spec.count, spec.crop_shape, crops, planar=True),
                    None if recorded is None else _stack(spec.count, spec.recorded_shape, recorded, planar=True),
                )
            )
            return cls(spec, _stack(spec.count, spec.format.shape, body, planar=False), *planes.result())


def _stack(count: int, shape: tuple[int, ...], frames: Iterable[Frame], *, planar: bool) -> Frame:
    kept = np.empty((count, *shape), np.uint8)
    for place, frame in zip(kept, frames, strict=True):
        np.copyto(place, frame.transpose(2, 0, 1) if planar else frame)
    return kept
