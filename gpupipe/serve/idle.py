"""What is seen of a character between two speeches, and how it comes into speech and out of it.

While it does not speak, its body frames are shown as they were filmed. The order of frames never stops: a spoken
picture and the filmed one at the same place differ in the mouth's rectangle alone, so what is blended there, over a few
pictures, is all of the seam.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from gpupipe.geometry import Rect

SEAM: Final = 4
"""Pictures of a speech, at its beginning and at its end, that are blended with the filmed ones: 0.16 s at 25 a
second, while the mouth is closed or nearly so."""


def spoken_share(index: int, total: int | None) -> int:
    """How much of a spoken picture is shown, of `SEAM + 1`.

    Args:
        index: which picture of its speech.
        total: pictures of the speech; None: not known yet, so its end is not near.

    >>> [spoken_share(index, 10) for index in range(10)]
    [1, 2, 3, 4, 5, 5, 4, 3, 2, 1]
    """
    left = SEAM + 1 if total is None else total - index
    return max(0, min(index + 1, left, SEAM + 1))


def blend(filmed: NDArray[np.uint8], spoken: NDArray[np.uint8], rect: Rect, share: int) -> None:
    """Mix a spoken picture into the filmed one of the same place: `(f * (S - share) + s * share + S // 2) // S` for
    each sample in the rectangle, with S = `SEAM + 1`, in integers.

    Args:
        filmed: uint8 nv12 `[H * 3 // 2, W]`, which is changed.
        spoken: likewise.
        rect: in which they differ, inside the frame.
        share: of the spoken one, 0 to S.
    """
    height = filmed.shape[0] * 2 // 3
    top, bottom = height + rect.y1 // 2, height + (rect.y2 + 1) // 2
    left, right = rect.x1 // 2 * 2, (rect.x2 + 1) // 2 * 2
    for part in (np.s_[rect.y1 : rect.y2, rect.x1 : rect.x2], np.s_[top:bottom, left:right]):
        mixed = filmed[part].astype(np.uint16) * (SEAM + 1 - share) + spoken[part].astype(np.uint16) * share
        filmed[part] = (mixed + (SEAM + 1) // 2) // (SEAM + 1)
