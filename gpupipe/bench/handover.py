"""OpenCV's conversion of a finished frame for the encoder, for those ways that gpupipe is compared with.

The hand-over is the last step of compositing, and counted for every way; gpupipe's own is `media.handover`.
"""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from gpupipe.colour import DEFAULT_MATRIX, LUMA_WEIGHTS, Colour

Pixels = NDArray[np.uint8]


class OpencvNv12:
    """Converts bgr24 to nv12 with OpenCV, in one thread about twice as fast as libswscale in two.

    OpenCV knows BT.601 in limited range only (see `fits`), and takes the chroma of one pixel of four where libswscale
    takes their mean: it does less, and is given the benefit of it.
    """

    def __init__(self) -> None:
        self._planar = np.empty((0, 0), np.uint8)

    @staticmethod
    def fits(colour: Colour, width: int, height: int) -> bool:
        """Whether a stream's colours are those that OpenCV converts to, and its size one that OpenCV takes."""
        bt601 = colour.luma_weights == LUMA_WEIGHTS[DEFAULT_MATRIX] and not colour.full_range
        return bt601 and width % 2 == 0 and height % 4 == 0

    def __call__(self, frame: Pixels) -> Pixels:
        """uint8 `[H * 3 // 2, W]`, valid until the next call."""
        height, width = frame.shape[:2]
        if self._planar.shape != (height * 3 // 2, width):
            self._planar = np.empty((height * 3 // 2, width), np.uint8)
        planar = self._planar
        cv2.cvtColor(frame, cv2.COLOR_BGR2YUV_I420, dst=planar)
        chroma = cv2.merge(list(planar[height:].reshape(2, height // 2, width // 2)))
        planar[height:] = chroma.reshape(height // 2, width)
        return planar
