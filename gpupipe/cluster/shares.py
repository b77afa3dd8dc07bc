"""Which engines there are to be on the nodes of a cluster."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, NamedTuple

from gpupipe.errors import ClusterError

CORES: Final = 4
"""The most CPU cores of an engine where no number is asked for: more compositing threads than that are of no use."""


class Share(NamedTuple):
    """What one engine is given of a node: Ray's number of it, its name for people, CPU cores, 1 GPU or none; and the
    engine's own number there."""

    node_id: str
    node: str
    cores: int
    gpus: int
    number: int = 0


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
            found += [Share(node_id, name, min(1, has // count), 1, number) for number in range(count)]
        elif has:
            each = min(cores or CORES, has)
            found += [Share(node_id, name, each, 0, number) for number in range(has // each)]
    if not found:
        what = "GPUs" if on_gpu else "CPU cores"
        raise ClusterError(
            f"no node has {what}", field="--ray", remedy="start nodes that have, or use another --device"
        )
    return found
