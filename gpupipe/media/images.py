"""Writing frames as image files."""

from __future__ import annotations

from pathlib import Path

import av
import cv2
import numpy as np
from av.video.reformatter import VideoReformatter
from numpy.typing import NDArray

from gpupipe.colour import Colour
from gpupipe.errors import OutputError, reason
from gpupipe.options import ImageFormat


def image_name(frame: int, image_format: ImageFormat) -> str:
    """The file name of an output frame.

    >>> image_name(7, "jpg"), image_name(12345, "png")
    ('frame_0007.jpg', 'frame_12345.png')
    """
    return f"frame_{frame:04d}.{image_format}"


def write_image(path: Path, frame: NDArray[np.uint8], *, jpeg_quality: int) -> None:
    """Write one frame; the suffix names the format.

    Args:
        path: the file, `.jpg` or `.png`.
        frame: uint8 `[H, W, 3]`, bgr24.
        jpeg_quality: 1 to 100, libjpeg's scale.

    Raises:
        OutputError: it cannot be written.
    """
    # PNG: level 1 is several times faster than the default and little larger on filmed frames.
    settings = [cv2.IMWRITE_JPEG_QUALITY, jpeg_quality] if path.suffix == ".jpg" else [cv2.IMWRITE_PNG_COMPRESSION, 1]
    done, data = cv2.imencode(path.suffix, frame, settings)
    if not done:
        raise OutputError("frame cannot be encoded", file=path, remedy="use another --image-format")
    try:
        path.write_bytes(data.tobytes())
    except OSError as error:
        raise OutputError(
            f"cannot be written: {reason(error)}", file=path, remedy="check the folder, its rights and its free space"
        ) from error


class FromNv12:
    """Frames in nv12 as bgr24, by libswscale, as `video.read_frames` gives those of a file.

    Args:
        colour: of the frames.
    """

    def __init__(self, colour: Colour) -> None:
        self._colour, self._reformatter = colour, VideoReformatter()

    def __call__(self, frame: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """A frame, uint8 `[H * 3 // 2, W]`, as uint8 `[H, W, 3]`."""
        picture = av.VideoFrame.from_ndarray(frame, format="nv12")
        picture.colorspace, picture.color_range = self._colour.matrix, self._colour.range
        return np.asarray(self._reformatter.reformat(picture, format="bgr24").to_ndarray(), np.uint8)


def png(frame: NDArray[np.uint8]) -> bytes:
    """A picture, uint8 `[H, W, 3]` in bgr24, as the bytes of a PNG file."""
    done, data = cv2.imencode(".png", frame)
    assert done, "a picture of bytes can be encoded"
    return bytes(data.tobytes())


def jpeg(frame: NDArray[np.uint8], quality: int, *, longest_side: int | None = None) -> bytes:
    """A picture as the bytes of a JPEG file.

    Args:
        frame: uint8 `[H, W, 3]`, bgr24.
        quality: 1 to 100, libjpeg's scale.
        longest_side: pixels to which a larger picture is made smaller.
    """
    height, width = frame.shape[:2]
    if longest_side is not None and max(height, width) > longest_side:
        scale = longest_side / max(height, width)
        size = max(1, round(width * scale)), max(1, round(height * scale))
        frame = np.asarray(cv2.resize(frame, size, interpolation=cv2.INTER_AREA), np.uint8)
    done, data = cv2.imencode(".jpg", frame, [cv2.IMWRITE_JPEG_QUALITY, quality])
    assert done, "a picture of bytes can be encoded"
    return bytes(data.tobytes())
