"""The jobs of a server as they are kept: records in memory, each with its folder on the disk."""

from __future__ import annotations

import logging
import secrets
import threading
import time
from collections.abc import Set
from dataclasses import replace
from pathlib import Path
from typing import Final

from gpupipe.errors import DeviceError, EngineClosed, GpupipeError, HostMemoryError, OutputError, reason
from gpupipe.filelock import FileLock
from gpupipe.log import Log
from gpupipe.render.durable import remove
from gpupipe.serve.jobrecord import ID, JobOptions, JobRecord, read_record, write_record
from gpupipe.serve.refusals import NotFound, Refused

SOUND: Final = "sound"
VIDEO: Final = "video.mp4"
LOCK: Final = "lock"
MODE: Final = 0o700
"""Of the folders: what others have said is not for every user of this machine."""

OF_THE_MACHINE: Final = (OutputError, DeviceError, EngineClosed, HostMemoryError)
"""Errors that the next server may not meet, such as a full disk: jobs that failed by one keep what there is of them."""

_log = Log(__name__)


class JobStore:
    """The jobs, of which some wait and some are under way. Every method may be called from any thread.

    Args:
        folder: of their folders; made if it is not there.
        most: jobs that wait or are under way.
    """

    def __init__(self, folder: Path, most: int) -> None:
        self._folder, self._most = folder, most
        self._records: dict[str, JobRecord] = {}
        self._drafts: set[str] = set()
        self._under_way: set[str] = set()
        self._condition = threading.Condition()
        self._closing = False
        self._lock = FileLock(folder / LOCK)

    def open(self) -> None:
        """Read what an earlier server has left.

        Raises:
            OutputError: another server works there, or nothing can be read or written there.
        """
        try:
            self._folder.mkdir(mode=MODE, parents=True, exist_ok=True)
            if not self._lock.acquire(0):
                raise OutputError(
                    f"is used by another server (process {self._lock.holder})",
                    file=self._folder,
                    remedy="give another folder",
                )
            self._read()
        except OSError as error:
            self._lock.release()
            raise OutputError(
                f"cannot be used: {reason(error)}", file=self._folder, remedy="give another folder"
            ) from error

    @property
    def closing(self) -> bool:
        """Whether no more jobs are taken."""
        return self._closing

    def stop(self) -> None:
        """Take no more jobs, and give out none."""
        with self._condition:
            self._closing = True
            self._condition.notify_all()

    def wait_stopped(self, seconds: float) -> bool:
        """Whether it is stopped, within so many seconds."""
        with self._condition:
            return self._condition.wait_for(lambda: self._closing, seconds)

    def release(self) -> None:
        """Let another server have the folder."""
        self._lock.release()

    @property
    def count(self) -> int:
        """Jobs that wait or are under way."""
        with self._condition:
            return sum(record.ended is None for record in self._records.values())

    def draft(self) -> Path:
        """Where the sound of a new job is to be written.

        Raises:
            Refused: there are as many as may be.
        """
        name = secrets.token_urlsafe(18)
        with self._condition:
            if self._closing:
                raise Refused("the server is being shut down", closing=True, remedy="ask another server")
            if self.count + len(self._drafts) >= self._most:
                raise Refused(f"{self._most} jobs wait, as many as may be", retry_after=60)
            self._drafts.add(name)
        try:
            (self._folder / name).mkdir(mode=MODE)
        except OSError as error:
            self._drafts.discard(name)
            raise OutputError(f"cannot be written: {reason(error)}", file=self._folder) from error
        return self._folder / name / SOUND

    def drop(self, sound: Path) -> None:
        """Forget a draft."""
        remove(sound.parent)
        with self._condition:
            self._drafts.discard(sound.parent.name)

    def add(self, sound: Path, character: str, options: JobOptions) -> JobRecord:
        """Make a job of a draft.

        Raises:
            OutputError: the disk.
        """
        name = sound.parent.name
        record = JobRecord(name, character, options, created=time.time())
        try:
            write_record(sound.parent, record)
        except OSError as error:
            raise OutputError(f"cannot be written: {reason(error)}", file=self._folder) from error
        with self._condition:
            self._drafts.discard(name)
            self._records[name] = record
            self._condition.notify_all()
        return record

    def all(self) -> list[JobRecord]:
        """Every job, the oldest first."""
        with self._condition:
            return sorted(self._records.values(), key=lambda record: (record.created, record.id))

    def get(self, name: str) -> JobRecord:
        """A job.

        Raises:
            NotFound: there is none.
        """
        with self._condition:
            record = self._records.get(name)
        if record is None:
            raise NotFound("no such job", field="job", value=name[:40])
        return record

    def folder_of(self, record: JobRecord) -> Path:
        """Where a job's files are."""
        return self._folder / record.id

    def take(self, held: Set[str]) -> JobRecord | None:
        """The next job, once there is one; None once it is stopped.

        Args:
            held: characters that come first.
        """
        with self._condition:
            while not self._closing:
                waiting = [record for record in self._records.values() if record.status == "waiting"]
                if waiting:
                    first = min(waiting, key=lambda record: (record.character not in held, record.created, record.id))
                    self._under_way.add(first.id)
                    self._records[first.id] = replace(first, status="running", started=time.time())
                    return self._records[first.id]
                self._condition.wait()
            return None

    def give_back(self, record: JobRecord) -> None:
        """Nothing works on a job any more."""
        with self._condition:
            self._under_way.discard(record.id)
            self._condition.notify_all()

    def progressed(self, name: str, done: int, total: int) -> None:
        """So many frames of a job are written."""
        with self._condition:
            record = self._records.get(name)
            if record is not None:
                self._records[name] = replace(record, done=done, total=total)

    def end(self, name: str, error: GpupipeError | None, frames: int = 0) -> None:
        """A job is done, with so many frames, or has failed."""
        with self._condition:
            record = self._records.get(name)
        if record is None:  # it was forgotten
            return
        if error is None:
            ended = replace(record, status="done", ended=time.time(), done=frames, total=frames)
        else:
            # Without the file: paths are this machine's.
            said = str(GpupipeError(**error.parts))
            ended = replace(record, status="failed", ended=time.time(), error=said)
        folder = self.folder_of(ended)
        try:
            write_record(folder, ended)
        except OSError as wrong:  # after a restart it is done once more
            _log.event("job cannot be written", logging.WARNING, job=name, error=reason(wrong))
        else:
            if error is None or not isinstance(error, OF_THE_MACHINE):
                remove(folder / SOUND)
        with self._condition:
            if name in self._records:
                self._records[name] = ended

    def forget(self, name: str) -> None:
        """Forget a job."""
        with self._condition:
            self._records.pop(name, None)

    def remove(self, record: JobRecord) -> None:
        """Remove a forgotten job's files, once nothing works on it."""
        with self._condition:
            while record.id in self._under_way:
                self._condition.wait()
        remove(self.folder_of(record))

    def _read(self) -> None:
        for path in sorted(self._folder.iterdir()):
            if not ID.fullmatch(path.name) or not path.is_dir():
                continue
            try:
                record = read_record(path)
            except FileNotFoundError:
                remove(path)  # its sound was still coming
            except (ValueError, OSError) as error:
                _log.event("job cannot be read", logging.WARNING, job=path.name, error=reason(error))
            else:
                again = record.ended is None or (record.status == "failed" and (path / SOUND).exists())
                self._records[path.name] = _anew(record) if again else record


def _anew(record: JobRecord) -> JobRecord:
    """A job that is done once more, or gone on with."""
    return replace(record, status="waiting", started=None, ended=None, done=0, error=None)
