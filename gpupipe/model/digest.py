"""What a file holds, a model above all, told by its SHA-256."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import NamedTuple

from gpupipe.seen import seen

CHUNK_BYTES = 1 << 20


class Digest(NamedTuple):
    """What tells a model's content.

    Attributes:
        sha256: of the file, in hexadecimal digits.
        beside: the folder in which it may keep its weights in files of their own; None: it holds all of them.
    """

    sha256: str
    beside: Path | None

    def stats_beside(self) -> list[str]:
        """Names, sizes and times of the files that may hold its weights, which are too large to be read for this."""
        if self.beside is None:
            return []
        return [f"{file.path} {file.nbytes} {file.mtime_ns}" for file in map(seen, sorted(self.beside.iterdir()))]


def digest(path: Path) -> Digest:
    """The digest of a model file.

    Raises:
        OSError: it cannot be read.
    """
    found, external, tail = hashlib.sha256(), False, b""
    with path.open("rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            found.update(chunk)
            # The key of the entry that names a file with weights (onnx.proto, TensorProto.external_data).
            external = external or b"location" in tail + chunk
            tail = chunk[-8:]
    return Digest(found.hexdigest(), path.parent if external else None)


def sha256(path: Path) -> str:
    """The SHA-256 of any file, in hexadecimal digits.

    Raises:
        OSError: it cannot be read.
    """
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
