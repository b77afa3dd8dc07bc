"""The manifest of an output's parts: what is rendered, which segments are finished, and their hashes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any, Final, NamedTuple

from gpupipe.errors import OtherRender, OutputError, reason
from gpupipe.render.durable import hash_of

MANIFEST: Final = "manifest.json"
VERSION: Final = 1
SHOWN: Final = 40
"""Letters of a value that an error shows whole; a hash is longer."""


def segment_name(number: int, suffix: str) -> str:
    """The name of a finished segment's file, or of its folder where `suffix` is empty."""
    return f"segment_{number:05d}{suffix}"


class Segment(NamedTuple):
    """A finished segment.

    Attributes:
        name: of its file or folder.
        start, stop: its output frames.
        sha256: of its content.
    """

    name: str
    start: int
    stop: int
    sha256: str

    def is_whole(self, folder: Path) -> bool:
        """Whether it is what was written."""
        with suppress(OSError):
            return hash_of(folder / self.name) == self.sha256
        return False

    @classmethod
    def of(cls, value: Any) -> Segment:
        """From JSON; raises a ValueError, KeyError or TypeError if it is none."""
        name, start, stop, sha256 = value["name"], value["start"], value["stop"], value["sha256"]
        if not (isinstance(name, str) and isinstance(sha256, str)):
            raise ValueError(f"no segment: {name!r}")
        return cls(name, int(start), int(stop), sha256)


@dataclass(frozen=True)
class Manifest:
    """What is rendered.

    Attributes:
        fingerprint: what changes pixels or sound, by names that people know, each with its hash or its value.
        frames: output frames.
        segment_frames: of a segment; the last may have fewer.
        fps: output frames a second, a fraction; None for images.
        sound: the file whose sound goes with the picture.
        segments: those that are finished, by number.
    """

    fingerprint: Mapping[str, str]
    frames: int
    segment_frames: int
    fps: str | None = None
    sound: str | None = None
    segments: Mapping[int, Segment] = field(default_factory=dict)

    @property
    def count(self) -> int:
        """How many segments there are when all are finished."""
        return -(-self.frames // self.segment_frames)

    @property
    def suffix(self) -> str:
        """What the names of the segments end in: that of the first in the manifest, empty if there is none."""
        return next((Path(one.name).suffix for one in self.segments.values()), "")

    def check(self) -> None:
        """Raise a ValueError, or a ZeroDivisionError, for what no render writes."""
        if self.frames < 1 or self.segment_frames < 1 or (self.fps is not None and Fraction(self.fps) <= 0):
            raise ValueError("no frames")
        for number, one in self.segments.items():
            begin = number * self.segment_frames
            wanted = (segment_name(number, self.suffix), begin, min(self.frames, begin + self.segment_frames))
            if one[:3] != wanted or not 0 <= number < self.count:
                raise ValueError(f"no segment {number} of {self.count}: {one.name!r}")

    def require_same(self, before: Manifest, output: Path) -> None:
        """Raise an OtherRender that names what is not as it was before."""
        was, now = before.fingerprint, self.fingerprint
        changed = [name for name in {**was, **now} if was.get(name) != now.get(name)]
        if not changed:
            return
        others = f"; so are {', '.join(changed[1:])}" if len(changed) > 1 else ""
        name = changed[0]
        raise OtherRender(
            f"{name} is not what it was when this was begun: it was {_told(was.get(name))}, and is "
            f"{_told(now.get(name))}{others}",
            file=output,
            field="--resume",
            remedy="put it back, or begin again with --overwrite, without --resume",
        )

    def as_dict(self, segments: Mapping[int, Segment]) -> dict[str, Any]:
        """As JSON values, with these segments."""
        return {
            "version": VERSION,
            "fingerprint": dict(self.fingerprint),
            "frames": self.frames,
            "segment_frames": self.segment_frames,
            "fps": self.fps,
            "sound": self.sound,
            "segments": {str(number): segments[number]._asdict() for number in sorted(segments)},
        }


def read_manifest(folder: Path) -> Manifest | None:
    """The manifest in a folder of parts; None if there is none.

    Raises:
        OutputError: it cannot be read; OtherRender: it is none.
    """
    try:
        found = json.loads((folder / MANIFEST).read_text("utf-8"))
        if found["version"] != VERSION:
            raise ValueError(f"version {found['version']!r}")
        fps, sound = (None if found[name] is None else str(found[name]) for name in ("fps", "sound"))
        manifest = Manifest(
            {str(name): str(value) for name, value in found["fingerprint"].items()},
            int(found["frames"]),
            int(found["segment_frames"]),
            fps,
            sound,
            {int(number): Segment.of(one) for number, one in found["segments"].items()},
        )
        manifest.check()
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError, ArithmeticError) as error:
        raise (OutputError if isinstance(error, OSError) else OtherRender)(
            f"cannot be read: {reason(error)}",
            file=folder / MANIFEST,
            remedy="begin again with --overwrite, without --resume",
        ) from error
    return manifest


def _told(value: str | None) -> str:
    return "not there" if value is None else value if len(value) <= SHOWN else f"{value[:12]}…"
