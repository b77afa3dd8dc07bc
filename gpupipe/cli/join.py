"""`gpupipe join`: the segments of a render become one output."""

from __future__ import annotations

import argparse

from gpupipe.cli.arguments import add_options, given
from gpupipe.media.limits import Limits
from gpupipe.options import LimitKeywords
from gpupipe.render.join import join_parts

PICTURES = ("max_pixels",)
"""Which limits say nothing of sound: the pictures are finished."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Which output."""
    parser.add_argument("output", metavar="OUT", help="as `gpupipe render --segments` was given it")
    parser.add_argument("--overwrite", action="store_true", help="replace an existing output")
    add_options(parser, LimitKeywords, but=PICTURES)


def run(options: argparse.Namespace) -> int:
    """Join, and tell of it."""
    limits = Limits(**given(options, LimitKeywords, but=PICTURES))
    found = join_parts(options.output, overwrite=options.overwrite, limits=limits)
    print(f"{options.output}: {found.frames} frames, joined of {found.count} segments")
    return 0
