"""`gpupipe tune`: which settings render a character fastest on this machine."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from statistics import median

from gpupipe.character.folder import Character
from gpupipe.cli.arguments import add_options, given, number
from gpupipe.cli.show import check_folders, write_json
from gpupipe.errors import GpupipeError, reason
from gpupipe.options import TuneKeywords
from gpupipe.render.tuning import Settings, forget
from gpupipe.tune import SECONDS, Report, tune


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The parameters of `tune.run.tune`, and where what was measured goes."""
    add = parser.add_argument
    add("character", type=Path, metavar="CHARACTER", help="the character's folder")
    add("--seconds", type=number(1), default=SECONDS, metavar="N", help="how long it may take, about")
    add("--forget", action="store_true", help="forget what is remembered of this character's model at its size instead")
    add("--json", type=Path, metavar="FILE.json", help="write what was measured")
    add("--quiet", action="store_true", help="print nothing but warnings and errors")
    add_options(parser, TuneKeywords)


def run(options: argparse.Namespace) -> int:
    """Find the settings, and tell how they were found."""
    check_folders(options.json)

    def told(line: str) -> None:
        if not options.quiet:
            print(line, file=sys.stderr, flush=True)

    if options.forget:
        count = _forgotten(Character.load(options.character))
        told(f"{options.character}: {count or 'no'} tuning{'' if count == 1 else 's'} forgotten")
        return 0
    report = tune(options.character, seconds=options.seconds, told=told, **given(options, TuneKeywords))
    if options.json is not None:
        write_json(options.json, report.as_dict())
    if not options.quiet:
        print(text(report))
    return 0


def _forgotten(character: Character) -> int:
    try:
        return forget(character)
    except OSError as error:
        raise GpupipeError(f"cannot be forgotten: {reason(error)}", file=error.filename) from error


def text(report: Report) -> str:
    """A table of the comparisons, and what is remembered."""
    default, rows, tuning = report.default, report.rows, report.tuning
    names = list(default.known())
    table = [["", *(name.replace("_", " ") for name in names), "ms a frame", "speedup", "against"]]
    if rows:
        first = median(seconds * speedup for seconds, speedup in zip(rows[0].seconds, rows[0].speedups, strict=True))
        table.append(["default", *_values(default, names), f"{first * 1e3:.2f}", "", ""])
    numbers = {default: "default"}
    for place, row in enumerate(rows, 1):
        numbers.setdefault(row.settings, str(place))
        speedup = f"{row.speedup:.3f}{'' if row.decided else '?'}"
        ms = f"{median(row.seconds) * 1e3:.2f}"
        table.append([numbers[row.settings], *_values(row.settings, names), ms, speedup, numbers[row.against]])
    widths = [max(len(line[column]) for line in table) for column in range(len(table[0]))]
    lines = ["  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in table]
    if tuning.settings == default:
        found = f"nothing is faster than the default, {default}"
    else:
        found = f"fastest: {tuning.settings}, {tuning.speedup:.3f} times as fast as the default"
    if not report.complete:
        found += "; there was no time for all comparisons (give more --seconds)"
    return "\n".join([*lines, f"{found}; found in {report.seconds:.0f} s, remembered in {report.file}"])


def _values(settings: Settings, names: list[str]) -> list[str]:
    return [str(getattr(settings, name)) for name in names]
