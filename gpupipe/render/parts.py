"""The finished segments of an output, beside it until it is complete: `talk.mp4.parts/`, with a manifest.

What is in there under its final name was written under another one, synced, and then renamed: a process that is killed,
a full disk or a loss of power leaves whole segments, or none. The manifest says which there are, with their hashes, and
holds a fingerprint of everything that changes a pixel or a sample; so whoever goes on renders the same output, byte for
byte, or is told what has changed.
"""

from __future__ import annotations

import json
import os
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final, NamedTuple

from gpupipe.errors import OutputError, reason
from gpupipe.filelock import FileLock
from gpupipe.options import OutputOptions
from gpupipe.render.durable import hash_of, put_in_place, remove, sync_folder
from gpupipe.render.manifest import MANIFEST, Manifest, Segment, read_manifest

SUFFIX: Final = ".parts"
LOCK: Final = "lock"
UNFINISHED: Final = "unfinished-"
"""What the name of everything begins with that is not complete."""
PATIENCE_SECONDS: Final = 30.0
"""How long a process that renders some segments waits for another one to have written the manifest."""


class Start(NamedTuple):
    """What is to be done with what there is from before.

    Attributes:
        resume: go on with the segments that are finished.
        restart: throw them away; unless either is asked for, they are an error.
        shared: other processes add segments too.
    """

    resume: bool = False
    restart: bool = False
    shared: bool = False


def start_of(options: OutputOptions) -> Start:
    """What the options of an output say of that."""
    shared = options.segments is not None
    return Start(resume=options.resume, restart=options.overwrite and not (options.resume or shared), shared=shared)


def parts_folder(output: Path) -> Path:
    """Where the parts of an output are."""
    return output.with_name(output.name + SUFFIX)


class Parts:
    """The parts of one output, for one process at a time, or for some that share them.

    Args:
        output: a file or folder, which need not be there.
        manifest: of what is to be rendered; its segments do not count.
        start: what is to be done with what there is from before.
        named: what errors call the output, if that is another path.

    Attributes:
        output: of which they are.
        path: the folder.

    Raises:
        OutputError: another process works on the output; it was begun with something else, by the fingerprint; it could
            be resumed, and nothing is said of that; or its folder is missing, or cannot be written to.
    """

    def __init__(self, output: Path, manifest: Manifest, start: Start, *, named: Path | None = None) -> None:
        if not output.parent.is_dir():
            raise OutputError("no such folder", file=output.parent, field="output", remedy="create it first")
        self.output, self.path, self._named = output, parts_folder(output), named or output
        self._start, self._manifest = start, manifest
        self._segments: dict[int, Segment] = {}
        self._writing = threading.Lock()
        self._lock = FileLock(self.path / LOCK)
        with naming_errors(self._named), self._taking():
            sync_folder(output.parent)  # or a loss of power takes all that will be in the folder
            self._take_over()
            if not start.shared:
                self._sweep()

    @property
    def finished(self) -> frozenset[int]:
        """The segments that are complete, by number."""
        return frozenset(self._segments)

    def segment(self, number: int, suffix: str) -> Path:
        """Where a finished segment is: a file, or a folder where `suffix` is empty."""
        return self.path / f"segment_{number:05d}{suffix}"

    def unfinished(self, name: str) -> Path:
        """Where this process writes something until it is complete."""
        return self.path / f"{UNFINISHED}{os.getpid()}-{name}"

    def finish(self, number: int, suffix: str, frames: range) -> None:
        """A segment has been written completely, to `unfinished(segment(number, suffix).name)`: keep it.

        Raises:
            OSError: the disk.
        """
        final = self.segment(number, suffix)
        written = self.unfinished(final.name)
        sha256 = hash_of(written, sync=True)
        with self._writing, self._alone() if self._start.shared else _nothing():
            if self._start.shared and (before := read_manifest(self.path)) is not None:
                self._segments = dict(before.segments)
            put_in_place(written, final)
            self._write({**self._segments, number: Segment(final.name, frames.start, frames.stop, sha256)})

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
        with suppress(OutputError):  # what is written counts: an interrupt may have come right after that
            written = read_manifest(self.path)
            self._segments = {} if written is None else dict(written.segments)
        if self._segments or self._start.shared:
            self._sweep()
            self._lock.release()
        else:
            self.remove()

    def remove(self) -> None:
        """Remove the folder and all that is in it; the lock goes last. If that is interrupted, `leave` goes on."""
        remove(self.path / MANIFEST)
        for path in self.path.iterdir() if self.path.is_dir() else ():
            if path.name != LOCK:
                remove(path)
        self._lock.release()
        shutil.rmtree(self.path, ignore_errors=True)

    @contextmanager
    def _taking(self) -> Iterator[None]:
        """Hold the lock, beyond the with block where the parts are not shared; if that fails, all is as it was."""
        try:
            self._make_folder()
            self._acquire(PATIENCE_SECONDS if self._start.shared else 0.0)
            yield
        except BaseException:
            self._retreat()
            raise
        if self._start.shared:
            self._lock.release()

    def _make_folder(self) -> None:
        try:
            self.path.mkdir(exist_ok=True)
        except OSError as error:
            raise OutputError(
                f"cannot be written to: {reason(error)}",
                file=self.output.parent,
                field="output",
                remedy="use another folder",
            ) from error

    def _retreat(self) -> None:
        """Nothing could be begun: what was there before stays, and what this process has put there goes."""
        if not self._lock.held:
            with suppress(OSError):  # unless another process is at work, or something is there from before
                self.path.rmdir()
            return
        remove(self.unfinished(MANIFEST))
        try:
            before = read_manifest(self.path)
            used = self._start.shared or (before is not None and bool(before.segments))
        except OutputError:
            used = True
        if used:
            self._lock.release()
        else:
            self.remove()

    def _take_over(self) -> None:
        """See what there is from before."""
        start = self._start
        try:
            before = None if start.restart else read_manifest(self.path)
        except OutputError:
            if start.resume or start.shared:
                raise
            before = None
        if before is not None and before.segments:
            if not (start.resume or start.shared):
                raise OutputError(
                    f"was not finished: {len(before.segments)} of its {before.count} segments are",
                    file=self._named,
                    field="output",
                    remedy="go on with --resume, or begin again with --overwrite",
                )
            self._manifest.require_same(before, self._named)
            self._segments = {n: one for n, one in before.segments.items() if one.is_whole(self.path)}
        self._write(self._segments)

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """None of those that share the parts looks at the manifest, or changes it, in the with block."""
        self._acquire(PATIENCE_SECONDS)
        try:
            yield
        finally:
            self._lock.release()

    def _acquire(self, seconds: float) -> None:
        if not self._lock.acquire(timeout=seconds):
            raise OutputError(
                f"is being rendered by process {self._lock.holder}",
                file=self._named,
                field="output",
                remedy="wait for it, or use another name",
            )

    def _sweep(self) -> None:
        """Remove all that is no finished segment: where others work too, what this process has not finished."""
        kept = {MANIFEST, LOCK, *(one.name for one in self._segments.values())}
        for path in self.path.iterdir() if self.path.is_dir() else ():
            mine = path.name.startswith(f"{UNFINISHED}{os.getpid()}-")
            if mine or (path.name not in kept and not self._start.shared):
                remove(path)

    def _write(self, segments: dict[int, Segment]) -> None:
        """Write the manifest, with the segments that are finished from now on."""
        written = self.unfinished(MANIFEST)
        written.write_text(json.dumps(self._manifest.as_dict(segments), indent=1), "utf-8")
        hash_of(written, sync=True)
        written.replace(self.path / MANIFEST)
        self._segments = segments
        sync_folder(self.path)


def wrong_parts(output: Path) -> list[str]:
    """What is wrong with the parts of an output, a line each: nothing if there are none."""
    folder = parts_folder(output)
    try:
        manifest = read_manifest(folder)
    except OutputError as error:
        return [str(error)]
    segments = {} if manifest is None else manifest.segments
    return [
        f"{folder.name}/{one.name} is not what was written" for one in segments.values() if not one.is_whole(folder)
    ]


def resumable(output: Path) -> str | None:
    """What to say of an output that can be resumed; None where there is nothing."""
    with suppress(OutputError):
        manifest = read_manifest(parts_folder(output))
        if manifest is not None and manifest.segments:
            return f"{output}: {len(manifest.segments)} of {manifest.count} segments are finished; go on with --resume"
    return None


@contextmanager
def naming(output: Path) -> Iterator[None]:
    """Let what fails inside name the output, not the part of it that could not be written."""
    try:
        with naming_errors(output):
            yield
    except OutputError as error:
        raise error.naming(output) from error


@contextmanager
def naming_errors(output: Path) -> Iterator[None]:
    """Let the system's errors inside be those of an output that cannot be written."""
    try:
        yield
    except OSError as error:
        raise OutputError(
            f"cannot be written: {reason(error)}", file=output, remedy="check the folder, its rights and its free space"
        ) from error


@contextmanager
def _nothing() -> Iterator[None]:
    yield
