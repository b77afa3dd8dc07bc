"""Reading PTX: kernels, variables, and the statements of a body."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum, auto

from .types import C_TYPE, WIDTH, Unsupported

VARIABLE = re.compile(
    r"^(?:\.(?P<linkage>visible|extern|weak|common)\s+)?\.(?P<space>shared|global|const|local)\s+"
    r"(?:\.align\s+(?P<align>\d+)\s+)?\.(?P<type>\w+)\s+(?P<name>[\w$]+)"
    r"(?P<dimensions>(?:\[\d*\])*)(?:\s*=\s*(?P<value>.+))?$",
    re.S,
)
DECLARATION = re.compile(r"(?:\.(?:visible|extern|weak|common)\s+)?\.(?:shared|global|const)\s[^;]*")
PARAMETER = re.compile(
    r"\.param\s+(?:\.align\s+(?P<align>\d+)\s+)?\.(?P<type>\w+)\s+"
    r"(?:\.ptr\s+(?:\.\w+\s+)?(?:\.align\s+\d+\s+)?)?(?P<name>[\w$]+)(?:\[(?P<count>\d+)\])?$"
)
FUNCTION = re.compile(r"\.(?P<kind>entry|func)\b(?P<head>[^{;]*)(?P<end>[{;])")


@dataclass(frozen=True)
class Variable:
    """A variable of a state space; `value` is the text of its initialiser."""

    space: str
    name: str
    type: str
    count: int
    align: int
    value: str | None
    dynamic: bool  # shared memory whose size is the launch's

    @property
    def size(self) -> int:
        """Its bytes."""
        return self.count * WIDTH[self.type] // 8


@dataclass(frozen=True)
class Parameter:
    """A kernel parameter, at `offset` bytes into the block of parameters."""

    name: str
    offset: int
    size: int


@dataclass(frozen=True)
class Entry:
    """A kernel as text."""

    name: str
    parameters: list[Parameter]
    max_threads: int  # 0 where the kernel does not say
    body: str


@dataclass(frozen=True)
class Module:
    """A PTX file."""

    variables: list[Variable]
    entries: list[Entry]


class Kind(Enum):
    """What a piece of a body is."""

    OPEN = auto()
    CLOSE = auto()
    LABEL = auto()
    STATEMENT = auto()


def parse(ptx: str) -> Module:
    """Take a PTX file apart."""
    ptx = re.sub(r"//[^\n]*|/\*.*?\*/|^\s*\.(?:loc|file)\b[^\n]*$", "", ptx, flags=re.S | re.M)
    entries, outside, position = [], [], 0
    while found := FUNCTION.search(ptx, position):
        outside.append(ptx[position : found.start()])
        position = found.end()
        if found["end"] == "{":
            position = _closing_brace(ptx, found.end())
            if found["kind"] == "entry":
                entries.append(_entry(found["head"], ptx[found.end() : position - 1]))
    outside.append(ptx[position:])
    declarations = DECLARATION.findall("".join(outside))
    return Module([variable(text.strip()) for text in declarations], entries)


def variable(text: str) -> Variable:
    """Read the declaration of a variable, without its semicolon."""
    found = VARIABLE.match(text)
    if not found or found["type"] not in WIDTH:
        raise Unsupported(f"declaration {text}")
    sizes = [int(n or 0) for n in re.findall(r"\[(\d*)\]", found["dimensions"])]
    count = 1
    for n in sizes:
        count *= n
    return Variable(
        space=found["space"],
        name=found["name"],
        type=found["type"],
        count=count,
        align=int(found["align"] or WIDTH[found["type"]] // 8),
        value=found["value"],
        dynamic=found["linkage"] == "extern" and found["space"] == "shared",
    )


def pieces(body: str) -> Iterator[tuple[Kind, str]]:
    """The statements, labels and braces of a body. A brace inside a statement belongs to it."""
    text = ""
    for position, ch in enumerate(body):
        pending = text.strip()
        if ch == "{" and not pending:
            yield Kind.OPEN, ""
        elif ch == "}" and not pending:
            yield Kind.CLOSE, ""
        elif ch == ":" and re.fullmatch(r"[\w$]+", pending) and body[position + 1 : position + 2] != ":":
            yield Kind.LABEL, pending
        elif ch == ";":
            if pending:
                yield Kind.STATEMENT, pending
        else:
            text += ch
            continue
        text = ""
    if text.strip():
        raise Unsupported(f"text behind the last statement: {text.strip()}")


def split_operands(text: str) -> list[str]:
    """Split at the commas that are outside all brackets."""
    parts, depth, start = [], 0, 0
    for position, ch in enumerate(text):
        depth += (ch in "{[(") - (ch in "}])")
        if ch == "," and depth == 0:
            parts.append(text[start:position].strip())
            start = position + 1
    last = text[start:].strip()
    return [*parts, last] if last else parts


def _closing_brace(text: str, position: int) -> int:
    depth = 1
    while depth:
        depth += {"{": 1, "}": -1}.get(text[position], 0)
        position += 1
    return position


def _entry(head: str, body: str) -> Entry:
    found = re.match(r"\s*([\w$]+)\s*(?:\(([^)]*)\))?(.*)$", head, re.S)
    if not found:
        raise Unsupported(f"kernel {head.strip()}")
    name, parameters, directives = found.groups()
    bound = re.search(r"\.(?:maxntid|reqntid)\s+([\d,\s]+)", directives)
    max_threads = 0
    if bound:
        max_threads = 1
        for n in re.findall(r"\d+", bound[1]):
            max_threads *= int(n)
    return Entry(name, _parameters(parameters or ""), max_threads, body)


def _parameters(text: str) -> list[Parameter]:
    placed: list[Parameter] = []
    end = 0
    for item in split_operands(text):
        found = PARAMETER.match(item)
        if not found or found["type"] not in C_TYPE:
            raise Unsupported(f"parameter {item}")
        size = WIDTH[found["type"]] // 8
        align = int(found["align"] or size)
        offset = (end + align - 1) // align * align
        placed.append(Parameter(found["name"], offset, size * int(found["count"] or 1)))
        end = offset + placed[-1].size
    return placed
