"""Waiting for threads so that Ctrl-C is seen."""

from __future__ import annotations

import threading
from collections.abc import Sequence

from gpupipe.engine.session import POLL_SECONDS


def start_and_wait(threads: Sequence[threading.Thread]) -> None:
    """Start threads, and wait for all of them, in steps: a join alone cannot be interrupted everywhere (Windows)."""
    for thread in threads:
        thread.start()
    for thread in threads:
        while thread.is_alive():
            thread.join(POLL_SECONDS)


def join_started(threads: Sequence[threading.Thread]) -> None:
    """Wait for those threads that were started."""
    for thread in threads:
        if thread.ident is not None:
            thread.join()
