"""Engines on the nodes of a cluster, as actors of Ray: started, asked, and lost."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeVar, cast

from gpupipe import __version__
from gpupipe.cluster.actor import EngineActor
from gpupipe.cluster.fleet import SHOWN, Lost, nodes
from gpupipe.cluster.shares import Share
from gpupipe.cluster.work import Failure
from gpupipe.errors import reason
from gpupipe.log import Log
from gpupipe.options import EngineKeywords

T = TypeVar("T")

NAMESPACE: Final = "gpupipe"
"""In which engines that are kept have their names."""
POLL_SECONDS: Final = 1.0
"""How often who waits for an engine's answer sees whether it is not wanted any more."""
CALLS: Final = 4
"""Calls that an engine answers at a time, besides the segments that it draws."""

_log = Log(__name__)


class Link:
    """An engine that has been started, until it is lost; what is asked of it then is not asked of its successor.

    Args:
        actor: Ray's handle of it.
        remote: which engine.
    """

    def __init__(self, actor: Any, remote: Remote) -> None:
        self._actor, self._given_up = actor, False
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

        self.give_up()
        ray.kill(self._actor)

    def give_up(self) -> None:
        """Wait for no answer any more, of those too that are waited for: it is lost to who asks."""
        self._given_up = True

    def _answer(self, asked: Any) -> Any:
        import ray
        from ray.exceptions import ActorUnschedulableError, RayActorError, RaySystemError, WorkerCrashedError

        try:
            while not ray.wait([asked], timeout=POLL_SECONDS)[0]:
                if self._given_up:  # a process that hangs, or a node that is out of reach, may never answer
                    raise Lost(f"{self.name} on {self.node}: it was given up")
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
        if not any(node["Alive"] and node["NodeID"] == share.node_id for node in nodes()):
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
        """End it for good, or, if it is open and to be kept, wait for no answer of it any more."""
        self._closed = True
        if self._last is None:
            return
        if self._is_open and self.keep_seconds is not None:
            self._last.give_up()
        else:
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
