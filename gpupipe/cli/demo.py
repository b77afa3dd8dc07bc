"""`gpupipe demo`: a character from nothing."""

from __future__ import annotations

import argparse
from pathlib import Path

from gpupipe.cli.arguments import number, size


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The parameters of `make_demo`."""
    add = parser.add_argument
    add("folder", type=Path, metavar="DIR", help="where to make it")
    add("--model", choices=("tiny", "full"), default="tiny", help="the lip-sync model's cost")
    add("--frames", type=number(1), default=125, metavar="N", help="frames filmed")
    add("--size", type=size, default="1280x720", metavar="WxH", help="of the body video, pixels")
    add("--overwrite", action="store_true", help="replace an existing folder")


def run(options: argparse.Namespace) -> int:
    """Make the folder, and tell what to do with it."""
    from gpupipe.demo import make_demo

    folder = make_demo(
        options.folder, model=options.model, frames=options.frames, size=options.size, overwrite=options.overwrite
    )
    print(f"{folder}: a character of {options.frames} frames; render it with: gpupipe render {folder} -o talk.mp4")
    return 0
