"""What a session draws: whom, with which model, and which cached frame when."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable
from contextlib import closing
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gpupipe.character.folder import RECTANGLES, Character
from gpupipe.colour import PixelFormat
from gpupipe.compose.frames import FrameSpec
from gpupipe.compose.surface import SurfaceFormat
from gpupipe.engine.outputs import Outputs
from gpupipe.errors import MediaError
from gpupipe.geometry import frame_at, frame_order
from gpupipe.media.index import FrameIndex, Start, index_frames
from gpupipe.media.video import VideoInfo, read_frames
from gpupipe.options import ModelOptions

Readers = tuple[Iterable[Any], Iterable[Any], Iterable[Any] | None]
"""Decoded frames of the body, the crops and the recorded inputs, as `HostFrames.load` takes them."""


@dataclass(frozen=True)
class SessionOrder:
    """What a session draws.

    Attributes:
        character: whom.
        spec: the cached frames that it needs, which finished frames look like.
        model: the ONNX file.
        options: how it is run.
        period: cached frames in one pass of the ping-pong.
        start: position in the ping-pong at which the session starts.
        total: output frames; None: as long as the speech lasts.
        segments: gives the next range of output frames that the session is to draw, None after the last; None: it
            draws all of them.
        shared: whether other sessions take ranges from `segments` too.
        backwards: whether it shows cached frames in falling order anywhere, as far as that is known.
        workers: threads that composite on the CPU; None: the engine's.
        features: whether its frames' features are kept where the engine leaves that to what is tuned.
        on_host: whether its taker wants finished frames on the host; else a GPU leaves them where it has drawn them.
        kept: finished frames that its taker keeps at a time, at most, besides those that he is given meanwhile.
        depth: surfaces that it has besides; None: enough for every batch under way to be its own.
        visual: gives what the model sees for an output frame instead of the cached crop, float32 `[6, S, S]`; the same
            array each time, for a frame may be drawn again.
    """

    character: Character
    spec: FrameSpec
    model: Path
    options: ModelOptions
    period: int
    start: int = 0
    total: int | None = None
    segments: Callable[[], range | None] | None = None
    shared: bool = True
    backwards: bool = True
    workers: int | None = None
    features: bool = False
    on_host: bool = True
    kept: int = 0
    depth: int | None = None
    visual: Callable[[int], NDArray[np.float32]] | None = None

    @property
    def shown(self) -> float:
        """How often each of its cached frames is shown, about; once, if that is not known."""
        return 1.0 if self.total is None else self.total / self.spec.count

    @property
    def fps(self) -> Fraction:
        """Output frames a second: the body's."""
        return self.character.body.fps

    def outputs(self) -> Outputs:
        """Which output frames the session draws."""
        if self.segments is not None:
            return Outputs(self.segments, shared=self.shared)
        return Outputs.all() if self.total is None else Outputs.of(range(self.total))

    def source(self, output: int) -> int:
        """The cached frame that an output frame shows."""
        return frame_at(output + self.start, self.period)

    def files(self) -> list[Path]:
        """The files that the cached frames come from."""
        found = [self.character.body.path, self.character.crops.path, self.character.path / RECTANGLES]
        if self.spec.recorded:
            found += [info.path for info in self.character.recorded or ()]
        return found

    def needing(self, outputs: Iterable[range]) -> SessionOrder:
        """The same, with the cached frames only that some output frames show; each range has one at least."""
        whole = 2 * self.period  # in which every frame is shown
        shown = [frame_order(min(len(each), whole), self.period, self.start + each[0]) for each in outputs]
        first, last = min(int(each.min()) for each in shown), max(int(each.max()) for each in shown)
        spec = replace(self.spec, rects=self.character.rects[first : last + 1], first=first)
        return replace(self, spec=spec, backwards=any(bool((np.diff(each) < 0).any()) for each in shown))

    @cached_property
    def _videos(self) -> list[VideoInfo]:
        """The body, the crops and, if they are kept, the two recorded inputs; each with its index."""
        recorded = (self.character.recorded or ()) if self.spec.recorded else ()
        return [replace(info, index=_index(info)) for info in (self.character.body, self.character.crops, *recorded)]

    @property
    def largest_group(self) -> int:
        """The most frames, of those that it needs, that are decoded from one keyframe, in any of the videos."""
        return max(_index(info).largest_group(self.spec.numbers) for info in self._videos)

    def random_readers(self) -> list[RandomReader]:
        """What reads single frames of the body, the crops and, if they are kept, the two recorded inputs."""
        formats = ("bgr24" if place else self.spec.pixel_format for place in range(len(self._videos)))
        return [RandomReader(info, pixel_format) for info, pixel_format in zip(self._videos, formats, strict=True)]

    def readers(self) -> Readers:
        """Open the files of the cached frames."""
        character, spec = self.character, self.spec
        body = _frames(character.body, spec.pixel_format, spec.numbers)
        crops = _frames(character.crops, "bgr24", spec.numbers)
        if not spec.recorded or character.recorded is None:
            return body, crops, None
        roi, masked = (_frames(info, "bgr24", spec.numbers) for info in character.recorded)
        return body, crops, _beside(roi, masked)


class RandomReader:
    """Reads any frame of a video: going on from the last one, or from the keyframe before.

    Args:
        info: the video.
        pixel_format: of the frames.
    """

    def __init__(self, info: VideoInfo, pixel_format: PixelFormat) -> None:
        self._info, self._pixel_format = info, pixel_format
        self._index = _index(info)
        self._frames: Generator[Any] | None = None
        self._next = 0

    @property
    def path(self) -> Path:
        """The video."""
        return self._info.path

    @property
    def seeks(self) -> bool:
        """Whether it can begin anywhere but at the first frame."""
        return bool(self._index.pts)

    def keyframe(self, number: int) -> int:
        """The number of the frame from which a frame is decoded."""
        return self._index.keyframe(number)

    def is_ahead(self, number: int) -> bool:
        """Whether a frame is reached soonest by going on."""
        return self._frames is not None and self.keyframe(number) <= self._next <= number

    def read(self, number: int) -> Any:
        """A frame; see `read_frames`.

        Raises:
            MediaError: it cannot be decoded.
        """
        if self._frames is None or not self.is_ahead(number):
            self.close()
            self._frames = _frames(self._info, self._pixel_format, range(number, self._info.frames), self._index)
            self._next = number
        for frame in self._frames:
            self._next += 1
            if self._next > number:
                return frame
        raise AssertionError("as many frames are decoded as are asked for")

    def close(self) -> None:
        """Stop decoding."""
        if self._frames is not None:
            self._frames.close()
        self._frames = None


def _index(info: VideoInfo) -> FrameIndex:
    return index_frames(info.path, info.limits) if info.index is None else info.index


def _frames(
    info: VideoInfo, pixel_format: PixelFormat, numbers: range, index: FrameIndex | None = None
) -> Generator[Any]:
    """The frames of a video, which must be as large as when it was looked at: the file may be another by now.

    Those before the first that is kept are not decoded, but from the keyframe before it.
    """
    shape = SurfaceFormat(pixel_format, info.width, info.height).shape
    if not numbers:
        return
    start: tuple[Start, ...] = ()
    if numbers.start:
        index = index or _index(info)
        start = (index.start(numbers.start, numbers.stop),)
    # Closed by us: in Python 3.12.2 and 3.12.3 a closed generator keeps what it was reading from, here a decoder, until
    # it is collected itself (https://github.com/python/cpython/issues/118272).
    with closing(read_frames(info.path, pixel_format, numbers.stop, info.limits, *start)) as frames:
        for frame in frames:
            if frame.shape != shape:
                raise MediaError("has changed since it was looked at", file=info.path, remedy="leave it as it is")
            yield frame


def _beside(roi: Generator[Any], masked: Generator[Any]) -> Generator[Any]:
    """Recorded inputs: of each frame the roi, and the masked roi behind it."""
    with closing(roi), closing(masked):
        for pair in zip(roi, masked, strict=True):
            yield np.concatenate(pair, axis=2)
