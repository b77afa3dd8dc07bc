"""Ray's only home: a cluster, its nodes, and engines on them as actors."""

from __future__ import annotations

import hashlib
import logging
import os
import signal
import socket
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final, TypeVar, cast

from gpupipe import __version__
from gpupipe.cluster.actor import EngineActor
from gpupipe.cluster.shares import CORES, Share, shares
from gpupipe.cluster.work import Failure
from gpupipe.errors import ClusterError, reason
from gpupipe.log import Log
from gpupipe.machine import cpu_count
from gpupipe.options import EngineKeywords

T = TypeVar("T")

LOCAL: Final = "local"
"""The address of a Ray that is started and stopped with the run, on this machine."""
NAMESPACE: Final = "gpupipe"
"""In which engines that are kept have their names."""
ANSWER_SECONDS: Final = 10.0
SHOWN: Final = 300
"""Letters of what Ray says of an engine that was lost."""
CALLS: Final = 4
"""Calls that an engine answers at a time, besides the segments that it draws."""
LOCAL_STORE_BYTES: Final = 128 << 20
"""Of a local Ray's object store, through which pieces of files pass."""

_log = Log(__name__)


class Lost(Exception):
    """An engine does not answer any more: its process, or its node, has ended."""


@contextmanager
def connected(address: str) -> Iterator[list[dict[str, Any]]]:
    """A cluster, for as long as the with block lasts; one that was started for it is stopped at the end.

    Args:
        address: `local`, `auto`, `host:port`, or `ray://host:port`.

    Yields:
        Its nodes, as `ray.nodes` tells them.

    Raises:
        ClusterError: Ray is not installed, or nobody answers.
    """
    # Nobody is told that it is used; on its own, it listens on the loopback only; and what goes wrong in an answer that
    # nobody waits for any more is not printed.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_IGNORE_UNHANDLED_ERRORS", "1")
    if address == LOCAL:
        os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
    try:
        import ray
    except ImportError as error:
        remedy = "install it with pip install 'gpupipe[ray]'"
        raise ClusterError("Ray is not installed", field="--ray", remedy=remedy) from error
    _require_answer(address)
    settings: dict[str, Any] = {"address": address, "log_to_driver": False, "logging_level": logging.CRITICAL}
    if address == LOCAL:
        settings |= {"num_cpus": cpu_count(), "include_dashboard": False, "object_store_memory": LOCAL_STORE_BYTES}
    mine = not ray.is_initialized()
    if mine:
        try:
            with _handler_of_sigterm(), _log.timed("cluster joined", address=address):
                ray.init(**settings)
        except (ConnectionError, ValueError, RuntimeError, OSError, TimeoutError, ImportError) as error:
            raise _no_answer(address, error) from error
    try:
        yield cast(Any, ray).nodes()
    finally:
        if mine:
            ray.shutdown()


def _require_answer(address: str) -> None:
    """See that somebody listens there: Ray itself tries for minutes."""
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if not colon:  # a word, for which Ray looks on this machine
        return
    try:
        with socket.create_connection((host.strip("[]"), int(port)), timeout=ANSWER_SECONDS):
            pass
    except (OSError, ValueError) as error:
        raise _no_answer(address, error) from error


def _no_answer(address: str, error: BaseException) -> ClusterError:
    return ClusterError(
        f"no Ray cluster answers: {reason(error)}",
        field="--ray",
        value=address,
        remedy="start one with `ray start --head`, or leave the address out for one on this machine",
    )


@contextmanager
def _handler_of_sigterm() -> Iterator[None]:
    """Keep what this process does when it is asked to end: `ray.init` puts its own in the place of it."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


class Link:
    """An engine that has been started, until it is lost; what is asked of it then is not asked of its successor.

    Args:
        actor: Ray's handle of it.
        remote: which engine.
    """

    def __init__(self, actor: Any, remote: Remote) -> None:
        self._actor = actor
        self.name, self.node, self.node_id = remote.name, remote.share.node, remote.share.node_id

    def open(self, *given: Any) -> dict[str, str]:
        """Open the engine, unless it is; see `EngineActor.open`. Waits until it has room on its node.

        Raises:
            Lost: it ends.
            GpupipeError: it cannot be opened.
        """
        facts: dict[str, str] = self._answer(self._actor.open.remote(*given))
        return facts

    def ask(self, what: str, *given: Any, **named: Any) -> Any:
        """Ask its `Node` something, and wait for the answer.

        Raises:
            Lost: it does not answer any more.
            GpupipeError: what it raised.
        """
        return self._answer(self._actor.ask.remote(what, *given, **named))

    def begin_to_ask(self, what: str, *given: Any) -> Any:
        """Ask its `Node` something; `answers` has the answer."""
        return self._actor.ask.remote(what, *given)

    def kill(self) -> None:
        """End its process, with all that it does."""
        import ray

        ray.kill(self._actor)

    def _answer(self, asked: Any) -> Any:
        import ray
        from ray.exceptions import ActorUnschedulableError, RayActorError, RaySystemError, WorkerCrashedError

        try:
            answer = ray.get(asked)
        except (RayActorError, ActorUnschedulableError, WorkerCrashedError, RaySystemError) as error:
            raise Lost(f"{self.name} on {self.node}: {reason(error)[:SHOWN]}") from error
        if isinstance(answer, Failure):
            raise answer.error()
        return answer


@dataclass
class Remote:
    """An engine on a node, as the driver has it; it can be started anew when it was lost, as long as its node is there.

    Attributes:
        name: of the engine.
        share: what it has of its node.
        options: of the engine.
        slots: segments that it draws at a time.
        keep_seconds: how long it stays on its node without work, for later runs, which find it again if they ask for
            the same; None: it ends with the run.
    """

    name: str
    share: Share
    options: EngineKeywords
    slots: int
    keep_seconds: float | None = None
    _last: Link | None = None
    _is_open: bool = False
    _closed: bool = False

    def start(self) -> tuple[Link, dict[str, str]]:
        """Start it, and wait until its engine is open.

        Returns:
            The engine, and its facts.

        Raises:
            Lost: its node is gone, or it ends at once.
            GpupipeError: the engine cannot be opened.
        """
        import ray
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        share = self.share
        if not any(node["Alive"] and node["NodeID"] == share.node_id for node in cast(Any, ray).nodes()):
            raise Lost(f"node {share.node} is gone")
        self._is_open = False
        if self._last is not None:
            self._last.kill()
        kept: dict[str, Any] = {}
        if self.keep_seconds is not None:
            kept = {"name": self._known_by, "namespace": NAMESPACE, "lifetime": "detached", "get_if_exists": True}
        actor = cast(Any, ray.remote(EngineActor)).options(
            num_cpus=share.cores,
            num_gpus=share.gpus,
            max_restarts=0,
            max_task_retries=0,
            max_concurrency=self.slots + CALLS,
            scheduling_strategy=NodeAffinitySchedulingStrategy(share.node_id, soft=False),
            **kept,
        )
        self._last = Link(actor.remote(), self)
        if self._closed:
            self._last.kill()
        facts = self._last.open(self.options, self.slots, share.cores, self.keep_seconds)
        self._is_open = True
        _log.event("engine joined", engine=self.name, node=share.node, device=facts["device"])
        return self._last, facts

    def close(self) -> None:
        """End it for good, unless it is open and to be kept: who waits for its answers waits on then."""
        self._closed = True
        if self._last is not None and not (self._is_open and self.keep_seconds is not None):
            self._last.kill()

    @property
    def _known_by(self) -> str:
        """The name of one that is kept: the same for the same options, in the same place."""
        asked = sorted((name, str(value)) for name, value in self.options.items())
        told = repr((asked, self.slots, self.share, __version__))
        return f"engine-{hashlib.sha256(told.encode()).hexdigest()[:16]}"


def answers(asked: Sequence[tuple[T, Any]], seconds: float) -> list[tuple[T, Any]]:
    """Those of some answers that come within so many seconds, each with what it was asked for."""
    if not asked:
        return []
    import ray
    from ray.exceptions import RayError

    ready, _ = ray.wait([ref for _, ref in asked], num_returns=len(asked), timeout=seconds)
    found = []
    for what, ref in asked:
        if ref in ready:
            try:
                answer = ray.get(ref)
            except RayError:  # who waits for its segments is told
                continue
            if not isinstance(answer, Failure):
                found.append((what, answer))
    return found


def engines(
    nodes: Sequence[dict[str, Any]],
    options: EngineKeywords,
    *,
    cores: int | None,
    slots: int,
    keep_seconds: float | None = None,
) -> list[Remote]:
    """The engines of a run, not started yet.

    Args:
        nodes: of the cluster.
        options: of the engines.
        cores: see `shares`.
        slots: segments that each draws at a time.
        keep_seconds: how long each stays without work; None: it ends with the run.
    """
    found = []
    for number, share in enumerate(shares(nodes, str(options.get("device") or "auto"), cores)):
        own: EngineKeywords = {**options, "device": "cuda" if share.gpus else "cpu"}
        if not share.gpus and own.get("workers") in (None, "auto"):
            own["workers"] = min(share.cores, CORES)
        found.append(Remote(f"engine {number}", share, own, slots, keep_seconds))
    return found
