"""What an option is: its kind, range, help and spelling, kept in the metadata of a dataclass's field."""

from __future__ import annotations

import operator
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cache
from os import PathLike, environ, fsencode, fspath
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final, Literal, TypeVar

from gpupipe.errors import OptionError

Kind = Literal["text", "path", "features", "device", "number", "bytes", "size", "share", "choice", "switch"]
"""How an option is written. `share` is a number above 0, and 1 at most; `features` is a path, or from Python an array
too; `device` is "auto", "cpu", "cuda" or "cuda:1", or several GPUs: "cuda:0,cuda:1"; `bytes` is a number of bytes, on
the command line with a unit (8G); `size` too, and may have its unit in Python as well ("8G")."""

DEVICES: Final = ("auto", "cpu", "cuda", "cuda:N")
"""Every device; N is a GPU's number, as CUDA numbers the visible ones. Several GPUs are separated by commas."""

Auto = Literal["auto"]
"""Asked for what None stands for, in words."""

All = Literal["all"]
"""Asked for as much as there is, of a number of bytes."""

T = TypeVar("T")

_METADATA = "gpupipe"
_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}
_DECIMAL = {"KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}


@dataclass(frozen=True)
class Option:
    """One option.

    Attributes:
        kind: how its values are written.
        help: what it does, a line without a full stop.
        flag: on the command line; a switch that is on unless told otherwise has one that turns it off.
        metavar: stands for the value in the command line's help; None for the option's own name.
        least: the smallest number.
        most: the largest number, or None.
        choices: all values there are, of a choice.
        unset: what None stands for; None is refused where this is.
        auto: whether "auto" is None, in words.
        words: values besides numbers, of a number or a size.
        bare: what the flag stands for alone, without a value; None: it wants one.
        name: of the field: its spelling in Python and JSON.
        default: its value where none is given.
    """

    kind: Kind
    help: str
    flag: str = ""
    metavar: str | None = None
    least: int = 0
    most: int | None = None
    choices: tuple[str, ...] = ()
    unset: str | None = None
    auto: bool = False
    words: tuple[str, ...] = ()
    bare: str | None = None
    name: str = ""
    default: Any = None

    def checked(self, value: object, spelled: str | None) -> Any:
        """A value that this option can have, as it is kept: whole numbers as int, whatever they were.

        Args:
            value: from Python or JSON, of any type.
            spelled: what the caller calls this option; None where it is known.

        Raises:
            OptionError: it has the wrong type, or is out of range.
        """
        if (value is None and self.unset is not None) or (self.auto and isinstance(value, str) and value == "auto"):
            return None
        if isinstance(value, str) and value in self.words:
            return str(value)
        if self.kind == "size" and isinstance(value, str):
            value = _bytes_named(value, spelled)
        if self.kind in ("number", "bytes", "size"):
            number = _whole(value)
            if number is None:
                remedy = f"give {self.least} {'or more' if self.most is None else f'to {self.most}'}"
                remedy += f", or {listed(self._words)}" if self._words else ""
                raise OptionError("not a whole number", field=spelled, value=value, remedy=remedy)
            OptionError.unless_within(spelled, number, self.least, self.most)
            return number
        if self.kind == "share":
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value <= 1:
                raise OptionError("no share", field=spelled, value=value, remedy="give a number up to 1, such as 0.85")
            return float(value)
        if self.kind == "switch":
            if not isinstance(value, bool):
                raise OptionError("neither true nor false", field=spelled, value=value)
            return value
        if self.kind in ("path", "features"):
            array = self.kind == "features" and hasattr(value, "__array__")
            return value if array else _path(value, spelled)
        return self._named(value, spelled)

    @property
    def _words(self) -> tuple[str, ...]:
        """What can be given instead of a number."""
        return ("auto",) * self.auto + self.words

    def _named(self, value: object, spelled: str | None) -> str:
        choices = DEVICES if self.kind == "device" else self.choices
        if not isinstance(value, str) or not value:
            remedy = f"give {listed(choices)}" if choices else None
            raise OptionError("not a name", field=spelled, value=value, remedy=remedy)
        if self.kind == "device":
            if not re.fullmatch(r"auto|cpu|{0}(,{0})*".format(r"cuda(?::(?:0|[1-9]\d{0,2}))?"), value, re.ASCII):
                raise OptionError("no such device", field=spelled, value=value, remedy=f"give {listed(DEVICES)}")
        elif choices:
            OptionError.unless_among(spelled, value, choices)
        return value

    def read(self, text: str) -> Any:
        """A value as it is written on the command line.

        Raises:
            OptionError: it cannot be one.
        """
        value: object = text
        if self.kind == "number" and re.fullmatch(r"[+-]?\d{1,30}", text.strip(), re.ASCII):
            value = int(text)
        elif self.kind == "share" and re.fullmatch(r"\d{0,9}\.?\d{1,9}", text.strip(), re.ASCII):
            value = float(text)
        elif self.kind == "bytes" and text not in self._words:
            value = read_bytes(text)
        elif self.kind in ("path", "features") and text:
            value = Path(text)
        return self.checked(value, None)

    def from_json(self, value: object, folder: Path) -> Any:
        """A value of a JSON object; paths are relative to `folder`.

        Raises:
            OptionError: it cannot be one; names the option as JSON does.
        """
        checked = self.checked(value, self.name)
        return folder / checked if self.kind in ("path", "features") and checked is not None else checked

    @property
    def default_text(self) -> str | None:
        """What the help says that the default is; None for a switch, which is as it is unless given."""
        if self.kind == "switch":
            return None
        if self.default is not None:
            return str(self.default)
        return f"auto: {self.unset}" if self.auto else self.unset

    @property
    def python_spellings(self) -> dict[str, str]:
        """What stands for this option's flag in Python: `--no-audio` is `sound=False`."""
        if self.kind == "switch":
            return {self.flag: f"{self.name}={not self.default}"}
        values = [choice for choice in DEVICES[:-1] if self.kind == "device"] or self.choices or self._words
        return {self.flag: self.name} | {f"{self.flag} {value}": f'{self.name}="{value}"' for value in values}


def option(
    default: T,
    help: str,
    *,
    kind: Kind | None = None,
    flag: str = "",
    metavar: str | None = None,
    least: int = 0,
    most: int | None = None,
    choices: tuple[str, ...] = (),
    unset: str | None = None,
    auto: bool = False,
    words: tuple[str, ...] = (),
    bare: str | None = None,
) -> T:
    """Declare a dataclass's field as an option; see `Option`.

    The kind is told by the default and the choices, unless it is given; the flag is made of the field's name.
    """
    if kind is None:
        kind = "switch" if isinstance(default, bool) else "choice" if choices else "number" if metavar else "text"
    said = Option(kind, help, flag, metavar, least, most, choices, unset, auto, words, bare, default=default)
    made: T = field(default=default, metadata={_METADATA: said})
    return made


@cache
def declared(group: type) -> Mapping[str, Option]:
    """The options of a dataclass by their names, in order."""
    found = {}
    for entry in fields(group):
        said: Option = entry.metadata[_METADATA]
        flag = said.flag or "--" + entry.name.replace("_", "-")
        found[entry.name] = replace(said, name=entry.name, flag=flag)
    return MappingProxyType(found)


class Checked:
    """Base of the dataclasses: a value that an option cannot have is refused when one is made."""

    def __post_init__(self) -> None:
        """Check every option, whatever its type; see `Option.checked`."""
        group: type = type(self)
        for name, said in declared(group).items():
            object.__setattr__(self, name, said.checked(getattr(self, name), said.flag))


def read_bytes(text: str) -> int:
    """A number of bytes as people write it.

    K, M, G and T are powers of 1024, as KiB and so on are; KB, MB, GB and TB are powers of 1000 (as GNU coreutils
    have it: https://www.gnu.org/software/coreutils/manual/html_node/Block-size.html).

    >>> read_bytes("8G"), read_bytes("1.5 GB"), read_bytes("4096")
    (8589934592, 1500000000, 4096)

    Raises:
        OptionError: it is none.
    """
    found = re.fullmatch(r"(\d{1,18}(?:\.\d{1,6})?) ?([KMGT]?)(i?B)?", text.strip(), re.ASCII | re.IGNORECASE)
    if found is None:
        raise OptionError("not a number of bytes", value=text, remedy="give one such as 8G or 500M")
    number, unit, binary = found[1], found[2].upper(), (found[3] or "").upper()
    return int(float(number) * (_DECIMAL[unit + "B"] if unit and binary == "B" else _UNITS[unit]))


def _bytes_named(text: str, spelled: str | None) -> int:
    try:
        return read_bytes(text)
    except OptionError as error:
        raise error if spelled is None else error.about(spelled) from error


def bytes_of_environment(variable: str, default: int) -> int:
    """A number of bytes that an environment variable may say; the default where it is not set, or empty.

    Raises:
        OptionError: it says something else.
    """
    text = environ.get(variable, "")
    try:
        return read_bytes(text) if text else default
    except OptionError as error:
        raise error.about(variable) from error


def _whole(value: object) -> int | None:
    """A whole number of any type but bool: NumPy's too; None for anything else."""
    if isinstance(value, bool):
        return None
    try:
        return operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        return None


def _path(value: object, spelled: str | None) -> Path | str:
    path = fspath(value) if isinstance(value, PathLike) else value
    if not isinstance(path, str) or not path or "\0" in path or not _can_be_named(path):
        raise OptionError("not a path", field=spelled, value=value, remedy="give the name of a file")
    return path if isinstance(value, str) else Path(path)


def _can_be_named(path: str) -> bool:
    """Whether the file system's encoding has all of a path: it has no half of a surrogate pair, as JSON may hold."""
    try:
        fsencode(path)
    except UnicodeEncodeError:
        return False
    return True


def listed(choices: Sequence[str]) -> str:
    """Choices in a sentence: `a, b or c`."""
    *first, last = choices
    return f"{', '.join(first)} or {last}" if first else last
