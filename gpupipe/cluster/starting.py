"""Nodes of Ray that this process starts, where the machine may be too busy for it."""

from __future__ import annotations

import logging
import traceback
from collections.abc import Callable, Iterator
from typing import Any, Final, TypeVar

from gpupipe.log import Log

STARTS: Final = 3
"""Of a node, before it is given up."""
TIMED_OUT: Final = "timed out during startup"
"""What Ray says, as a plain `Exception`, of a node that is not there after half a minute, which no setting changes."""

_log = Log(__name__)
_T = TypeVar("_T")


class TooBusy(Exception):
    """A node did not start in time, as often as it was started."""


def start_node(start: Callable[[], _T], stop: Callable[[], object] = lambda: None) -> _T:
    """Start a node of Ray; again, if it was too slow, once all that was started of it has been ended.

    Args:
        start: starts it, with `ray.init` or a cluster's `add_node`.
        stop: called too after a start that was too slow.

    Returns:
        What `start` returned.

    Raises:
        TooBusy: it was too slow `STARTS` times.
    """
    for number in range(1, STARTS + 1):
        try:
            return start()
        except Exception as error:
            if type(error) is not Exception or TIMED_OUT not in str(error):
                raise
            for node in _begun(error):
                node.kill_all_processes(check_alive=False, allow_graceful=True, wait=True)
            stop()
            _log.event("node not started", logging.WARNING, start=number, of=STARTS)
            last = error
    raise TooBusy(f"a node {TIMED_OUT}, {STARTS} times") from last


def _begun(error: BaseException) -> Iterator[Any]:
    """Nodes whose making ended with an error: nothing of Ray's refers to them, and their processes live on."""
    for frame, _ in traceback.walk_tb(error.__traceback__):
        made = frame.f_locals.get("self")
        if hasattr(made, "kill_all_processes"):
            yield made
