"""What an ONNX file makes the one who opens it open: the files that it says its weights are in.

ONNX Runtime follows `../..` out of the model's folder up to 1.23 (`ValidateExternalDataPath` came with
https://github.com/microsoft/onnxruntime/pull/26776), so it is looked at here, in whatever version is installed, before
the file is given to it. The fields are read as the wire format has them, so that the `onnx` package is not needed.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from gpupipe.errors import InferenceError

_MESSAGES: Final[dict[str, dict[int, str]]] = {
    "model": {7: "graph", 20: "training", 25: "function"},
    "training": {1: "graph", 2: "graph"},
    "function": {7: "node"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "node": {4: "operator", 5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
    "tensor": {13: "entry"},
    "entry": {1: "key", 2: "value"},
}
"""The fields, by number, through which a tensor can be reached, and what each holds (onnx.proto)."""

_LOCATION: Final = b"location"
_COMPILED: Final = b"EPContext"
"""The operator that holds, or names a file with, what a provider has compiled: code, and not a graph."""

_MOST_FIELDS: Final = 5_000_000
"""Fields of a file that names others: a model has some hundred a node. At most some seconds of looking."""

Part = tuple[str, int, int]


def check_external(path: Path, field: str) -> None:
    """Refuse a model that would have other files opened than those beside it, or holds a provider's compiled code.

    Args:
        path: the ONNX file. What is no ONNX passes: opening it tells.
        field: what the error calls it.

    Raises:
        InferenceError: it names a file outside its own folder.
    """
    roots = {Path(os.path.realpath(path.parent)), Path(os.path.realpath(path)).parent}
    for operator, location in _named(path, field):
        if operator:
            raise InferenceError(
                "holds what a provider has compiled",
                file=path,
                field=field,
                value=operator,
                remedy="give the model that it was made of",
            )
        named = Path(os.path.realpath(path.parent / location)) if "\0" not in location else None
        inside = named is not None and any(named.is_relative_to(root) for root in roots)
        if Path(location).is_absolute() or not inside:
            raise InferenceError(
                "names a file with weights that is not in its own folder",
                file=path,
                field=field,
                value=location,
                remedy="export it again with its weights inside, or beside it",
            )
        if named is not None and not named.is_file():
            raise InferenceError(
                "names a file with weights that is not there",
                file=path,
                field=field,
                value=location,
                remedy="copy it beside the model, under that name",
            )


def weight_files(path: Path, field: str) -> list[Path]:
    """The files that hold weights of a model which `check_external` has let pass, or will; most have none."""
    return sorted({path.parent / location for _, location in _named(path, field) if location})


def _named(path: Path, field: str) -> Iterator[tuple[str, str]]:
    """Operators of compiled code, and locations of weights, one of them empty."""
    if not path.stat().st_size:
        return
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        if data.find(_LOCATION) < 0 and data.find(_COMPILED) < 0:  # as in nearly all models
            return
        parts: list[Part] = [("model", 0, len(data))]
        seen = 0
        while parts:
            kind, start, end = parts.pop()
            held: dict[str, bytes] = {}
            for name, first, last in _fields(data, kind, start, end):
                seen += 1
                if seen > _MOST_FIELDS:
                    raise InferenceError("holds more fields than a model has", file=path, field=field, value=seen)
                if name in ("key", "value"):
                    held[name] = bytes(data[first:last])
                elif name == "operator":
                    if data[first : min(last, first + 100)] == _COMPILED:
                        yield _COMPILED.decode(), ""
                elif name:
                    parts.append((name, first, last))
            if held.get("key") == _LOCATION:
                yield "", held.get("value", b"").decode("utf-8", "surrogateescape")


def _fields(data: mmap.mmap, kind: str, at: int, end: int) -> Iterator[Part]:
    """The fields of a message, up to what is no field; those that do not matter have no name.

    What a group holds, which parsers pass over, is looked at as if it were the message's.

    Source: https://protobuf.dev/programming-guides/encoding/
    """
    wanted = _MESSAGES[kind]
    while at < end:
        tag, at = _number(data, at, end)
        wire = tag & 7
        if wire == 0:
            _, at = _number(data, at, end)
        elif wire in (1, 5):
            at += 8 if wire == 1 else 4
        elif wire == 2:
            size, at = _number(data, at, end)
            if at + size > end:
                return
            yield wanted.get(tag >> 3, ""), at, at + size
            at += size
            continue
        elif wire not in (3, 4):
            return
        yield "", at, at


def _number(data: mmap.mmap, at: int, end: int) -> tuple[int, int]:
    """A variable-size integer, and what follows it; where it has no end, the end."""
    value = 0
    for shift in range(0, 70, 7):
        if at >= end:
            break
        byte = data[at]
        value, at = value | (byte & 127) << shift, at + 1
        if byte < 128:
            return value, at
    return 0, end
