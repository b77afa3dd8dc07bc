"""The finished segments of an output, beside it until it is complete: `talk.mp4.parts/`, with a manifest.

What is in there under its final name was written under another one, synced, and then renamed: a process that is killed,
a full disk or a loss of power leaves whole segments, or none. The manifest says which there are, with their hashes, and
holds a fingerprint of everything that changes a pixel or a sample; so whoever goes on renders the same output, byte for
byte, or is told what has changed.
"""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Final, NamedTuple

from gpupipe.errors import OutputError
from gpupipe.log import Log
from gpupipe.options import OutputOptions
from gpupipe.render.durable import hash_of, put_in_place, remove, replace, sync, sync_folder
from gpupipe.render.manifest import MANIFEST, Manifest, Segment, read_manifest, segment_name
from gpupipe.render.naming import naming_errors
from gpupipe.render.parts_lock import UNFINISHED, PartsLock

SUFFIX: Final = ".parts"
OURS: Final = re.compile(rf"{MANIFEST}|{UNFINISHED}.*|segment_\d{{5,}}(\.\w+)?")
"""What is removed of a folder of parts, besides its lock: what else somebody may have put there stays."""
PATIENCE_SECONDS: Final = 30.0
"""How long a process that renders some segments waits for another one to have written the manifest."""

_log = Log(__name__)


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
    named = output if output.name not in ("", "..") else output.resolve()
    return named.parent / f"{named.name}{SUFFIX}"


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
        OutputError: another works on the output; it was begun with something else, by the fingerprint; it could be
            resumed, and nothing is said of that; or its folder is missing, or cannot be written to.
    """

    def __init__(self, output: Path, manifest: Manifest, start: Start, *, named: Path | None = None) -> None:
        if not output.parent.is_dir():
            raise OutputError("no such folder", file=output.parent, field="output", remedy="create it first")
        self.output, self.path, self._named = output, parts_folder(output), named or output
        self._start, self._manifest = start, manifest
        self._segments: dict[int, Segment] = {}
        self._writing = threading.Lock()
        self._lock = PartsLock(self.path, self._named)
        self._left = False
        with naming_errors(self._named):
            try:
                self._lock.take(PATIENCE_SECONDS if start.shared else 0.0)
                sync_folder(output.parent)  # or a loss of power takes all that will be in the folder
                self._take_over()
            except BaseException:
                self._retreat()
                raise

    @property
    def finished(self) -> frozenset[int]:
        """The segments that are complete, by number."""
        return frozenset(self._segments)

    def segment(self, number: int, suffix: str) -> Path:
        """Where a finished segment is: a file, or a folder where `suffix` is empty."""
        return self.path / segment_name(number, suffix)

    def unfinished(self, name: str) -> Path:
        """Where this process writes something until it is complete."""
        return self.path / f"{self._lock.mine}{name}"

    def finish(self, number: int, suffix: str, frames: range) -> None:
        """A segment has been written completely, to `unfinished(segment(number, suffix).name)`: keep it.

        Raises:
            OSError: the disk.
        """
        final = self.segment(number, suffix)
        written = self.unfinished(final.name)
        sync(written)
        sha256 = hash_of(written)
        with self._writing, self._alone() if self._start.shared else nullcontext():
            if self._start.shared and (before := read_manifest(self.path)) is not None:
                self._segments = dict(before.segments)
            put_in_place(written, final)
            sync_folder(self.path)  # before the manifest names it: a disk keeps no order of what is not synced
            self._write({**self._segments, number: Segment(final.name, frames.start, frames.stop, sha256)})
        _log.event("segment finished", output=self._named, segment=number, frames=len(frames))

    def place(self, written: Path) -> None:
        """What was joined of the parts is complete: give it the output's name, and remove the parts.

        Raises:
            OSError: the disk.
        """
        sync(written)
        replace(written, self.output)
        sync_folder(self.output.parent)
        self.remove()
        _log.event("output placed", output=self._named)

    def leave(self) -> None:
        """Stop: segments that are finished stay for who resumes; without any, nothing is left. More than once is
        allowed, and after `remove`."""
        if self._left:
            return
        with suppress(OutputError):  # what is written counts: an interrupt may have come right after that
            written = read_manifest(self.path)
            self._segments = {} if written is None else dict(written.segments)
        if self._start.shared:
            self._leave_to_others()
        elif self._segments:
            self._sweep()
            self._lock.release()
        else:
            self.remove()
        self._left = True

    def _leave_to_others(self) -> None:
        self._sweep()
        self._lock.leave()
        self._lock.release()
        with suppress(OutputError, OSError), self._alone():
            now = read_manifest(self.path)
            if (now is None or not now.segments) and self._lock.other() is None:
                self.remove()

    def remove(self) -> None:
        """Remove all that is in the folder, the manifest first, and the folder, unless there is something in it that is
        not ours. If that is interrupted, `leave` goes on."""
        remove(self.path / MANIFEST)
        for path in self._inside():
            remove(path)
        self._lock.leave()
        self._lock.remove()
        self._left = True

    def _retreat(self) -> None:
        """Nothing could be begun: what was there before stays, and what this one has put there goes."""
        if not self._lock.held:
            self._lock.leave()
            with suppress(OSError):  # unless another is at work, or something is there from before
                self.path.rmdir()
            return
        remove(self.unfinished(MANIFEST))
        try:
            before = read_manifest(self.path)
            used = self._start.shared or (before is not None and bool(before.segments))
        except OutputError:
            used = True
        if used:
            self._lock.leave()
            self._lock.release()
        else:
            self.remove()

    def _take_over(self) -> None:
        """See what there is from before, and who else is there, while the lock is held; it is released if others share
        the folder."""
        start, other = self._start, self._lock.other()
        if other is not None and not start.shared:
            raise self._lock.taken_by(other)
        try:
            before = None if start.restart else read_manifest(self.path)
        except OutputError:
            if start.resume or start.shared:
                raise
            before = None
        if before is not None and (before.segments or other is not None):
            if not (start.resume or start.shared):
                raise OutputError(
                    f"was not finished: {len(before.segments)} of its {before.count} segments are",
                    file=self._named,
                    field="output",
                    remedy="go on with --resume, or begin again with --overwrite",
                )
            self._manifest.require_same(before, self._named)
            self._segments = dict(before.segments)
        if start.shared:
            self._write(self._segments)
            self._lock.share()
            self._lock.release()  # hashing takes a while, for which nobody need wait
            self._segments = self._whole()
            return
        self._write(self._whole())
        self._sweep()

    def _whole(self) -> dict[int, Segment]:
        """The segments that are what was written."""
        began = time.perf_counter()
        found = {number: one for number, one in self._segments.items() if one.is_whole(self.path)}
        if self._segments:
            _log.event(
                "output resumed",
                output=self._named,
                segments=len(found),
                spoiled=len(self._segments) - len(found),
                of=self._manifest.count,
                seconds=time.perf_counter() - began,
            )
        return found

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """None of those that share the parts looks at the manifest, or changes it, in the with block."""
        self._lock.take(PATIENCE_SECONDS)
        try:
            yield
        finally:
            self._lock.release()

    def _sweep(self) -> None:
        """Remove all that is no finished segment: where others work too, what this one has not finished."""
        kept = {MANIFEST, *(one.name for one in self._segments.values())}
        for path in self._inside():
            mine = path.name.startswith(self._lock.mine)
            if mine or (path.name not in kept and not self._start.shared):
                remove(path)

    def _inside(self) -> list[Path]:
        """What is ours in the folder, but for its lock, and this one's own for as long as it shares."""
        found = list(self.path.iterdir()) if self.path.is_dir() else []
        return [path for path in found if OURS.fullmatch(path.name) and path != self._lock.sharing]

    def _write(self, segments: dict[int, Segment]) -> None:
        """Write the manifest, with the segments that are finished from now on."""
        written = self.unfinished(MANIFEST)
        written.write_text(json.dumps(self._manifest.as_dict(segments), indent=1), "utf-8")
        sync(written)
        replace(written, self.path / MANIFEST)
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
            how = "--resume --overwrite" if output.is_symlink() or output.is_file() else "--resume"
            return f"{output}: {len(manifest.segments)} of {manifest.count} segments are finished; go on with {how}"
    return None
