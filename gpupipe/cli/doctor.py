"""`gpupipe doctor`: what this machine can do."""

from __future__ import annotations

import argparse
import json

from gpupipe.cli.show import lines
from gpupipe.doctor.doctor import doctor


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """How to tell it."""
    parser.add_argument("--json", action="store_true", help="as JSON")


def run(options: argparse.Namespace) -> int:
    """Tell what was found."""
    found = doctor()
    if options.json:
        print(json.dumps(found, indent=1))
        return 0
    for group in ("providers", "encoders"):
        found[group] = {
            name: "opens" if problem is None else f"no: {problem}" for name, problem in found[group].items()
        }
    print("\n".join(lines(found)))
    return 0
