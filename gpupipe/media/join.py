"""Joining parts that were encoded one by one into a finished file, without encoding again."""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av

from gpupipe.media.encode import write_error
from gpupipe.media.limits import DEFAULT, Limits
from gpupipe.media.opening import media_url
from gpupipe.media.soundtrack import sound_packets


def join(
    parts: Sequence[Path], output: Path, fps: Fraction, *, sound: Path | None = None, limits: Limits = DEFAULT
) -> None:
    """Join parts that were encoded one by one into `output`, without encoding again, and add sound.

    Args:
        parts: files that `VideoWriter` finished with the same settings, in order.
        output: the joined file.
        fps: frames a second.
        sound: a file whose sound starts with the first frame and ends with the last; see `soundtrack.sound_packets`.
        limits: what is taken of that file.

    Raises:
        OutputError: `output` cannot be written.
        MediaError: the sound cannot be read.
    """
    try:
        # An MP4 with its index first; a Matroska file without the random number that it is told apart by.
        settings = {"movflags": "+faststart"} if output.suffix.lower() == ".mp4" else {"fflags": "+bitexact"}
        with av.open(media_url(output), "w", options=settings) as joined:
            with av.open(media_url(parts[0])) as first:
                # Opaque: the codec is taken as it is, for some decoders (libdav1d) have no encoder of their name.
                stream = joined.add_stream_from_template(first.streams.video[0], opaque=True)
            stream.time_base = 1 / fps
            tracks = [_in_one_time(parts, fps, stream)]
            if sound is not None:
                seconds = sum(_frames(part) for part in parts) / fps
                tracks.append(sound_packets(joined, sound, seconds, frame_seconds=1 / fps, limits=limits)[1])
            for packet in heapq.merge(*tracks, key=lambda packet: packet.dts * packet.time_base):
                joined.mux(packet)
    except (av.FFmpegError, OSError) as error:
        raise write_error(output, error) from error


def _frames(part: Path) -> int:
    with av.open(media_url(part)) as opened:
        return sum(1 for packet in opened.demux(opened.streams.video[0]) if packet.size)


def _in_one_time(parts: Sequence[Path], fps: Fraction, stream: Any) -> Iterator[Any]:
    """The packets of all parts on one time line.

    Decoding times count on evenly over the joins. A part of one or two frames reorders less than the others do, so its
    own decoding times would leave a gap, and a wrong average frame rate.
    """
    delay: int | None = None
    done = shown = 0
    for path in parts:
        with av.open(media_url(path)) as part:
            shown = done
            for packet in part.demux(part.streams.video[0]):
                if not packet.size:
                    continue
                assert packet.pts is not None
                assert packet.time_base is not None
                if delay is None:
                    delay = -round((packet.dts or 0) * packet.time_base * fps)
                packet.pts = round(packet.pts * packet.time_base * fps) + shown
                packet.dts = done - delay
                packet.duration = 1
                packet.time_base = 1 / fps
                packet.stream = stream
                done += 1
                yield packet
