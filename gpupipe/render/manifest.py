"""The manifest of an output's parts: what is rendered, which segments are finished, and their hashes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, NamedTuple

from gpupipe.errors import OutputError, reason
from gpupipe.render.durable import hash_of

MANIFEST: Final = "manifest.json"
VERSION: Final = 1
SHOWN: Final = 40
"""Letters of a value that an error shows whole; a hash is longer."""


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
        if not isinstance(name, str) or Path(name).name != name or name.startswith(".") or not isinstance(sha256, str):
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

    def require_same(self, before: Manifest, output: Path) -> None:
        """Raise an OutputError that names what is not as it was before."""
        was, now = before.fingerprint, self.fingerprint
        changed = [name for name in {**was, **now} if was.get(name) != now.get(name)]
        if not changed:
            return
        others = f"; so are {', '.join(changed[1:])}" if len(changed) > 1 else ""
        name = changed[0]
        raise OutputError(
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
        OutputError: it cannot be read.
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
        if manifest.frames < 1 or manifest.segment_frames < 1:
            raise ValueError("no frames")
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError, OverflowError) as error:
        raise OutputError(
            f"cannot be read: {reason(error)}",
            file=folder / MANIFEST,
            remedy="begin again with --overwrite, without --resume",
        ) from error
    return manifest


def _told(value: str | None) -> str:
    return "not there" if value is None else value if len(value) <= SHOWN else f"{value[:12]}…"
