"""Files as they are now, as far as that can be told without reading them."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple


class Seen(NamedTuple):
    """A file: if its size or the time of its last change is another, it holds something else.

    Attributes:
        path: without links.
        nbytes: its size.
        mtime_ns: when it was last changed.
    """

    path: Path
    nbytes: int
    mtime_ns: int


def seen(path: Path) -> Seen:
    """A file as it is now.

    Raises:
        OSError: there is none, or it cannot be looked at.
    """
    path = path.resolve()
    stat = path.stat()
    return Seen(path, stat.st_size, stat.st_mtime_ns)
