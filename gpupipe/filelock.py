"""A lock that one process holds at a time, told by a file; the system releases it when its holder ends, however."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from pathlib import Path
from types import TracebackType

from gpupipe.errors import OutputError, reason
from gpupipe.log import Log

POLL_SECONDS = 0.05
"""How often a lock that another holds is tried: waiting so, Ctrl-C is seen on every system."""

_log = Log(__name__)

_LOCKED_BYTE = 1 << 30
"""The byte that Windows locks: beyond the text, which others may then still read."""


class FileLock:
    """A lock of the system's on a file that stays where it is.

    It excludes other processes, and other locks on the same file in this one (flock(2): a lock belongs to the open
    file; `LockFile` on Windows: likewise to the handle). A holder that is killed leaves nothing to be found stale.

    Args:
        path: the file, made if it is not there; its folder must be. It holds the process id of the last holder.

    Raises:
        OutputError: on acquiring: the file cannot be opened, or lies where nothing can be locked (some network drives).
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file: int | None = None

    @property
    def holder(self) -> int | None:
        """The process that holds it, or held it last, as far as the file says."""
        try:
            return int(self.path.read_text("ascii"))
        except (OSError, ValueError):
            return None

    @property
    def in_place(self) -> bool:
        """Whether what is held is the lock of whoever opens the file now: it may have been removed meanwhile."""
        assert self._file is not None, "it is held"
        if sys.platform == "win32":  # no file is removed there that is open
            return True
        try:
            return os.path.samestat(os.fstat(self._file), self.path.stat())
        except FileNotFoundError:
            return False

    @property
    def held(self) -> bool:
        """Whether this has it."""
        return self._file is not None

    def acquire(self, timeout: float | None = None) -> bool:
        """Take the lock.

        Args:
            timeout: seconds to wait at most for who holds it; None: as long as it takes.

        Returns:
            Whether it was taken.
        """
        assert self._file is None, "a lock is acquired once at a time"
        began = time.monotonic()
        end, waits = None if timeout is None else began + timeout, False
        try:
            file = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o666)
            try:
                while not _try_lock(file):
                    if end is not None and time.monotonic() >= end:
                        return False
                    if not waits:
                        waits = True
                        _log.event("waiting for lock", path=self.path, holder=self.holder)
                    time.sleep(POLL_SECONDS)
                self._file = file
                if waits:
                    _log.event("lock taken", path=self.path, seconds=time.monotonic() - began)
                with contextlib.suppress(OSError):  # on a full disk nobody is told who holds it
                    os.ftruncate(file, 0)
                    os.write(file, str(os.getpid()).encode("ascii"))
            finally:
                if self._file is None:
                    os.close(file)
        except OSError as error:
            raise OutputError(
                f"cannot be locked: {reason(error)}", file=self.path, remedy="use a folder on a disk of this machine"
            ) from error
        return True

    def release(self) -> None:
        """Let others have it. Does nothing if it is not held."""
        file, self._file = self._file, None
        if file is not None:
            with contextlib.suppress(OSError):  # closing lets go of it too
                _unlock(file)
            os.close(file)

    def __enter__(self) -> FileLock:
        """Take the lock, however long that takes."""
        self.acquire()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Release it."""
        self.release()


if sys.platform == "win32":
    import msvcrt

    def _try_lock(file: int) -> bool:
        os.lseek(file, _LOCKED_BYTE, os.SEEK_SET)
        try:
            msvcrt.locking(file, msvcrt.LK_NBLCK, 1)
        except PermissionError:  # another has it
            return False
        finally:
            os.lseek(file, 0, os.SEEK_SET)
        return True

    def _unlock(file: int) -> None:
        os.lseek(file, _LOCKED_BYTE, os.SEEK_SET)
        msvcrt.locking(file, msvcrt.LK_UNLCK, 1)

else:
    import fcntl

    def _try_lock(file: int) -> bool:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:  # another has it
            return False
        return True

    def _unlock(file: int) -> None:
        fcntl.flock(file, fcntl.LOCK_UN)
