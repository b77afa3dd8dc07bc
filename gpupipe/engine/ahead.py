"""A character that is larger than its memory: the first frames stay, the others are decoded ahead of one session.

What is decoded ahead lies in a ring of slots. Forwards one decoder goes on from frame to frame; backwards, on the way
back of the ping-pong, it begins at the keyframe before, and as much of that group is kept as there are slots for.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable

import numpy as np

from gpupipe.compose.protocol import Coming, Ring
from gpupipe.engine.order import SessionOrder
from gpupipe.machine import megabytes
from gpupipe.threads import Worker


class FramesAhead:
    """Which of a session's cached frames are there, most of them only while they are needed; a `Coming`.

    Those that are being drawn and the next ones, as many as there are slots, are never more than the slots: so there is
    always one for the next frame that is missing.

    Args:
        order: what the session draws.
        kept: which of its first frames are there; they stay.
        count: how many that are.
        frames: those, and slots for the others, on the session's device; closed with this.

    Attributes:
        frames: what a compositor reads.
    """

    whole = False

    def __init__(self, order: SessionOrder, kept: Coming, count: int, frames: Ring) -> None:
        self.frames, self._kept, self._count = frames, kept, count
        self._first, self._readers = frames.spec.first, order.random_readers()
        self._where: dict[int, int] = {}
        self._free = list(range(frames.slots))
        self._drawn: Counter[int] = Counter()
        self._changed: Callable[[], None] = lambda: None
        self._closed = False
        self._error: BaseException | None = None
        self._worker: Worker | None = None

    @property
    def error(self) -> BaseException | None:
        """Why no more frames come; None while more may."""
        return self._error or self._kept.error

    @property
    def note(self) -> str:
        """What to say of it to a session's user."""
        spec = self.frames.spec
        slow = ", ".join(reader.path.name for reader in self._readers if not reader.seeks)
        return (
            f"{self._count} of {spec.count} cached frames are kept, "
            f"{megabytes(spec.cache_bytes * self._count // spec.count)}; "
            f"the others are decoded ahead, {self.frames.slots} at a time"
            + (f"; backwards always from the beginning of {slow}, which cannot be sought in" if slow else "")
        )

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
        return self._kept.ready(source) if source < self._count else source in self._where

    def failure(self, source: int) -> BaseException | None:
        """Why a frame will never be there; None if it is, or may come."""
        if source < self._count:
            return self._kept.failure(source)
        return None if source in self._where else self._error

    def begun(self, source: int) -> None:
        """A frame is being drawn: its slot stays. Under the session's lock."""
        if source >= self._count:
            self._drawn[source] += 1

    def drawn(self, source: int) -> None:
        """A frame has been drawn. Under the session's lock."""
        if source >= self._count:
            self._drawn[source] -= 1
            if not self._drawn[source]:
                del self._drawn[source]
        self._lock.notify_all()

    def listen(self, changed: Callable[[], None]) -> Callable[[], None]:
        """Have `changed` called when more frames are there, or no more come; gives what ends that."""
        self._changed = changed
        return self._kept.listen(changed)

    def wait(self) -> None:
        """Return once what is kept is there."""
        self._kept.wait()

    def close(self) -> None:
        """Stop decoding, and release the slots."""
        if self._worker is not None:
            with self._lock:
                self._closed = True
                self._lock.notify_all()
            self._worker.wait()
        self.frames.close()

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
        needed = {*shown, *self._drawn}
        for source in [source for source in self._where if source not in needed]:
            self.frames.forget(source)
            self._free.append(self._where.pop(source))
        next_one = missing[0]
        body = self._readers[0]
        if body.is_ahead(self._first + next_one):
            return range(next_one, next_one + 1)
        group = max(self._count, body.keyframe(self._first + next_one) - self._first)
        back = 1
        while back < len(missing) and missing[back] == next_one - back and next_one - back >= group:
            back += 1
        # Each piece of a group is decoded from its keyframe: so half of the slots at a time, unless it is wanted now.
        enough = min(self.frames.slots // 2, next_one - group + 1)
        if back < enough and shown[0] != next_one:
            return None
        return range(next_one - back + 1, next_one + 1)

    def _there(self, source: int) -> bool:
        return source < self._count or source in self._where

    def _decode(self, source: int) -> None:
        if self._closed:
            return
        decoded = [reader.read(self._first + source) for reader in self._readers]
        if len(decoded) > 2:  # the two recorded inputs are kept as one
            decoded[2:] = [np.concatenate(decoded[2:], axis=2)]
        self.frames.write(self._free[-1], source, decoded)
        with self._lock:
            self._where[source] = self._free.pop()
        self._changed()
