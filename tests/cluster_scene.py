"""Engines of a cluster in this process, without Ray: they can be made to fail, to wait, and to differ."""

from __future__ import annotations

import pickle
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import small

import gpupipe
from gpupipe.cluster.fleet import Lost
from gpupipe.cluster.job import Asked, ClusterJob
from gpupipe.cluster.joining import More
from gpupipe.cluster.node import Node
from gpupipe.cluster.remote import Link, Remote
from gpupipe.cluster.run import Run
from gpupipe.cluster.shares import Share
from gpupipe.cluster.stats import ClusterStats
from gpupipe.cluster.store import Store
from gpupipe.engine.shelf import Digests
from gpupipe.errors import GpupipeError
from gpupipe.media.limits import DEFAULT
from gpupipe.options import JobKeywords
from gpupipe.render.manifest import Manifest

FRAMES = 61
OPTIONS: JobKeywords = {"segment_frames": 6}
SEGMENTS = 11
PATIENCE_SECONDS = 60.0


def character(folder: Path) -> Path:
    """A character, with speech of `FRAMES` frames."""
    small.small_character(folder)
    np.save(folder / "aud_ave.npy", small.features(FRAMES))
    return folder


def by_one_process(character: Path, output: Path) -> bytes:
    """The file that one process makes."""
    gpupipe.render(character, output, device="cpu", **OPTIONS)
    return output.read_bytes()


class Here(Remote):
    """An engine in this process.

    Args:
        number: of it.
        root: its folder.
        dies_at: segments at which it is lost, as often as each is named.
        facts: of it that differ.
        fingerprint: what it finds in jobs that differs.
        before: called before it draws a segment.
    """

    def __init__(
        self,
        number: int,
        root: Path,
        dies_at: tuple[int, ...] = (),
        facts: dict[str, str] | None = None,
        fingerprint: dict[str, str] | None = None,
        before: Callable[[LinkHere, int], None] = lambda link, segment: None,
    ) -> None:
        super().__init__(f"engine {number}", Share(f"{number}", f"node {number}", 1, 0), {"device": "cpu"}, 2)
        self.root, self.dies_at, self.before = root, list(dies_at), before
        self.other_facts, self.other_fingerprint = facts or {}, fingerprint or {}
        self.gone = False
        self.asked: list[str] = []
        self.changed = threading.Condition()
        self.open: LinkHere | None = None

    def start(self) -> tuple[Link, dict[str, str]]:
        self.close()
        if self.gone:
            raise Lost("the node is gone")
        self.open = LinkHere(self)
        return self.open, self.open.here.facts() | self.other_facts

    def close(self) -> None:
        if self.open is not None:
            self.open.kill()


class LinkHere(Link):
    def __init__(self, remote: Here) -> None:
        super().__init__(None, remote)
        self.remote, self.lost = remote, False
        self.here = Node({"device": "cpu", "workers": 1}, 2, 1, Store(remote.root))
        self.called_off: set[int] = set()
        self.changed = threading.Condition()

    def ask(self, what: str, *given: Any, **named: Any) -> Any:
        if what == "draw":
            self.remote.before(self, given[1])
            if given[1] in self.remote.dies_at:
                self.remote.dies_at.remove(given[1])
                self.kill()
                raise Lost(f"segment {given[1]}")
        with self.remote.changed:
            self.remote.asked.append(what)
            self.remote.changed.notify_all()
        try:
            answer = getattr(self.here, what)(*pickle.loads(pickle.dumps(given)), **named)
            if isinstance(answer, Manifest):
                answer = replace(answer, fingerprint={**answer.fingerprint, **self.remote.other_fingerprint})
        except Exception:
            if self.lost:
                raise Lost("with another segment") from None
            raise
        return pickle.loads(pickle.dumps(answer))

    def begin_to_ask(self, what: str, *given: Any) -> Any:
        if what in ("discard", "end", "call_off") and not self.lost:
            getattr(self.here, what)(*given)
            with self.changed:
                self.called_off |= {given[1]} if what == "call_off" else set()
                self.changed.notify_all()

    def until_called_off(self, segment: int) -> None:
        """Wait until a segment is called off, or the engine is ended."""
        with self.changed:
            assert self.changed.wait_for(lambda: segment in self.called_off or self.lost, PATIENCE_SECONDS)

    def kill(self) -> None:
        if not self.lost:
            self.lost = True
            self.here.close()
            with self.changed:
                self.changed.notify_all()


Ended = list[tuple[GpupipeError | None, ClusterStats | None]]


def run_here(remotes: list[Here], asked: list[Asked], *, shared: bool = True, more: More | None = None) -> Ended:
    """How each job has ended."""
    ended: dict[int, tuple[GpupipeError | None, ClusterStats | None]] = {}
    jobs = [ClusterJob(number, each, DEFAULT, Digests().sha256) for number, each in enumerate(asked)]

    def told(job: ClusterJob, error: GpupipeError | None, stats: ClusterStats | None) -> None:
        assert job.number not in ended
        ended[job.number] = error, stats

    Run(jobs, remotes, told, shared=shared, more=more).run()
    return [ended[number] for number in range(len(asked))]
