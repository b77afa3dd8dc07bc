"""`gpupipe report`: measurements shown and compared."""

from __future__ import annotations

import argparse

from gpupipe.cli.show import check_folders, write_text
from gpupipe.report import results
from gpupipe.report.page import page
from gpupipe.report.tables import text_of_all


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Which measurements, and how to tell them."""
    results.add_arguments(parser)


def run(options: argparse.Namespace) -> int:
    """Show them; 1 if something is slower by more than is allowed."""
    check_folders(options.html)
    found = results.load_all(options.measurements)
    if options.html is not None:
        write_text(options.html, page(found))
    print(text_of_all(found))
    return 1 if results.failures(found, options.fail_above) else 0
