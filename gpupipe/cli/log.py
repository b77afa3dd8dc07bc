"""What the log says on the command line: lines for people with `-v`, lines of JSON for programs with `--log-json`."""

from __future__ import annotations

import argparse
import json
import logging
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, TextIO

from gpupipe.cli.show import check_folders
from gpupipe.errors import GpupipeError, OutputError, reason
from gpupipe.log import ROOT, Log

LOGGED: Final = ("render", "batch", "serve", "join", "tune", "features", "optimize", "bench")
"""The commands that have a log: those that render, serve, or make what renders need."""
WARNING: Final = ("serve",)
"""Those whose warnings are told in any case: what goes wrong there ends no command, and clients are sent to the log."""

_log = Log(__name__)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """How much is told, and where."""
    add = parser.add_argument_group("the log").add_argument
    add("-v", "--verbose", action="count", default=0, help="tell on standard error what is done, -vv in more detail")
    add(
        "--log-json",
        metavar="FILE|-",
        help="write what is done as JSON, a line an event, to a file, or to standard output (which has nothing else "
        "with --quiet); -vv: in more detail",
    )


@contextmanager
def logging_as(options: argparse.Namespace) -> Iterator[None]:
    """Let the log go where a command's options say, for the with block, and tell of its beginning and end.

    Raises:
        OutputError: the file cannot be written.
    """
    verbose, target = getattr(options, "verbose", 0), getattr(options, "log_json", None)
    warns = not verbose and target is None and options.command in WARNING
    if not (verbose or warns) and target is None:
        yield
        return
    logger = logging.getLogger(ROOT)
    before = logger.level
    with ExitStack() as closing:
        handlers: list[logging.Handler] = []
        if verbose or warns:
            handlers.append(Lines(None, _Text()))
        if target is not None:
            handlers.append(Lines(sys.stdout if target == "-" else closing.enter_context(_opened(target)), _Json()))
        for handler in handlers:
            logger.addHandler(handler)
            closing.callback(logger.removeHandler, handler)
        closing.callback(logger.setLevel, before)
        logger.setLevel(logging.DEBUG if verbose > 1 else logging.WARNING if warns else logging.INFO)
        began = time.perf_counter()
        _log.event("command begun", command=options.command)
        try:
            yield
        except BaseException as error:
            if warns:  # the command says it itself
                raise
            told = error.on_command_line() if isinstance(error, GpupipeError) else str(error) or type(error).__name__
            seconds = time.perf_counter() - began
            _log.event("command failed", logging.ERROR, command=options.command, error=told, seconds=seconds)
            raise
        _log.event("command ended", command=options.command, seconds=time.perf_counter() - began)


class Lines(logging.Handler):
    """Writes records, a line each; when that fails, it says so once, and stops.

    Args:
        stream: where; None: whatever standard error is then, which a progress bar puts in its own place.
        formatter: makes the line.
    """

    def __init__(self, stream: TextIO | None, formatter: logging.Formatter) -> None:
        super().__init__()
        self._stream = stream
        self.setFormatter(formatter)

    def emit(self, record: logging.LogRecord) -> None:
        """Write a record."""
        try:
            print(self.format(record), file=self._stream or sys.stderr, flush=True)
        except OSError as error:  # a full disk, a reader that has gone: the render goes on
            logging.getLogger(ROOT).removeHandler(self)
            if self._stream is not None:
                print(f"warning: the log ends here, it cannot be written: {reason(error)}", file=sys.stderr)


class _Text(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        now = datetime.fromtimestamp(record.created).astimezone()
        return f"{now:%H:%M:%S.%f} {record.levelname.lower()} [{record.threadName}] {_line(record.getMessage())}"


class _Json(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        fields: dict[str, Any] = getattr(record, "fields", {})
        told = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="microseconds"),
            "level": record.levelname.lower(),
            "event": getattr(record, "event", record.getMessage()),
            "logger": record.name,
            "thread": record.threadName,
            "job": None,
            "session": None,
            "talk": None,
        }
        return json.dumps(told | fields, default=str)


def _line(text: str) -> str:
    """A path may hold line ends, which would look like other events."""
    return text.replace("\r", "\\r").replace("\n", "\\n")


def _opened(target: str) -> TextIO:
    path = Path(target)
    check_folders(path)
    try:
        return path.open("w", encoding="utf-8", errors="backslashreplace")
    except OSError as error:
        raise OutputError(
            f"cannot be written: {reason(error)}", file=path, field="--log-json", remedy="use another folder"
        ) from error
