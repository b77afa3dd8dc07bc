"""A character's frames, where a compositor needs them: put there once, each before the first frame that shows it.

Crops are kept as planes, as the model takes them; body frames as finished frames are, so that what the rectangle does
not cover is copied and never converted.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Iterable
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from gpupipe.colour import FRACTION_BITS, Colour, PixelFormat
from gpupipe.compose.surface import SurfaceFormat
from gpupipe.errors import Cancelled
from gpupipe.geometry import CropLayout, Rect
from gpupipe.threads import Worker, yield_to_others

Frame = NDArray[np.uint8]


@dataclass(frozen=True)
class FrameSpec:
    """What is kept of a character: sizes, rectangles and colours, without the pixels.

    Attributes:
        layout: the layout of the crops.
        pixel_format: of the body frames and so of the finished ones.
        width: of the body, pixels.
        height: of the body, pixels.
        rects: where each crop belongs, body pixels; one for each frame kept.
        colour: how the body stream describes its colours (used with nv12).
        recorded: whether recorded model inputs are kept too, instead of cutting and masking them from the crops.
        first: number, in the character's videos, of the first frame kept.
    """

    layout: CropLayout
    pixel_format: PixelFormat
    width: int
    height: int
    rects: tuple[Rect, ...]
    colour: Colour = field(default_factory=Colour)
    recorded: bool = False
    first: int = 0

    @property
    def numbers(self) -> range:
        """The frames kept, by their numbers in the character's videos."""
        return range(self.first, self.first + self.count)

    @property
    def count(self) -> int:
        """Frames kept."""
        return len(self.rects)

    @property
    def format(self) -> SurfaceFormat:
        """Of body frames and finished frames."""
        return SurfaceFormat(self.pixel_format, self.width, self.height)

    @property
    def crop_shape(self) -> tuple[int, int, int]:
        """One crop: `[3, C, C]`, planes B, G, R."""
        return (3, self.layout.crop_size, self.layout.crop_size)

    @property
    def recorded_shape(self) -> tuple[int, int, int]:
        """The recorded inputs of one frame: `[6, S, S]`, planes B, G, R of the roi, then of the masked roi."""
        return (6, self.layout.model_size, self.layout.model_size)

    @property
    def largest_rect(self) -> int:
        """Pixels of the largest rectangle."""
        return max((rect.width * rect.height for rect in self.rects), default=0)

    @property
    def cache_bytes(self) -> int:
        """Bytes of all that is kept."""
        each = self.format.nbytes + int(np.prod(self.crop_shape))
        return self.count * (each + (int(np.prod(self.recorded_shape)) if self.recorded else 0))


class HostFrames:
    """A character's frames in host memory, decoded in order, in threads of their own.

    Frames that are there may be drawn while the others still come. Made by `load` or `loading`.

    Attributes:
        spec: what the arrays hold.
        body: uint8 `[N, *format.shape]`.
        crops: uint8 `[N, 3, C, C]`.
        recorded: uint8 `[N, 6, S, S]` or None.
        loaded: frames that are there, from the first.
    """

    def __init__(self, spec: FrameSpec, *, recorded: bool) -> None:
        self.spec = spec
        self.body: Frame = np.empty((spec.count, *spec.format.shape), np.uint8)
        self.crops: Frame = np.empty((spec.count, *spec.crop_shape), np.uint8)
        self.recorded: Frame | None = np.empty((spec.count, *spec.recorded_shape), np.uint8) if recorded else None
        self.loaded = 0
        self._decoders: list[_Decoder] = []
        self._listeners: dict[object, Callable[[], None]] = {}
        self._lock = threading.Lock()

    @cached_property
    def ycbcr_weights(self) -> NDArray[np.float32]:
        """`Colour.from_bgr` as float32 `[3, 4]`, multiples of 2^-14."""
        return self.spec.colour.from_bgr.astype(np.float32) / np.float32(1 << FRACTION_BITS)

    @classmethod
    def load(
        cls, spec: FrameSpec, body: Iterable[Frame], crops: Iterable[Frame], recorded: Iterable[Frame] | None = None
    ) -> HostFrames:
        """Keep decoded frames, all of which are there when it returns; see `loading`.

        Raises:
            GpupipeError: a frame cannot be decoded.
        """
        frames = cls.loading(spec, body, crops, recorded)
        try:
            frames.wait()
        finally:
            frames.close()
        return frames

    @classmethod
    def loading(
        cls, spec: FrameSpec, body: Iterable[Frame], crops: Iterable[Frame], recorded: Iterable[Frame] | None = None
    ) -> HostFrames:
        """Begin to keep decoded frames, the body in one thread and the rest in another.

        Args:
            spec: what to keep.
            body: frames as in `format.shape`.
            crops: uint8 `[C, C, 3]`, bgr24.
            recorded: uint8 `[S, S, 6]`: the roi, then the masked roi, both bgr24.
        """
        frames = cls(spec, recorded=recorded is not None)
        targets, sources = [frames.crops], [crops]
        if frames.recorded is not None and recorded is not None:
            targets.append(frames.recorded)
            sources.append(recorded)
        frames._decoders = [_Decoder(), _Decoder()]
        for decoder, filled, planar in zip(
            frames._decoders, (([frames.body], [body]), (targets, sources)), (False, True), strict=True
        ):
            decoder.start(frames, *filled, planar=planar)
        return frames

    @property
    def whole(self) -> bool:
        """Whether every frame is there."""
        return self.loaded == self.spec.count

    @property
    def missing_bytes(self) -> int:
        """What the frames will take that are still to come."""
        return self.spec.cache_bytes * (self.spec.count - self.loaded) // max(1, self.spec.count)

    @property
    def cache_bytes(self) -> int:
        """Bytes of the arrays."""
        return self.spec.cache_bytes

    def at(self, source: int) -> tuple[HostFrames, int]:
        """In which arrays, and where there, a frame lies."""
        return self, source

    @property
    def error(self) -> BaseException | None:
        """Why no more frames come; None while more may."""
        with self._lock:
            failed = [decoder for decoder in self._decoders if decoder.error is not None]
            if not failed or not all(decoder.ended for decoder in self._decoders):
                return None
            return min(failed, key=lambda decoder: decoder.done).error

    def ready(self, source: int) -> bool:
        """Whether a frame is there."""
        return source < self.loaded

    def failure(self, source: int) -> BaseException | None:
        """Why a frame will never be there; None if it is, or may come."""
        return None if self.ready(source) else self.error

    def begun(self, source: int) -> None:
        """Nothing: what is there stays."""

    def drawn(self, source: int) -> None:
        """Nothing, likewise."""

    def listen(self, changed: Callable[[], None]) -> Callable[[], None]:
        """Have `changed` called, in a decoding thread, when more frames are there, or no more come.

        Returns:
            What ends that.
        """
        key = object()
        with self._lock:
            self._listeners[key] = changed

        def end() -> None:
            with self._lock:
                del self._listeners[key]

        return end

    def wait(self) -> None:
        """Return once every frame is there.

        Raises:
            GpupipeError: a frame cannot be decoded.
        """
        for decoder in self._decoders:
            decoder.join()
        if (error := self.error) is not None:
            raise error

    def close(self) -> None:
        """Stop decoding. Frames that are there stay."""
        for decoder in self._decoders:
            decoder.stopped = True
        for decoder in self._decoders:
            decoder.join()

    def _decoded(self) -> None:
        """A decoder has come further, or to its end."""
        with self._lock:
            loaded = min(decoder.done for decoder in self._decoders)
            more, self.loaded = loaded > self.loaded, loaded
            ended = all(decoder.ended for decoder in self._decoders)
            listeners = list(self._listeners.values()) if more or ended else []
        for changed in listeners:
            changed()

    def _useless(self, frame: int) -> bool:
        """Whether another decoder has failed before this frame."""
        return any(decoder.error is not None and decoder.done <= frame for decoder in self._decoders)


class _Decoder:
    """What fills some of the arrays, in a thread, which alone knows them: so they go when their owner does.

    Attributes:
        done: frames that are in all of its arrays.
        error: what has ended it early.
        ended: whether it is at its end, good or bad.
        stopped: set to end it.
    """

    def __init__(self) -> None:
        self.done, self.ended, self.stopped = 0, False, False
        self.error: BaseException | None = None
        self._worker: Worker | None = None

    def start(self, frames: HostFrames, kept: list[Frame], sources: list[Iterable[Frame]], *, planar: bool) -> None:
        """Begin."""
        self._worker = Worker("decode", self._run, frames, kept, sources, planar)
        self._worker.start()

    def join(self) -> None:
        """Wait for its end."""
        if self._worker is not None:
            self._worker.wait()

    def _run(self, frames: HostFrames, kept: list[Frame], sources: list[Iterable[Frame]], planar: bool) -> None:
        yield_to_others()  # what is drawn already must not stutter while another character is loaded
        try:
            for places, decoded in zip(zip(*kept, strict=True), zip(*sources, strict=True), strict=True):
                if self.stopped:
                    raise Cancelled("the frames are wanted no more")
                for place, frame in zip(places, decoded, strict=True):
                    np.copyto(place, frame.transpose(2, 0, 1) if planar else frame)
                self.done += 1
                frames._decoded()
                if frames._useless(self.done):
                    break
        except BaseException as error:
            self.error = error
        try:
            for each in sources:  # which ends the processes that decode, if there are any
                if isinstance(each, Generator):
                    each.close()
        finally:
            self.ended = True
            frames._decoded()
