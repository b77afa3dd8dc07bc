"""The engines that a run may have on the nodes of a cluster, those too that join while it goes on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from gpupipe.cluster.remote import Remote
from gpupipe.cluster.shares import CORES, Share, more_shares, shares
from gpupipe.options import EngineKeywords


class Places:
    """Where engines can be: each place is given once, however its engine fares. A node that was lost and comes back is
    another one, to Ray.

    Args:
        nodes: of the cluster when the run begins, as `ray.nodes` tells them.
        options: of the engines. Where their device is left open, it is what the first nodes have.
        cores: see `shares`.
        slots: segments that each draws at a time.
        keep_seconds: how long each stays without work; None: it ends with the run.

    Raises:
        ClusterError: there is no room for any.
    """

    def __init__(
        self,
        nodes: Sequence[dict[str, Any]],
        options: EngineKeywords,
        *,
        cores: int | None,
        slots: int,
        keep_seconds: float | None = None,
    ) -> None:
        self._options, self._cores, self._slots, self._keep = options, cores, slots, keep_seconds
        first = shares(nodes, str(options.get("device") or "auto"), cores)
        self.count = len(first)
        """How many engines there can be on the first nodes."""
        self._on_gpu = bool(first[0].gpus)
        self._given: set[tuple[str, int]] = set()

    def take(self, nodes: Sequence[dict[str, Any]], most: int) -> list[Remote]:
        """Engines that are in none of the places that were given before, not started yet: so many at most.

        Args:
            nodes: of the cluster now.
            most: how many.
        """
        room = more_shares(nodes, self._cores, on_gpu=self._on_gpu)
        free = [share for share in room if (share.node_id, share.number) not in self._given]
        return [self._remote(share) for share in free[:most]]

    def _remote(self, share: Share) -> Remote:
        own: EngineKeywords = {**self._options, "device": "cuda" if share.gpus else "cpu"}
        if not share.gpus and own.get("workers") in (None, "auto"):
            own["workers"] = min(share.cores, CORES)
        name = f"engine {len(self._given)}"
        self._given.add((share.node_id, share.number))
        return Remote(name, share, own, self._slots, self._keep)
