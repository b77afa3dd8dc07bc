"""Who works on a folder of parts: one alone, or some that share it. All of it is the system's locks, on files in it."""

from __future__ import annotations

import errno
import stat
import uuid
from contextlib import suppress
from pathlib import Path
from typing import Final

from gpupipe.errors import OutputError, reason
from gpupipe.filelock import FileLock

LOCK: Final = "lock"
UNFINISHED: Final = "unfinished-"
"""What the name of everything begins with that is not complete."""


class PartsLock:
    """The lock of a folder of parts, which is held while it is worked on alone, and while the manifest is looked at or
    changed; and one for each that shares the folder, which tells the others for how long he does.

    Args:
        folder: of the parts, made when the lock is taken.
        named: what errors call the output.

    Attributes:
        mine: what the names of all begin with that this one has not finished. Not by a process's number, which two
            containers with one disk may have alike, and two jobs of one process.
        sharing: the file by which the others know that it is there.
    """

    def __init__(self, folder: Path, named: Path) -> None:
        self._folder, self._named = folder, named
        self.mine = f"{UNFINISHED}{uuid.uuid4().hex[:12]}-"
        self._lock = FileLock(folder / LOCK)
        self.sharing = folder / f"{self.mine}{LOCK}"
        self._sharing = FileLock(self.sharing)

    def take(self, seconds: float) -> None:
        """Take the lock; the folder is made if it is not there.

        Args:
            seconds: to wait at most for who has it.

        Raises:
            OutputError: another has it; or the folder cannot be made, or is none.
        """
        while True:
            self._make()
            try:
                taken = self._lock.acquire(timeout=seconds)
            except OutputError as error:
                if self._folder.exists() and not isinstance(error.__cause__, FileNotFoundError):
                    raise
                continue  # somebody has just removed the folder, in whose place there may be another one
            if not taken:
                raise self.taken_by(self._lock.holder)
            if self._lock.in_place:
                return
            self._lock.release()  # of a folder that is gone, in whose place there may be another one

    def share(self) -> None:
        """Tell the others that this one works here too, until `leave`; while the lock is held."""
        self._sharing.acquire(timeout=0.0)

    def other(self) -> int | None:
        """The process of another that shares the folder; None: there is none. What those left that were killed goes."""
        for path in self._folder.glob(f"{UNFINISHED}*-{LOCK}"):
            if path == self.sharing:
                continue
            lock = FileLock(path)
            if not lock.acquire(timeout=0.0):
                return lock.holder or 0
            lock.release()
            with suppress(OSError):
                path.unlink()
        return None

    def taken_by(self, process: int | None) -> OutputError:
        """The error for who finds another at work."""
        return OutputError(
            f"is being rendered by process {process}",
            file=self._named,
            field="output",
            remedy="wait for it, or use another name",
        )

    @property
    def held(self) -> bool:
        """Whether this one has the lock."""
        return self._lock.held

    def release(self) -> None:
        """Let others have the lock. Does nothing if it is not held."""
        self._lock.release()

    def leave(self) -> None:
        """Share the folder no more."""
        self._sharing.release()
        with suppress(OSError):
            self.sharing.unlink(missing_ok=True)

    def remove(self) -> None:
        """Remove the folder, in which there is nothing else of ours, and release the lock.

        The lock's file goes while it is held, so that nobody takes it for the lock of a folder that is to stay. Windows
        removes no file that is open (https://docs.python.org/3/library/os.html#os.remove): there it goes afterwards,
        unless another has opened it.
        """
        path = self._folder / LOCK
        try:
            path.unlink(missing_ok=True)
        except PermissionError:
            self._lock.release()
            with suppress(OSError):
                path.unlink()
        with suppress(OSError):  # there may be other people's files in it, or another's new lock
            self._folder.rmdir()
        self._lock.release()

    def _make(self) -> None:
        folder = self._folder
        try:
            while (mode := _mode(folder)) is None:
                with suppress(FileExistsError):  # another was faster
                    folder.mkdir()
            if not stat.S_ISDIR(mode):
                raise OutputError(
                    "is in the way: finished segments go into a folder of that name",
                    file=folder,
                    remedy="move it away, or use another name for the output",
                )
        except OSError as error:
            long = error.errno == errno.ENAMETOOLONG
            raise OutputError(
                f"cannot be written to: {reason(error)}",
                file=folder if long else folder.parent,
                field="output",
                remedy="use a shorter name for the output" if long else "use another folder",
            ) from error


def _mode(path: Path) -> int | None:
    """What is there, as `os.lstat` tells it; None: nothing."""
    try:
        return path.lstat().st_mode
    except FileNotFoundError:
        return None
