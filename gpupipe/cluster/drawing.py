"""What engines do with what they take: a job is opened, a segment drawn, brought here, and put with the others."""

from __future__ import annotations

import logging
import threading
from collections import defaultdict
from collections.abc import Iterable

from gpupipe.cluster.board import Board
from gpupipe.cluster.crew import Hand, Unfit
from gpupipe.cluster.facts import require_same_inputs
from gpupipe.cluster.job import ClusterJob
from gpupipe.cluster.ledger import Work
from gpupipe.cluster.node import THIS_NODE
from gpupipe.cluster.transfer import fetch, send
from gpupipe.errors import ClusterError
from gpupipe.log import Log
from gpupipe.render.manifest import Manifest

_log = Log(__name__)


class Damaged(Exception):
    """A segment did not come as it was drawn."""


class Drawing:
    """Has engines do it. Used from many threads.

    Args:
        board: is told what is done.
        shared: whether nodes may find files in the same folders as here, where the hashes agree.
    """

    def __init__(self, board: Board, *, shared: bool) -> None:
        self._board, self._shared = board, shared
        self._by_newcomers: set[str] = set()
        self._sending: defaultdict[tuple[str, str], threading.Lock] = defaultdict(threading.Lock)

    def open(self, hand: Hand, job: ClusterJob, work: Work) -> bool:
        """Open a job, which was looked at.

        Returns:
            Whether no segment is left to be drawn.

        Raises:
            Lost: the engine does not answer any more.
            Unfit: it is not like the others.
            GpupipeError: something is wrong with the job.
        """
        manifest = self._begin(hand, job)
        if hand.joined and not job.fingerprint:
            self._by_newcomers.add(job.id)
        left = job.begin(manifest)
        self._require_same(hand, job, manifest)  # if another had opened it before
        hand.begun.add(job.id)
        self._board.opened(work, left)
        self._board.done(work, hand.link.name)
        return not left

    def draw(self, hand: Hand, job: ClusterJob, work: Work) -> bool:
        """Draw a segment; if another engine was faster, what was drawn is discarded.

        Returns:
            Whether it was the last that was missing.

        Raises:
            Lost: the engine does not answer any more.
            Damaged: it did not come as it was drawn.
            Unfit: the engine is not like the others.
            GpupipeError: it cannot be drawn.
        """
        link, segment = hand.link, work.segment
        assert segment is not None
        if work.second:
            job.tally.back_up(link.node)
            _log.event("segment begun again", logging.INFO, node=link.node, segment=segment, output=job.asked.output)
        self._introduce(hand, job)
        if ended := self._board.ended(work.job):
            self._forget(hand, job)
        if ended or self._board.late(work):
            return self._board.done(work, link.name)
        try:
            drawn = link.ask("draw", job.id, segment, job.fingerprint)
        except ClusterError as error:
            raise error if error.file != THIS_NODE else error.naming(link.node) from error
        if self._board.late(work):
            link.begin_to_ask("discard", drawn.ticket)
            return self._board.done(work, link.name)
        path = job.gathered.room(f"{drawn.ticket}-segment")
        try:
            fetch(link, drawn, path, shared=hand.sees.get(job.id, False))
            link.begin_to_ask("discard", drawn.ticket)
            if not job.gathered.keep(segment, path, drawn.sha256):
                raise Damaged(f"segment {segment} of {job.asked.output} did not come as {link.node} had drawn it")
        finally:
            job.gathered.tidy(path)
        job.tally.add(link.node, link.name, segment, drawn)
        return self._board.done(work, link.name)

    def try_out(self, hand: Hand, jobs: Iterable[ClusterJob]) -> None:
        """See that an engine that has joined finds the same in a job that is under way as the others, if one is.

        Raises:
            Lost, Unfit, GpupipeError: see `draw`.
        """
        for job in jobs:
            if job.fingerprint and not self._board.ended(job.number):
                self._introduce(hand, job)
                if self._board.ended(job.number):
                    self._forget(hand, job)
                return

    def _forget(self, hand: Hand, job: ClusterJob) -> None:
        """Let an engine forget a job that has ended while it was told of it, and may not have heard so."""
        hand.begun.discard(job.id)
        hand.link.begin_to_ask("end", job.id)

    def _introduce(self, hand: Hand, job: ClusterJob) -> None:
        """Tell an engine of a job, once."""
        with hand.telling:
            if job.id not in hand.begun:
                self._require_same(hand, job, self._begin(hand, job))
                hand.begun.add(job.id)
            if job.id not in hand.sees:
                hand.sees[job.id] = self._shared and hand.link.ask("sees", str(job.mark), job.token)

    def _begin(self, hand: Hand, job: ClusterJob) -> Manifest:
        """Have an engine look at a job, and the files that it needs sent."""
        assert job.spec is not None
        send(hand.link, job.spec, self._sending, shared=self._shared)
        manifest: Manifest = hand.link.ask("begin", job.spec, shared=self._shared)
        return manifest

    def _require_same(self, hand: Hand, job: ClusterJob, manifest: Manifest) -> None:
        try:
            require_same_inputs(hand.link.node, manifest.fingerprint, job.fingerprint)
        except ClusterError as error:
            if hand.joined or job.id in self._by_newcomers:
                raise Unfit(error) from error
            raise
