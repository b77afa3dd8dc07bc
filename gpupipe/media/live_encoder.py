"""Frames to the packets of a video stream, one for each, as they are drawn: no file, nothing reordered or held back."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from fractions import Fraction
from math import ceil
from typing import Final, Literal, cast

import av
import numpy as np
from numpy.typing import NDArray

from gpupipe.colour import Colour
from gpupipe.errors import OptionError, OutputError, reason
from gpupipe.media.handover import HandOver
from gpupipe.media.video import require_even

LiveCodec = Literal["h264", "hevc"]

KEYFRAME_SECONDS: Final = 2.0
"""Between keyframes at most: what one who joins late, or loses a packet, waits for."""

_OPTIONS: Final[dict[LiveCodec, tuple[str, dict[str, str]]]] = {
    # One thread: of many streams each takes a core at a time, and x264's slices of a frame would cost quality.
    "h264": (
        "libx264",
        {"preset": "veryfast", "tune": "zerolatency", "crf": "21", "x264-params": "mbtree=0:scenecut=0"},
    ),
    "hevc": (
        "libx265",
        {
            "preset": "ultrafast",
            "tune": "zerolatency",
            "crf": "24",
            "x265-params": "log-level=error:pools=none:frame-threads=1:scenecut=0:repeat-headers=1",
        },
    ),
}


@dataclass(frozen=True)
class LivePacket:
    """An encoded frame.

    Attributes:
        data: Annex B, with the parameter sets if it is a keyframe.
        number: of the frame, from 0, in the order in which they were given.
        keyframe: whether decoding can begin with it.
    """

    data: bytes
    number: int
    keyframe: bool


class LiveEncoder:
    """Encodes nv12 frames one by one. Must be closed.

    Args:
        codec: which.
        width, height: pixels, even.
        fps: frames a second.
        colour: of the frames; written in the stream.

    Raises:
        OptionError: the encoder cannot be opened here.
        OutputError: the size is odd.
    """

    def __init__(self, codec: LiveCodec, *, width: int, height: int, fps: Fraction, colour: Colour) -> None:
        require_even("the stream", width, height, what="video", error=OutputError)
        name, options = _OPTIONS[codec]
        self._hand_over = HandOver("nv12", colour, name)
        self._time_base, self._next = 1 / fps, 0
        try:
            context = cast(av.VideoCodecContext, av.CodecContext.create(name, "w"))
            context.width, context.height, context.pix_fmt = width, height, self._hand_over.encoder_format
            context.time_base, context.framerate = self._time_base, fps
            context.options, context.thread_count = dict(options), 1
            context.gop_size, context.max_b_frames = ceil(KEYFRAME_SECONDS * fps), 0
            context.colorspace, context.color_range = colour.matrix, colour.range
            context.color_primaries, context.color_trc = colour.primaries, colour.transfer
            context.open()
        except (av.FFmpegError, ValueError, OSError) as error:
            raise OptionError(
                f"{name} cannot be opened: {reason(error)}", field="output", value=codec, remedy="ask for another"
            ) from error
        self._context: av.VideoCodecContext | None = context

    def encode(self, frame: NDArray[np.uint8]) -> list[LivePacket]:
        """Encode the next frame.

        Args:
            frame: uint8 `[H * 3 // 2, W]`, free again when this returns.

        Returns:
            Its packet; none where the encoder gives it later.

        Raises:
            OutputError: the encoder fails.
        """
        picture = self._hand_over(frame)
        picture.pts, picture.time_base = self._next, self._time_base
        self._next += 1
        return self._packets(picture)

    def finish(self) -> list[LivePacket]:
        """What the encoder still has."""
        return self._packets(None)

    def close(self) -> None:
        """Release the encoder, whose memory is large, at once."""
        context, self._context = self._context, None
        if context is not None:
            with suppress(av.FFmpegError):  # what it still holds is wanted no more
                context.encode(None)

    def _packets(self, picture: av.VideoFrame | None) -> list[LivePacket]:
        assert self._context is not None, "it is not closed"
        try:
            packets = self._context.encode(picture)
        except (av.FFmpegError, OSError) as error:
            raise OutputError(f"a frame cannot be encoded: {reason(error)}") from error
        return [LivePacket(bytes(packet), cast(int, packet.pts), packet.is_keyframe) for packet in packets]
