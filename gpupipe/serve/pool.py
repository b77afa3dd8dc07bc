"""Threads that do what the event loop must not wait for, and count what they do."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


class Pool(ThreadPoolExecutor):
    """An executor that knows how much waits for it, and how much CPU time it has taken.

    Args:
        threads: how many.
        name: of the threads.

    Attributes:
        cpu_seconds: that its threads have spent on what is done.
        waiting: calls that no thread has begun with.
    """

    def __init__(self, threads: int, name: str) -> None:
        super().__init__(threads, name)
        self.cpu_seconds = 0.0
        self.waiting = 0
        self._counting = threading.Lock()

    def submit(self, work: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """Have something done."""
        with self._counting:
            self.waiting += 1
        begun = threading.Event()

        def counted() -> T:
            self._begins(begun)
            before = time.thread_time()
            try:
                return work(*args, **kwargs)
            finally:
                with self._counting:
                    self.cpu_seconds += time.thread_time() - before

        done = super().submit(counted)
        done.add_done_callback(lambda _: self._begins(begun))  # of one that was cancelled, too
        return done

    def _begins(self, begun: threading.Event) -> None:
        with self._counting:
            self.waiting -= not begun.is_set()
            begun.set()
