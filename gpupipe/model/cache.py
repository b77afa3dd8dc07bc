"""Optimised models in the user's cache folder: made once, by one process, and never more than so many bytes of them."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, NamedTuple

from gpupipe.errors import OutputError, reason
from gpupipe.filelock import FileLock
from gpupipe.machine import cache_folder
from gpupipe.model.digest import digest
from gpupipe.model.graph import write_graph
from gpupipe.model.optimise import Optimised, Precision, optimise, settings_of
from gpupipe.model.quality import Quality
from gpupipe.model.samples import SampleSet
from gpupipe.options.declare import bytes_of_environment

LIMIT_VARIABLE: Final = "GPUPIPE_MODEL_CACHE"
"""The environment variable that says how large the folder may be: 4G, 500M."""
DEFAULT_LIMIT: Final = 4 << 30

FRESH_SECONDS: Final = 600.0
"""What was used within this time is not removed: who got its name may be about to open it."""

Make = Callable[[], Optimised]


class Cached(NamedTuple):
    """An optimised model in the cache.

    Attributes:
        path: the ONNX file.
        quality: what it draws, compared with the model that it was made of.
        made: whether it was made just now.
    """

    path: Path
    quality: Quality
    made: bool


def optimised(
    path: Path, precision: Precision, samples: SampleSet, *, told: Callable[[str], None] = lambda _: None
) -> Cached:
    """A model in another precision, from the cache, or made and put there.

    Args:
        path: the ONNX file.
        precision: what is wanted.
        samples: what it is calibrated with and judged by; not asked for any if it is in the cache.
        told: given a line now and then while it is made.

    Raises:
        InferenceError: it cannot be made.
        OutputError: the cache folder cannot be written to.
        OptionError: `GPUPIPE_MODEL_CACHE` is no number of bytes.
    """
    return kept(
        cache_folder() / "models",
        key_of(path, precision, samples),
        lambda: optimise(path, precision, samples, told),
        limit(),
    )


def key_of(path: Path, precision: Precision, samples: SampleSet) -> str:
    """What tells an optimised model: the file that it is made of, how, with what, and by which versions."""
    found = digest(path)
    told: dict[str, Any] = settings_of(precision) | {"model": found.sha256, "samples": samples.key}
    if found.beside is not None:
        told["beside"] = found.stats_beside()
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode("utf-8")).hexdigest()[:32]


def limit() -> int:
    """How many bytes the cached models may take.

    Raises:
        OptionError: the environment says something else than a number of bytes.
    """
    return bytes_of_environment(LIMIT_VARIABLE, DEFAULT_LIMIT)


def kept(root: Path, key: str, make: Make, most: int) -> Cached:
    """The model of a key in a folder; made if it is not there, while other processes that want it wait.

    A model is there when its file is: that is renamed last. What a process that was killed has left is removed by the
    next one that makes a model.

    Raises:
        OutputError: the folder cannot be written to.
    """
    path, about = root / f"{key}.onnx", root / f"{key}.json"
    found = _found(path, about)
    if found is not None:
        return found
    try:
        root.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"cannot be made: {reason(error)}", file=root, remedy="make it writable") from error
    with FileLock(root / f"lock-{key[0]}"):  # a few locks that stay, not one for each model that ever was
        found = _found(path, about)
        if found is not None:
            return found
        for left in root.glob(f".{key[0]}*.partial"):
            left.unlink(missing_ok=True)
        result = make()
        try:
            part = root / f".{key}.json.partial"
            quality = result.quality.as_dict()
            sums = _sums(hashlib.sha256(result.model.SerializeToString()).hexdigest(), quality)
            told = {"quality": quality, "about": result.about, "sha256": sums}
            part.write_text(json.dumps(told, indent=1), "utf-8")
            part.replace(about)
        except OSError as error:
            raise OutputError(f"cannot be written: {reason(error)}", file=about, remedy="make room") from error
        write_graph(result.model, path)
    bound(root, most)
    return Cached(path, result.quality, True)


def _found(path: Path, about: Path) -> Cached | None:
    """What is there, marked as used now; None if it is not, or not as it was written."""
    try:
        told = json.loads(about.read_text("utf-8"))
        if told["sha256"] != _sums(digest(path).sha256, told["quality"]):
            return None
        quality = Quality.from_dict(told["quality"])
        os.utime(path)
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None
    return Cached(path, quality, False)


def _sums(model: str, quality: dict[str, Any]) -> str:
    """What tells whether a model, by its digest, and its quality are as they were written."""
    return hashlib.sha256(f"{model} {json.dumps(quality, sort_keys=True)}".encode()).hexdigest()


def bound(root: Path, most: int) -> None:
    """Remove the models that were not used for longest until the others take no more than `most` bytes."""
    now = time.time()
    entries = []
    for path in root.glob("*.onnx"):
        with contextlib.suppress(OSError):  # another process has removed it
            stat = path.stat()
            entries.append((stat.st_mtime, stat.st_size, path))
    total = sum(size for _, size, _ in entries)
    for used, size, path in sorted(entries):
        if total <= most or now - used < FRESH_SECONDS:
            break
        with contextlib.suppress(OSError):  # Windows keeps a file that is open
            path.unlink()
            path.with_suffix(".json").unlink(missing_ok=True)
            total -= size
