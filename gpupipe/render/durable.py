"""Files and folders that outlast a loss of power, and the hashes by which they are known again."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Final

CHUNK_BYTES: Final = 1 << 20


def hash_of(path: Path, *, sync: bool = False) -> str:
    """The SHA-256 of a file, or of the names and contents of a folder's files, in hexadecimal digits.

    Args:
        path: the file or folder.
        sync: let the disk have it first, so that a loss of power does not take it.

    Raises:
        OSError: it cannot be read.
    """
    found = hashlib.sha256()
    for file in _files(path):
        if path.is_dir():
            found.update(f"{file.name}\0{file.stat().st_size}\0".encode())
        with file.open("rb+" if sync else "rb") as opened:  # Windows syncs what is open for writing only
            while chunk := opened.read(CHUNK_BYTES):
                found.update(chunk)
            if sync:
                os.fsync(opened.fileno())
    if sync and path.is_dir():
        sync_folder(path)
    return found.hexdigest()


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


def put_in_place(written: Path, final: Path) -> None:
    """Give a file, or a folder, its name; what had it before goes.

    Raises:
        OSError: the disk.
    """
    if final.is_dir():
        shutil.rmtree(final)
    written.replace(final)


def remove(path: Path) -> None:
    """Remove a file, a link, or a folder with all that is in it, as far as the system lets us."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):
            path.unlink()


def _files(path: Path) -> Iterable[Path]:
    return sorted(path.iterdir()) if path.is_dir() else [path]
