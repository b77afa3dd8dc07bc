"""The finished segments of an output, beside it until it is complete: `talk.mp4.parts/`, with a manifest.

What is in there under its final name was written under another one, synced, and then renamed: a process that is killed,
a full disk or a loss of power leaves whole segments, or none. The manifest says which there are, with their hashes, and
holds a fingerprint of everything that changes a pixel or a sample; so whoever goes on renders the same output, byte for
byte, or is told what has changed.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

from gpupipe.errors import OutputError, reason
from gpupipe.filelock import FileLock
from gpupipe.render.durable import hash_of, sync_folder

SUFFIX: Final = ".parts"
MANIFEST, LOCK = "manifest.json", "lock"
UNFINISHED: Final = "unfinished-"
"""What the name of everything that is not complete begins with."""
VERSION: Final = 1

Fingerprint = Mapping[str, str]
"""What changes pixels or sound, by names that people know, each with its hash or its value."""


def parts_folder(output: Path) -> Path:
    """Where the parts of an output are."""
    return output.with_name(output.name + SUFFIX)


class Parts:
    """The parts of one output, for one process at a time.

    Args:
        output: a file or folder, which need not be there.
        fingerprint: of what is to be rendered.
        resume: go on with the segments that are finished.
        restart: throw those away that there are; unless either is asked for, they are an error.

    Attributes:
        path: the folder.
        finished: the segments that are complete, by number.

    Raises:
        OutputError: another process works on the output; it was begun with something else, by the fingerprint; it could
            be resumed, and nothing is said of that; or its folder is missing, or cannot be written to.
    """

    def __init__(self, output: Path, fingerprint: Fingerprint, *, resume: bool = False, restart: bool = False) -> None:
        if not output.parent.is_dir():
            raise OutputError("no such folder", file=output.parent, field="output", remedy="create it first")
        self.output, self.path = output, parts_folder(output)
        self._fingerprint = dict(fingerprint)
        self._segments: dict[int, dict[str, Any]] = {}
        try:
            self.path.mkdir(exist_ok=True)
        except OSError as error:
            raise OutputError(
                f"cannot be written to: {reason(error)}",
                file=output.parent,
                field="output",
                remedy="use another folder",
            ) from error
        self._lock = FileLock(self.path / LOCK)
        if not self._lock.acquire(timeout=0):
            raise OutputError(
                f"is being rendered by process {self._lock.holder}",
                file=output,
                field="output",
                remedy="wait for it, or use another name",
            )
        try:
            self._take_over(resume=resume, restart=restart)
        except BaseException:
            self._lock.release()
            raise

    @property
    def finished(self) -> frozenset[int]:
        """See the class."""
        return frozenset(self._segments)

    def segment(self, number: int, suffix: str) -> Path:
        """Where a finished segment is: a file, or a folder where `suffix` is empty."""
        return self.path / f"segment_{number:05d}{suffix}"

    def unfinished(self, name: str) -> Path:
        """Where something is written until it is complete."""
        return self.path / f"{UNFINISHED}{name}"

    def finish(self, number: int, suffix: str, frames: range) -> None:
        """A segment has been written completely, under `unfinished(segment(…).name)`: keep it.

        Raises:
            OSError: the disk.
        """
        final = self.segment(number, suffix)
        written = self.unfinished(final.name)
        sha256 = hash_of(written, sync=True)
        written.replace(final)
        self._segments[number] = {"name": final.name, "frames": [frames.start, frames.stop], "sha256": sha256}
        self._write()

    def place(self, written: Path) -> None:
        """What was joined of the parts is complete: give it the output's name, and remove the parts.

        Raises:
            OSError: the disk.
        """
        hash_of(written, sync=True)
        written.replace(self.output)
        sync_folder(self.output.parent)
        self.remove()

    def leave(self) -> None:
        """Stop: segments that are finished stay for who resumes; without any, nothing is left. More than once is
        allowed."""
        if self._segments:
            self._sweep()
            self._lock.release()
        else:
            self.remove()

    def remove(self) -> None:
        """Remove the folder and all that is in it."""
        self._lock.release()
        shutil.rmtree(self.path, ignore_errors=True)

    def _take_over(self, *, resume: bool, restart: bool) -> None:
        """See what there is from before."""
        before = None if restart else read_manifest(self.path)
        if before is not None and before["segments"]:
            if not resume:
                raise OutputError(
                    f"was not finished: {len(before['segments'])} segments of it are",
                    file=self.output,
                    field="output",
                    remedy="go on with --resume, or begin again with --overwrite",
                )
            self._require_same(before["fingerprint"])
            self._segments = {
                number: entry for number, entry in before["segments"].items() if _is_whole(self.path, entry)
            }
        self._sweep()
        self._write()

    def _read(self, *, resume: bool) -> dict[str, Any] | None:
        """The manifest, if there is one that names a segment.

        Raises:
            OutputError: it cannot be read, and is to be resumed.
        """
        try:
            found = json.loads((self.path / MANIFEST).read_text("utf-8"))
            segments = {int(number): _entry(entry) for number, entry in found["segments"].items()}
            if found["version"] != VERSION or not all(
                isinstance(value, str) for value in found["fingerprint"].values()
            ):
                raise ValueError(f"version {found['version']!r}")
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            if not resume:
                return None
            raise OutputError(
                f"cannot be read: {reason(error)}",
                file=self.path / MANIFEST,
                remedy="begin again with --overwrite, without --resume",
            ) from error
        return {"fingerprint": found["fingerprint"], "segments": segments} if segments else None

    def _require_same(self, before: Fingerprint) -> None:
        now = self._fingerprint
        changed = [name for name in {**before, **now} if before.get(name) != now.get(name)]
        if not changed:
            return
        name = changed[0]
        others = f"; so are {', '.join(changed[1:])}" if len(changed) > 1 else ""
        raise OutputError(
            f"{name} is not what it was when this was begun: {_told(before.get(name))}, now {_told(now.get(name))}"
            f"{others}",
            file=self.output,
            field="--resume",
            remedy="put it back, or begin again with --overwrite, without --resume",
        )

    def _sweep(self) -> None:
        """Remove all that is no finished segment."""
        kept = {MANIFEST, LOCK, *(entry["name"] for entry in self._segments.values())}
        for path in self.path.iterdir():
            if path.name not in kept:
                if path.is_dir() and not path.is_symlink():
                    shutil.rmtree(path, ignore_errors=True)
                else:
                    with suppress(OSError):
                        path.unlink()

    def _write(self) -> None:
        told = {
            "version": VERSION,
            "output": self.output.name,
            "fingerprint": self._fingerprint,
            "segments": {str(number): self._segments[number] for number in sorted(self._segments)},
        }
        written = self.unfinished(MANIFEST)
        written.write_text(json.dumps(told, indent=1), "utf-8")
        hash_of(written, sync=True)
        written.replace(self.path / MANIFEST)
        sync_folder(self.path)


def read_manifest(folder: Path) -> dict[str, Any] | None:
    """The manifest in a folder of parts, checked: `fingerprint`, and `segments` by number; None if there is none.

    Raises:
        OutputError: it cannot be read.
    """
    try:
        found = json.loads((folder / MANIFEST).read_text("utf-8"))
        if found["version"] != VERSION or not all(isinstance(value, str) for value in found["fingerprint"].values()):
            raise ValueError(f"version {found['version']!r}")
        segments = {int(number): _entry(entry) for number, entry in found["segments"].items()}
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise OutputError(
            f"cannot be read: {reason(error)}",
            file=folder / MANIFEST,
            remedy="begin again with --overwrite, without --resume",
        ) from error
    return found | {"segments": segments}


def wrong_parts(output: Path) -> list[str]:
    """What is wrong with the parts of an output, a line each: nothing if there are none."""
    folder = parts_folder(output)
    try:
        manifest = read_manifest(folder)
    except OutputError as error:
        return [str(error)]
    return [f"{folder.name}/{entry['name']} is not what was written" for entry in manifest["segments"].values()
            if not _is_whole(folder, entry)] if manifest else []  # fmt: skip


def _is_whole(folder: Path, entry: Mapping[str, Any]) -> bool:
    with suppress(OSError):
        return hash_of(folder / entry["name"]) == entry["sha256"]
    return False


def _entry(entry: Any) -> dict[str, Any]:
    """What a manifest says of a segment, if it is that."""
    name, frames, sha256 = entry["name"], entry["frames"], entry["sha256"]
    if not isinstance(name, str) or Path(name).name != name or not isinstance(sha256, str):
        raise ValueError(f"no segment: {name!r}")
    start, stop = map(int, frames)
    return {"name": name, "frames": [start, stop], "sha256": sha256}


def _told(value: str | None) -> str:
    return "nothing" if value is None else value if len(value) < 40 else f"{value[:12]}…"
