"""A character that is larger than its memory: the first frames stay, the others are decoded ahead of one session.

What is decoded ahead lies in a ring of slots, run by run (`engine/runs.py`): forwards on and on; backwards, on the way
back of the ping-pong, group by group from its keyframe, into slots as they become free while later frames are shown.
"""

from __future__ import annotations

import threading
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence

import numpy as np

from gpupipe.compose.decoding import Frame
from gpupipe.compose.protocol import Coming, Ring
from gpupipe.engine.cache_bound import AHEAD
from gpupipe.engine.order import SessionOrder
from gpupipe.engine.runs import Run, next_run
from gpupipe.errors import MediaError
from gpupipe.machine import megabytes
from gpupipe.threads import Worker


class FramesAhead:
    """Which of a session's cached frames are there, most of them only while they are needed; a `Coming`.

    A frame leaves its slot for one that is shown sooner. So what is shown before a run's next frame stays until it is
    drawn, and there is a slot for that frame then at the latest.

    Args:
        order: what the session draws.
        kept: which of its first frames are there; they stay.
        count: how many that are.
        frames: those, and slots for the others, on the session's device; closed with this.
        depth: the session's surfaces: as many frames may be under way.

    Attributes:
        frames: what a compositor reads.
    """

    whole = False

    def __init__(self, order: SessionOrder, kept: Coming, count: int, frames: Ring, depth: int) -> None:
        self.frames, self._kept, self._count = frames, kept, count
        self._first, self._readers = frames.spec.first, order.random_readers()
        self._depth, self._longest = depth, frames.slots - min(depth, frames.slots // 4)
        self._group = order.largest_group if order.backwards else 0
        self._where: dict[int, int] = {}
        self._free = list(range(frames.slots))
        self._drawn: Counter[int] = Counter()
        self._failed: dict[int, BaseException] = {}
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
        each = spec.cache_bytes // spec.count
        slow = ", ".join(reader.path.name for reader in self._readers if not reader.seeks)
        backwards = ""
        if self._group and slow:
            backwards = f"; backwards always from the beginning of {slow}, which cannot be sought in"
        elif self._group > self._longest:
            wanted = megabytes(each * (self._group + self._depth))
            backwards = (
                f"; backwards {self._longest} of a group at a time, each time from its keyframe: to decode each frame "
                f"once, of groups of up to {self._group} frames, wants {wanted}"
            )
        return (
            f"{self._count} of {spec.count} cached frames are kept, {megabytes(each * self._count)}; "
            f"the others are decoded ahead, {self.frames.slots} at a time{backwards}"
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
        return None if source in self._where else self._failed.get(source) or self._error

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
                self._decode_run(run)
        except BaseException as error:
            self._error = error
        finally:
            for reader in self._readers:
                reader.close()
        self._changed()

    def _next_run(self) -> Run | None:
        """What to decode now, once there is something; None when this is closed."""
        with self._lock:
            while not self._closed:
                free = self.frames.slots - len(self._drawn)
                forwards, there = AHEAD * self._depth, self._where.__contains__
                run = next_run(self._upcoming, free, forwards, self._longest, self._count, self._begins, there)
                # What is shown after a frame that has failed is never shown.
                if run is not None and not run.passes(self._failed):
                    return run
                self._lock.wait()
            return None

    def _begins(self, source: int) -> int:
        """The frame from which all of the videos are decoded for one, if it is not among those that stay."""
        keyframe = min(reader.keyframe(self._first + source) for reader in self._readers)
        return max(self._count, keyframe - self._first)

    def _decode_run(self, run: Run) -> None:
        faults: defaultdict[int, list[MediaError]] = defaultdict(list)  # by the keyframe
        for source in run.sources:
            if self._closed:
                return
            fault = faults[self._begins(source)]
            if len(fault) > 1:  # it was met again on the way from the keyframe
                self._fail(source, fault[0])
                continue
            try:
                decoded = self._decoded(source)
            except MediaError as error:
                fault.append(error)
                self._fail(source, fault[0])
                if not run.backwards:
                    return
                continue
            if (slot := self._slot(run)) is None:
                return
            self.frames.write(slot, source, decoded)
            with self._lock:
                self._where[source] = slot
            self._changed()

    def _decoded(self, source: int) -> Sequence[Frame]:
        decoded = [reader.read(self._first + source) for reader in self._readers]
        if len(decoded) > 2:  # the two recorded inputs are kept as one
            decoded[2:] = [np.concatenate(decoded[2:], axis=2)]
        return decoded

    def _fail(self, source: int, error: MediaError) -> None:
        """A frame cannot be decoded. Backwards, those behind it are shown before it, and still may be."""
        for reader in self._readers:
            reader.close()
        with self._lock:
            self._failed[source] = error
        self._changed()

    def _slot(self, run: Run) -> int | None:
        """A slot for a run's next frame, once there is one; None when the run is over, or this is closed."""
        with self._lock:
            while not self._closed:
                shown = self._upcoming(1)
                if shown and not run.advance(shown[0]):
                    return None
                if shown and not self._free:
                    self._evict(run)
                if shown and self._free:
                    return self._free.pop()
                self._lock.wait()
            return None

    def _evict(self, run: Run) -> None:
        """Free the slot of the frame that is shown last, of those that are shown behind the run."""
        others = self._where.keys() - self._drawn.keys() - run.needed()
        if others:
            source = max(others, key=run.shown_behind)
            self.frames.forget(source)
            self._free.append(self._where.pop(source))
