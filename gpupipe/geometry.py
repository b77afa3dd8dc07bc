"""Where things are: rectangles, crop and model sizes, the mask, the frame order, and the resize tap tables.

The one home of the numbers 4, 320, 328 and their like. No pixels and no files here.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

BORDER = 4
"""Pixels of a crop, on each side, that the model neither sees nor redraws."""

RESIZE_BITS = 11
"""Fractional bits of a resize weight (OpenCV's INTER_RESIZE_COEF_BITS)."""

SPEECH_BEFORE = 8
"""Rows of speech features before the output frame in its window; the frame's own row comes next."""
SPEECH_ROWS = 16
"""Rows of speech features in one window: i - 8 ... i + 7 for output frame i."""
SPEECH_WIDTH = 512
"""Values in one row of speech features."""
SPEECH_RATE = 25
"""Rows of speech features a second."""
SPEECH_SHAPE = (32, 16, 16)
"""Shape in which the model takes one window: `[16, 512]` reshaped."""


class Rect(NamedTuple):
    """A rectangle of body pixels; `x2` and `y2` are the first column and row outside it."""

    x1: int
    y1: int
    x2: int
    y2: int

    @property
    def width(self) -> int:
        """Columns covered."""
        return self.x2 - self.x1

    @property
    def height(self) -> int:
        """Rows covered."""
        return self.y2 - self.y1

    def within(self, width: int, height: int) -> Rect:
        """The part of this rectangle inside a frame of `width` × `height` pixels; empty if there is none."""
        x1, y1 = min(max(self.x1, 0), width), min(max(self.y1, 0), height)
        return Rect(x1, y1, max(x1, min(self.x2, width)), max(y1, min(self.y2, height)))

    @property
    def empty(self) -> bool:
        """Whether no pixel is covered (reversed rectangles included)."""
        return self.width <= 0 or self.height <= 0


@dataclass(frozen=True)
class CropLayout:
    """How a crop of one model family is laid out.

    The model's square region of interest (roi) of `model_size` pixels lies `BORDER` pixels inside the crop. The mask,
    in roi pixels, is the part of the second model input that is black: x 5, y 5, width S - 10, height S - 15, which is
    the filled rectangle of both published families (5, 5, 310, 305 for S = 320 and 5, 5, 150, 145 for S = 160).
    """

    model_size: int

    @property
    def crop_size(self) -> int:
        """Pixels along each side of a crop."""
        return self.model_size + 2 * BORDER

    @property
    def roi(self) -> slice:
        """Rows, and columns, of the crop that the model sees and redraws."""
        return slice(BORDER, BORDER + self.model_size)

    @property
    def mask(self) -> Rect:
        """The black rectangle of the masked input, in roi pixels."""
        return Rect(5, 5, self.model_size - 5, self.model_size - 10)

    @classmethod
    def of_crop(cls, crop_size: int) -> CropLayout:
        """The layout whose crops have `crop_size` pixels along each side."""
        return cls(crop_size - 2 * BORDER)


def frame_order(output_frames: int, source_frames: int, start: int = 0) -> NDArray[np.int32]:
    """The source frame of each output frame, in ping-pong order.

    0, 1, … N-1, N-2, … 1, 0, 1, … with each end frame shown once, entered at position `start` of the first pass.

    Returns:
        int32 `[output_frames]`.

    >>> frame_order(8, 3).tolist()
    [0, 1, 2, 1, 0, 1, 2, 1]
    >>> frame_order(4, 3, start=2).tolist()
    [2, 1, 0, 1]
    """
    if source_frames < 1:
        raise ValueError(f"source_frames must be at least 1 (got {source_frames})")
    period = max(1, 2 * (source_frames - 1))
    phase = (np.arange(output_frames, dtype=np.int64) + start) % period
    return np.minimum(phase, period - phase).astype(np.int32) if source_frames > 1 else phase.astype(np.int32)


def frame_at(position: int, source_frames: int) -> int:
    """The source frame at one position of the ping-pong order; see `frame_order`.

    >>> [frame_at(position, 3) for position in range(6)]
    [0, 1, 2, 1, 0, 1]
    """
    if source_frames < 2:
        return 0
    phase = position % (2 * (source_frames - 1))
    return min(phase, 2 * (source_frames - 1) - phase)


SPEECH_STEPS = 1 << 16
"""Steps in which a frame's time is told between two rows of speech features."""


def speech_position(frame: int, fps: Fraction) -> tuple[int, int]:
    """The row of speech features at the time of an output frame: rounded down, and the rest in 1/65536 of a row.

    Frame i is shown at i / fps seconds, at position `i * 25 / fps` among the rows. Its window is the 16 rows around it
    that are 1/25 s apart, whatever the frame rate, as in training: with r the rest, row k of the window is
    `(1 - r) * features[row - 8 + k] + r * features[row - 7 + k]` in float32, or `features[row - 8 + k]` if r is 0.

    >>> speech_position(7, Fraction(25)), speech_position(3, Fraction(50)), speech_position(1, Fraction(30))
    ((7, 0), (1, 32768), (0, 54613))
    """
    position = frame * SPEECH_RATE * SPEECH_STEPS * fps.denominator // fps.numerator
    return divmod(position, SPEECH_STEPS)


class Taps(NamedTuple):
    """One axis of a resize: each output pixel is `w0 * source[i0] + w1 * source[i1]`.

    All four are int32 `[destination]`; weights have 11 fractional bits and add up to 2048.
    """

    i0: NDArray[np.int32]
    i1: NDArray[np.int32]
    w0: NDArray[np.int32]
    w1: NDArray[np.int32]


def resize_taps(source: int, destination: int, *, clamp_weights: bool) -> Taps:
    """The taps with which `cv2.resize(..., INTER_LINEAR)` resizes 8-bit pixels along one axis, bit for bit.

    Source: OpenCV's `resizeGeneric` (imgproc/src/resize.cpp). The position is computed in float64, rounded to float32,
    and split into an index and a float32 remainder. OpenCV moves columns that fall outside back to the edge with a
    remainder of 0 (`clamp_weights=True`, the x axis), and clamps only the row indexes on the y axis
    (`clamp_weights=False`). Halving both axes, a special case there, gives the same numbers.

    Args:
        source: pixels along the axis before.
        destination: pixels along the axis after.
        clamp_weights: True for the x axis, False for the y axis.
    """
    position = ((np.arange(destination) + 0.5) * (source / destination) - 0.5).astype(np.float32)
    index = np.floor(position).astype(np.int32)
    rest = position - index.astype(np.float32)
    if clamp_weights:
        outside = (index < 0) | (index >= source - 1)
        rest[outside] = 0
        index = np.clip(index, 0, source - 1)
    one = np.float32(1 << RESIZE_BITS)
    return Taps(
        np.clip(index, 0, source - 1),
        np.clip(index + 1, 0, source - 1),
        np.rint((np.float32(1) - rest) * one).astype(np.int32),
        np.rint(rest * one).astype(np.int32),
    )
