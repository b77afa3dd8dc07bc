"""Jobs on a cluster: each engine has threads here that take its work from the board, until all is done."""

from __future__ import annotations

import logging
import threading
import time
import warnings
from collections import defaultdict
from collections.abc import Sequence
from typing import Final

from gpupipe.character.folder import GpupipeWarning
from gpupipe.cluster.board import TRIES, Board, Work
from gpupipe.cluster.crew import Crew, Hand, asked_of, close_all
from gpupipe.cluster.facts import JOINING, facts_here, require_alike, require_same_inputs
from gpupipe.cluster.fleet import Lost, Remote, answers
from gpupipe.cluster.job import ClusterJob, OnEnd
from gpupipe.cluster.node import THIS_NODE
from gpupipe.cluster.stats import ClusterStats
from gpupipe.cluster.transfer import fetch, send
from gpupipe.cluster.work import Underway
from gpupipe.errors import ClusterError, DeviceError, DeviceMemoryError, EngineClosed, GpupipeError, HostMemoryError
from gpupipe.log import Log
from gpupipe.threads import POLL_SECONDS, Worker, join_started

RESTARTS: Final = 10
"""How often an engine is started anew whose process has ended."""
PROGRESS_SECONDS: Final = 0.5
PATIENCE_SECONDS: Final = 30.0
"""After so long without an engine, somebody is told."""
_log = Log(__name__)


class Damaged(Exception):
    """A segment did not come as it was drawn."""


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
        self._stopping = self._interrupted = False
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
            self._wait()
        except BaseException:
            self._interrupted = True
            raise
        finally:
            self._stopping = True
            self._board.stop()
            close_all(self._crews)
            join_started(threads)
            for job in self._jobs:
                job.leave()
        if self._failed is not None:
            raise self._failed

    def _wait(self) -> None:
        """Until all is done."""
        patience: float | None = time.monotonic() + PATIENCE_SECONDS
        while not self._board.wait(POLL_SECONDS):
            if patience is not None and (self._first is not None or time.monotonic() > patience):
                patience = None
                if self._first is None:
                    warnings.warn(
                        "the cluster has no room for an engine yet: waiting for it", GpupipeWarning, stacklevel=4
                    )

    def _serve(self, crew: Crew) -> None:
        """Do what one engine is given, one thing at a time."""
        name = crew.remote.name
        try:
            while self._open_hand(crew) is not None and (work := self._board.take(name)) is not None:
                if (hand := self._open_hand(crew)) is None:  # lost while this one waited
                    self._board.lost(work, name, blamed=False)
                    return
                try:
                    self._do(hand, work)
                except Damaged as error:
                    self._lose(hand, work, error)
                except Lost as error:
                    hand.lost = True
                    self._lose(hand, work, error)
        except BaseException as error:  # of the run, or of gpupipe itself
            self._fail(error)

    def _open_hand(self, crew: Crew) -> Hand | None:
        """The engine, started if it was not, or if the one that was is lost; None: there is none any more."""
        with crew.lock:
            if (crew.hand is None or crew.hand.lost) and not crew.gone and not self._stopping:
                try:
                    if crew.starts > RESTARTS:
                        raise Lost(f"it has ended {crew.starts} times")
                    link, facts = crew.remote.start()
                    self._compare(link.node, facts)
                    crew.hand, crew.starts = Hand(link), crew.starts + 1
                    self._board.join(crew.remote.name, crew.remote.slots)
                except Lost as error:
                    self._drop(crew, str(error))
            return None if crew.gone or self._stopping else crew.hand

    def _compare(self, node: str, facts: dict[str, str]) -> None:
        """See that an engine would make the same bytes as the others."""
        require_alike(node, facts, "the machine that joins them", facts_here(), JOINING)
        with self._lock:
            if self._first is None:
                self._first = node, facts
            first, others = self._first
        require_alike(node, facts, first, others)

    def _do(self, hand: Hand, work: Work) -> None:
        job = self._jobs[work.job]
        try:
            try:
                last = self._open(hand, job, work) if work.segment is None else self._draw(hand, job, work)
                if last:
                    stats = job.finish()
                    self._forget(job)
                    if self._board.end(job.number):
                        self._report(job, None, stats)
            except MemoryError as error:
                raise HostMemoryError(f"out of memory: {error}", remedy="render fewer jobs at a time") from error
            except OSError as error:
                raise GpupipeError(str(error), file=error.filename, remedy="give another path") from error
        except GpupipeError as error:
            broken = isinstance(error, (DeviceError, EngineClosed)) and not isinstance(error, DeviceMemoryError)
            if broken and not self._stopping:
                hand.link.kill()
                raise Lost(str(error)) from error
            self._board.done(work, hand.link.name)
            self._end(job, error)

    def _open(self, hand: Hand, job: ClusterJob, work: Work) -> bool:
        """Open a job; whether no segment is left to be drawn."""
        link = hand.link
        if not job.look():
            self._board.done(work, link.name)
            if self._board.end(job.number):
                self._report(job, None, None)
            return False
        assert job.spec is not None
        send(link, job.spec, self._sending, shared=self._shared)
        manifest = link.ask("begin", job.spec, shared=self._shared)
        left = job.begin(manifest)
        require_same_inputs(link.node, manifest.fingerprint, job.fingerprint)  # if another had opened it before
        hand.begun.add(job.id)
        self._board.opened(work, left)
        self._board.done(work, link.name)
        return not left

    def _draw(self, hand: Hand, job: ClusterJob, work: Work) -> bool:
        """Draw a segment; whether it was the last that was missing."""
        link, segment = hand.link, work.segment
        assert segment is not None
        self._introduce(hand, job)
        try:
            drawn = link.ask("draw", job.id, segment, job.fingerprint)
        except ClusterError as error:
            raise error if error.file != THIS_NODE else error.naming(link.node) from error
        written = fetch(link, drawn, job.gathered.room(f"{drawn.ticket}-segment"), shared=hand.sees.get(job.id, False))
        link.begin_to_ask("discard", drawn.ticket)
        if not job.gathered.keep(segment, written, drawn.sha256):
            raise Damaged(f"segment {segment} of {job.asked.output} did not come as {link.node} had drawn it")
        job.tally.add(link.node, link.name, drawn)
        return self._board.done(work, link.name)

    def _introduce(self, hand: Hand, job: ClusterJob) -> None:
        """Tell an engine of a job, once."""
        link, spec = hand.link, job.spec
        assert spec is not None
        with hand.telling:
            if job.id not in hand.begun:
                send(link, spec, self._sending, shared=self._shared)
                manifest = link.ask("begin", spec, shared=self._shared)
                require_same_inputs(link.node, manifest.fingerprint, job.fingerprint)
                hand.begun.add(job.id)
            if job.id not in hand.sees:
                hand.sees[job.id] = self._shared and link.ask("sees", str(job.mark), job.token)

    def _lose(self, hand: Hand, work: Work, error: Exception) -> None:
        """An engine has not done what it took."""
        job = self._jobs[work.job]
        if self._stopping:
            return
        _log.event("segment lost", logging.WARNING, node=hand.link.node, segment=work.segment, error=str(error))
        job.tally.lose(hand.link.node)
        if not self._board.lost(work, hand.link.name):
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
        if self._stopping:
            return
        warnings.warn(f"{crew.remote.share.node}: draws no more: {why}", GpupipeWarning, stacklevel=4)
        _log.event("engine gone", logging.WARNING, engine=crew.remote.name, node=crew.remote.share.node, error=why)
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
        self._forget(job)
        self._report(job, error, None)

    def _forget(self, job: ClusterJob) -> None:
        """Let the engines forget a job, and call off what they do of it."""
        for crew in self._crews:
            if (hand := crew.hand) is not None and job.id in hand.begun:
                hand.begun.discard(job.id)
                hand.sees.pop(job.id, None)
                hand.link.begin_to_ask("end", job.id)

    def _report(self, job: ClusterJob, error: GpupipeError | None, stats: ClusterStats | None) -> None:
        with self._reporting:
            if not self._interrupted and self._failed is None:
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
            asked = [each for crew in self._crews if crew.hand is not None for each in asked_of(crew.hand, "underway")]
            found: defaultdict[str, list[Underway]] = defaultdict(list)
            for _, told in answers(asked, PROGRESS_SECONDS):
                for (which, _), at in told.items():
                    found[which].append(at)
            for job in self._jobs:
                job.tell(found.get(job.id, ()))
