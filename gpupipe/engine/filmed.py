"""A character as it was filmed: its body frames in ping-pong order, for whoever shows it while it does not speak."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from typing import Any
from weakref import WeakSet

import numpy as np
from numpy.typing import NDArray

from gpupipe.compose.frames import HostFrames, HostRing
from gpupipe.compose.protocol import Coming
from gpupipe.engine.ahead import FramesAhead
from gpupipe.engine.backend import Backend, copy_body
from gpupipe.engine.order import SessionOrder
from gpupipe.engine.residents import Resident, ResidentKey, Residents
from gpupipe.errors import EngineClosed
from gpupipe.geometry import Rect, frame_at
from gpupipe.threads import POLL_SECONDS

SLOTS = 12
"""Frames decoded ahead, of a character that is not kept as a whole."""


class Filmed:
    """A character's body frames, which stay where they are for as long as this is open. Made by `EngineCore.filmed`.

    Frames that the engine keeps are copied from there; those of a character that is too large for it are decoded ahead,
    as a session's are. One thread reads at a time.

    Args:
        backend: the device.
        residents: the characters that are kept.
        order: whom, and which frames.

    Attributes:
        order: whose frames these are.
        period: of them, in one pass of the ping-pong.
    """

    def __init__(self, backend: Backend, residents: Residents[Any], order: SessionOrder) -> None:
        self.order, self.period = order, order.period
        self._lock = threading.Condition()
        self._reading = threading.Lock()
        self._next = 0
        self._closed = False
        self._held = ExitStack()
        self._copy: Callable[[Any, int, NDArray[np.uint8]], None] = backend.copy_filmed
        try:
            key, spec = ResidentKey.of(order), order.spec
            resident: Resident[Any] | None = residents.use(key, spec.numbers)
            self._frames: Any
            self._coming: Coming | None
            if resident is not None:
                self._held.callback(residents.give_back, resident)
                self._frames, self._first = resident.frames, resident.numbers.start
                self._coming = backend.coming(resident.frames)
                if self._coming is not None:
                    self._held.callback(self._coming.listen(self._tell))
            else:
                nothing = HostFrames(replace(spec, rects=()), recorded=spec.recorded)
                ring = HostRing(nothing, spec, min(spec.count, SLOTS))
                ahead = FramesAhead(order, nothing, 0, ring, 1)
                self._held.callback(ahead.listen(self._tell))
                self._held.callback(ahead.close)
                self._frames, self._coming, self._first = ring, ahead, spec.first
                self._copy = copy_body
                ahead.begin(self._upcoming, self._lock)
            self._buffer = backend.host_buffer(spec.format)
        except BaseException:
            self._held.close()
            raise

    def rect(self, position: int) -> Rect:
        """Where, in the frame at a position of the ping-pong, spoken pictures differ from filmed ones."""
        spec = self.order.spec
        return spec.rects[frame_at(position, self.period) - spec.first].within(spec.width, spec.height)

    def read(self, position: int) -> NDArray[np.uint8]:
        """The frame at a position of the ping-pong order (`geometry.frame_at`), once it is there.

        Returns:
            uint8 `[*format.shape]`: the next call writes over it.

        Raises:
            GpupipeError: it cannot be decoded, or this, or the engine, was closed.
        """
        with self._reading:
            source = frame_at(position, self.period) - self._first
            coming = self._coming
            with self._lock:
                self._next = position
                self._lock.notify_all()
                while not self._closed and coming is not None and not coming.ready(source):
                    if (error := coming.failure(source)) is not None:
                        raise error
                    self._lock.wait(POLL_SECONDS)
                self._raise_if_closed()
                if coming is not None:
                    coming.begun(source)
            try:
                self._copy(self._frames, source, self._buffer)
            finally:
                if isinstance(coming, FramesAhead):
                    with self._lock:
                        coming.drawn(source)
            return self._buffer

    def close(self) -> None:
        """Let them go. More than once is allowed."""
        with self._lock:
            closed, self._closed = self._closed, True
            self._lock.notify_all()
        if not closed:
            with self._reading:
                self._held.close()

    def __enter__(self) -> Filmed:
        """Begin a with block, which closes it."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close."""
        self.close()

    def _raise_if_closed(self) -> None:
        if self._closed:
            raise EngineClosed("the filmed frames were closed")

    def _tell(self) -> None:
        with self._lock:
            self._lock.notify_all()

    def _upcoming(self, count: int) -> list[int]:
        return [frame_at(self._next + ahead, self.period) - self._first for ahead in range(count)]


class OpenFilmed:
    """What is open of an engine.

    Args:
        backend: the device.
        residents: the characters that are kept.
    """

    def __init__(self, backend: Backend, residents: Residents[Any]) -> None:
        self._backend, self._residents = backend, residents
        self._open: WeakSet[Filmed] = WeakSet()
        self._lock = threading.Lock()

    def open(self, order: SessionOrder) -> Filmed:
        """See `EngineCore.filmed`."""
        filmed = Filmed(self._backend, self._residents, order)
        with self._lock:
            self._open.add(filmed)
        return filmed

    def close(self) -> None:
        """Close what is still open."""
        with self._lock:
            found = list(self._open)
        for each in found:
            each.close()
