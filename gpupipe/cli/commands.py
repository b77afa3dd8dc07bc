"""The commands: which there are, and what becomes of their errors. Each has a room of its name."""

from __future__ import annotations

import argparse
import os
import signal
import sys
import threading
import warnings
from collections.abc import Sequence
from importlib import import_module
from io import TextIOWrapper
from typing import Any, Final, Protocol, cast

from gpupipe import __version__
from gpupipe.cli import log
from gpupipe.cli.arguments import Help
from gpupipe.errors import GpupipeError

INTERRUPTED: Final = 130

COMMANDS: Final = {
    "render": "render a character speaking into a video or a folder of images",
    "batch": "render many jobs, listed in a file",
    "serve": "let characters speak for clients over a network: HTTP, WebRTC and gRPC",
    "join": "join the segments of a render, made by `gpupipe render --segments`",
    "verify": "decode a finished video, or folder of images, and tell whether it is whole",
    "tune": "find the settings that render a character fastest on this machine, and remember them",
    "features": "compute the speech features of a sound",
    "optimize": "make a character's model smaller and faster, and tell what that costs",
    "demo": "make a small character from nothing",
    "inspect": "tell what is in a character folder, and every fault in it",
    "doctor": "tell what this machine can do, and what is missing",
    "selftest": "check on a GPU that everything works as it should",
    "bench": "compare the ways to render on this machine",
    "report": "show and compare what `gpupipe bench --json` wrote",
}
"""What each does. The room `cli.NAME` has its arguments and runs it; it is imported when the command is asked for."""


class Command(Protocol):
    """A command's room."""

    __name__: str

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Add the command's arguments."""

    def run(self, options: argparse.Namespace) -> int:
        """Run it; returns the exit code."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command.

    Returns:
        0; 1 with one line `error: …` on standard error; 2 for wrong usage; 130 if interrupted. A signal that ends the
        process gives 128 and its number (143 for SIGTERM), after what was half-written is removed.
    """
    try:  # from the first line on: Ctrl-C may come at any
        options = _parser(load(arguments)).parse_args(arguments)
        warnings.showwarning = _show_warning
        if isinstance(sys.stdout, TextIOWrapper):
            # A path may hold letters that the terminal's encoding does not have.
            sys.stdout.reconfigure(errors="backslashreplace")
        if threading.current_thread() is threading.main_thread():
            _clean_up_when_ended()
        with log.logging_as(options):
            return _room(options.command).run(options)
    except GpupipeError as error:
        print(f"error: {error.on_command_line()}", file=sys.stderr)
        return 1
    except MemoryError as error:
        print(f"error: out of memory: {error}; use nv12, a smaller --batch or fewer --frames", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        # Whoever read what is printed has gone (`| head`): what is left of it goes nowhere, and says nothing at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        # A path that the system refuses to look at: too long, or in a folder that may not be entered.
        print(f"error: {error.filename}: {error.strerror}; give another path", file=sys.stderr)
        return 1


def load(arguments: Sequence[str] | None = None) -> Command | None:
    """Import the command that is asked for, and all that it needs; None for none, or one that there is not."""
    first = (sys.argv[1:] if arguments is None else arguments)[:1]
    return _room(first[0]) if first and first[0] in COMMANDS else None


def _room(name: str) -> Command:
    return cast(Command, import_module(f"gpupipe.cli.{name}"))


def _parser(command: Command | None) -> argparse.ArgumentParser:
    """The parser, with the arguments of one command, so that the others need not be imported; None has none."""
    parser = argparse.ArgumentParser("gpupipe", description="Render lip-synced avatar video.")
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND", dest="command")
    for name, text in COMMANDS.items():
        added = commands.add_parser(name, help=text, description=text, formatter_class=Help)
        if command is not None and command.__name__ == f"gpupipe.cli.{name}":
            command.add_arguments(added)
            if name in log.LOGGED:
                log.add_arguments(added)
    return parser


def _clean_up_when_ended() -> None:
    """Ended from outside, or by its terminal's closing, a render cleans up as after any error."""
    for name in ("SIGTERM", "SIGHUP"):
        number = getattr(signal, name, None)  # Windows has no SIGHUP
        if number is not None and signal.getsignal(number) is not signal.SIG_IGN:  # as under nohup
            signal.signal(number, lambda number, _: sys.exit(128 + number))


def _show_warning(message: Warning | str, category: type[Warning], *_: Any, **__: Any) -> None:
    from gpupipe.character.folder import GpupipeWarning

    kind = "warning" if issubclass(category, GpupipeWarning) else category.__name__
    print(f"{kind}: {message}", file=sys.stderr)
