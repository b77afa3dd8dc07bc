"""Rows of what `gpu.py` measures: times beside the least that they can be, as JSON values and as one table."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from gpupipe.bench.measure import spread

Row = dict[str, Any]
"""JSON values: the fields of a `Subject`, then those that `timed` tells."""

_PATH = re.compile(r"(?<![\w/\\.])(?:[A-Za-z]:|\\)?[/\\](?:[^\s/\\:;,'\"()]+[/\\])+")


class Subject(NamedTuple):
    """What a row is about.

    Attributes:
        part: "kernel", "copy", "model", "batch", "engine" or "render".
        name: which of the part.
        dtype: of the model's numbers, if any.
        frame: what a frame is: its size, or the block's.
        batch: frames in a batch, if any.
    """

    part: str
    name: str
    dtype: str | None = None
    frame: str | None = None
    batch: int | None = None


class Least(NamedTuple):
    """The least seconds that a frame can take; None where that is not known.

    Attributes:
        measured: by the rates that were measured of this GPU.
        nominal: by its memory's nominal bandwidth.
        issue: by the instructions that it can issue.
    """

    measured: float | None = None
    nominal: float | None = None
    issue: float | None = None


UNKNOWN = Least()


def timed(
    subject: Subject,
    seconds: Sequence[float],
    frames: int,
    *,
    moved: float | None = None,
    least: Least = UNKNOWN,
    notes: Sequence[str] = (),
) -> Row:
    """A row of what was timed.

    Args:
        subject: what.
        seconds: of each run.
        frames: in a run.
        moved: bytes a frame that must be moved, read and written together.
        least: seconds a frame.
        notes: for people.
    """
    milliseconds = [each / frames * 1e3 for each in seconds]
    ms = spread(milliseconds, 6)
    median, known = ms["median"], least._asdict()
    return _row(
        subject,
        ms=ms,
        runs=len(milliseconds),
        frames_a_run=frames,
        frames_a_second=round(1e3 / median, 3) if median else None,
        bytes_a_frame=None if moved is None else round(moved),
        gb_a_second=round(moved / median / 1e6, 3) if moved and median else None,
        least_ms={name: None if each is None else round(each * 1e3, 6) for name, each in known.items()},
        share={name: round(each * 1e3 / median, 4) if each and median else None for name, each in known.items()},
        notes=[without_paths(note) for note in notes],
    )


def missing(subject: Subject, problem: str) -> Row:
    """A row of what could not be timed, and why."""
    return _row(subject, problem=without_paths(problem))


TIMED = ("ms", "runs", "frames_a_run", "frames_a_second", "bytes_a_frame", "gb_a_second")
"""Keys of a row that are None where nothing was timed."""


def _row(subject: Subject, **found: Any) -> Row:
    empty: Row = {"least_ms": UNKNOWN._asdict(), "share": UNKNOWN._asdict(), "problem": None, "notes": []}
    return subject._asdict() | dict.fromkeys(TIMED) | empty | found


def without_paths(text: str) -> str:
    """A text whose paths are only their last parts: who runs this, and where, is nobody's business.

    >>> without_paths("/home/me/models/best.onnx: cannot be opened; see C:\\\\Users\\\\me\\\\libs\\\\x.dll or a/b")
    'best.onnx: cannot be opened; see x.dll or a/b'
    """
    home = str(Path.home())
    return _PATH.sub("", text.replace(home, "") if len(home) > 3 else text)


HEADS = (
    "part", "what", "type", "frame", "batch", "ms a frame", "a second", "GB/s", "least ms", "share", "nominal", "issue"
)  # fmt: skip


def table(rows: Sequence[Row]) -> str:
    """All rows, with aligned columns. Shares are of the time: 100% is as fast as can be."""
    cells = [HEADS, *map(_cells, rows)]
    widths = [max(len(line[column]) for line in cells) for column in range(len(HEADS))]
    lines = []
    for line, row in zip(cells, (None, *rows), strict=True):
        text = "  ".join(
            cell.ljust(width) if column < 4 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        )
        told = [] if row is None else [row["problem"] or "", *row["notes"]]
        lines.append("  ".join((text, *filter(None, told))).rstrip())
    return "\n".join(lines)


def _cells(row: Row) -> tuple[str, ...]:
    ms, share = row["ms"], row["share"]
    return (
        row["part"],
        row["name"],
        row["dtype"] or "",
        row["frame"] or "",
        _number(row["batch"], "d"),
        _number(None if ms is None else ms["median"], ".4f"),
        _number(row["frames_a_second"], ".1f"),
        _number(row["gb_a_second"], ".1f"),
        _number(row["least_ms"]["measured"], ".4f"),
        *(_number(share[name], ".1%") for name in Least._fields),
    )


def _number(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)
