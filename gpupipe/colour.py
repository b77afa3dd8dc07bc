"""BGR to Y'CbCr in fixed point, with the matrix and range that a video stream says it has.

Both compositors compute `(b*B + g*G + r*R + offset) >> 14` on integers, so they agree bit for bit. Every product and
sum stays below 2^24 in magnitude, so float32 arithmetic computes the same integers exactly, in any order.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache, cached_property
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray

PixelFormat = Literal["nv12", "bgr24"]
"""Of body frames and finished frames, by FFmpeg's names; both are 8 bits a sample."""

FRACTION_BITS: Final = 14

LUMA_WEIGHTS: Final = {
    1: (0.2126, 0.0722),  # ITU-R BT.709
    4: (0.30, 0.11),  # FCC
    5: (0.299, 0.114),  # ITU-R BT.601, 625 lines
    6: (0.299, 0.114),  # ITU-R BT.601, 525 lines
    7: (0.212, 0.087),  # SMPTE ST 240
    9: (0.2627, 0.0593),  # ITU-R BT.2020, non-constant luminance
}
"""(Kr, Kb) of each matrix_coefficients code of ITU-T H.273, table 4, that is a plain luma-chroma matrix."""

UNSPECIFIED: Final = 2
DEFAULT_MATRIX: Final = 5
"""What libswscale, and so PyAV's `bgr24`, takes for a stream that does not name its matrix: BT.601."""


@dataclass(frozen=True)
class Colour:
    """How a stream describes its colours: the code points of ITU-T H.273, as FFmpeg numbers them.

    Attributes:
        matrix: matrix_coefficients (FFmpeg's AVColorSpace); 2 is "unspecified".
        range: 0 unspecified, 1 limited (16…235), 2 full (0…255).
        primaries: colour_primaries.
        transfer: transfer_characteristics.
    """

    matrix: int = UNSPECIFIED
    range: int = 0
    primaries: int = UNSPECIFIED
    transfer: int = UNSPECIFIED

    @property
    def full_range(self) -> bool:
        """Whether 8-bit samples use 0…255; limited range unless the stream says so."""
        return self.range == 2

    @property
    def luma_weights(self) -> tuple[float, float]:
        """(Kr, Kb) of the matrix; BT.601's when it is unspecified or not a plain matrix."""
        return LUMA_WEIGHTS.get(self.matrix, LUMA_WEIGHTS[DEFAULT_MATRIX])

    @cached_property
    def from_bgr(self) -> NDArray[np.int32]:
        """Rows Y, Cb, Cr of weights for B, G, R and an offset, int32 `[3, 4]` with 14 fractional bits.

        A sample is `min(255, (weights · (B, G, R) + offset) >> 14)`; the offset holds the half that rounds. It is
        never negative. Grey is exact: luma weights add up to the range, chroma weights to 0.

        Source: ITU-T H.273, 8.3, equations 38 to 47: Y = Kr·R + (1-Kr-Kb)·G + Kb·B, Cb = (B-Y) / (2·(1-Kb)),
        Cr = (R-Y) / (2·(1-Kr)), scaled to 219 and 224 steps in limited range and to 255 in full range.
        """
        kr, kb = self.luma_weights
        luma, chroma, black = (255, 255, 0) if self.full_range else (219, 224, 16)
        one = 1 << FRACTION_BITS

        def row(blue: float, red: float, total: float, offset: int) -> list[int]:
            b, r, whole = round(blue * one), round(red * one), round(total * one)
            return [b, whole - b - r, r, offset * one + one // 2]

        y = luma / 255
        c = chroma / 255 / 2
        return np.array(
            [
                row(y * kb, y * kr, y, black),
                row(c, -c * kr / (1 - kb), 0, 128),
                row(-c * kb / (1 - kr), c, 0, 128),
            ],
            np.int32,
        )

    @property
    def matrix_number(self) -> int:
        """Where `from_bgr` stands in `matrices`.

        >>> Colour(matrix=1, range=2).matrix_number, Colour().matrix_number, Colour(matrix=0).matrix_number
        (1, 4, 4)
        """
        matrix = self.matrix if self.matrix in LUMA_WEIGHTS else DEFAULT_MATRIX
        return 2 * list(LUMA_WEIGHTS).index(matrix) + self.full_range


@cache
def matrices() -> NDArray[np.int32]:
    """Every matrix that `from_bgr` can be, int32 `[12, 3, 4]`: those of `LUMA_WEIGHTS`, each in limited range, then
    in full range."""
    every = np.stack([Colour(matrix, full).from_bgr for matrix in LUMA_WEIGHTS for full in (1, 2)])
    every.flags.writeable = False
    return every
