"""Renders to files on a server's engines: they wait their turn, use what talks leave, and outlive the server.

A job is a folder, `ID/` with `job.json`, `sound` and `video.mp4`. What is finished of a video is kept beside it, so that
a server that starts again goes on with it (`render.parts`).
"""

from __future__ import annotations

import logging
import secrets
import threading
import time
import traceback
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Final

from gpupipe.errors import DeviceError, DeviceMemoryError, EngineClosed, GpupipeError, OutputError, reason
from gpupipe.filelock import FileLock
from gpupipe.log import Log
from gpupipe.media.video import probe
from gpupipe.render.durable import remove
from gpupipe.render.engine import PARALLEL, Engine
from gpupipe.render.job import Job
from gpupipe.render.parts import parts_folder
from gpupipe.render.stats import Progress
from gpupipe.serve.hub import Hub
from gpupipe.serve.jobrecord import ID, JobOptions, JobRecord, read_record, write_record
from gpupipe.serve.refusals import NotFound, Refused
from gpupipe.threads import Worker

SOUND: Final = "sound"
VIDEO: Final = "video.mp4"
LOCK: Final = "lock"
KEPT_FROM_OTHERS: Final = 0o700

SWEEP_SECONDS: Final = 60.0
"""How often it is looked for finished jobs that are to go."""

_log = Log(__name__)


class Jobs:
    """The jobs of a server. Every method may be called from any thread; none is for the event loop, but for `count`.

    Args:
        hub: on whose engines they are rendered.
        folder: of their files; made if it is not there.

    Raises:
        OutputError: on `start`: another server works there, or nothing can be written there.
    """

    def __init__(self, hub: Hub, folder: Path) -> None:
        self._hub, self._folder = hub, folder
        self._records: dict[str, JobRecord] = {}
        self._drafts: set[str] = set()
        self._under_way: dict[str, Job] = {}
        self._going: set[str] = set()
        self._condition = threading.Condition()
        self._closing = False
        self._workers: list[Worker] = []
        self._lock = FileLock(folder / LOCK)

    def start(self) -> None:
        """Go on with what was not finished, and take more."""
        try:
            self._folder.mkdir(mode=KEPT_FROM_OTHERS, parents=True, exist_ok=True)
        except OSError as error:
            raise OutputError(f"cannot be made: {reason(error)}", file=self._folder, remedy="give another") from error
        if not self._lock.acquire(0):
            raise OutputError(
                f"is used by another server (process {self._lock.holder})", file=self._folder, remedy="give another"
            )
        try:
            self._read()
        except OSError as error:
            self._lock.release()
            raise OutputError(f"cannot be read: {reason(error)}", file=self._folder, remedy="give another") from error
        self._workers = [Worker("job", self._serve, each) for each in self._hub.engines for _ in range(PARALLEL)]
        self._workers.append(Worker("old jobs", self._sweep))
        for worker in self._workers:
            worker.start()

    def close(self) -> None:
        """Take no more, and stop: what is not finished is gone on with at the next start."""
        with self._condition:
            self._closing = True
            under_way = list(self._under_way.values())
            self._condition.notify_all()
        for job in under_way:
            job.cancel()
        for worker in self._workers:
            worker.wait()
        self._lock.release()

    @property
    def count(self) -> int:
        """Jobs that wait or are under way."""
        with self._condition:
            return self._count()

    def draft(self) -> Path:
        """Where the sound of a new job is to be written.

        Raises:
            Refused: there are as many as may be.
        """
        name = secrets.token_urlsafe(18)
        with self._condition:
            if self._closing:
                raise Refused("the server is being shut down", closing=True, remedy="ask another server")
            if self._count() + len(self._drafts) >= self._hub.limits.jobs:
                raise Refused(f"{self._hub.limits.jobs} jobs wait, as many as may be", retry_after=60)
            self._drafts.add(name)
        try:
            (self._folder / name).mkdir(mode=KEPT_FROM_OTHERS)
        except BaseException:
            self._drafts.discard(name)
            raise
        return self._folder / name / SOUND

    def drop(self, sound: Path) -> None:
        """Forget a draft."""
        remove(sound.parent)
        with self._condition:
            self._drafts.discard(sound.parent.name)

    def submit(self, sound: Path, character: str, options: JobOptions) -> JobRecord:
        """Make a job of a draft.

        Args:
            sound: as `draft` has given it, written.
            character: its name, which there is.
            options: how to render.

        Raises:
            OSError: the disk.
        """
        name = sound.parent.name
        record = JobRecord(name, character, options, created=time.time())
        write_record(sound.parent, record)
        with self._condition:
            self._drafts.discard(name)
            self._records[name] = record
            self._condition.notify_all()
        _log.event("job taken", job=name, character=character)
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

    def video(self, name: str) -> Path:
        """A finished job's video.

        Raises:
            NotFound: there is no such job, or it is not finished.
        """
        record = self.get(name)
        path = self._folder / record.id / VIDEO
        if record.status != "done" or not path.is_file():
            raise NotFound(f"is {record.status}, it has no video", field="job", value=record.id, remedy="wait for it")
        return path

    def delete(self, name: str) -> None:
        """Call a job off, and forget it and its files. Returns once they are gone.

        Raises:
            NotFound: there is none.
        """
        record = self.get(name)
        with self._condition:
            self._records.pop(name, None)
            job = self._under_way.get(name)
        if job is not None:
            job.cancel()
        with self._condition:
            while name in self._going:
                self._condition.wait()
        remove(self._folder / record.id)
        _log.event("job removed", job=name)

    def _count(self) -> int:
        return sum(not record.ended for record in self._records.values())

    def _read(self) -> None:
        """The jobs of an earlier server."""
        for path in sorted(self._folder.iterdir()):
            if not ID.fullmatch(path.name) or not path.is_dir():
                continue
            try:
                record = read_record(path)
            except FileNotFoundError:
                remove(path)  # its sound was still coming
                continue
            except (ValueError, OSError) as error:
                _log.event("job cannot be read", logging.WARNING, job=path.name, error=reason(error))
                continue
            self._records[path.name] = record if record.ended else replace(record, status="waiting", done=0)

    def _serve(self, engine: Engine) -> None:
        """Do jobs on an engine until the server is closed, or its device has failed."""
        held: set[str] = set()
        while (record := self._take(held)) is not None:
            held.add(record.character)
            try:
                wrong = self._done(engine, record)
            finally:
                with self._condition:
                    self._going.discard(record.id)
                    self._condition.notify_all()
            if isinstance(wrong, (DeviceError, EngineClosed)) and not isinstance(wrong, DeviceMemoryError):
                return

    def _take(self, held: set[str]) -> JobRecord | None:
        """The next job: of a character that this engine has drawn before, else the oldest."""
        with self._condition:
            while not self._closing:
                waiting = [record for record in self._records.values() if record.status == "waiting"]
                waiting.sort(key=lambda record: (record.character not in held, record.created))
                if waiting:
                    self._going.add(waiting[0].id)
                    return self._change(waiting[0], status="running", started=time.time())
                self._condition.wait()
            return None

    def _done(self, engine: Engine, record: JobRecord) -> GpupipeError | None:
        """Do a job; what was wrong with it."""
        try:
            frames = self._rendered(engine, record)
        except GpupipeError as error:
            if not self._closing:
                self._end(record, error)
            return error
        except Exception as error:
            wrong = GpupipeError(f"the server failed: {type(error).__name__}", remedy="see its log")
            _log.event("job failed", logging.ERROR, job=record.id, error=traceback.format_exc())
            self._end(record, wrong)
            return wrong
        self._end(record, None, frames)
        return None

    def _rendered(self, engine: Engine, record: JobRecord) -> int:
        """Render a job; how many frames it has."""
        output = self._folder / record.id / VIDEO
        if output.is_file():  # it was written, and the server ended before it could say so
            return probe(output).frames
        began_before = parts_folder(output).exists()
        try:
            return self._attempt(engine, record, output)
        except OutputError as error:
            if not began_before or self._closing:
                raise
            _log.event("job begun again", logging.WARNING, job=record.id, error=str(error))
            remove(parts_folder(output))
            return self._attempt(engine, record, output)

    def _attempt(self, engine: Engine, record: JobRecord, output: Path) -> int:
        character = self._hub.characters.get(record.character)
        options = record.options
        job = engine.submit(
            character,
            output,
            audio=output.with_name(SOUND),
            start_frame=options.start_frame,
            frames=options.frames,
            sound=options.sound,
            crf=options.crf,
            resume=True,
            progress=lambda progress: self._tell(record.id, progress),
            **self._hub.model,
        )
        with self._condition:
            self._under_way[record.id] = job
            over = self._closing or record.id not in self._records
        try:
            if over:
                job.cancel()
            return job.result().frames
        finally:
            with self._condition:
                del self._under_way[record.id]

    def _end(self, record: JobRecord, error: GpupipeError | None, frames: int = 0) -> None:
        with self._condition:
            if record.id not in self._records:  # it was deleted
                return
            now = self._records[record.id]
            if error is None:
                ended = self._change(now, status="done", ended=time.time(), done=frames, total=frames)
            else:
                said = str(GpupipeError(**error.parts))
                ended = self._change(now, status="failed", ended=time.time(), error=said)
        _log.event("job ended", job=record.id, status=ended.status, error=None if error is None else str(error))
        folder = self._folder / record.id
        try:
            write_record(folder, ended)
        except OSError as wrong:  # after a restart it is done once more
            _log.event("job cannot be written", logging.WARNING, job=record.id, error=reason(wrong))
        else:
            remove(folder / SOUND)

    def _tell(self, name: str, progress: Progress) -> None:
        with self._condition:
            record = self._records.get(name)
            if record is not None:
                self._change(record, done=progress.done, total=progress.total)

    def _change(self, record: JobRecord, **changes: object) -> JobRecord:
        changed = replace(record, **changes)  # type: ignore[arg-type]
        self._records[record.id] = changed
        return changed

    def _sweep(self) -> None:
        """Remove what has been finished for long enough."""
        while True:
            oldest = time.time() - self._hub.limits.job_hours * 3600
            for record in self.all():
                if record.ended is not None and record.ended < oldest:
                    with suppress(NotFound):
                        self.delete(record.id)
            with self._condition:
                if self._condition.wait_for(lambda: self._closing, SWEEP_SECONDS):
                    return
