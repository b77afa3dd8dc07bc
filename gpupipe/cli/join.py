"""`gpupipe join`: the segments of a render become one output."""

from __future__ import annotations

import argparse

from gpupipe.render.join import join_parts


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Which output."""
    parser.add_argument("output", metavar="OUT", help="as `gpupipe render --segments` was given it")
    parser.add_argument("--overwrite", action="store_true", help="replace an existing output")


def run(options: argparse.Namespace) -> int:
    """Join, and tell of it."""
    found = join_parts(options.output, overwrite=options.overwrite)
    print(f"{options.output}: {found.frames} frames, joined of {found.count} segments")
    return 0
