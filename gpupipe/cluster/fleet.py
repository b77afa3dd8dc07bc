"""Ray's only home: a cluster, its nodes, and engines on them as actors."""

from __future__ import annotations

import logging
import os
import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final, NamedTuple, TypeVar, cast

from gpupipe.cluster.node import Node
from gpupipe.cluster.work import Failure
from gpupipe.errors import ClusterError, GpupipeError, reason
from gpupipe.log import Log
from gpupipe.machine import cpu_count
from gpupipe.options import EngineKeywords

T = TypeVar("T")

LOCAL: Final = "local"
"""The address of a Ray that is started and stopped with the run, on this machine."""
CORES: Final = 4
"""The most CPU cores of an engine where no number is asked for: more compositing threads than that are of no use."""
CALLS: Final = 4
"""Calls that an engine answers at a time, besides the segments that it draws."""
LOCAL_STORE_BYTES: Final = 128 << 20
"""Of a local Ray's object store, through which pieces of files pass."""

_log = Log(__name__)


class Lost(Exception):
    """An engine does not answer any more: its process, or its node, has ended."""


class Share(NamedTuple):
    """What one engine is given of a node: Ray's number of it, its name for people, CPU cores, and 1 GPU or none."""

    node_id: str
    node: str
    cores: int
    gpus: int


def shares(nodes: Sequence[dict[str, Any]], device: str, cores: int | None) -> list[Share]:
    """The engines that there are to be: one a GPU, or one a share of a node's CPU cores.

    Args:
        nodes: as `ray.nodes` tells them.
        device: "auto" takes the GPUs, if there are any.
        cores: of an engine on the CPU; None: up to 4.

    Raises:
        ClusterError: there is no room for any.
    """
    alive = sorted((node for node in nodes if node["Alive"]), key=lambda node: str(node["NodeID"]))
    gpus = {str(node["NodeID"]): int(node["Resources"].get("GPU", 0)) for node in alive}
    on_gpu = device == "cuda" or (device == "auto" and any(gpus.values()))
    found = []
    for node in alive:
        node_id, has = str(node["NodeID"]), int(node["Resources"].get("CPU", 0))
        name = f"{node['NodeManagerAddress']} ({node_id[:8]})"
        if on_gpu:
            count = gpus[node_id]
            found += [Share(node_id, name, min(1, has // count), 1) for _ in range(count)]
        elif has:
            each = min(cores or CORES, has)
            found += [Share(node_id, name, each, 0) for _ in range(has // each)]
    if not found:
        what = "GPUs" if on_gpu else "CPU cores"
        raise ClusterError(
            f"no node has {what}", field="--ray", remedy="start nodes that have, or use another --device"
        )
    return found


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
    settings: dict[str, Any] = {"address": address, "log_to_driver": False, "logging_level": logging.ERROR}
    if address == LOCAL:
        settings |= {"num_cpus": cpu_count(), "include_dashboard": False, "object_store_memory": LOCAL_STORE_BYTES}
    mine = not ray.is_initialized()
    if mine:
        try:
            with _handler_of_sigterm(), _log.timed("cluster joined", address=address):
                ray.init(**settings)
        except (ConnectionError, ValueError, RuntimeError, OSError, TimeoutError, ImportError) as error:
            raise ClusterError(
                f"no Ray cluster answers: {reason(error)}",
                field="--ray",
                value=address,
                remedy="start one with `ray start --head`, or leave the address out for one on this machine",
            ) from error
    try:
        yield cast(Any, ray).nodes()
    finally:
        if mine:
            ray.shutdown()


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


class EngineActor:
    """What runs on a node: it opens an engine when asked, and passes questions on to it."""

    def __init__(self) -> None:
        self._node: Node | None = None

    def open(self, options: EngineKeywords, slots: int, cores: int) -> dict[str, str] | Failure:
        """Open the engine; see `Node`. Returns its facts."""
        try:
            if self._node is None:
                self._node = Node(options, slots, cores)
            return self._node.facts()
        except GpupipeError as error:
            return Failure.of(error)

    def ask(self, what: str, *given: Any, **named: Any) -> Any:
        """Have the node do something; an error of gpupipe's comes back as a `Failure`."""
        assert self._node is not None, "it has been opened"
        try:
            return getattr(self._node, what)(*given, **named)
        except GpupipeError as error:
            return Failure.of(error)


@dataclass
class Remote:
    """An engine on a node, as the driver has it; started anew when it is lost, as long as its node is there.

    Attributes:
        name: of the engine.
        share: what it has of its node.
        options: of the engine.
        slots: segments that it draws at a time.
    """

    name: str
    share: Share
    options: EngineKeywords
    slots: int
    _actor: Any = None
    _is_open: bool = False
    _closed: bool = False

    @property
    def node(self) -> str:
        """The name of its node."""
        return self.share.node

    def start(self) -> dict[str, str]:
        """Start it, and wait until its engine is open.

        Returns:
            Its facts.

        Raises:
            Lost: its node is gone, or it ends at once.
            GpupipeError: the engine cannot be opened.
        """
        import ray
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        if not any(node["Alive"] and node["NodeID"] == self.share.node_id for node in cast(Any, ray).nodes()):
            raise Lost(f"node {self.node} is gone")
        self.kill()
        share = self.share
        actor = cast(Any, ray.remote(EngineActor)).options(
            num_cpus=share.cores,
            num_gpus=share.gpus,
            max_restarts=0,
            max_task_retries=0,
            max_concurrency=self.slots + CALLS,
            scheduling_strategy=NodeAffinitySchedulingStrategy(share.node_id, soft=False),
        )
        self._actor = actor.remote()
        if self._closed:
            self.kill()
        facts: dict[str, str] = self._answer(self._actor.open.remote(self.options, self.slots, share.cores))
        self._is_open = True
        _log.event("engine joined", engine=self.name, node=self.node, device=facts["device"])
        return facts

    def ask(self, what: str, *given: Any, **named: Any) -> Any:
        """Ask its `Node` something, and wait for the answer.

        Raises:
            Lost: it does not answer any more.
            GpupipeError: what it raised.
        """
        if (actor := self._actor) is None:
            raise Lost(f"{self.name} on {self.node} was ended")
        return self._answer(actor.ask.remote(what, *given, **named))

    def begin_to_ask(self, what: str, *given: Any) -> Any:
        """Ask its `Node` something; `answers` has the answer. None: there is nobody to be asked."""
        actor = self._actor
        return actor.ask.remote(what, *given) if actor is not None and self._is_open else None

    def kill(self) -> None:
        """End its process, with all that it does."""
        import ray

        actor, self._actor, self._is_open = self._actor, None, False
        if actor is not None:
            ray.kill(actor)

    def close(self) -> None:
        """End it for good: it is not started anew."""
        self._closed = True
        self.kill()

    def _answer(self, asked: Any) -> Any:
        import ray
        from ray.exceptions import ActorUnschedulableError, RayActorError, RaySystemError, WorkerCrashedError

        try:
            answer = ray.get(asked)
        except (RayActorError, ActorUnschedulableError, WorkerCrashedError, RaySystemError) as error:
            raise Lost(f"{self.name} on {self.node}: {reason(error)}") from error
        if isinstance(answer, Failure):
            raise answer.error()
        return answer


def answers(asked: Sequence[tuple[T, Any]], seconds: float) -> list[tuple[T, Any]]:
    """Those of some answers that come within so many seconds, each with what it was asked for."""
    import ray
    from ray.exceptions import RayError

    if not asked:
        return []
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


def engines(nodes: Sequence[dict[str, Any]], options: EngineKeywords, *, cores: int | None, slots: int) -> list[Remote]:
    """The engines of a run, not started yet.

    Args:
        nodes: of the cluster.
        options: of the engines.
        cores: see `shares`.
        slots: segments that each draws at a time.
    """
    found = []
    for number, share in enumerate(shares(nodes, str(options.get("device") or "auto"), cores)):
        own: EngineKeywords = {**options, "device": "cuda" if share.gpus else "cpu"}
        if not share.gpus and own.get("workers") in (None, "auto"):
            own["workers"] = min(share.cores, CORES)
        found.append(Remote(f"engine {number}", share, own, slots))
    return found
