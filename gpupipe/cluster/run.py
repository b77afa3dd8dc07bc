"""Jobs on a cluster: each engine has threads here that take its work from the board, until all is done."""

from __future__ import annotations

import logging
import threading
import time
import warnings
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Final

from gpupipe.character.folder import GpupipeWarning
from gpupipe.cluster.board import TRIES, Board
from gpupipe.cluster.crew import PATIENCE_SECONDS, Crew, Crews, Hand, Unfit, asked_of
from gpupipe.cluster.drawing import Damaged, Drawing
from gpupipe.cluster.fleet import Lost
from gpupipe.cluster.job import ClusterJob, OnEnd
from gpupipe.cluster.joining import LOOK_SECONDS, Joining, More
from gpupipe.cluster.ledger import Work
from gpupipe.cluster.remote import Remote, answers
from gpupipe.cluster.stats import ClusterStats
from gpupipe.cluster.work import Underway
from gpupipe.errors import (
    Cancelled,
    ClusterError,
    DeviceError,
    DeviceMemoryError,
    EngineClosed,
    GpupipeError,
    HostMemoryError,
)
from gpupipe.log import Log
from gpupipe.threads import POLL_SECONDS, Worker, join_started

PROGRESS_SECONDS: Final = 0.5
_log = Log(__name__)


class Run:
    """Some jobs, on some engines.

    Args:
        jobs: in order.
        remotes: the engines, not started yet.
        ended: told when a job has ended, one at a time, in any thread.
        shared: whether nodes may find files in the same folders as here, where the hashes agree.
        more: gives engines on nodes that join while it goes on; None: none join.
    """

    def __init__(
        self,
        jobs: Sequence[ClusterJob],
        remotes: Sequence[Remote],
        ended: OnEnd,
        *,
        shared: bool,
        more: More | None = None,
    ) -> None:
        self._jobs, self._ended = jobs, ended
        self._board = Board(str(job.asked.character) for job in jobs)
        self._drawing = drawing = Drawing(self._board, shared=shared)
        self._crews = Crews(
            remotes, self._board, may_join=more is not None, try_out=lambda hand: drawing.try_out(hand, jobs)
        )
        self._joining = None if more is None else Joining(more, jobs, self._board, self._crews)
        self._threads: list[Worker] = []
        self._failed: BaseException | None = None
        self._interrupted = False
        self._lock = threading.Lock()
        self._reporting = threading.Lock()

    def run(self) -> None:
        """Do them all.

        Raises:
            ClusterError: the nodes are not alike, or none is left.
            GpupipeError: an engine cannot be opened.
        """
        try:
            for crew in self._crews:
                self._employ(crew)
            self._begin(Worker("progress", self._tell))
            if self._joining is not None:
                self._begin(Worker("nodes", self._watch, self._joining))
            self._wait()
        except BaseException:
            self._interrupted = True
            raise
        finally:
            with self._lock:
                self._crews.closing = True
            self._board.stop()
            self._crews.close()
            join_started(self._threads)
            for job in self._jobs:
                job.leave()
        if self._failed is not None:
            raise self._failed

    def _begin(self, thread: Worker) -> None:
        self._threads.append(thread)
        thread.start()

    def _employ(self, crew: Crew) -> None:
        """Have an engine take work."""
        for _ in range(crew.remote.slots):
            self._begin(Worker("engine", self._serve, crew))

    def _wait(self) -> None:
        """Until all is done."""
        patience: float | None = time.monotonic() + PATIENCE_SECONDS
        while not self._board.wait(POLL_SECONDS):
            if patience is not None and (self._crews.any_opened or time.monotonic() > patience):
                patience = None
                if not self._crews.any_opened:
                    warnings.warn(
                        "the cluster has no room for an engine yet: waiting for it", GpupipeWarning, stacklevel=4
                    )

    def _watch(self, joining: Joining) -> None:
        """Have engines on nodes that join, until all is done."""
        try:
            while not self._board.wait(LOOK_SECONDS):
                for remote in joining.look():
                    with self._lock:
                        if not self._crews.closing:
                            self._employ(self._crews.join(remote))
        except BaseException as error:  # no engine is left, or of gpupipe itself
            self._fail(error)

    def _serve(self, crew: Crew) -> None:
        """Do what one engine is given, one thing at a time."""
        name = crew.remote.name
        try:
            while self._crews.open_hand(crew) is not None and (work := self._board.take(name)) is not None:
                if (hand := self._crews.open_hand(crew)) is None:  # lost while this one waited
                    self._board.lost(work, name, blamed=False)
                    return
                try:
                    self._do(hand, work)
                except Damaged as error:
                    self._lose(hand, work, error)
                except Lost as error:
                    hand.lost = True
                    self._lose(hand, work, error)
                except Unfit as error:
                    self._board.lost(work, name, blamed=False)
                    self._crews.leave_out(crew, error.error)
        except BaseException as error:  # of the run, or of gpupipe itself
            self._fail(error)

    def _do(self, hand: Hand, work: Work) -> None:
        job, name = self._jobs[work.job], hand.link.name
        try:
            with _errors_as_ours():
                if work.segment is not None:
                    last = self._drawing.draw(hand, job, work)
                elif job.look():
                    last = self._drawing.open(hand, job, work)
                else:  # there is nothing to do
                    self._board.done(work, name)
                    if self._board.end(job.number):
                        self._report(job, None, None)
                    return
        except GpupipeError as error:
            broken = isinstance(error, (DeviceError, EngineClosed)) and not isinstance(error, DeviceMemoryError)
            if broken and not self._crews.closing:
                hand.link.kill()
                raise Lost(str(error)) from error
            if self._board.failed(work, name):
                self._end(job, error)
            elif not isinstance(error, Cancelled):
                _log.event("copy lost", logging.WARNING, node=hand.link.node, segment=work.segment, error=str(error))
            return
        if work.segment is not None:
            self._crews.call_off(self._board.late(work), job.id, work.segment)
        if last:
            self._finish(job)

    def _finish(self, job: ClusterJob) -> None:
        """Every segment of a job is there."""
        try:
            with _errors_as_ours():
                stats = job.finish()
        except GpupipeError as error:
            self._end(job, error)
            return
        if self._board.end(job.number):
            self._crews.forget(job.id)
            self._report(job, None, stats)

    def _lose(self, hand: Hand, work: Work, error: Exception) -> None:
        """An engine has not done what it took."""
        job, link = self._jobs[work.job], hand.link
        if self._crews.closing:
            return
        times = self._board.lost(work, link.name)
        what = "segment lost" if times else "copy lost"
        _log.event(what, logging.WARNING, node=link.node, segment=work.segment, error=str(error))
        if times:
            job.tally.lose(link.node)
        if times >= TRIES:
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

    def _end(self, job: ClusterJob, error: GpupipeError) -> None:
        """A job has failed."""
        if not self._board.end(job.number):
            return
        job.leave()
        self._crews.forget(job.id)
        self._report(job, error, None)

    def _report(self, job: ClusterJob, error: GpupipeError | None, stats: ClusterStats | None) -> None:
        with self._reporting:
            if not self._interrupted and self._failed is None:
                self._ended(job, error, stats)

    def _fail(self, error: BaseException) -> None:
        """The run has failed."""
        with self._lock:
            if self._failed is None and not self._crews.closing:
                self._failed = error
        self._board.stop()

    def _tell(self) -> None:
        """Tell how far the jobs are, now and then, until they have ended."""
        while not self._board.wait(PROGRESS_SECONDS):
            asked = [each for crew in self._crews if crew.hand is not None for each in asked_of(crew.hand, "underway")]
            found: defaultdict[str, dict[int, Underway]] = defaultdict(dict)
            for _, told in answers(asked, PROGRESS_SECONDS):
                for (which, segment), at in told.items():
                    found[which][segment] = max(at, found[which].get(segment, at), key=lambda each: each.frames)
            for job in self._jobs:
                job.tell(found.get(job.id, {}))


@contextmanager
def _errors_as_ours() -> Iterator[None]:
    """Let what the system refuses be an error of the job's."""
    try:
        yield
    except MemoryError as error:
        raise HostMemoryError(f"out of memory: {error}", remedy="render fewer jobs at a time") from error
    except OSError as error:
        raise GpupipeError(str(error), file=error.filename, remedy="give another path") from error
