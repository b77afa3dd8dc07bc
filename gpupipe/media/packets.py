"""The packets of a video as they lie in the file, not decoded."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

import av

from gpupipe.errors import MediaError, reason
from gpupipe.media.opening import media_url


class Packet(NamedTuple):
    """One encoded frame: when it is shown and decoded, seconds, and whether decoding can begin with it."""

    shown: Fraction
    decoded: Fraction
    keyframe: bool


def video_packets(path: Path) -> list[Packet]:
    """The packets of the first video stream, in the order of the file.

    Raises:
        MediaError: the file cannot be read.
    """
    try:
        with av.open(media_url(path)) as container:
            return [
                Packet(packet.pts * packet.time_base, packet.dts * packet.time_base, packet.is_keyframe)
                for packet in container.demux(video=0)
                if packet.size and packet.pts is not None and packet.dts is not None and packet.time_base is not None
            ]
    except (av.FFmpegError, OSError) as error:
        raise MediaError(f"cannot be read: {reason(error)}", file=path) from error
