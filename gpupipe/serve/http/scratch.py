"""A folder of a server's own for files that come and go, in the system's temporary folder.

A lock in it is held for as long as the server lives. A server that is killed leaves the folder, with a lock that nobody
holds: the next to start removes it.
"""

from __future__ import annotations

import os
import shutil
import stat
import sys
import tempfile
import threading
import weakref
from contextlib import suppress
from pathlib import Path
from typing import Final

from gpupipe.errors import OutputError, reason
from gpupipe.filelock import FileLock
from gpupipe.log import Log

PREFIX: Final = "gpupipe-uploads-"
LOCK: Final = "lock"

_log = Log(__name__)


class Scratch:
    """The folder; made when it is first wanted, and gone with this or with the process. Any thread may ask."""

    def __init__(self) -> None:
        self._making = threading.Lock()
        self._held: FileLock | None = None
        self._end: weakref.finalize[[FileLock], Scratch] | None = None

    def folder(self) -> Path:
        """Where it is: another one than before, if somebody has cleared the temporary folder.

        Raises:
            OutputError: it cannot be made.
        """
        with self._making:
            if self._held is None or not self._held.in_place:
                self._forget()
                self._held = _made()
                self._end = weakref.finalize(self, _remove, self._held)
            return self._held.path.parent

    def close(self) -> None:
        """Remove it. More than once is allowed."""
        with self._making:
            if self._end is not None:
                self._end()
            self._held = self._end = None

    def _forget(self) -> None:
        """Of a folder whose lock is gone, something may still be in use: it is left to the next server to start."""
        if self._end is not None:
            self._end.detach()
        if self._held is not None:
            self._held.release()


def remove_abandoned() -> None:
    """Remove the folders of servers that were killed; those of other users, and what cannot be removed, stay."""
    for folder in Path(tempfile.gettempdir()).glob(f"{PREFIX}*"):
        lock = FileLock(folder / LOCK)
        with suppress(OSError, OutputError):  # another that starts has removed it
            if _is_ours(folder) and lock.acquire(timeout=0.0):
                if lock.in_place:
                    _log.event("folder of a killed server removed", path=folder)
                    _remove(lock)
                lock.release()


def _made() -> FileLock:
    """The lock, held, of a new folder."""
    while True:
        try:
            lock = FileLock(Path(tempfile.mkdtemp(prefix=PREFIX)) / LOCK)
        except OSError as error:
            raise OutputError(
                f"no folder for uploads can be made: {reason(error)}",
                remedy="make the system's temporary folder writable, or name another by TMPDIR",
            ) from error
        try:
            if lock.acquire(timeout=0.0) and lock.in_place:
                return lock
        except OutputError as error:
            if not isinstance(error.__cause__, FileNotFoundError):
                with suppress(OSError):
                    lock.path.parent.rmdir()
                raise
        lock.release()  # another that starts has taken the folder, before it was locked, for one that was left


def _remove(lock: FileLock) -> None:
    """Remove a folder whose lock is held, and release it. Windows removes no file that is open: there the lock's goes
    afterwards, unless another has opened it."""
    folder = lock.path.parent
    shutil.rmtree(folder, ignore_errors=True)
    lock.release()
    if os.name == "nt":
        with suppress(OSError):
            lock.path.unlink()
            folder.rmdir()


def _is_ours(folder: Path) -> bool:
    """Whether it is a folder, no link, of this user."""
    found = folder.lstat()
    return stat.S_ISDIR(found.st_mode) and (sys.platform == "win32" or found.st_uid == os.getuid())
