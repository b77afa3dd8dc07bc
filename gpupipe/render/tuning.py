"""What `gpupipe tune` found to be fastest: remembered in the user's cache folder, a small file for each tuning."""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import tempfile
import time
from collections.abc import Iterator, Mapping
from datetime import date
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple, cast

from gpupipe.character.folder import Character
from gpupipe.engine.core import EngineCore
from gpupipe.errors import GpupipeError, OutputError, reason
from gpupipe.machine import cache_folder, cpu_count, cpu_name
from gpupipe.model.digest import Digest, digest
from gpupipe.options import EngineOptions, ModelOptions, OutputOptions, declared

MOST: Final = 256
"""Tunings that are kept; the oldest are removed first."""

LEFT_SECONDS: Final = 600.0
"""A file under its temporary name that is older was left by a process that was killed."""


class Settings(NamedTuple):
    """What is tuned, by the names of the options; None for what does not matter on a device."""

    batch: int | None = None
    runs: int | None = None
    encoders: int | None = None
    workers: int | None = None
    feature_cache: Literal["auto", "off"] | None = None

    def __str__(self) -> str:
        """As people read them.

        >>> str(Settings(runs=2, feature_cache="off"))
        'runs 2, feature cache off'
        """
        return ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in self.known().items())

    def known(self) -> dict[str, int | str]:
        """Those that are not None, by name."""
        return {name: value for name, value in self._asdict().items() if value is not None}


class Subject(NamedTuple):
    """What a tuning is of: it says nothing of another machine, model, size or way to run them.

    Attributes:
        cpu, cores: the processor's name, and how many cores of it the process may use.
        device: "cpu", or the GPU's name and memory.
        model: the SHA-256 of the character's model file, from which one in another precision is made.
        width, height: of the body video, pixels.
        provider: what runs the model; "cuda" for "auto" on a GPU.
        precision: in which it is run.
        encoder: of the video.
    """

    cpu: str
    cores: int
    device: str
    model: str
    width: int
    height: int
    provider: str
    precision: str
    encoder: str

    @classmethod
    def of(cls, engine: EngineCore, character: Character, model: ModelOptions, encoder: str) -> Subject | None:
        """What a render on an engine is; None if its model cannot be read, which opening it will say."""
        path = character.model_path if model.model is None else Path(model.model)
        found, gpu = engine.holdings.digests.of(path), engine.backend.gpu
        if not isinstance(found, Digest):
            return None
        device, provider = "cpu", "cpu"
        if gpu is not None:
            device = f"{gpu.name}, {round(gpu.total_bytes / (1 << 30))} GiB"
            provider = "cuda" if model.provider == "auto" else model.provider
        size = (character.body.width, character.body.height)
        return cls(cpu_name(), cpu_count(), device, found.sha256, *size, provider, model.precision, encoder)

    @property
    def file(self) -> Path:
        """Where its tuning is remembered."""
        told = json.dumps(self._asdict(), sort_keys=True).encode("utf-8")
        return folder() / f"{hashlib.sha256(told).hexdigest()[:32]}.json"


class Tuning(NamedTuple):
    """What was found.

    Attributes:
        subject: what it is of.
        settings: the fastest.
        speedup: over the settings that nothing was tuned in, a ratio.
        break_even: how often a frame must be shown for its features to be worth keeping; None: they are not kept.
        day: when it was found, ISO 8601.
    """

    subject: Subject
    settings: Settings
    speedup: float
    break_even: float | None
    day: str

    def as_dict(self) -> dict[str, Any]:
        """The same as plain JSON values."""
        return self._asdict() | {"subject": self.subject._asdict(), "settings": self.settings.known()}

    @classmethod
    def from_dict(cls, told: Mapping[str, Any]) -> Tuning:
        """What `as_dict` gave.

        Raises:
            KeyError, TypeError, ValueError: it is not that, or has values that the options cannot have.
        """
        known: dict[str, Any] = {}
        for name, value in dict(told["settings"]).items():
            if name == "feature_cache":
                if value not in ("auto", "off"):
                    raise ValueError(name)
                known[name] = value
            else:
                known[name] = _OPTIONS[name].checked(value, None)
        settings, speedup = Settings(**known), float(told["speedup"])
        break_even = float(told["break_even"]) if settings.feature_cache == "auto" else None
        if not math.isfinite(speedup) or (break_even is not None and not 0 < break_even < math.inf):
            raise ValueError("no number")
        day = date.fromisoformat(told["day"]).isoformat()
        return cls(Subject(**told["subject"]), settings, speedup, break_even, day)


_OPTIONS: Final = {
    name: said for group in (EngineOptions, ModelOptions, OutputOptions) for name, said in declared(group).items()
}


def folder() -> Path:
    """Where tunings are remembered; not made yet."""
    return cache_folder() / "tuning"


def remember(tuning: Tuning) -> Path:
    """Keep a tuning, in the place of any other of the same subject. Whoever reads meanwhile gets the one or the other.

    Raises:
        OutputError: the folder cannot be written to.
    """
    path = tuning.subject.file
    part: Path | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file, name = tempfile.mkstemp(prefix=".", suffix=".partial", dir=path.parent)
        part = Path(name)
        with os.fdopen(file, "w", encoding="utf-8") as writing:
            writing.write(json.dumps(tuning.as_dict(), indent=1) + "\n")
        part.replace(path)
    except OSError as error:
        if part is not None:
            part.unlink(missing_ok=True)
        raise OutputError(f"cannot be written: {reason(error)}", file=path, remedy="make it writable") from error
    _bound(path.parent)
    return path


def recall(subject: Subject) -> Tuning | None:
    """The tuning of a subject, if there is one.

    Raises:
        GpupipeError: there is a file, and it cannot be read or holds something else.
    """
    path = subject.file
    try:
        return _read(path, subject)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise GpupipeError(f"cannot be read: {reason(error)}", file=path, remedy="make it readable") from error
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise GpupipeError("is no tuning", file=path, remedy="run `gpupipe tune` again, or remove it") from error


def of_character(character: Character) -> list[Tuning]:
    """What is remembered on this machine of a character's own model at its size, the latest first.

    Raises:
        OSError: the model cannot be read.
    """
    body, model = character.body, digest(character.model_path).sha256
    wanted = (cpu_name(), cpu_count(), model, body.width, body.height)
    found = []
    for path in folder().glob("*.json"):
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError, RecursionError):
            tuning = _read(path)
            subject = tuning.subject
            if (subject.cpu, subject.cores, subject.model, subject.width, subject.height) == wanted:
                found.append(tuning)
    return sorted(found, key=lambda tuning: tuning.day, reverse=True)


def forget(character: Character) -> int:
    """Forget what `of_character` gives.

    Returns:
        How many there were.
    """
    found = of_character(character)
    for tuning in found:
        tuning.subject.file.unlink(missing_ok=True)
    return len(found)


def _read(path: Path, subject: Subject | None = None) -> Tuning:
    """What a file holds, of that subject if one is named.

    Raises:
        OSError, KeyError, TypeError, ValueError, RecursionError: it cannot be read, or holds something else.
    """
    told = json.loads(path.read_text("utf-8"))
    if not isinstance(told, dict):
        raise TypeError("no object")
    tuning = Tuning.from_dict(cast("dict[str, Any]", told))
    if tuning.subject.file != path or subject not in (None, tuning.subject):
        raise ValueError("another's")
    return tuning


def _bound(root: Path) -> None:
    """Remove the oldest tunings beyond `MOST`, and what processes that were killed have left."""
    kept = sorted(_files(root, "*.json"), reverse=True)
    left = [(seen, path) for seen, path in _files(root, ".*.partial") if time.time() - seen > LEFT_SECONDS]
    for _, path in [*kept[MOST:], *left]:
        with contextlib.suppress(OSError):  # another process has removed it
            path.unlink()


def _files(root: Path, pattern: str) -> Iterator[tuple[float, Path]]:
    """Files and when they were written, seconds since 1970."""
    for path in root.glob(pattern):
        with contextlib.suppress(OSError):
            yield path.stat().st_mtime, path
