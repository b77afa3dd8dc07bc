"""Where an output is made: a hidden folder beside it, gone when the output is complete, or has failed."""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from gpupipe.errors import OutputError, reason
from gpupipe.filelock import FileLock

SUFFIX = ".partial"
YOUNG_SECONDS = 60.0
"""A folder without a lock that is younger may be that of a process which is just about to lock it."""


class WorkFolder:
    """A new folder on the same file system as an output, so that moving into place is a rename.

    A lock in it says that its process lives. Folders of the same output whose process was killed are removed.

    Args:
        output: a file or folder, which need not be there.

    Raises:
        OutputError: the output's folder is missing, or cannot be written to.
    """

    def __init__(self, output: Path) -> None:
        parent = output.parent
        if not parent.is_dir():
            raise OutputError("no such folder", file=parent, field="output", remedy="create it first")
        remove_abandoned(output)
        try:
            self.path = Path(tempfile.mkdtemp(prefix=f".{output.name}.", suffix=SUFFIX, dir=parent))
        except OSError as error:
            raise OutputError(
                f"cannot be written to: {reason(error)}", file=parent, field="output", remedy="use another folder"
            ) from error
        self._lock = FileLock(self.path / "lock")
        with suppress(OutputError):  # where nothing can be locked, no folder is taken for abandoned either
            self._lock.acquire()

    def remove(self) -> None:
        """Remove it and all that is in it. More than once is allowed."""
        self._lock.release()
        shutil.rmtree(self.path, ignore_errors=True)


def remove_abandoned(output: Path) -> None:
    """Remove the folders of this output that nobody works in any more."""
    # Not by a pattern: a name may hold the letters that patterns are made of.
    try:
        beside = list(output.parent.iterdir())
    except OSError:  # a folder that may be written to but not listed
        return
    for path in beside:
        if not (path.name.startswith(f".{output.name}.") and path.name.endswith(SUFFIX) and path.is_dir()):
            continue
        mark = path / "lock"
        with suppress(OSError, OutputError):
            if not mark.exists() and time.time() - path.stat().st_mtime < YOUNG_SECONDS:
                continue
            lock = FileLock(mark)
            if lock.acquire(timeout=0):
                lock.release()
                shutil.rmtree(path, ignore_errors=True)


@contextmanager
def naming(output: Path) -> Iterator[None]:
    """Let what fails inside name the output, not the part of it that could not be written and is gone."""
    try:
        yield
    except OutputError as error:
        raise error.naming(output) from error
    except OSError as error:
        raise OutputError(
            f"cannot be written: {reason(error)}", file=output, remedy="check the folder, its rights and its free space"
        ) from error
