"""Jobs on a cluster: each engine has threads here that take its work from the board, until all is done."""

from __future__ import annotations

import logging
import threading
from collections import defaultdict
from collections.abc import Sequence
from contextlib import suppress
from typing import Final

from gpupipe.cluster.board import TRIES, Board, Work
from gpupipe.cluster.facts import JOINING, facts_here, require_alike, require_same_inputs
from gpupipe.cluster.fleet import Lost, Remote, answers
from gpupipe.cluster.job import ClusterJob, OnEnd
from gpupipe.cluster.stats import ClusterStats
from gpupipe.cluster.transfer import fetch, send
from gpupipe.cluster.work import Underway
from gpupipe.errors import ClusterError, DeviceError, DeviceMemoryError, EngineClosed, GpupipeError, HostMemoryError
from gpupipe.log import Log
from gpupipe.threads import POLL_SECONDS, Worker, join_started

RESTARTS: Final = 10
"""How often an engine is started anew whose process has ended."""
PROGRESS_SECONDS: Final = 0.5
CLOSE_SECONDS: Final = 5.0
"""How long engines have to end what they do and clean up, before they are killed."""

_log = Log(__name__)


class Damaged(Exception):
    """A segment did not come as it was drawn."""


class Crew:
    """An engine, what it has been told, and how often it was started.

    Args:
        remote: the engine.
    """

    def __init__(self, remote: Remote) -> None:
        self.remote = remote
        self.starts = 0
        self.gone = False
        self.begun: set[int] = set()
        self.sees: dict[int, bool] = {}
        self.lock = threading.Lock()
        self.telling = threading.Lock()

    def forget(self) -> None:
        """It has been started anew."""
        self.begun.clear()
        self.sees.clear()


class Run:
    """Some jobs, on some engines.

    Args:
        jobs: in order.
        remotes: the engines, not started yet.
        ended: told when a job has ended, one at a time, in any thread.
        shared: whether nodes may find files in the same folders as here, where the hashes agree.
    """

    def __init__(self, jobs: Sequence[ClusterJob], remotes: Sequence[Remote], ended: OnEnd, *, shared: bool) -> None:
        self._jobs, self._ended, self._shared = jobs, ended, shared
        self._crews = [Crew(remote) for remote in remotes]
        self._board = Board(str(job.asked.character) for job in jobs)
        self._first: tuple[str, dict[str, str]] | None = None
        self._failed: BaseException | None = None
        self._sending: defaultdict[tuple[str, str], threading.Lock] = defaultdict(threading.Lock)
        self._stopping = False
        self._lock = threading.Lock()
        self._reporting = threading.Lock()

    def run(self) -> None:
        """Do them all.

        Raises:
            ClusterError: the nodes are not alike, or none is left.
            GpupipeError: an engine cannot be opened.
        """
        threads = [Worker("engine", self._serve, crew) for crew in self._crews for _ in range(crew.remote.slots)]
        threads.append(Worker("progress", self._tell))
        try:
            for thread in threads:
                thread.start()
            while not self._board.wait(POLL_SECONDS):
                pass
        finally:
            self._stopping = True
            self._board.stop()
            self._close_engines()
            join_started(threads)
            for job in self._jobs:
                job.leave()
        if self._failed is not None:
            raise self._failed

    def _serve(self, crew: Crew) -> None:
        """Do what one engine is given, one thing at a time."""
        try:
            starts = 1
            while self._is_started(crew, starts) and (work := self._board.take(crew.remote.name)) is not None:
                starts = crew.starts
                try:
                    self._do(crew, work)
                except (Lost, Damaged) as error:
                    self._lose(crew, work, error)
                    starts += isinstance(error, Lost)
        except BaseException as error:  # of the run, or of gpupipe itself
            self._fail(error)

    def _is_started(self, crew: Crew, starts: int) -> bool:
        """Start an engine, unless it has been started so often already; whether it is there."""
        with crew.lock:
            if crew.starts < starts and not crew.gone and not self._stopping:
                try:
                    facts = crew.remote.start()
                    self._compare(crew, facts)
                    crew.starts += 1
                    crew.forget()
                    self._board.join(crew.remote.name, crew.remote.slots)
                except Lost as error:
                    self._drop(crew, str(error))
            return not (crew.gone or self._stopping)

    def _compare(self, crew: Crew, facts: dict[str, str]) -> None:
        """See that an engine would make the same bytes as the others."""
        require_alike(crew.remote.node, facts, "the machine that joins them", facts_here(), JOINING)
        with self._lock:
            if self._first is None:
                self._first = crew.remote.node, facts
            first, others = self._first
        require_alike(crew.remote.node, facts, first, others)

    def _do(self, crew: Crew, work: Work) -> None:
        job = self._jobs[work.job]
        try:
            try:
                last = self._open(crew, job, work) if work.segment is None else self._draw(crew, job, work)
                if last:
                    stats = job.finish()
                    if self._board.end(job.number):
                        self._report(job, None, stats)
            except MemoryError as error:
                raise HostMemoryError(f"out of memory: {error}", remedy="render fewer jobs at a time") from error
            except OSError as error:
                raise GpupipeError(str(error), file=error.filename, remedy="give another path") from error
        except GpupipeError as error:
            broken = isinstance(error, (DeviceError, EngineClosed)) and not isinstance(error, DeviceMemoryError)
            if broken and not self._stopping:
                crew.remote.kill()
                raise Lost(str(error)) from error
            self._board.done(work, crew.remote.name)
            self._end(job, error)

    def _open(self, crew: Crew, job: ClusterJob, work: Work) -> bool:
        """Open a job; whether no segment is left to be drawn."""
        if not job.look():
            self._board.done(work, crew.remote.name)
            if self._board.end(job.number):
                self._report(job, None, None)
            return False
        assert job.spec is not None
        send(crew.remote, job.spec, self._sending, shared=self._shared)
        left = job.begin(crew.remote.ask("begin", job.spec, shared=self._shared))
        crew.begun.add(job.number)
        self._board.opened(work, left)
        self._board.done(work, crew.remote.name)
        return not left

    def _draw(self, crew: Crew, job: ClusterJob, work: Work) -> bool:
        """Draw a segment; whether it was the last that was missing."""
        remote, segment = crew.remote, work.segment
        assert segment is not None
        self._introduce(crew, job)
        drawn = remote.ask("draw", job.number, segment, job.fingerprint)
        written = fetch(remote, drawn, job.gathered.room(f"{drawn.ticket}-segment"), shared=crew.sees[job.number])
        if not job.gathered.keep(segment, written, drawn.sha256):
            raise Damaged(f"segment {segment} of {job.asked.output} did not come as {remote.node} had drawn it")
        job.tally.add(remote.node, remote.name, drawn)
        remote.begin_to_ask("discard", drawn.ticket)
        return self._board.done(work, remote.name)

    def _introduce(self, crew: Crew, job: ClusterJob) -> None:
        """Tell an engine of a job, once."""
        remote, spec = crew.remote, job.spec
        assert spec is not None
        with crew.telling:
            if job.number not in crew.begun:
                send(remote, spec, self._sending, shared=self._shared)
                manifest = remote.ask("begin", spec, shared=self._shared)
                require_same_inputs(remote.node, dict(manifest.fingerprint), job.fingerprint)
                crew.begun.add(job.number)
            if job.number not in crew.sees:
                crew.sees[job.number] = self._shared and remote.ask("sees", str(job.mark), job.token)

    def _lose(self, crew: Crew, work: Work, error: Exception) -> None:
        """An engine has not done what it took."""
        job = self._jobs[work.job]
        if self._stopping:
            return
        _log.event("segment lost", logging.WARNING, node=crew.remote.node, segment=work.segment, error=str(error))
        job.tally.lose(crew.remote.node)
        if not self._board.lost(work, crew.remote.name):
            what = "it could not be opened" if work.segment is None else f"segment {work.segment}"
            self._end(
                job,
                ClusterError(
                    f"{what}: its engine was lost {TRIES} times, last so: {error}",
                    file=job.asked.output,
                    field="--ray",
                    remedy="see what ends the engines; --resume goes on with what is finished",
                ),
            )

    def _drop(self, crew: Crew, why: str) -> None:
        """An engine is gone for good."""
        crew.gone = True
        self._board.leave(crew.remote.name)
        _log.event("engine gone", logging.WARNING, engine=crew.remote.name, node=crew.remote.node, error=why)
        if all(each.gone for each in self._crews):
            raise ClusterError(
                f"no engine is left, the last went so: {why}",
                field="--ray",
                remedy="--resume goes on with what is finished",
            )

    def _end(self, job: ClusterJob, error: GpupipeError) -> None:
        """A job has failed."""
        if not self._board.end(job.number):
            return
        job.leave()
        for crew in self._crews:
            if job.number in crew.begun:
                with suppress(Exception):  # it may be gone itself
                    crew.remote.begin_to_ask("end", job.number)
        self._report(job, error, None)

    def _report(self, job: ClusterJob, error: GpupipeError | None, stats: ClusterStats | None) -> None:
        with self._reporting:
            if not self._stopping or error is None:
                self._ended(job, error, stats)

    def _fail(self, error: BaseException) -> None:
        """The run has failed."""
        with self._lock:
            if self._failed is None and not self._stopping:
                self._failed = error
        self._board.stop()

    def _tell(self) -> None:
        """Tell how far the jobs are, now and then, until they have ended."""
        while not self._board.wait(PROGRESS_SECONDS):
            asked = [(crew, ref) for crew in self._crews if (ref := crew.remote.begin_to_ask("underway")) is not None]
            found: defaultdict[int, list[Underway]] = defaultdict(list)
            for _, told in answers(asked, PROGRESS_SECONDS):
                for (number, _), at in told.items():
                    found[number].append(at)
            for job in self._jobs:
                job.tell(found.get(job.number, ()))

    def _close_engines(self) -> None:
        """Let the engines end what they do, and then end them."""
        asked = [(crew, ref) for crew in self._crews if (ref := crew.remote.begin_to_ask("close")) is not None]
        answers(asked, CLOSE_SECONDS)
        for crew in self._crews:
            crew.remote.close()
