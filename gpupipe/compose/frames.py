"""A character's frames, where a compositor needs them: put there once, each before the first frame that shows it.

Crops are kept as planes, as the model takes them; body frames as finished frames are, so that what the rectangle does
not cover is copied and never converted.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from gpupipe.colour import FRACTION_BITS, Colour, PixelFormat
from gpupipe.compose.decoding import Decoding, Frame, Kept
from gpupipe.compose.surface import SurfaceFormat
from gpupipe.geometry import CropLayout, Rect


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
        first: number, in the character's videos, of the first frame kept.
    """

    layout: CropLayout
    pixel_format: PixelFormat
    width: int
    height: int
    rects: tuple[Rect, ...]
    colour: Colour = field(default_factory=Colour)
    recorded: bool = False
    first: int = 0

    @property
    def numbers(self) -> range:
        """The frames kept, by their numbers in the character's videos."""
        return range(self.first, self.first + self.count)

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

    @cached_property
    def largest_rect(self) -> int:
        """Pixels of the largest rectangle."""
        return max((rect.width * rect.height for rect in self.rects), default=0)

    @property
    def cache_bytes(self) -> int:
        """Bytes of all that is kept."""
        each = self.format.nbytes + int(np.prod(self.crop_shape))
        return self.count * (each + (int(np.prod(self.recorded_shape)) if self.recorded else 0))


class HostFrames(Decoding):
    """A character's frames in host memory. Made by `load` or `loading`.

    Attributes:
        spec: what the arrays hold.
        body: uint8 `[N, *format.shape]`.
        crops: uint8 `[N, 3, C, C]`.
        recorded: uint8 `[N, 6, S, S]` or None.
    """

    def __init__(self, spec: FrameSpec, *, recorded: bool) -> None:
        super().__init__(spec.count)
        self.spec = spec
        self.body: Frame = np.empty((spec.count, *spec.format.shape), np.uint8)
        self.crops: Frame = np.empty((spec.count, *spec.crop_shape), np.uint8)
        self.recorded: Frame | None = np.empty((spec.count, *spec.recorded_shape), np.uint8) if recorded else None

    @cached_property
    def ycbcr_weights(self) -> NDArray[np.float32]:
        """`Colour.from_bgr` as float32 `[3, 4]`, multiples of 2^-14."""
        return self.spec.colour.from_bgr.astype(np.float32) / np.float32(1 << FRACTION_BITS)

    @classmethod
    def load(
        cls, spec: FrameSpec, body: Iterable[Frame], crops: Iterable[Frame], recorded: Iterable[Frame] | None = None
    ) -> HostFrames:
        """Keep decoded frames, all of which are there when it returns; see `loading`.

        Raises:
            GpupipeError: a frame cannot be decoded.
        """
        frames = cls.loading(spec, body, crops, recorded)
        try:
            frames.wait()
        finally:
            frames.close()
        return frames

    @classmethod
    def loading(
        cls, spec: FrameSpec, body: Iterable[Frame], crops: Iterable[Frame], recorded: Iterable[Frame] | None = None
    ) -> HostFrames:
        """Begin to keep decoded frames, the body in one thread and the rest in another.

        Args:
            spec: what to keep.
            body: frames as in `format.shape`.
            crops: uint8 `[C, C, 3]`, bgr24.
            recorded: uint8 `[S, S, 6]`: the roi, then the masked roi, both bgr24.
        """
        frames = cls(spec, recorded=recorded is not None)
        others = [crops] if recorded is None else [crops, recorded]
        frames._begin(Kept([body], frames._put_body), Kept(others, frames._put_crops))
        return frames

    @property
    def missing_bytes(self) -> int:
        """What the frames will take that are still to come."""
        return self.spec.cache_bytes * (self.spec.count - self.loaded) // max(1, self.spec.count)

    @property
    def cache_bytes(self) -> int:
        """Bytes of the arrays."""
        return self.spec.cache_bytes

    def at(self, source: int) -> tuple[HostFrames, int]:
        """In which arrays, and where there, a frame lies."""
        return self, source

    def put(self, place: int, decoded: Sequence[Frame]) -> None:
        """Keep a frame's body, its crop and, if there are any, its recorded inputs; as `loading` takes them."""
        self._put_body(place, decoded[:1])
        self._put_crops(place, decoded[1:])

    def _put_body(self, place: int, decoded: Sequence[Frame]) -> None:
        np.copyto(self.body[place], decoded[0])

    def _put_crops(self, place: int, decoded: Sequence[Frame]) -> None:
        np.copyto(self.crops[place], decoded[0].transpose(2, 0, 1))
        if self.recorded is not None:
            np.copyto(self.recorded[place], decoded[1].transpose(2, 0, 1))


class HostRing:
    """Slots for cached frames that do not stay, behind the first ones, which do; a `protocol.Ring`.

    Args:
        kept: the frames that stay.
        spec: of all.
        slots: how many.

    Attributes:
        spec: of all.
        slots: how many.
    """

    def __init__(self, kept: HostFrames, spec: FrameSpec, slots: int) -> None:
        self.spec, self.slots, self._kept = spec, slots, kept
        self._ring = HostFrames(replace(spec, rects=spec.rects[:slots]), recorded=spec.recorded)
        self._slot: dict[int, int] = {}
        self._used: set[int] = set()

    @property
    def missing_bytes(self) -> int:
        """What the slots will take in which no frame has been yet."""
        return (self.slots - len(self._used)) * (self.spec.cache_bytes // self.spec.count)

    @property
    def cache_bytes(self) -> int:
        """Bytes of what is kept, and of the slots."""
        return self._kept.cache_bytes + self.slots * (self.spec.cache_bytes // self.spec.count)

    @property
    def ycbcr_weights(self) -> NDArray[np.float32]:
        """See `HostFrames`."""
        return self._kept.ycbcr_weights

    def at(self, source: int) -> tuple[HostFrames, int]:
        """In which arrays, and where there, a frame lies."""
        return (self._kept, source) if source < self._kept.spec.count else (self._ring, self._slot[source])

    def write(self, slot: int, source: int, decoded: Sequence[Frame]) -> None:
        """See `protocol.Ring`."""
        self._ring.put(slot, decoded)
        self._slot[source] = slot
        self._used.add(slot)

    def forget(self, source: int) -> None:
        """See `protocol.Ring`."""
        del self._slot[source]

    def close(self) -> None:
        """See `protocol.Ring`."""
        vars(self).pop("_ring", None)
        self._used = set(range(self.slots))
