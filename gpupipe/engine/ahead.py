"""A character that is larger than its memory: the first frames stay, the others are decoded ahead of one session.

What is decoded ahead lies in a ring of slots. Forwards one decoder goes on from frame to frame; backwards, on the way
back of the ping-pong, it begins at the keyframe before, and as much of that group is kept as there are slots for.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from gpupipe.compose.frames import FrameSpec, HostFrames
from gpupipe.engine.order import SessionOrder
from gpupipe.machine import megabytes
from gpupipe.threads import Worker

AHEAD = 2
"""Frames decoded ahead, of a character that is too large, for each that its session may have under way or finished."""


class FramesAhead:
    """A session's cached frames, most of which are there only while they are needed; also a `Coming`.

    Those that are being drawn and the next ones, as many as there are slots, are never more than the slots: so there is
    always one for the next frame that is missing.

    Args:
        order: what the session draws.
        kept: the first of its frames, which stay.
        slots: frames that are there besides.

    Attributes:
        spec: of all the frames that the session shows, counted from the first that is kept.
    """

    whole = False

    def __init__(self, order: SessionOrder, kept: HostFrames, slots: int) -> None:
        first = kept.spec.first
        self.spec = replace(order.spec, first=first, rects=order.character.rects[first : order.spec.numbers.stop])
        self._kept, self._slots, self._readers = kept, slots, order.random_readers()
        self._ring = HostFrames(replace(self.spec, rects=self.spec.rects[:slots]), recorded=self.spec.recorded)
        self._where: dict[int, int] = {}
        self._free = list(range(self._ring.spec.count))
        self._drawn: Counter[int] = Counter()
        self._changed: Callable[[], None] = lambda: None
        self._closed = False
        self._error: BaseException | None = None
        self._worker: Worker | None = None

    @property
    def cache_bytes(self) -> int:
        """Bytes of what is kept, and of the slots."""
        return self._kept.cache_bytes + self._ring.cache_bytes

    @property
    def note(self) -> str:
        """What to say of it to a session's user."""
        slow = ", ".join(reader.path.name for reader in self._readers if not reader.seeks)
        return (
            f"{self._kept.spec.count} of {self.spec.count} cached frames are kept, "
            f"{megabytes(self._kept.cache_bytes)}; "
            f"the others are decoded ahead, {self._ring.spec.count} at a time"
            + (f"; backwards always from the beginning of {slow}, which cannot be sought in" if slow else "")
        )

    @property
    def ycbcr_weights(self) -> NDArray[np.float32]:
        """See `HostFrames`."""
        return self._ring.ycbcr_weights

    def at(self, source: int) -> tuple[HostFrames, int]:
        """In which arrays, and where there, a frame lies."""
        if source < self._kept.spec.count:
            return self._kept, source
        return self._ring, self._where[source]

    def begin(self, upcoming: Callable[[int], list[int]], lock: threading.Condition) -> None:
        """Begin to decode.

        Args:
            upcoming: gives which frames the session shows next, as many as are known of so many.
            lock: of the session, held when it calls, and while `upcoming` is called.
        """
        self._upcoming, self._lock = upcoming, lock
        self._worker = Worker("decode ahead", self._run)
        self._worker.start()

    def ready(self, source: int) -> bool:
        """Whether a frame is there."""
        return self._kept.ready(source) if source < self._kept.spec.count else source in self._where

    def failure(self, source: int) -> BaseException | None:
        """Why a frame will never be there; None if it is, or may come."""
        if source < self._kept.spec.count:
            return self._kept.failure(source)
        return None if source in self._where else self._error

    def begun(self, source: int) -> None:
        """A frame is being drawn: its slot stays. Under the session's lock."""
        if source >= self._kept.spec.count:
            self._drawn[source] += 1

    def drawn(self, source: int) -> None:
        """A frame has been drawn. Under the session's lock."""
        if source >= self._kept.spec.count:
            self._drawn[source] -= 1
        self._lock.notify_all()

    def listen(self, changed: Callable[[], None]) -> Callable[[], None]:
        """Have `changed` called when more frames are there, or no more come; gives what ends that."""
        self._changed = changed
        return self._kept.listen(changed)

    def wait(self) -> None:
        """Return once what is kept is there."""
        self._kept.wait()

    def close(self) -> None:
        """Stop decoding."""
        if self._worker is None:
            return
        with self._lock:
            self._closed = True
            self._lock.notify_all()
        self._worker.wait()

    def _run(self) -> None:
        try:
            while (run := self._next_run()) is not None:
                for source in run:
                    self._decode(source)
        except BaseException as error:
            self._error = error
        finally:
            for reader in self._readers:
                reader.close()
        self._changed()

    def _next_run(self) -> range | None:
        """Frames to decode now, one behind the other, once there are some; None when this is closed."""
        with self._lock:
            while not self._closed:
                if (run := self._wanted()) is not None:
                    return run
                self._lock.wait()
            return None

    def _wanted(self) -> range | None:
        shown = self._upcoming(len(self._free) + len(self._where) - self._drawn.total())
        missing = list(dict.fromkeys(source for source in shown if not self._there(source)))
        if not missing:
            return None
        needed = {*shown, *(source for source, count in self._drawn.items() if count)}
        for source in [source for source in self._where if source not in needed]:
            self._free.append(self._where.pop(source))
        next_one = missing[0]
        body = self._readers[0]
        if body.is_ahead(self.spec.first + next_one):
            return range(next_one, next_one + 1)
        group = max(self._kept.spec.count, body.keyframe(self.spec.first + next_one) - self.spec.first)
        back = 1
        while back < len(missing) and missing[back] == next_one - back and next_one - back >= group:
            back += 1
        # Each piece of a group is decoded from its keyframe: so half of the slots at a time, unless it is wanted now.
        enough = min(self._ring.spec.count // 2, next_one - group + 1)
        if back < enough and shown[0] != next_one:
            return None
        return range(next_one - back + 1, next_one + 1)

    def _there(self, source: int) -> bool:
        return source < self._kept.spec.count or source in self._where

    def _decode(self, source: int) -> None:
        if self._closed:
            return
        ring, slot = self._ring, self._free[-1]
        body, crop, *recorded = (reader.read(self.spec.first + source) for reader in self._readers)
        np.copyto(ring.body[slot], body)
        np.copyto(ring.crops[slot], crop.transpose(2, 0, 1))
        if ring.recorded is not None:
            np.copyto(ring.recorded[slot], np.concatenate(recorded, axis=2).transpose(2, 0, 1))
        with self._lock:
            self._where[source] = self._free.pop()
        self._changed()


def slots_ahead(spec: FrameSpec, depth: int) -> int:
    """How many slots a session has for what is decoded ahead, unless all frames fit.

    Args:
        spec: of all.
        depth: the session's surfaces.
    """
    return min(spec.count, AHEAD * depth)


def first_within(spec: FrameSpec, bound: int, slots: int) -> FrameSpec:
    """All frames, or as many of the first as fit in so many bytes beside slots for others.

    Args:
        spec: of all.
        bound: bytes.
        slots: frames that are decoded ahead unless all fit.
    """
    if spec.cache_bytes <= bound:
        return spec
    kept = max(0, bound // (spec.cache_bytes // spec.count) - slots)
    return replace(spec, rects=spec.rects[:kept])
