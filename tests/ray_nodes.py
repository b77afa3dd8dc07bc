"""A Ray of several nodes on this machine, for tests.

A process of its own starts them. Ray forks to start its processes, and a fork of a process whose other threads are in
the middle of something, as those of gRPC servers of earlier tests may be, can wait for them for ever: the node is never
there, and Ray gives it half a minute.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]
STORE_BYTES = 100 << 20
"""Of a node's object store."""


class Nodes:
    """A cluster of one node with two CPU cores, to which others can be added.

    Attributes:
        address: of the cluster.
    """

    def __init__(self) -> None:
        path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
        self._process = subprocess.Popen(
            [sys.executable, __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"PYTHONPATH": path},
        )
        self.address = self._told()

    def add(self) -> str:
        """Add a node with two CPU cores; what `remove` wants to know of it."""
        return self._asked("add")

    def remove(self, node: str) -> None:
        """Take a node away."""
        self._asked(f"remove {node}")

    def close(self) -> None:
        """End all of them."""
        self._process.communicate()
        assert self._process.returncode == 0

    def _asked(self, what: str) -> str:
        assert self._process.stdin is not None
        self._process.stdin.write(what + "\n")
        self._process.stdin.flush()
        return self._told()

    def _told(self) -> str:
        assert self._process.stdout is not None
        while line := self._process.stdout.readline():
            if line.startswith("told "):  # among what Ray prints
                return line.split()[1]
        raise AssertionError(f"the process that starts nodes has ended with {self._process.wait()}")


@contextmanager
def ray_nodes(cache: Path) -> Iterator[Nodes]:
    """Nodes, and this process joined to them.

    Args:
        cache: the nodes' cache folder.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(cache))
        for name, value in (("USAGE_STATS_ENABLED", "0"), ("ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")):
            patch.setenv(f"RAY_{name}", value)
        patch.setenv("RAY_IGNORE_UNHANDLED_ERRORS", "1")
        ray = pytest.importorskip("ray", reason="Ray is not installed: pip install 'gpupipe[ray]'")
        nodes = Nodes()
        try:
            with sigterm_as_it_is():
                ray.init(address=nodes.address, log_to_driver=False, logging_level="CRITICAL")
            yield nodes
        finally:
            ray.shutdown()
            nodes.close()


@contextmanager
def sigterm_as_it_is() -> Iterator[None]:
    """Ray puts its own handler in the place of what there is."""
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def main() -> None:
    """Start a node, tell the cluster's address, and do what standard input asks for, until its end."""
    from gpupipe.cluster.starting import start_node

    cluster: Any = import_module("ray.cluster_utils").Cluster()
    added: dict[str, Any] = {}

    def add(**settings: Any) -> Any:
        return start_node(lambda: cluster.add_node(num_cpus=2, object_store_memory=STORE_BYTES, **settings))

    try:
        add(include_dashboard=False)
        print("told", cluster.address, flush=True)
        for line in sys.stdin:
            what, *names = line.split()
            for name in names if what == "remove" else ():
                cluster.remove_node(added.pop(name))
            name = str(len(added))
            if what == "add":
                added[name] = add()
            print("told", name, flush=True)
    finally:
        cluster.shutdown()


if __name__ == "__main__":
    main()
