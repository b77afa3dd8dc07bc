"""The hand-over of a finished frame to the encoder: the picture that it takes, made with as few copies as can be."""

from __future__ import annotations

import av
import numpy as np
from av.video.reformatter import VideoReformatter
from numpy.typing import NDArray

from gpupipe.colour import Colour, PixelFormat
from gpupipe.errors import OptionError
from gpupipe.media.encoders import COPIES_INPUT, encoder_formats

Frame = NDArray[np.uint8]


class HandOver:
    """Makes the encoder's picture of each finished frame of a stream.

    nv12 is wrapped as it lies; an encoder that does not take nv12 gets its planes copied apart, as yuv420p. bgr24 is
    wrapped and converted by libswscale, with the stream's matrix and range. Where wrapping is not safe (see
    `_zero_copy`) the frame is copied first.

    Args:
        pixel_format: of the frames.
        colour: of the stream.
        encoder: FFmpeg's own name of the encoder.
        copies_input: whether the encoder has copied a frame when `encode` returns; None: what is known of it.

    Raises:
        OptionError: the encoder takes neither nv12 nor yuv420p, or there is no such encoder.
    """

    def __init__(
        self, pixel_format: PixelFormat, colour: Colour, encoder: str, *, copies_input: bool | None = None
    ) -> None:
        formats = encoder_formats(encoder)
        takes = next((name for name in ("nv12", "yuv420p") if name in formats), None)
        if takes is None:
            raise OptionError("takes neither nv12 nor yuv420p", field="--encoder", value=encoder, remedy="use libx264")
        self.encoder_format = takes
        """The pixel format of the pictures."""
        self._pixel_format, self._colour = pixel_format, colour
        self._copies_input = encoder in COPIES_INPUT if copies_input is None else copies_input
        self._reformatter = VideoReformatter()

    def __call__(self, frame: Frame) -> av.VideoFrame:
        """The picture of a frame.

        Args:
            frame: uint8 `[H, W, 3]` for bgr24, `[H * 3 // 2, W]` for nv12; W and H even.

        Returns:
            A picture that lies in the memory of `frame`, or in its own. Either way the frame may be drawn on again
            once the encoder's `encode` has returned.
        """
        if self._pixel_format == "nv12" and self.encoder_format == "yuv420p":
            picture = av.VideoFrame.from_ndarray(_planar(frame), format="yuv420p")
        else:
            wrap = av.VideoFrame.from_numpy_buffer if self._zero_copy(frame) else av.VideoFrame.from_ndarray
            picture = wrap(frame, format=self._pixel_format)
        if self._pixel_format == "bgr24":
            picture = self._reformatter.reformat(
                picture,
                format=self.encoder_format,
                dst_colorspace=self._colour.matrix,
                dst_color_range=self._colour.range,
            )
        picture.colorspace, picture.color_range = self._colour.matrix, self._colour.range
        return picture

    def _zero_copy(self, frame: Frame) -> bool:
        """Whether the frame's own memory may be read by libswscale (bgr24) or by the encoder (nv12)."""
        if self._pixel_format == "bgr24":
            # The conversion reads 16 pixels at a time, and so beyond the end of other widths.
            return bool(frame.shape[1] % 16 == 0)
        # PyAV takes the height of an nv12 array wrongly unless it is divisible by 4.
        return self._copies_input and bool(frame.shape[0] * 2 // 3 % 4 == 0)


def _planar(frame: Frame) -> Frame:
    """nv12 as yuv420p, both `[H * 3 // 2, W]`: the two chroma planes one after the other."""
    height = frame.shape[0] * 2 // 3
    out = np.empty_like(frame)
    out[:height] = frame[:height]
    chroma = frame[height:].reshape(-1, 2)
    out[height:].reshape(2, -1)[...] = chroma.T
    return out
