"""Errors of outputs, which name the output, and the check that there is none of its name yet."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from gpupipe.errors import OutputError, reason


@contextmanager
def naming(output: Path) -> Iterator[None]:
    """Let what fails inside name the output, not the part of it that could not be written."""
    try:
        with naming_errors(output):
            yield
    except OutputError as error:
        raise error.naming(output) from error


@contextmanager
def naming_errors(output: Path) -> Iterator[None]:
    """Let the system's errors inside be those of an output that cannot be written."""
    try:
        yield
    except OSError as error:
        raise OutputError(
            f"cannot be written: {reason(error)}", file=output, remedy="check the folder, its rights and its free space"
        ) from error


def require_new(output: Path, *, overwrite: bool) -> None:
    """Raise an OutputError if there is a file of that name, or a link, wherever it leads, unless it may be replaced.

    It is the link that is replaced then, not what it leads to: a file gets its name by being renamed.
    """
    if not overwrite and (output.exists() or output.is_symlink()):
        raise OutputError("exists already", file=output, field="output", remedy="use --overwrite or another name")
