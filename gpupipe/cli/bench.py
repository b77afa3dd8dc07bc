"""`gpupipe bench`: the ways to render, compared on this machine."""

from __future__ import annotations

import argparse
import sys
from dataclasses import fields

from gpupipe import bench, report
from gpupipe.cli.arguments import add_options
from gpupipe.cli.show import check_folders, write_json, write_text
from gpupipe.options import LimitKeywords


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The parameters of `bench.run`, and where what was measured goes."""
    bench.add_arguments(parser)
    add_options(parser, LimitKeywords)


def run(options: argparse.Namespace) -> int:
    """Measure, write and print; 1 if a way's frames are wrong."""
    check_folders(options.json, options.html)
    wanted = bench.BenchOptions(**{entry.name: getattr(options, entry.name) for entry in fields(bench.BenchOptions)})
    result = bench.run(wanted, lambda line: print(line, file=sys.stderr, flush=True))
    named = [(result["character"]["name"], result)]
    if options.json is not None:
        write_json(options.json, result)
    if options.html is not None:
        write_text(options.html, report.html_page(named))
    print(report.text(named))
    if not result["complete"]:
        raise KeyboardInterrupt  # now that what was measured is written
    return 1 if report.wrong(result) else 0
