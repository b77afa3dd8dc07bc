"""Where on a cluster the replicas of a router are: which share of which node each has."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any, Final, NamedTuple

from gpupipe.cluster.facts import require_alike
from gpupipe.cluster.server import Look, Sizes
from gpupipe.cluster.shares import Share, shares
from gpupipe.errors import ClusterError, OptionError

SAME: Final = "give all nodes the same characters"

Nodes = Callable[[], Sequence[dict[str, Any]]]
"""The nodes of the cluster as they are now, as `ray.nodes` tells them."""


class Berth(NamedTuple):
    """A replica's place.

    Attributes:
        share: what it has of its node.
        address: of the node.
        parts: shares that the node has.
    """

    share: Share
    address: str
    parts: int


class Berths:
    """The places that there are, each of which one replica has. It keeps its place while the node is there; else, or if
    it cannot be started there, it is given another one that is free.

    Args:
        nodes: of the cluster.
        device: "auto", "cpu" or "cuda".
        cores: CPU cores of a replica on the CPU; None: up to 4.
        count: of the replicas; None: as many as there are places.

    Attributes:
        first: the place of each replica at the beginning, those of one node as far apart as can be.

    Raises:
        ClusterError: there is no place.
        OptionError: there are fewer than that.
    """

    def __init__(self, nodes: Nodes, device: str, cores: int | None, count: int | None) -> None:
        self._nodes, self._cores = nodes, cores
        found = self._all(device)
        self.first = sorted(found, key=lambda berth: berth.share.number)[:count]
        if count is not None and len(self.first) < count:
            raise OptionError(
                f"the cluster has room for {len(found)}",
                field="--replicas",
                value=str(count),
                remedy="give fewer, or leave it out",
            )
        # Decided once: replicas of GPUs do not become others when GPUs are lost.
        self.device = "cuda" if self.first[0].share.gpus else "cpu"
        self._taken = {number: berth.share for number, berth in enumerate(self.first)}
        self._looked: tuple[str, Look] | None = None
        self._lock = threading.Lock()

    def take(self, number: int, tried: int) -> Berth:
        """The place of a replica. May be called from any thread.

        Args:
            number: which.
            tried: how often it could not be started since it ran.

        Raises:
            ClusterError: there is none that is free.
        """
        every = self._all(self.device)
        with self._lock:
            mine = self._taken[number]
            others = {share for who, share in self._taken.items() if who != number}
            free = [each for each in every if each.share not in others]
            free.sort(key=lambda berth: berth.share != mine)  # its own is the first
            if not free:
                raise ClusterError("no node has room", field="--ray", remedy="start nodes, or wait until some are back")
            found = free[tried % len(free)]
            self._taken[number] = found.share
            return found

    def require_alike(self, node: str, look: Look, here: dict[str, str]) -> None:
        """See that a node has what all others have, and the router's version of gpupipe.

        Args:
            node: its name.
            look: what it has.
            here: the router's own facts.

        Raises:
            ClusterError: it has not; names the node, and what differs.
        """
        require_alike(node, look.facts, "the router", here, ("gpupipe",))
        if self._looked is None:
            self._looked = node, look
        first, other = self._looked
        require_alike(node, look.facts, first, other.facts)
        _require_same_files(node, look.sizes, first, other.sizes)

    def _all(self, device: str) -> list[Berth]:
        nodes = self._nodes()
        addresses = {str(node["NodeID"]): str(node["NodeManagerAddress"]) for node in nodes}
        found = shares(nodes, device, self._cores)
        counts = [share.node_id for share in found]
        return [Berth(share, addresses[share.node_id], counts.count(share.node_id)) for share in found]


def _require_same_files(node: str, sizes: Sizes, first: str, others: Sizes) -> None:
    for name in sorted({*sizes, *others}):
        here, there = sizes.get(name), others.get(name)
        if here is None or there is None:
            has, lacks = (first, node) if here is None else (node, first)
            raise ClusterError(f"is on {has}, and not on {lacks}", file=name, remedy=SAME)
        for file in sorted({*here, *there}):
            if here.get(file) != there.get(file):
                told = [f"{size} bytes" if (size := each.get(file)) is not None else "none" for each in (here, there)]
                raise ClusterError(
                    f"{file} has {told[0]} on {node}, and {told[1]} on {first}",
                    file=name,
                    remedy=SAME,
                )
