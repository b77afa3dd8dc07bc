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
    on_gpu = device == "cuda" or (device == "auto" and any(_gpus_of(node) for node in _alive(nodes)))
    found = more_shares(nodes, cores, on_gpu=on_gpu)
    if not found:
        what = "GPUs" if on_gpu else "CPU cores"
        raise ClusterError(
            f"no node has {what}", field="--ray", remedy="start nodes that have, or use another --device"
        )
    return found


def more_shares(nodes: Sequence[dict[str, Any]], cores: int | None, *, on_gpu: bool) -> list[Share]:
    """The engines that there may be on nodes like those of a run that goes on; none is no error.

    Args:
        nodes: as `ray.nodes` tells them.
        cores: of an engine on the CPU; None: up to 4.
        on_gpu: whether the run's engines are on GPUs.
    """
    return [share for node in _alive(nodes) for share in _shares_of(node, cores, on_gpu=on_gpu)]


def _alive(nodes: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    return sorted((node for node in nodes if node["Alive"]), key=lambda node: str(node["NodeID"]))


def _gpus_of(node: dict[str, Any]) -> int:
    return int(node["Resources"].get("GPU", 0))


def _shares_of(node: dict[str, Any], cores: int | None, *, on_gpu: bool) -> list[Share]:
    node_id, has = str(node["NodeID"]), int(node["Resources"].get("CPU", 0))
    name = f"{node['NodeManagerAddress']} ({node_id[:8]})"
    if on_gpu:
        count = _gpus_of(node)
        return [Share(node_id, name, min(1, has // count), 1, number) for number in range(count)]
    each = min(cores or CORES, has)
    return [Share(node_id, name, each, 0, number) for number in range(has // each)] if has else []
