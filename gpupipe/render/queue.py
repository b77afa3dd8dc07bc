"""Many jobs: given to engines as they become free, each told of on its own, whatever becomes of the others."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from gpupipe.character.folder import Character
from gpupipe.errors import DeviceError, DeviceMemoryError, EngineClosed, GpupipeError, MediaError
from gpupipe.log import Log
from gpupipe.media.video import probe
from gpupipe.options import EngineKeywords, JobKeywords, split
from gpupipe.render.engine import PARALLEL, Engine
from gpupipe.render.image_output import images_in
from gpupipe.render.jobfile import JobLine
from gpupipe.render.left import remove_left
from gpupipe.render.output import is_video
from gpupipe.render.plan import Plan
from gpupipe.render.stats import Progress, RenderStats
from gpupipe.render.write import pixel_format_of
from gpupipe.threads import Worker, join_started, start_and_wait

_log = Log(__name__)

Status = Literal["done", "skipped", "failed"]


@dataclass(frozen=True)
class JobReport:
    """What became of a job.

    Attributes:
        job: which.
        status: "done"; "skipped", as its output was complete; or "failed".
        error: why it failed.
        stats: what was done.
    """

    job: JobLine
    status: Status
    error: GpupipeError | None = None
    stats: RenderStats | None = None

    def as_dict(self) -> dict[str, Any]:
        """The same as plain JSON values."""
        return {
            "line": self.job.line,
            "output": self.job.output,
            "status": self.status,
            "error": None if self.error is None else str(self.error),
            "stats": None if self.stats is None else self.stats.as_dict(),
        }


Told = Callable[[JobReport], None]
OnJobProgress = Callable[[JobLine, Progress], None]


def run_jobs(
    jobs: Sequence[JobLine],
    devices: Sequence[str],
    engine: EngineKeywords,
    *,
    parallel: int | None = None,
    overwrite: bool = False,
    told: Told,
    progress: OnJobProgress | None = None,
) -> None:
    """Render jobs on one engine a device. Returns when every job has been told of.

    A free engine takes the first job whose character it holds already, or else the first that is left.

    Args:
        jobs: in order.
        devices: "cpu", "cuda:0", …: an engine for each.
        engine: the engines' other options.
        parallel: jobs at a time on each engine; None for 2.
        overwrite: replace outputs; else those that are complete are skipped.
        told: given each job's report, one at a time, in any thread.
        progress: given each job's progress, in any thread.

    Raises:
        GpupipeError: an engine cannot be opened; no job has begun then.
    """
    queue = _Queue(jobs, overwrite, told, progress)
    threads: list[Worker] = []
    try:
        with ExitStack() as closing:
            engines = [
                closing.enter_context(Engine(parallel=parallel, **engine | {"device": device})) for device in devices
            ]
            threads += [Worker("job", queue.serve, each) for each in engines for _ in range(parallel or PARALLEL)]
            try:
                start_and_wait(threads)
            except BaseException:
                queue.stop()  # before the engines are closed, which ends what is under way
                raise
        queue.fail_the_rest()
    finally:
        join_started(threads)


class _Queue:
    """Jobs that wait, and who takes them."""

    def __init__(self, jobs: Iterable[JobLine], overwrite: bool, told: Told, progress: OnJobProgress | None) -> None:
        self._waiting = list(jobs)
        self._overwrite, self._told, self._progress = overwrite, told, progress
        self._held: dict[Engine, set[Path]] = {}
        self._characters: dict[Path, Character] = {}
        self._broken: GpupipeError | None = None
        self._stopped = False
        self._lock = threading.Lock()

    def serve(self, engine: Engine) -> None:
        """Do jobs on an engine until none is left, or its device has failed."""
        while (job := self._take(engine)) is not None:
            report = self._done(engine, job)
            level = logging.WARNING if report.status == "failed" else logging.INFO
            error = None if report.error is None else str(report.error)
            _log.event("job ended", level, job=job.output, line=job.line, status=report.status, error=error)
            with self._lock:
                if self._stopped:
                    return
                self._told(report)
            wrong = report.error
            if isinstance(wrong, (DeviceError, EngineClosed)) and not isinstance(wrong, DeviceMemoryError):
                self._broken = wrong
                return

    def stop(self) -> None:
        """Take no more jobs, and tell of none."""
        with self._lock:
            self._stopped = True
            self._waiting.clear()

    def fail_the_rest(self) -> None:
        """Tell of the jobs that no engine is left for."""
        for job in self._waiting:
            self._told(JobReport(job, "failed", self._broken))

    def _take(self, engine: Engine) -> JobLine | None:
        with self._lock:
            held = self._held.setdefault(engine, set())
            here = next((job for job in self._waiting if job.character in held), None)
            job = here or next(iter(self._waiting), None)
            if job is not None:
                self._waiting.remove(job)
                held.add(job.character)
            return job

    def _done(self, engine: Engine, job: JobLine) -> JobReport:
        overwrite = self._overwrite or job.options.get("overwrite", False)
        options: JobKeywords = job.options | {"overwrite": overwrite, "resume": not overwrite}
        try:
            character = self._character(engine, job.character)
            if not options["overwrite"] and is_complete(character, job.output, options):
                remove_left(job.output, engine.limits)
                return JobReport(job, "skipped")
            stats = engine.render(character, job.output, progress=lambda progress: self._tell(job, progress), **options)
            return JobReport(job, "done", stats=stats)
        except GpupipeError as error:
            return JobReport(job, "failed", error)
        except OSError as error:
            return JobReport(job, "failed", GpupipeError(str(error), file=error.filename, remedy="give another path"))
        except MemoryError as error:
            return JobReport(job, "failed", GpupipeError(f"out of memory: {error}", remedy="use a smaller --parallel"))

    def _tell(self, job: JobLine, progress: Progress) -> None:
        if self._progress is not None:
            self._progress(job, progress)

    def _character(self, engine: Engine, folder: Path) -> Character:
        """A character, looked at once, so that what is odd about it is said once."""
        with self._lock:
            if folder not in self._characters:
                self._characters[folder] = Character.load(folder, engine.limits)
            return self._characters[folder]


def is_complete(character: Character, output: Path | str, options: JobKeywords) -> bool:
    """Whether an output holds every frame that a job with these options would write, in the character's size."""
    path = Path(output)
    if not path.exists():
        return False
    _, model, said, writing = split(options, JobKeywords, by="a job")
    video = is_video(output)
    plan = Plan.make(character, pixel_format_of(writing, video=video), model, said, sound=said.sound and video)
    if not video:
        return len(images_in(path)) == plan.total
    try:
        found = probe(path, character.limits)
    except MediaError:
        return False
    size = (plan.order.spec.width, plan.order.spec.height)
    return found.frames == plan.total and (found.width, found.height) == size
