"""How a finished frame becomes what the encoder takes: the last step of compositing, counted for every way."""

from __future__ import annotations

import av
import cv2
import numpy as np
from av.video.reformatter import VideoReformatter
from numpy.typing import NDArray

from gpupipe.colour import DEFAULT_MATRIX, LUMA_WEIGHTS, Colour, PixelFormat
from gpupipe.media.encoders import encoder_formats

Pixels = NDArray[np.uint8]


class HandOver:
    """Makes the encoder's picture of a finished frame as `encode.VideoWriter` does.

    nv12 is wrapped without a copy. bgr24 is wrapped and converted by libswscale, with the stream's matrix and range and
    libswscale's own choice of threads.

    Args:
        pixel_format: of the frames.
        colour: of the stream.
        encoder: FFmpeg's name of the encoder.
    """

    def __init__(self, pixel_format: PixelFormat, colour: Colour, encoder: str) -> None:
        self._pixel_format, self._colour = pixel_format, colour
        self._encoder_format = next(name for name in ("nv12", "yuv420p") if name in encoder_formats(encoder))
        self._reformatter = VideoReformatter()

    def __call__(self, frame: Pixels) -> av.VideoFrame:
        """The picture: the memory of `frame` (nv12) or of its own (bgr24)."""
        # PyAV takes the height of an nv12 array wrongly unless it is divisible by 4, and libswscale reads bgr24 by 16
        # pixels: other frames are copied, as the writer does.
        height = frame.shape[0] * 2 // 3 if self._pixel_format == "nv12" else frame.shape[0]
        whole = height % 4 == 0 and (self._pixel_format == "nv12" or frame.shape[1] % 16 == 0)
        wrap = av.VideoFrame.from_numpy_buffer if whole else av.VideoFrame.from_ndarray
        picture = wrap(frame, format=self._pixel_format)
        if self._pixel_format == "bgr24":
            picture = self._reformatter.reformat(
                picture,
                format=self._encoder_format,
                dst_colorspace=self._colour.matrix,
                dst_color_range=self._colour.range,
            )
        return picture


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
