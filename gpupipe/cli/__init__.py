"""The command line: arguments, progress, messages and exit codes. The only package that prints."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; see `commands.main`."""
    with _ending_at_once():
        from gpupipe.cli import commands

        commands.load(arguments)
    return commands.main(arguments)


@contextmanager
def _ending_at_once() -> Iterator[None]:
    """Let Ctrl-C end the process on the spot while modules are imported, which is before there is anything to clean up.

    As an exception it would pass through other packages' half-imported C code, which prints it or makes it an
    ImportError; and raised inside an `exec` of text, as dataclasses do, it makes Python end by the signal even if it
    is caught (`unhandled_keyboard_interrupt` in CPython's pythonrun.c).
    """
    ours = threading.current_thread() is threading.main_thread()
    if not ours or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:  # it is ignored, as under nohup
        yield
        return
    signal.signal(signal.SIGINT, _end)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _end(*_: object) -> None:
    os.write(2, b"interrupted\n")
    os._exit(130)
