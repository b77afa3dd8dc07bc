"""Renders to files on a server's engines: they wait their turn, use what talks leave, and outlive the server.

A job is a folder, `ID/` with `job.json`, `sound` and `video.mp4`. What is finished of a video is kept beside it, so
that a server that starts again goes on with it (`render.parts`).
"""

from __future__ import annotations

import logging
import threading
import time
import traceback
from contextlib import suppress
from pathlib import Path
from typing import Final

from gpupipe.errors import DeviceError, DeviceMemoryError, EngineClosed, GpupipeError, OtherRender
from gpupipe.log import Log
from gpupipe.media.video import probe
from gpupipe.render.durable import remove
from gpupipe.render.engine import PARALLEL, Engine
from gpupipe.render.job import Job
from gpupipe.render.parts import parts_folder
from gpupipe.serve.hub import Hub
from gpupipe.serve.jobrecord import JobOptions, JobRecord
from gpupipe.serve.jobstore import SOUND, VIDEO, JobStore
from gpupipe.serve.refusals import NotFound
from gpupipe.threads import Worker

SWEEP_SECONDS: Final = 60.0
"""How often it is looked for finished jobs that are to go."""

_log = Log(__name__)


class Jobs:
    """The jobs of a server. Every method may be called from any thread; those that touch files are not for the event
    loop: all but `count`, `all` and `get`.

    Args:
        hub: on whose engines they are rendered; closed after this.
        folder: of their files; made if it is not there.
    """

    def __init__(self, hub: Hub, folder: Path) -> None:
        self._hub = hub
        self._store = JobStore(folder, hub.limits.jobs)
        self._renders: dict[str, Job] = {}
        self._lock = threading.Lock()
        self._workers: list[Worker] = []

    def start(self) -> None:
        """Go on with what an earlier server has not finished, and take more.

        Raises:
            OutputError: another server works there, or nothing can be written there.
        """
        self._store.open()
        self._workers = [Worker("job", self._serve, each) for each in self._hub.engines for _ in range(PARALLEL)]
        self._workers.append(Worker("old jobs", self._sweep))
        for worker in self._workers:
            worker.start()

    def close(self) -> None:
        """Take no more, and stop: what is not finished is gone on with at the next start."""
        self._store.stop()
        with self._lock:
            renders = list(self._renders.values())
        for each in renders:
            each.cancel()
        for worker in self._workers:
            worker.wait()
        self._store.release()

    @property
    def count(self) -> int:
        """Jobs that wait or are under way."""
        return self._store.count

    def draft(self) -> Path:
        """Where the sound of a new job is to be written.

        Raises:
            Refused: there are as many as may be.
        """
        return self._store.draft()

    def drop(self, sound: Path) -> None:
        """Forget a draft."""
        self._store.drop(sound)

    def submit(self, sound: Path, character: str, options: JobOptions) -> JobRecord:
        """Make a job of a draft.

        Args:
            sound: as `draft` has given it, written.
            character: its name, which there is.
            options: how to render.

        Raises:
            OutputError: the disk.
        """
        record = self._store.add(sound, character, options)
        _log.event("job taken", job=record.id, character=character)
        return record

    def all(self) -> list[JobRecord]:
        """Every job, the oldest first."""
        return self._store.all()

    def get(self, name: str) -> JobRecord:
        """A job.

        Raises:
            NotFound: there is none.
        """
        return self._store.get(name)

    def video(self, name: str) -> Path:
        """A finished job's video.

        Raises:
            NotFound: there is no such job, or it is not finished.
        """
        record = self.get(name)
        path = self._store.folder_of(record) / VIDEO
        if record.status != "done" or not path.is_file():
            raise NotFound(f"is {record.status}, it has no video", field="job", value=record.id, remedy="see its state")
        return path

    def delete(self, name: str) -> None:
        """Call a job off, and remove its files. Returns once they are gone.

        Raises:
            NotFound: there is none.
        """
        record = self.get(name)
        self._store.forget(name)
        with self._lock:
            render = self._renders.get(name)
        if render is not None:
            render.cancel()
        self._store.remove(record)
        _log.event("job removed", job=name)

    def _serve(self, engine: Engine) -> None:
        """Do jobs on an engine until the server is closed, or its device has failed."""
        held: set[str] = set()
        while (record := self._store.take(held)) is not None:
            held.add(record.character)
            try:
                wrong = self._done(engine, record)
            finally:
                self._store.give_back(record)
            if isinstance(wrong, (DeviceError, EngineClosed)) and not isinstance(wrong, DeviceMemoryError):
                return

    def _done(self, engine: Engine, record: JobRecord) -> GpupipeError | None:
        """Do a job; what was wrong with it."""
        wrong: GpupipeError | None = None
        frames = 0
        try:
            frames = self._rendered(engine, record)
        except GpupipeError as error:
            wrong = error
        except Exception as error:
            _log.event("job failed", logging.ERROR, job=record.id, error=traceback.format_exc())
            wrong = GpupipeError(f"the server failed: {type(error).__name__}", remedy="see its log")
        if wrong is None or not self._store.closing:
            self._store.end(record.id, wrong, frames)
            _log.event("job ended", job=record.id, frames=frames, error=None if wrong is None else str(wrong))
        return wrong

    def _rendered(self, engine: Engine, record: JobRecord) -> int:
        """Render a job; how many frames it has."""
        output = self._store.folder_of(record) / VIDEO
        if output.is_file():  # it was written, and the server ended before it could say so
            return probe(output).frames
        begun_before = parts_folder(output).exists()
        try:
            return self._attempt(engine, record, output)
        except OtherRender as error:
            if not begun_before or self._store.closing:
                raise
            # By another version, with another model or body.
            _log.event("job begun again", logging.WARNING, job=record.id, error=str(error))
            remove(parts_folder(output))
            return self._attempt(engine, record, output)

    def _attempt(self, engine: Engine, record: JobRecord, output: Path) -> int:
        options = record.options
        render = engine.submit(
            self._hub.characters.get(record.character),
            output,
            audio=output.with_name(SOUND),
            start_frame=options.start_frame,
            frames=options.frames,
            sound=options.sound,
            crf=options.crf,
            resume=True,
            progress=lambda progress: self._store.progressed(record.id, progress.done, progress.total),
            **self._hub.model,
        )
        with self._lock:
            self._renders[record.id] = render
        try:
            if self._store.closing or self._forgotten(record):
                render.cancel()
            return render.result().frames
        finally:
            with self._lock:
                del self._renders[record.id]

    def _forgotten(self, record: JobRecord) -> bool:
        try:
            self._store.get(record.id)
        except NotFound:
            return True
        return False

    def _sweep(self) -> None:
        """Remove what has been finished for long enough."""
        while True:
            oldest = time.time() - self._hub.limits.job_hours * 3600
            for record in self.all():
                if record.ended is not None and record.ended < oldest:
                    with suppress(NotFound):
                        self.delete(record.id)
            if self._store.wait_stopped(SWEEP_SECONDS):
                return
