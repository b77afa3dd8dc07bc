"""Where TensorRT keeps the engines that it has built: a folder for each model and batch, used by one process at a time.

ONNX Runtime names an engine's file by the model's *file name* and the names in its graph; neither weights nor shapes
count (`TRTGenerateId`, tensorrt_execution_provider_utils.h, 452a629;
https://github.com/microsoft/onnxruntime/issues/32254). In a shared folder a character would be drawn with the engine of
another whose model is called the same, as they all are. It also writes the files in place under their final names, and
its lock is of one process (https://github.com/microsoft/onnxruntime/pull/13356).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeVar

from gpupipe.errors import OutputError, reason
from gpupipe.filelock import FileLock
from gpupipe.model.digest import digest

T = TypeVar("T")

LOCK = "lock"


def engine_folder(root: Path, model: Path, profile: Mapping[str, tuple[int, ...]]) -> Path:
    """The folder of a model's engines for a batch; not made yet.

    Args:
        root: the folder of one kind of GPU: an engine of a large GPU may not load on a small one of the same compute
            capability.
        model: the ONNX file.
        profile: the shape of each input; empty if they are left open.
    """
    found = digest(model)
    told = hashlib.sha256(found.sha256.encode("ascii"))
    for beside in found.stats_beside():
        told.update(beside.encode())
    batch = next((str(shape[0]) for shape in profile.values()), "any")
    return root / f"{(told.hexdigest() if found.beside else found.sha256)[:16]}-batch{batch}"


def with_engines(folder: Path, opening: Callable[[], T], failures: tuple[type[Exception], ...]) -> T:
    """What `opening` gives, while no other process uses the folder. If it fails, and there were engines, they are
    removed and it is tried once more: a process that was killed may have left half of one.

    Raises:
        OutputError: the folder cannot be made, or not be locked.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"cannot be made: {reason(error)}", file=folder, remedy="make it writable") from error
    with FileLock(folder / LOCK):
        kept = [path for path in folder.iterdir() if path.name != LOCK]
        try:
            return opening()
        except failures:
            if not kept:
                raise
            for path in kept:
                path.unlink(missing_ok=True)
            return opening()
