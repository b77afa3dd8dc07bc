"""Signals, by which a server is told to end."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

SIGNALS: Final = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGBREAK") if hasattr(signal, name))
"""That end a server; Windows has SIGBREAK."""


@contextmanager
def told_to_end(ending: asyncio.Event | None, at_once: Callable[[], None] = lambda: None) -> Iterator[asyncio.Event]:
    """An event that the first signal sets; the second ends the process.

    Args:
        ending: an event that is set by somebody else, and is what is given; signals are left alone then.
        at_once: called before the process is ended.
    """
    if ending is not None:
        yield ending
        return
    loop, event = asyncio.get_running_loop(), asyncio.Event()

    def come(number: int) -> None:
        if event.is_set():
            at_once()
            sys.stderr.flush()
            os._exit(128 + number)
        event.set()

    before = {number: signal.getsignal(number) for number in SIGNALS}
    for number in SIGNALS:
        try:
            loop.add_signal_handler(number, come, number)
        except NotImplementedError:  # Windows
            signal.signal(number, lambda number, _: loop.call_soon_threadsafe(come, number))
    try:
        yield event
    finally:
        for number, handler in before.items():
            if sys.platform != "win32":
                loop.remove_signal_handler(number)
            signal.signal(number, handler)
