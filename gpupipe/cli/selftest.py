"""`gpupipe selftest`: whether everything works on a GPU as it should."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from gpupipe.cli.arguments import reader
from gpupipe.cli.show import check_folders, write_json
from gpupipe.doctor.selftest import run as run_checks
from gpupipe.doctor.selftest import text
from gpupipe.options import EngineOptions, declared


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The parameters of `selftest.run`, and where what was found goes."""
    add = parser.add_argument
    add("character", type=Path, nargs="?", metavar="CHARACTER", help="whose frames and model [default: made up]")
    add("--device", type=reader(declared(EngineOptions)["device"]), default="cuda", metavar="cuda:N", help="which GPU")
    add("--json", type=Path, metavar="FILE.json", help="write what was found")


def run(options: argparse.Namespace) -> int:
    """Make the checks, and tell what was found; 1 if any failed."""
    check_folders(options.json)
    result = run_checks(options.device, lambda line: print(line, file=sys.stderr, flush=True), options.character)
    if options.json is not None:
        write_json(options.json, result)
    print(text(result))
    return 0 if result["passed"] else 1
