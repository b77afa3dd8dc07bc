"""What is sent between the one who asks for a render and the nodes: plain data, which pickles."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NamedTuple

from gpupipe import errors
from gpupipe.errors import GpupipeError
from gpupipe.trace import StageTimes

PIECE_BYTES: Final = 4 << 20
"""The most bytes of a file that one message holds."""

PLAIN: Final = (str, int, float, bool, type(None), Path)


class Content(NamedTuple):
    """A file.

    Attributes:
        name: below the root of its bundle, with slashes.
        size: bytes.
        sha256: of its bytes, hexadecimal digits.
    """

    name: str
    size: int
    sha256: str


@dataclass(frozen=True)
class Bundle:
    """Files that belong together, known by what they hold.

    Attributes:
        root: their folder, where the render was asked for.
        files: by name.
        absent: names of files that the folder must not have: with them it would be another character.
    """

    root: str
    files: tuple[Content, ...]
    absent: tuple[str, ...] = ()

    @property
    def key(self) -> str:
        """What it is known by: bundles with the same names and contents have the same, 32 hexadecimal digits."""
        told = "".join(f"{each.name}\0{each.sha256}\0" for each in sorted(self.files))
        return hashlib.sha256(told.encode()).hexdigest()[:32]

    @property
    def nbytes(self) -> int:
        """Bytes of all its files."""
        return sum(each.size for each in self.files)


@dataclass(frozen=True)
class JobSpec:
    """A job, as a node is told of it.

    Attributes:
        job: what tells it from all other jobs, of other runs too.
        output: the end of the output's name: a video's suffix, or a slash for a folder of images.
        character: its folder.
        files: other files, by the option that names each: the bundle, and the name in it.
        options: the rest, by their names in Python: text, numbers and switches.
        whole: whether the character is loaded as a whole, ahead of its first segment.
    """

    job: str
    output: str
    character: Bundle
    files: Mapping[str, tuple[Bundle, str]]
    options: Mapping[str, Any]
    whole: bool

    @property
    def bundles(self) -> tuple[Bundle, ...]:
        """All that it needs."""
        return (self.character, *(bundle for bundle, _ in self.files.values()))


class Drawn(NamedTuple):
    """A segment that a node has drawn and encoded, and still has.

    Attributes:
        ticket: by which the node knows it.
        files: name and size of each; a segment of images has several, a video's one.
        folder: whether it is a folder of images.
        sha256: of the segment; see `render.durable.hash_of`.
        frames: output frames.
        told: what the engine says of it: see `Telling`.
    """

    ticket: str
    files: tuple[tuple[str, int], ...]
    folder: bool
    sha256: str
    frames: int
    told: Telling


class Telling(NamedTuple):
    """What an engine says of a segment that it has drawn.

    Attributes:
        seconds: that it took, loading included.
        load_seconds: of them, for loading.
        first_frame_seconds: to the first finished frame.
        stages: times of `inference`, `composite` and `save`.
        facts: width, height, pixel_format, device, provider, batch, runs, workers, inference_threads, cache_bytes,
            peak_rss_bytes, by name.
        notes: what was picked on its own, and why.
    """

    seconds: float
    load_seconds: float
    first_frame_seconds: float | None
    stages: Mapping[str, StageTimes]
    facts: Mapping[str, Any]
    notes: tuple[str, ...]


class Underway(NamedTuple):
    """How far a segment is: frames written of it, milliseconds a frame so far."""

    frames: int
    inference_ms: float
    composite_ms: float
    save_ms: float


class Failure(NamedTuple):
    """A `GpupipeError` on its way from a node.

    Attributes:
        kind: the name of its class.
        parts: what it was made with.
        file: the file that it is about.
    """

    kind: str
    parts: Mapping[str, Any]
    file: str | None

    @classmethod
    def of(cls, error: GpupipeError) -> Failure:
        """An error, as it is sent."""
        parts = error.parts
        if "value" in parts and not isinstance(parts["value"], PLAIN):
            parts["value"] = str(parts["value"])
        kind = next(base.__name__ for base in type(error).__mro__ if base.__module__ == errors.__name__)
        return cls(kind, parts, None if error.file is None else str(error.file))

    def error(self) -> GpupipeError:
        """The error that it was."""
        made: GpupipeError = getattr(errors, self.kind)(**self.parts, file=self.file)
        return made
