"""Replicas of a router that are held by actors on the nodes of a Ray cluster."""

from __future__ import annotations

import asyncio
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final, TypeVar, TypeVarTuple, cast

from gpupipe.character.folder import GpupipeWarning
from gpupipe.cluster.berths import Berth, Berths
from gpupipe.cluster.facts import facts_here
from gpupipe.cluster.fleet import SHOWN, Lost
from gpupipe.cluster.server import Look, ServerActor, Started, Wanted
from gpupipe.cluster.work import Failure
from gpupipe.errors import ClusterError, GpupipeError, reason
from gpupipe.log import Log
from gpupipe.serve.router.kept import STARTING_SECONDS, KeptReplica
from gpupipe.serve.router.replica import Place, Replica

ROOM_SECONDS: Final = 120.0
"""In which a node is to have room for a replica, and tell what it has."""
GONE_SECONDS: Final = 5.0
"""In which the cluster is to say that what was killed has ended."""
CALLS: Final = 6
"""Calls that an actor answers at a time: two of them last as long as its server."""
THREADS: Final = 8
"""In which Ray is asked, for all replicas."""

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

_log = Log(__name__)


@dataclass(frozen=True)
class Order:
    """What is asked of every replica.

    Attributes:
        arguments: of its command line, given its number and its node's address.
        wanted: what its node must have.
        tokens: that it wants, one a line; none: an empty text.
    """

    arguments: Callable[[int, str], Sequence[str]]
    wanted: Wanted
    tokens: str


class RayReplica(KeptReplica):
    """A server on a node.

    Args:
        replica: that it stands for.
        berths: of all replicas of the router.
        order: what is asked of it.
        threads: in which Ray is asked what the event loop must not wait for: it may not answer for a while.
    """

    def __init__(self, replica: Replica, berths: Berths, order: Order, threads: Executor) -> None:
        super().__init__(replica)
        self._berths, self._order, self._threads = berths, order, threads
        self._actor: Any = None
        self._over: asyncio.Future[Any] | None = None
        self._tried = 0

    async def _begin(self) -> Place:
        from ray.exceptions import RayError

        try:
            await self._remove()
            return await self._started()
        except Exception as error:
            await self._remove()
            if isinstance(error, (RayError, Lost, RuntimeError, OSError)):  # as Ray tells that it cannot be reached
                raise ClusterError(f"the cluster does not answer: {_why(error)}", field="--ray") from error
            raise

    async def _started(self) -> Place:
        berth = await self._aside(self._berths.take, self.replica.number, self._tried)
        self._tried += 1
        node = berth.share.node
        self._actor = await self._aside(_actor, berth)
        if self._ending:
            raise ClusterError("is not started any more", file=node)
        look: Look = await self._ask(node, ROOM_SECONDS, "has no room for a replica", "look", self._order.wanted)
        self._berths.require_alike(node, look, await self._aside(facts_here))
        started = await self._open(berth)
        self._tried = 0
        _log.event("replica started", replica=self.replica.number, node=node, pid=started.pid)
        return Place(started.host, started.port, started.grpc)

    async def _open(self, berth: Berth) -> Started:
        share = berth.share
        arguments = self._order.arguments(self.replica.number, berth.address)
        cores, part = None if share.gpus else share.cores, (share.number, berth.parts, int(share.node_id[:8], 16))
        asked = ("open", arguments, cores, part, self._order.tokens)
        started: Started = await self._ask(share.node, STARTING_SECONDS, "has not started a replica", *asked)
        self._over = _answer(self._actor.ended.remote())
        return started

    async def _ask(self, node: str, seconds: float, why: str, what: str, *given: Any) -> Any:
        """Have the actor do something.

        Raises:
            ClusterError: it ends meanwhile, or it takes longer than `seconds`, which is `why`.
            GpupipeError: what it raised.
        """
        from ray.exceptions import RayError

        try:
            async with asyncio.timeout(seconds):
                found = await asyncio.shield(_answer(getattr(self._actor, what).remote(*given)))
        except TimeoutError as error:
            remedy = "see what else uses the cluster, or give fewer --replicas"
            raise ClusterError(f"{why} after {seconds:.0f} s", file=node, remedy=remedy) from error
        except RayError as error:
            raise ClusterError(f"a replica has ended while it started: {_why(error)}", file=node) from error
        if isinstance(found, Failure):
            raise _on(node, found.error())
        return found

    async def _ended(self) -> int | str:
        from ray.exceptions import RayError

        if self._over is None:
            return "not started"
        try:
            return int(await asyncio.shield(self._over))
        except RayError as error:  # the actor, or its node
            return _why(error)

    def _close(self) -> None:
        if self._over is None:  # it starts, and has no talks
            self._end_actor()
        else:
            self._actor.end.remote()

    def _kill(self) -> None:
        if self._over is not None:
            self._actor.kill.remote()
        else:
            self._end_actor()

    async def wait(self, seconds: float) -> None:
        """Wait for its end; after so many seconds it is killed. Its actor ends, too."""
        await super().wait(seconds)
        await self._remove()

    def _tell(self, error: GpupipeError) -> None:
        warnings.warn(f"replica {self.replica.number} was not started again: {error}", GpupipeWarning, stacklevel=2)

    async def _remove(self) -> None:
        """End the actor, if there is one, and wait until it has."""
        await self._aside(self._end_actor)
        over, self._over, self._actor = self._over, None, None
        if over is not None:
            with suppress(TimeoutError):
                async with asyncio.timeout(GONE_SECONDS):
                    await asyncio.wait([over])

    def _aside(self, work: Callable[[*Ts], T], *given: *Ts) -> asyncio.Future[T]:
        return asyncio.get_running_loop().run_in_executor(self._threads, work, *given)

    def _end_actor(self) -> None:
        import ray
        from ray.exceptions import RayError

        if (actor := self._actor) is not None:
            with suppress(RayError, RuntimeError, OSError):  # Ray is lost, and ends what this process has started
                ray.kill(actor)


def _actor(berth: Berth) -> Any:
    """An actor that has a place's share of its node, once there is room."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    share = berth.share
    made = cast(Any, ray.remote(ServerActor)).options(
        num_cpus=share.cores,
        num_gpus=share.gpus,
        max_restarts=0,
        max_task_retries=0,
        max_concurrency=CALLS,
        scheduling_strategy=NodeAffinitySchedulingStrategy(share.node_id, soft=False),
    )
    return made.remote(with_parent=True)


def _answer(asked: Any) -> asyncio.Future[Any]:
    """An answer, as the event loop waits for it; it is shielded where it is, for it must not be cancelled."""
    found = asyncio.wrap_future(asked.future())
    found.add_done_callback(lambda done: done.cancelled() or done.exception())  # nobody may wait for it any more
    return found


def _why(error: Exception) -> str:
    """What Ray says of an actor that was lost, or of what it has raised."""
    cause = getattr(error, "cause", None)
    return reason(error)[:SHOWN] if cause is None else f"{type(cause).__name__}: {reason(cause)}"


def _on(node: str, error: GpupipeError) -> GpupipeError:
    """An error of a node's, which it names."""
    what = f"on {node}: {error.parts['what']}"
    made: GpupipeError = type(error)(**error.parts | {"what": what}, file=error.file)
    return made


def ray_replicas(berths: Berths, order: Order) -> list[RayReplica]:
    """The replicas of a router, not started yet."""
    threads = ThreadPoolExecutor(THREADS, "ray")
    return [RayReplica(Replica(number), berths, order, threads) for number in range(len(berths.first))]
