"""Threads that are waited for so that Ctrl-C is seen."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, Final

POLL_SECONDS: Final = 0.2
"""How often who waits wakes, so that Ctrl-C is seen where a blocking wait cannot be interrupted (Windows)."""


YIELDING: Final = 10
"""By how much nicer a thread is that yields."""


def yield_to_others() -> None:
    """Let the calling thread, and those that it starts, have what time the others leave, for good; Linux alone has
    priorities of threads that anybody may lower (setpriority(2), "C library/kernel differences")."""
    if sys.platform == "linux":
        with suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), os.getpriority(os.PRIO_PROCESS, 0) + YIELDING)


class Worker(threading.Thread):
    """A thread whose end can be waited for by somebody who was interrupted while he waited.

    Not by `join`: up to Python 3.12 an interrupted one takes a thread that goes on for one that has ended
    (https://github.com/python/cpython/issues/90882), so that what it writes would be cleaned up under its hands.
    """

    def __init__(self, name: str, work: Callable[..., object], *given: Any) -> None:
        super().__init__(name=name, target=work, args=given, daemon=True)
        self.ended = threading.Event()

    def run(self) -> None:
        """Do the work."""
        try:
            super().run()
        finally:
            self.ended.set()

    def wait(self) -> None:
        """Return once it has ended."""
        while not self.ended.wait(POLL_SECONDS):
            pass


def start_and_wait(workers: Sequence[Worker]) -> None:
    """Start workers, and wait for all of them."""
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.wait()


def join_started(workers: Sequence[Worker]) -> None:
    """Wait for those workers that were started."""
    for worker in workers:
        if worker.ident is not None:
            worker.wait()
