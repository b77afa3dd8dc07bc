"""`gpupipe verify`: whether a finished video, or folder of images, is whole."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from gpupipe.render.verify import verify


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Which output, and how to tell it."""
    parser.add_argument("output", metavar="OUTPUT", help="a video, or a folder of images")
    parser.add_argument("--json", action="store_true", help="as JSON")


def run(options: argparse.Namespace) -> int:
    """Tell what was found; 1 if something is wrong."""
    found = verify(Path(options.output))
    rate = None if found.fps is None else str(found.fps)
    if options.json:
        told = {**vars(found), "path": str(found.path), "fps": rate}
        print(json.dumps(told, indent=1))
    else:
        print(f"{found.path}: {found.frames} frames of {found.width}x{found.height}", end="")
        if found.fps is not None:
            print(f" at {float(found.fps):g} a second, {len(found.keyframes)} keyframes, ", end="")
            print("no sound" if found.sound_seconds is None else f"{found.sound_seconds:.2f} s of sound", end="")
        print("; whole" if not found.problems else "")
    for problem in found.problems:
        print(f"error: {found.path}: {problem}; render it again", file=sys.stderr)
    return 1 if found.problems else 0
