"""What stays open: opened once for all that use the same file in the same way."""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import Generic, Protocol, TypeVar

from gpupipe.model.digest import Digest, digest, sha256
from gpupipe.seen import Seen, seen


class Closable(Protocol):
    """Something that is opened and closed."""

    def close(self) -> None:
        """Release it."""


OpenT = TypeVar("OpenT", bound=Closable)


@dataclass(eq=False)
class _Entry(Generic[OpenT]):
    opened: Future[OpenT] = field(default_factory=Future)
    users: int = 0


class Shelf(Generic[OpenT]):
    """Opened things by key, of which a few are kept when nobody uses them.

    Nobody waits for what another is opening, unless it is the same.

    Args:
        keep: how many that nobody uses stay open; the least recently used are closed first.
    """

    def __init__(self, keep: int) -> None:
        self._keep = keep
        self._entries: dict[Hashable, _Entry[OpenT]] = {}
        self._lock = threading.Lock()

    def take(self, key: Hashable, opening: Callable[[], OpenT]) -> OpenT:
        """The thing of that key, opened unless it is open already. Each `take` needs a `give_back`."""
        with self._lock:
            entry = self._entries.pop(key, None)
            mine = entry is None
            entry = entry or _Entry()
            self._entries[key] = entry  # at the end: the most recently used
            entry.users += 1
        if mine:
            try:
                entry.opened.set_result(opening())
            except BaseException as error:
                with self._lock:
                    del self._entries[key]
                entry.opened.set_exception(error)
                raise
        return entry.opened.result()

    def give_back(self, key: Hashable) -> None:
        """A user is done with it."""
        with self._lock:
            self._entries[key].users -= 1
        self._close_unused(self._keep)

    def holds(self, key: Hashable) -> bool:
        """Whether it is open, or being opened."""
        with self._lock:
            return key in self._entries

    def trim(self) -> None:
        """Close what nobody uses."""
        self._close_unused(0)

    def close(self) -> None:
        """Close everything; nobody may use any of it."""
        with self._lock:
            for entry in self._entries.values():
                entry.users = 0
        self._close_unused(0)

    def _close_unused(self, keep: int) -> None:
        with self._lock:
            unused = [key for key, entry in self._entries.items() if not entry.users]
            closing = [self._entries.pop(key) for key in unused[: max(0, len(unused) - keep)]]
        for entry in closing:
            entry.opened.result().close()


class Digests:
    """What files hold, told by their SHA-256, so that copies of one model in several characters are one model, and a
    file that many jobs have is read once."""

    def __init__(self) -> None:
        self._models: dict[Seen, Digest] = {}
        self._files: dict[Seen, str] = {}

    def of(self, path: Path) -> Hashable:
        """A key of a model file's content; of its path too where it may keep its weights in files beside it."""
        try:
            return self._of_model(path)
        except OSError:
            return path.resolve()  # opening it will say what is wrong

    def sha256(self, path: Path, *, is_model: bool = False) -> str:
        """The SHA-256 of any file, in hexadecimal digits.

        Args:
            path: the file.
            is_model: whether `of` will be asked too; both read it once then.

        Raises:
            OSError: it cannot be read.
        """
        if is_model:
            return self._of_model(path).sha256
        now = seen(path)
        if now not in self._files:
            self._files[now] = sha256(now.path)
        return self._files[now]

    def _of_model(self, path: Path) -> Digest:
        now = seen(path)
        if now not in self._models:
            self._models[now] = digest(now.path)
        return self._models[now]
