"""Characters whose frames are kept where they are composited: loaded once, released when others need the room.

Frames may still be decoded when those who use them have them. Those that nobody uses any more before all are there are
released: what is left of a character that cannot be decoded, or that nobody waited for.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Generic, NamedTuple, TypeVar

from gpupipe.colour import PixelFormat
from gpupipe.compose.frames import FrameSpec
from gpupipe.engine.order import SessionOrder
from gpupipe.log import Log
from gpupipe.seen import Seen, seen

FramesT = TypeVar("FramesT")

_log = Log(__name__)


class ResidentKey(NamedTuple):
    """What makes kept frames those of a character: its files as they are now, its rectangles as they were read, and how
    they are kept."""

    files: tuple[Seen, ...]
    pixel_format: PixelFormat
    recorded: bool
    rects: int = 0

    @classmethod
    def of(cls, order: SessionOrder) -> ResidentKey:
        """The key of a session's cached frames, which come from files as they are now."""
        files = tuple(map(seen, order.files()))
        return cls(files, order.spec.pixel_format, order.spec.recorded, order.character.rects_hash)

    @classmethod
    def found(cls, order: SessionOrder) -> ResidentKey | None:
        """The same; None: files are gone."""
        try:
            return cls.of(order)
        except OSError:
            return None

    def outdates(self, other: ResidentKey) -> bool:
        """Whether the other is of the same files as they were before: nobody asks for those frames again."""
        return any(mine.path == its.path and mine != its for mine, its in zip(self.files, other.files, strict=False))


@dataclass(eq=False)
class Resident(Generic[FramesT]):
    """A character's frames, kept or being loaded.

    Attributes:
        numbers: frames kept, by their numbers in the character's videos.
        nbytes: what they take.
        users: sessions that use them.
        used: when they were last asked for or given back.
    """

    key: ResidentKey
    numbers: range
    nbytes: int
    users: int = 0
    used: float = 0.0
    loaded: Future[FramesT] = field(default_factory=Future)

    def covers(self, wanted: range) -> bool:
        """Whether it has all of some frames."""
        return self.numbers.start <= wanted.start and wanted.stop <= self.numbers.stop

    @property
    def frames(self) -> FramesT:
        """The frames, once they are loaded."""
        return self.loaded.result()


class Residents(Generic[FramesT]):
    """Kept characters, the least recently used of which leave first.

    Args:
        free: releases frames.
        budget: bytes of characters that nobody uses; None: no bound but the memory there is.
        whole: whether all frames of a character are there.
    """

    def __init__(
        self,
        free: Callable[[FramesT], None],
        budget: int | None = None,
        whole: Callable[[FramesT], bool] = lambda _: True,
    ) -> None:
        self._free, self.budget, self._whole = free, budget, whole
        self._kept: dict[tuple[ResidentKey, range], Resident[FramesT]] = {}
        self._retired: set[Resident[FramesT]] = set()
        self._lock = threading.Lock()

    @property
    def nbytes(self) -> int:
        """Bytes of all that is kept."""
        with self._lock:
            return sum(each.nbytes for each in (*self._kept.values(), *self._retired))

    def holds(self, key: ResidentKey | None, numbers: range) -> bool:
        """Whether these frames are kept, or being loaded; without a key none are."""
        with self._lock:
            return self._find(key, numbers) is not None

    def acquire(self, key: ResidentKey, spec: FrameSpec, load: Callable[[], FramesT]) -> Resident[FramesT]:
        """Frames for a user, loaded by `load` unless they are there. Waits for whoever is loading them already."""
        with self._lock:
            found = self._find(key, spec.numbers)
            mine = found is None
            if found is None:
                new = found = Resident(key, spec.numbers, spec.cache_bytes)
                for each in list(self._kept.values()):
                    if key.outdates(each.key) or (each.key == key and new.covers(each.numbers)):
                        self._retire(each)
                self._kept[key, spec.numbers] = found
            found.users += 1
            found.used = time.monotonic()
            unused = self._unused_retired()
        self._release_all(unused)
        if mine:
            try:
                found.loaded.set_result(load())
            except BaseException as error:
                with self._lock:
                    if self._kept.get((key, spec.numbers)) is found:
                        del self._kept[key, spec.numbers]
                    self._retired.discard(found)
                found.loaded.set_exception(error)
                raise
        found.loaded.result()
        self._keep_to_budget()
        return found

    def use(self, key: ResidentKey, numbers: range) -> Resident[FramesT] | None:
        """Frames for a user, if they are kept or being loaded, which is waited for; else None."""
        with self._lock:
            found = self._find(key, numbers)
            if found is None:
                return None
            found.users += 1
            found.used = time.monotonic()
        try:
            found.loaded.result()
        except BaseException:
            self.give_back(found)
            raise
        return found

    def lessen(self, key: ResidentKey, numbers: range) -> int:
        """Release what is kept of a character besides some frames that it has, if nobody uses it.

        Returns:
            How many frames are kept with these among them: more, if somebody uses them; 0, if these are not kept.
        """
        with self._lock:
            while (found := self._find(key, numbers)) is not None and len(found.numbers) > len(numbers):
                if found.users:
                    break
                self._retire(found)
            unused, stays = self._unused_retired(), 0 if found is None else len(found.numbers)
        self._release_all(unused)
        return stays

    def drop(self, key: ResidentKey | None) -> bool:
        """Release what is kept of a character, or let it leave with its last user.

        Returns:
            Whether anything was kept.
        """
        with self._lock:
            found = [each for each in self._kept.values() if each.key == key]
            for each in found:
                self._retire(each)
            unused = self._unused_retired()
        self._release_all(unused)
        return bool(found)

    def give_back(self, resident: Resident[FramesT]) -> None:
        """A user is done with frames."""
        with self._lock:
            resident.users -= 1
            resident.used = time.monotonic()
            if not resident.users and resident in self._kept.values() and not self._whole(resident.frames):
                self._retire(resident)
            unused = self._unused_retired()
        self._release_all(unused)
        self._keep_to_budget()

    def make_room(self, wanted: Callable[[], bool]) -> None:
        """Release unused frames, the least recently used first, for as long as more room is wanted."""
        while wanted():
            with self._lock:
                oldest = self._pop_oldest()
            if oldest is None:
                return
            _log.event("frames evicted", file=oldest.key.files[0][0], frames=len(oldest.numbers), bytes=oldest.nbytes)
            self._free(oldest.frames)

    def close(self) -> None:
        """Release everything."""
        with self._lock:
            kept = [*self._kept.values(), *self._retired]
            self._kept.clear()
            self._retired.clear()
        self._release_all(kept)

    def _keep_to_budget(self) -> None:
        budget = self.budget
        if budget is not None:
            self.make_room(lambda: self._unused_bytes() > budget)

    def _unused_bytes(self) -> int:
        with self._lock:
            return sum(each.nbytes for each in self._kept.values() if not each.users)

    def _pop_oldest(self) -> Resident[FramesT] | None:
        idle = [each for each in self._kept.values() if not each.users and each.loaded.done()]
        if not idle:
            return None
        oldest = min(idle, key=lambda each: each.used)
        return self._kept.pop((oldest.key, oldest.numbers))

    def _find(self, key: ResidentKey | None, numbers: range) -> Resident[FramesT] | None:
        return next((each for each in self._kept.values() if each.key == key and each.covers(numbers)), None)

    def _retire(self, resident: Resident[FramesT]) -> None:
        """Let it leave with its last user."""
        self._retired.add(self._kept.pop((resident.key, resident.numbers)))

    def _unused_retired(self) -> list[Resident[FramesT]]:
        unused = [each for each in self._retired if not each.users and each.loaded.done()]
        self._retired.difference_update(unused)
        return unused

    def _release_all(self, residents: list[Resident[FramesT]]) -> None:
        for each in residents:
            if each.loaded.done() and each.loaded.exception() is None:
                self._free(each.frames)
