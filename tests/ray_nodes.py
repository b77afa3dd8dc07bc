"""A Ray of several nodes on this machine, for tests."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

STORE_BYTES = 100 << 20
"""Of a node's object store."""


@contextmanager
def ray_nodes(cache: Path) -> Iterator[Any]:
    """A cluster of one node with two CPU cores, to which others can be added.

    Args:
        cache: the nodes' cache folder.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(cache))
        for name, value in (("USAGE_STATS_ENABLED", "0"), ("ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")):
            patch.setenv(f"RAY_{name}", value)
        patch.setenv("RAY_IGNORE_UNHANDLED_ERRORS", "1")
        ray = pytest.importorskip("ray", reason="Ray is not installed: pip install 'gpupipe[ray]'")
        cluster: Any = import_module("ray.cluster_utils").Cluster()
        try:
            add_node(cluster, include_dashboard=False)
            with sigterm_as_it_is():
                ray.init(address=cluster.address, log_to_driver=False, logging_level="CRITICAL")
            yield cluster
        finally:
            ray.shutdown()
            cluster.shutdown()


def add_node(cluster: Any, **settings: Any) -> Any:
    """Add a node with two CPU cores."""
    from gpupipe.cluster.starting import start_node  # not before this process is the one that runs the tests

    with sigterm_as_it_is():
        return start_node(lambda: cluster.add_node(num_cpus=2, object_store_memory=STORE_BYTES, **settings))


@contextmanager
def sigterm_as_it_is() -> Iterator[None]:
    """Ray puts its own handler in the place of what there is."""
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
