"""`gpupipe inspect`: what is in a character folder."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from gpupipe.cli.arguments import add_options, given
from gpupipe.cli.show import lines
from gpupipe.doctor.inspect import inspect
from gpupipe.media.limits import Limits
from gpupipe.options import LimitKeywords


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Which folder, and how to tell it."""
    parser.add_argument("character", type=Path, metavar="CHARACTER", help="the character's folder")
    parser.add_argument("--json", action="store_true", help="as JSON")
    add_options(parser, LimitKeywords)


def run(options: argparse.Namespace) -> int:
    """Tell what was found; 1 if there is a fault."""
    found = inspect(options.character, Limits(**given(options, LimitKeywords)))
    if options.json:
        print(json.dumps(found, indent=1))
    else:
        print("\n".join(lines({k: v for k, v in found.items() if k not in ("faults", "notes") and v is not None})))
        for note in found["notes"]:
            print(f"warning: {note}", file=sys.stderr)
    for fault in found["faults"]:
        print(f"error: {fault}", file=sys.stderr)
    return 1 if found["faults"] else 0
