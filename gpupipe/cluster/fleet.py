"""A cluster of Ray, and its nodes."""

from __future__ import annotations

import logging
import os
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final, cast

from gpupipe.cluster.starting import TooBusy, start_node
from gpupipe.errors import ClusterError, reason
from gpupipe.log import Log
from gpupipe.machine import cpu_count

LOCAL: Final = "local"
"""The address of a Ray that is started and stopped with the run, on this machine."""
ANSWER_SECONDS: Final = 10.0
SHOWN: Final = 300
"""Letters of what Ray says of an engine that was lost."""
LOCAL_STORE_BYTES: Final = 128 << 20
"""Of a local Ray's object store, through which pieces of files pass."""

_log = Log(__name__)


class Lost(Exception):
    """An engine does not answer any more: its process, or its node, has ended."""


@contextmanager
def connected(address: str) -> Iterator[list[dict[str, Any]]]:
    """A cluster, for as long as the with block lasts; one that was started for it is stopped at the end.

    Args:
        address: `local`, `auto`, `host:port`, or `ray://host:port`.

    Yields:
        Its nodes, as `ray.nodes` tells them.

    Raises:
        ClusterError: Ray is not installed, nobody answers, or this machine is too busy to start it.
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
    _require_answer(address)
    settings: dict[str, Any] = {"address": address, "log_to_driver": False, "logging_level": logging.CRITICAL}
    if address == LOCAL:
        settings |= {"num_cpus": cpu_count(), "include_dashboard": False, "object_store_memory": LOCAL_STORE_BYTES}
    mine = not ray.is_initialized()
    if mine:
        try:
            with _handler_of_sigterm(), _log.timed("cluster joined", address=address):
                start_node(lambda: ray.init(**settings), ray.shutdown)
        except TooBusy as error:
            raise ClusterError(
                "no Ray was started on this machine, which is too busy for it",
                field="--ray",
                value=address,
                remedy="try again when it has less to do, or start one with `ray start --head` and name its address",
            ) from error
        except (ConnectionError, ValueError, RuntimeError, OSError, TimeoutError, ImportError) as error:
            raise _no_answer(address, error) from error
    try:
        try:
            found = nodes()
        except Lost as error:
            raise _no_answer(address, error) from error
        yield found
    finally:
        if mine:
            ray.shutdown()


def nodes() -> list[dict[str, Any]]:
    """The nodes of the cluster, as `ray.nodes` tells them: those too that are gone.

    Raises:
        Lost: it does not answer now.
    """
    import ray
    from ray.exceptions import RayError

    try:
        found: list[dict[str, Any]] = cast(Any, ray).nodes()
    except (RayError, RuntimeError, ConnectionError) as error:
        raise Lost(f"the cluster: {reason(error)[:SHOWN]}") from error
    return found


def _require_answer(address: str) -> None:
    """See that somebody listens there: Ray itself tries for minutes."""
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if not colon:  # a word, for which Ray looks on this machine
        return
    try:
        with socket.create_connection((host.strip("[]"), int(port)), timeout=ANSWER_SECONDS):
            pass
    except (OSError, ValueError) as error:
        raise _no_answer(address, error) from error


def _no_answer(address: str, error: BaseException) -> ClusterError:
    return ClusterError(
        f"no Ray cluster answers: {reason(error)}",
        field="--ray",
        value=address,
        remedy="start one with `ray start --head`, or leave the address out for one on this machine",
    )


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
