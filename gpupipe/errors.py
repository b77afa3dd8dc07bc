"""The errors that gpupipe raises on purpose: one line each, naming file, field, value and remedy."""

from __future__ import annotations

from collections.abc import Sequence
from os import PathLike
from typing import Any, Self

_ABSENT = object()


class GpupipeError(Exception):
    """Base of every error that a user can cause and mend.

    Args:
        what: what is wrong, in one line.
        file: the file or folder it is about.
        field: the entry in that file (or the option) it is about.
        value: what was found there; shown with `repr`.
        remedy: what to do about it.

    The message is `file: field: what (got value); remedy`, with the parts that are given.
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
        where = "".join(f"{part}: " for part in (file, field) if part is not None)
        got = "" if value is _ABSENT else f" (got {value!r})"
        end = "" if remedy is None else f"; {remedy}"
        super().__init__(" ".join(f"{where}{what}{got}{end}".split()))
        self._parts: dict[str, Any] = {"what": what, "field": field, "value": value, "remedy": remedy}

    def naming(self, file: str | PathLike[str]) -> Self:
        """The same error about another file: the one that the user knows, if this was about a part of it."""
        return type(self)(**self._parts, file=file)


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


class OutputError(GpupipeError):
    """The result cannot be written."""


class OptionError(GpupipeError, ValueError):
    """An option has a value that it cannot have."""

    @classmethod
    def unless_within(cls, field: str, value: int | None, least: int, most: int) -> None:
        """Raise one for a number out of range; None is right."""
        if value is not None and not least <= value <= most:
            raise cls("out of range", field=field, value=value, remedy=f"give {least} to {most}")

    @classmethod
    def unless_among(cls, field: str, value: str, choices: Sequence[str]) -> None:
        """Raise one for a choice that there is not."""
        if value not in choices:
            *first, last = choices
            raise cls("no such choice", field=field, value=value, remedy=f"give {', '.join(first)} or {last}")
