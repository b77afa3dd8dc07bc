"""Where in a video its frames are: what reading needs that does not begin at the first.

One of the few rooms that use PyAV; `tests/test_layering.py` names them.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import av

from gpupipe.errors import MediaError, reason
from gpupipe.media.isolate import isolated_facts
from gpupipe.media.limits import DEFAULT, Limits
from gpupipe.media.opening import opened


class Start(NamedTuple):
    """Where reading begins.

    Attributes:
        first: number of the first frame that is wanted.
        seek: decoding time of a keyframe from which it can be decoded, in the stream's time base; None: frames are
            decoded from the beginning, and counted.
        pts: presentation times of the frames from there on, by which they are known after seeking.
    """

    first: int = 0
    seek: int | None = None
    pts: Sequence[int] = ()


BEGINNING = Start()


class Timing(NamedTuple):
    """When a frame is shown and decoded, in the stream's time base, and whether it is a keyframe."""

    pts: int | None
    dts: int | None
    is_keyframe: bool


class NotThereError(Exception):
    """Seeking has not led to the frames that were wanted."""


@dataclass(frozen=True)
class FrameIndex:
    """The frames of a video.

    Attributes:
        pts: presentation time of each, in the order in which they are shown; empty if the file cannot be sought in.
        keyframes: number and decoding time of each keyframe.
    """

    pts: tuple[int, ...] = ()
    keyframes: tuple[tuple[int, int], ...] = ()

    def keyframe(self, number: int) -> int:
        """The number of the frame from which decoding must begin for a frame: the keyframe before, or 0."""
        place = bisect_right(self.keyframes, number, key=lambda each: each[0])
        return self.keyframes[place - 1][0] if place else 0

    def largest_group(self, numbers: range) -> int:
        """Of the frames in a range, the most that are decoded from one keyframe: all, if there is but one start.

        >>> FrameIndex(keyframes=((0, 0), (7, 7), (40, 40))).largest_group(range(5, 50))
        33
        """
        inside = [number for number, _ in self.keyframes if numbers.start < number < numbers.stop]
        return max(stop - start for start, stop in pairwise([numbers.start, *inside, numbers.stop]))

    def start(self, first: int, end: int) -> Start:
        """How to read the frames `first` to `end` - 1."""
        place = bisect_right(self.keyframes, first, key=lambda each: each[0])
        if not place or not self.keyframes[place - 1][0]:
            return Start(first)
        return Start(first, self.keyframes[place - 1][1], self.pts[first:end])


def index_frames(path: Path | str, limits: Limits = DEFAULT) -> FrameIndex:
    """Where the frames of a video are, from its packets.

    Only in MP4 and QuickTime files, whose table of samples says which are keyframes, is anything sought; other files
    are decoded from their beginning.

    Args:
        path: the file.
        limits: what is taken.

    Raises:
        MediaError: it cannot be read.
    """
    path = Path(path)
    if limits.isolate:
        return isolated_facts(
            "index_frames",
            path,
            limits,
            lambda told: FrameIndex(tuple(told["pts"]), tuple((number, dts) for number, dts in told["keyframes"])),
        )
    with opened(path, limits) as (container, stream):
        if not can_seek(container):
            return FrameIndex()
        timings = []
        try:
            for packet in container.demux(stream):
                if packet.size and not packet.is_discard:
                    timings.append(Timing(packet.pts, packet.dts, packet.is_keyframe))
                    limits.check_frames(path, len(timings))
        except av.FFmpegError as error:
            raise MediaError(f"cannot be read: {reason(error)}", file=path, remedy="write it again") from error
    return index_of(timings)


def can_seek(container: av.container.InputContainer) -> bool:
    """Whether a file's table of samples says which are keyframes."""
    return "mov" in container.format.name.split(",")


def index_of(timings: Iterable[Timing]) -> FrameIndex:
    """The index of frames that come in the order of decoding."""
    shown: list[int] = []
    keys: list[tuple[int, int]] = []
    for pts, dts, is_keyframe in timings:
        if pts is None or dts is None:
            return FrameIndex()
        shown.append(pts)
        if is_keyframe:
            keys.append((pts, dts))
    shown.sort()
    numbers = {pts: number for number, pts in enumerate(shown)}
    if len(numbers) < len(shown):  # two frames at one time: which is which cannot be told
        return FrameIndex()
    return FrameIndex(tuple(shown), tuple(sorted((numbers[pts], dts) for pts, dts in keys)))


def frames_from(
    container: av.container.InputContainer, stream: av.VideoStream, start: Start
) -> Iterator[av.VideoFrame]:
    """Decode from a start on.

    What is shown before a keyframe but comes after it in the file cannot be decoded from there; it is left out, as it
    lies before the start.

    Raises:
        NotThereError: another frame came than was wanted.
    """
    if start.seek is None:
        for number, frame in enumerate(container.decode(stream)):
            if number >= start.first:
                yield frame
        return
    container.seek(start.seek, stream=stream)
    found = 0
    for frame in container.decode(stream):
        if not found and (frame.pts is None or frame.pts < start.pts[0]):
            continue
        if found < len(start.pts) and frame.pts != start.pts[found]:
            raise NotThereError
        found += 1
        yield frame
    if found < len(start.pts):
        raise NotThereError
