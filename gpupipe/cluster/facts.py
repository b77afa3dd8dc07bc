"""What the nodes of a cluster must have in common, for a segment to be the same bytes whoever draws it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from gpupipe.engine.core import EngineCore
from gpupipe.errors import ClusterError
from gpupipe.machine import cpu_name, package_version
from gpupipe.media.encoders import codec_versions
from gpupipe.render.fingerprint import GPU_PACKAGES, PACKAGES
from gpupipe.render.manifest import SHOWN

Facts = Mapping[str, str]

JOINING: Final = ("gpupipe", "av", "codecs")
"""Those that count where segments are joined, too."""
NOT_THERE: Final = "not there"


def facts_here(engine: EngineCore | None = None) -> dict[str, str]:
    """Versions of packages and codecs, and with an engine its device and the processor."""
    names = PACKAGES + (GPU_PACKAGES if engine is not None and engine.backend.gpu is not None else ())
    found = {name: package_version(name) or NOT_THERE for name in names} | {"codecs": codec_versions()}
    if engine is not None:
        gpu = engine.backend.gpu
        found |= {"processor": cpu_name(), "device": "cpu" if gpu is None else gpu.name}
    return found


def require_alike(node: str, facts: Facts, first: str, others: Facts, names: tuple[str, ...] | None = None) -> None:
    """See that a node would make the same bytes as another one.

    Args:
        node: its name.
        facts: of it.
        first: who it is compared with.
        others: the facts of that one.
        names: which count; None: all.

    Raises:
        ClusterError: it would not; names the node, and what differs.
    """
    for name in names if names is not None else {**others, **facts}:
        here, there = facts.get(name, NOT_THERE), others.get(name, NOT_THERE)
        if here != there:
            raise ClusterError(
                f"would not make the same bytes as {first}: {name} is {here} there, and {there} on {first}",
                file=node,
                field=name,
                remedy="make the nodes alike, or leave this one out of the cluster",
            )


def require_same_inputs(node: str, found: Mapping[str, str], wanted: Mapping[str, str]) -> None:
    """See that a node has found the same in a job's files and options as the one that was asked first.

    Args:
        node: its name.
        found: the fingerprint that it gives the job.
        wanted: the job's.

    Raises:
        ClusterError: it has not; names the node, and what differs.
    """
    for name in {**wanted, **found}:
        here, there = found.get(name, NOT_THERE), wanted.get(name, NOT_THERE)
        if here != there:
            raise ClusterError(
                f"{name} is {_short(here)} there, and {_short(there)} where this was begun",
                file=node,
                field=name,
                remedy="give the option, and leave the files as they are while they are rendered",
            )


def _short(value: str) -> str:
    return value if len(value) <= SHOWN else f"{value[:12]}…"
