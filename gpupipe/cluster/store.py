"""Files that a node was sent, in the user's cache folder: by what they hold, whole, and never too many."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from gpupipe.cluster.work import Bundle
from gpupipe.errors import ClusterError, OutputError, reason
from gpupipe.filelock import FileLock
from gpupipe.machine import cache_folder
from gpupipe.options import bytes_of_environment
from gpupipe.render.durable import hash_of, remove

LIMIT_VARIABLE: Final = "GPUPIPE_CLUSTER_CACHE"
"""The environment variable of a node that says how large the folder may be: 40G, 500M."""
DEFAULT_LIMIT: Final = 16 << 30
PARTIAL: Final = "partial-"
WORK: Final = "work-"


def limit() -> int:
    """How many bytes of bundles are kept.

    Raises:
        OptionError: the environment says something else than a number of bytes.
    """
    return bytes_of_environment(LIMIT_VARIABLE, DEFAULT_LIMIT)


class Store:
    """Bundles on a node's disk, each a folder by the name of its key, and a place for work that is under way.

    Several engines of a node share the folder: what one was sent, all have. Each holds a lock on what it uses; the
    system releases it when the engine ends, however, and what it has left is removed by the next that is opened.

    Args:
        root: the folder; None: in the user's cache folder.
        most: bytes of bundles that stay, besides those that are used.

    Raises:
        OutputError: the folder cannot be written to.
    """

    def __init__(self, root: Path | None = None, most: int | None = None) -> None:
        self.root = cache_folder() / "cluster" if root is None else root
        self._most = limit() if most is None else most
        self._mine = uuid.uuid4().hex[:12]
        self._used: dict[str, FileLock] = {}
        self.work = self.root / f"{WORK}{self._mine}"
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            self._lock = FileLock(self.root / f"{self.work.name}.lock")
            with self._alone():
                self._remove_abandoned()
                self._lock.acquire()
                self.work.mkdir()
        except OSError as error:
            raise OutputError(f"cannot be made: {reason(error)}", file=self.root, remedy="make it writable") from error

    def find(self, bundle: Bundle) -> Path | None:
        """Where a bundle is, which is then used by this engine; None: it is not there."""
        folder = self.root / bundle.key
        with self._alone():
            if not folder.is_dir():
                return None
            self._use(bundle.key)
            with suppress(OSError):
                os.utime(folder)
        return folder

    def write(self, bundle: Bundle, name: str, offset: int, piece: bytes) -> None:
        """Write a piece of a file of a bundle; pieces come in order.

        Raises:
            OutputError: the disk.
            ClusterError: the bundle has no such file.
        """
        if name not in {each.name for each in bundle.files}:
            raise ClusterError("is no file of what was announced", file=bundle.root, value=name)
        path = self._partial(bundle) / name
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("r+b" if offset else "wb") as file:
                file.seek(offset)
                file.write(piece)
        except OSError as error:
            raise OutputError(
                f"cannot be written: {reason(error)}", file=path, remedy=f"give the node room, or set {LIMIT_VARIABLE}"
            ) from error

    def seal(self, bundle: Bundle) -> Path:
        """A bundle has been written completely: see that it is what was announced, and give it its name.

        Returns:
            Where it is; this engine uses it.

        Raises:
            ClusterError: a file is not what was announced.
            OutputError: the disk.
        """
        partial = self._partial(bundle)
        try:
            for each in bundle.files:
                path = partial / each.name
                if not path.is_file() or path.stat().st_size != each.size or hash_of(path) != each.sha256:
                    raise ClusterError(
                        "did not come as it was sent",
                        file=Path(bundle.root) / each.name,
                        remedy="leave the file as it is while it is rendered, and try again",
                    )
            with self._alone():
                final = self.root / bundle.key
                if not final.is_dir():
                    partial.replace(final)
                self._use(bundle.key)
        except OSError as error:
            raise OutputError(f"cannot be written: {reason(error)}", file=self.root, remedy="check the disk") from error
        finally:
            remove(partial)
        self._keep_to_bound()
        return final

    def close(self) -> None:
        """Use nothing any more, and remove the place for work."""
        for lock in self._used.values():
            _drop(lock)
        self._used.clear()
        remove(self.work)
        _drop(self._lock)

    def _use(self, key: str) -> None:
        if key not in self._used:
            lock = FileLock(self.root / f"{key}.{self._mine}.lock")
            lock.acquire()
            self._used[key] = lock

    def _partial(self, bundle: Bundle) -> Path:
        return self.work / f"{PARTIAL}{bundle.key}"

    @contextmanager
    def _alone(self) -> Iterator[None]:
        with FileLock(self.root / "lock"):
            yield

    def _keep_to_bound(self) -> None:
        """Remove bundles that nobody uses, the least recently used first, beyond the bound."""
        with self._alone():
            kept = sorted(
                (path for path in self.root.iterdir() if _is_bundle(path)), key=lambda path: path.stat().st_mtime
            )
            sizes = {path: sum(file.stat().st_size for file in path.rglob("*") if file.is_file()) for path in kept}
            total = sum(sizes.values())
            for path in kept:
                if total <= self._most:
                    return
                if not any(_held(lock) for lock in self.root.glob(f"{path.name}.*.lock")):
                    remove(path)
                    total -= sizes[path]

    def _remove_abandoned(self) -> None:
        """Remove what engines have left that were killed."""
        for lock in self.root.glob(f"{WORK}*.lock"):
            if not _held(lock):
                remove(lock.with_suffix(""))
        for lock in self.root.glob("*.*.lock"):
            _held(lock)


def _is_bundle(path: Path) -> bool:
    return path.is_dir() and not path.name.startswith(WORK)


def _held(path: Path) -> bool:
    """Whether somebody holds a lock; its file goes if nobody does."""
    lock = FileLock(path)
    if not lock.acquire(timeout=0.0):
        return True
    _drop(lock)
    return False


def _drop(lock: FileLock) -> None:
    lock.release()
    with suppress(OSError):
        lock.path.unlink(missing_ok=True)
