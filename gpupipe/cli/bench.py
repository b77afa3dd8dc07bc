"""`gpupipe bench`: the ways to render, compared on this machine."""

from __future__ import annotations

import argparse
import sys
from dataclasses import fields

from gpupipe.bench import compare
from gpupipe.cli.show import check_folders, write_json, write_text
from gpupipe.report.page import page
from gpupipe.report.results import wrong
from gpupipe.report.tables import text


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The parameters of `compare.run`, and where what was measured goes."""
    compare.add_arguments(parser)


def run(options: argparse.Namespace) -> int:
    """Measure, write and print; 1 if a way's frames are wrong."""
    check_folders(options.json, options.html)
    wanted = compare.BenchOptions(
        **{entry.name: getattr(options, entry.name) for entry in fields(compare.BenchOptions)}
    )
    result = compare.run(wanted, lambda line: print(line, file=sys.stderr, flush=True))
    if options.json is not None:
        write_json(options.json, result)
    if options.html is not None:
        write_text(options.html, page([(result["character"]["name"], result)]))
    print(text(result))
    return 1 if wrong(result) else 0
