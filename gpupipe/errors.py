"""The errors that gpupipe raises on purpose: one line each, naming file, field, value and remedy."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from os import PathLike
from typing import Any, Final, Self

_ABSENT = object()

PYTHON_SPELLINGS: dict[str, str] = {}
"""What stands in Python for an option on the command line, alone or with a value: `--device cpu` is `device="cpu"`.

`options`, which lies above, says it for its own; any other flag is its name in Python, `--start-frame` `start_frame`.
"""

LONGEST_VALUE: Final = 400
"""Characters of a wrong value that a message shows."""

_FLAG = re.compile(r"`[^`]*`|(?<![\w-])--[a-z][a-z0-9-]*(?: [\w:]+)?")
"""An option in a text, with the word that follows; commands in backticks are left as they are."""


class GpupipeError(Exception):
    """Base of every error that a user can cause and mend.

    Args:
        what: what is wrong, in one line.
        file: the file or folder it is about.
        field: the entry in that file (or the option) it is about.
        value: what was found there; shown with `repr`.
        remedy: what to do about it.

    The message is `file: field: what (got value); remedy`, with the parts that are given. They spell options as the
    command line does (`--batch`); the error itself tells them as Python does (`batch`), where most are caught.
    """

    def __init__(
        self,
        what: str,
        *,
        file: str | PathLike[str] | None = None,
        field: str | None = None,
        value: Any = _ABSENT,
        remedy: str | None = None,
    ) -> None:
        super().__init__(what)
        self._file = file
        self._parts: dict[str, Any] = {"what": what, "field": field, "remedy": remedy}
        if value is not _ABSENT:  # which would be another object in another process
            self._parts["value"] = value

    def __str__(self) -> str:
        return self._message(_field_in_python, in_python)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({str(self)!r})"

    def on_command_line(self) -> str:
        """The message, with options as the command line spells them."""
        return self._message(str, str)

    def _message(self, field: Callable[[str], str], prose: Callable[[str], str]) -> str:
        parts = self._parts
        named = None if parts["field"] is None else field(parts["field"])
        where = "".join(f"{part}: " for part in (self._file, named) if part is not None)
        got = f" (got {_short(repr(parts['value']))})" if "value" in parts else ""
        end = "" if parts["remedy"] is None else f"; {prose(parts['remedy'])}"
        return " ".join(f"{where}{prose(parts['what'])}{got}{end}".split())

    @property
    def file(self) -> str | PathLike[str] | None:
        """The file or folder it is about."""
        return self._file

    @property
    def parts(self) -> dict[str, Any]:
        """What it was made with, but for the file: how another process tells it."""
        return dict(self._parts)

    def brief(self) -> str:
        """What is wrong, without where and the remedy, for where something else was done about it."""
        return type(self)(**{name: self._parts[name] for name in ("what", "value") if name in self._parts})._message(
            str, str
        )

    def naming(self, file: str | PathLike[str]) -> Self:
        """The same error about another file: the one that the user knows, if this was about a part of it."""
        return type(self)(**self._parts, file=file)

    def about(self, field: str) -> Self:
        """The same error, saying which entry, option or frame it is about."""
        return type(self)(**self._parts | {"field": field}, file=self._file)


def reason(error: BaseException) -> str:
    """What an exception of another package says, in one line.

    The system's own words if it has them, without the number and the path that Python puts around them; else its
    message with line breaks and runs of spaces made single spaces; else its type's name.

    >>> reason(FileNotFoundError(2, "No such file or directory", "talk.mp4"))
    'No such file or directory'
    >>> reason(ValueError("two\\n  lines")), reason(KeyboardInterrupt())
    ('two lines', 'KeyboardInterrupt')
    """
    said = getattr(error, "strerror", None) or error  # a number without words leaves strerror None
    return " ".join(str(said).split()) or type(error).__name__


class PackageError(GpupipeError):
    """A character folder does not hold what it must."""


class MediaError(GpupipeError):
    """A video or sound file cannot be read or does not fit."""


class DeviceError(GpupipeError):
    """The GPU that was asked for is not there or cannot be used."""


class DeviceMemoryError(DeviceError):
    """The job does not fit in the GPU's free memory."""


class KernelError(GpupipeError):
    """A CUDA kernel is missing or does not compile."""


class InferenceError(GpupipeError):
    """The model cannot be loaded, does not fit, or gave a wrong result."""


class ProviderError(InferenceError):
    """The ONNX Runtime provider that was asked for cannot be had."""


class HostMemoryError(GpupipeError):
    """The job does not fit in the host's memory."""


class Cancelled(GpupipeError):
    """The job was called off before its last frame."""


class EngineClosed(GpupipeError):
    """The engine has been closed, or its device has failed."""


class OutputError(GpupipeError):
    """The result cannot be written."""


class OtherRender(OutputError):
    """What is there of an output was begun as another render, or nobody can tell as which."""


class JobFileError(GpupipeError):
    """A list of jobs cannot be read, or one of its lines is no job."""


class ClusterError(GpupipeError):
    """A cluster, or one of its nodes, cannot do what is asked of it."""


class OptionError(GpupipeError, ValueError):
    """An option has a value that it cannot have."""

    @classmethod
    def unless_within(cls, field: str | None, value: int | None, least: int, most: int | None = None) -> None:
        """Raise one for a number out of range; None is right, and as a limit none."""
        if value is not None and (value < least or (most is not None and value > most)):
            remedy = f"give {least} or more" if most is None else f"give {least} to {most}"
            raise cls("out of range", field=field, value=value, remedy=remedy)

    @classmethod
    def unless_among(cls, field: str | None, value: str, choices: Sequence[str]) -> None:
        """Raise one for a choice that there is not."""
        if value not in choices:
            *first, last = choices
            raise cls("no such choice", field=field, value=value, remedy=f"give {', '.join(first)} or {last}")


def in_python(text: str) -> str:
    """A text that spells options as the command line does, with their spelling in Python."""

    def spelled(found: re.Match[str]) -> str:
        whole = found[0]
        if whole.startswith("`"):
            return whole
        if whole in PYTHON_SPELLINGS:
            return PYTHON_SPELLINGS[whole]
        flag, space, word = whole.partition(" ")
        return PYTHON_SPELLINGS.get(flag, _name(flag)) + space + word

    return _FLAG.sub(spelled, text)


def _field_in_python(field: str) -> str:
    if not field.startswith("--"):
        return field
    return PYTHON_SPELLINGS.get(field, _name(field)).partition("=")[0]


def _short(text: str) -> str:
    return text if len(text) <= LONGEST_VALUE else f"{text[: LONGEST_VALUE - 1]}…"


def _name(flag: str) -> str:
    return flag.removeprefix("--").replace("-", "_")
