"""Files and folders that outlast a loss of power, and the hashes by which they are known again."""

from __future__ import annotations

import hashlib
import os
import shutil
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Final

CHUNK_BYTES: Final = 1 << 20
ON_WINDOWS: Final = os.name == "nt"
TRIES: Final = 20
PAUSE_SECONDS: Final = 0.05
"""How often, and how long apart, Windows is asked for a name: a second in all."""


def hash_of(path: Path) -> str:
    """The SHA-256 of a file, or of the names and contents of a folder's files, in hexadecimal digits.

    Raises:
        OSError: it cannot be read.
    """
    return hash_of_files(_files(path), names=path.is_dir())


def hash_of_files(files: Iterable[Path], *, names: bool = True) -> str:
    """The SHA-256 of files, one after the other: of a folder that holds these, if they are in the order of their names.

    Args:
        files: which.
        names: whether their names and sizes count.

    Raises:
        OSError: one cannot be read.
    """
    found = hashlib.sha256()
    for file in files:
        if names:
            found.update(f"{file.name}\0{file.stat().st_size}\0".encode())
        with file.open("rb") as opened:
            while chunk := opened.read(CHUNK_BYTES):
                found.update(chunk)
    return found.hexdigest()


def sync(path: Path) -> None:
    """Let the disk have a file, or a folder and its files, so that a loss of power does not take them.

    Raises:
        OSError: it cannot be written.
    """
    for file in _files(path):
        with file.open("rb+") as opened:  # Windows syncs what is open for writing only
            os.fsync(opened.fileno())
    if path.is_dir():
        sync_folder(path)


def sync_folder(path: Path) -> None:
    """Let the disk have the names in a folder, where the system can do that: Windows cannot, and needs not."""
    if not hasattr(os, "O_DIRECTORY"):
        return
    with suppress(OSError):  # some file systems do not know it
        opened = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(opened)
        finally:
            os.close(opened)


def replace(written: Path, final: Path) -> None:
    """Give a file, or a folder, another name; the file that had it goes.

    On Windows that is refused (WinError 5 and 32) while another process has either of them open, or a file in the
    folder: somebody who reads the manifest, a virus scanner, an indexer, for some milliseconds each
    (https://github.com/RyanCodrai/turbovec/pull/442, https://github.com/beeware/briefcase/issues/1780). So it is tried
    for a second there.

    Raises:
        OSError: it cannot be done.
    """
    for _ in range(TRIES - 1 if ON_WINDOWS else 0):
        with suppress(PermissionError):
            written.replace(final)
            return
        time.sleep(PAUSE_SECONDS)
    written.replace(final)


def put_in_place(written: Path, final: Path) -> None:
    """Give a file, or a folder, its name; what had it before, a folder too, goes.

    Raises:
        OSError: the disk.
    """
    if final.is_dir():
        shutil.rmtree(final)
    replace(written, final)


def remove(path: Path) -> None:
    """Remove a file, a link, or a folder with all that is in it, as far as the system lets us."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):
            path.unlink()


def _files(path: Path) -> Iterable[Path]:
    return sorted(path.iterdir()) if path.is_dir() else [path]
