"""`gpupipe report`: measurements shown and compared."""

from __future__ import annotations

import argparse

from gpupipe import report
from gpupipe.cli.show import check_folders, write_text


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Which measurements, and how to tell them."""
    report.add_arguments(parser)


def run(options: argparse.Namespace) -> int:
    """Show them; 1 if something is slower by more than is allowed."""
    check_folders(options.html)
    found = report.load_all(options.measurements)
    if options.html is not None:
        write_text(options.html, report.html_page(found))
    print(report.text(found))
    return 1 if report.failures(found, options.fail_above) else 0
