"""A session's runs in one thread, whoever asks for them."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")


class OneThread:
    """A thread in which calls are made one after the other.

    From 1.26 on ONNX Runtime keeps what a run of the CUDA provider takes for the thread that made it, after the
    thread's end too (https://github.com/microsoft/onnxruntime/issues/29351): seen on an H200 with 1.30.0, 75 MB of
    device memory for each thread that ran a model once. Threads of jobs come and go; this one stays.

    Args:
        name: of the thread.
    """

    def __init__(self, name: str) -> None:
        self._pool = ThreadPoolExecutor(1, name)

    def __call__(self, work: Callable[[], T]) -> T:
        """Do something in the thread, and wait for it; what it raises is raised."""
        return self._pool.submit(work).result()

    def close(self) -> None:
        """Wait for what is under way, and end the thread."""
        self._pool.shutdown()
