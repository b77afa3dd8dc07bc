"""Frames that are decoded in order, in threads of their own, each of which may be used while the others still come."""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Iterable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from gpupipe.errors import Cancelled
from gpupipe.threads import Worker, yield_to_others

Frame = NDArray[np.uint8]


class Kept(NamedTuple):
    """What one thread decodes.

    Attributes:
        sources: decoded frames, as many of each.
        put: keeps the i-th of each; they may be used once it returns.
    """

    sources: Sequence[Iterable[Frame]]
    put: Callable[[int, Sequence[Frame]], None]


class Decoding:
    """Which of a character's frames are there, while others are still decoded; a `protocol.Coming`.

    Attributes:
        loaded: frames that are there, from the first.
    """

    def __init__(self, count: int) -> None:
        self.loaded = 0
        self._count = count
        self._decoders: list[_Decoder] = []
        self._listeners: dict[object, Callable[[], None]] = {}
        self._lock = threading.Lock()

    def _begin(self, *kept: Kept) -> None:
        """Begin to decode, each in a thread of its own. A frame is there once all have it."""
        self._decoders = [_Decoder() for _ in kept]
        for decoder, each in zip(self._decoders, kept, strict=True):
            decoder.start(self, each)

    @property
    def whole(self) -> bool:
        """Whether every frame is there."""
        return self.loaded == self._count

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
            GpupipeError: a frame cannot be decoded, or kept.
        """
        for decoder in self._decoders:
            decoder.join()
        if (error := self.error) is not None:
            raise error

    def close(self) -> None:
        """Stop decoding."""
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
    """What decodes in a thread, which alone knows where frames are kept: so that goes when its owner does.

    Attributes:
        done: frames that are kept.
        error: what has ended it early.
        ended: whether it is at its end, good or bad.
        stopped: set to end it.
    """

    def __init__(self) -> None:
        self.done, self.ended, self.stopped = 0, False, False
        self.error: BaseException | None = None
        self._worker: Worker | None = None

    def start(self, frames: Decoding, kept: Kept) -> None:
        """Begin."""
        self._worker = Worker("decode", self._run, frames, kept)
        self._worker.start()

    def join(self) -> None:
        """Wait for its end."""
        if self._worker is not None:
            self._worker.wait()

    def _run(self, frames: Decoding, kept: Kept) -> None:
        yield_to_others()  # what is drawn already must not stutter while another character is loaded
        try:
            decoded = zip(*kept.sources, strict=True)
            for place, each in zip(range(frames._count), decoded, strict=True):
                if self.stopped:
                    raise Cancelled("the frames are wanted no more")
                kept.put(place, each)
                self.done += 1
                frames._decoded()
                if frames._useless(self.done):
                    break
        except BaseException as error:
            self.error = error
        try:
            for source in kept.sources:  # which ends the processes that decode, if there are any
                if isinstance(source, Generator):
                    source.close()
        finally:
            self.ended = True
            frames._decoded()
