"""`python -m gpupipe.serve.load`: how many clients a server holds, beside as many processes without one."""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from math import ceil
from pathlib import Path
from typing import Any, Final

import numpy as np

from gpupipe.bench.alone import crowd_alone
from gpupipe.bench.machine_facts import facts
from gpupipe.character.folder import Character
from gpupipe.cli.arguments import Help, number
from gpupipe.cli.show import check_folders, write_json, write_text
from gpupipe.demo import make_demo
from gpupipe.errors import GpupipeError
from gpupipe.machine import cpu_count
from gpupipe.media.sound import read_pcm
from gpupipe.options import MOST_LOAD
from gpupipe.report.serving import serving_page
from gpupipe.serve.load.crowd import SPREAD_FRAMES, Together, together
from gpupipe.serve.load.search import largest
from gpupipe.serve.load.served import OverNetwork, WithoutNetwork
from gpupipe.serve.load.soak import soak
from gpupipe.serve.load.talker import Said

DEMO: Final = (640, 360)

OVERLOAD: Final = 1.2


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure; returns 0, or 1 with one line on standard error."""
    options = _parser().parse_args(arguments)
    try:
        check_folders(options.json, options.html)
        with ExitStack() as closing:
            folder = options.character
            if folder is None:
                folder = Path(closing.enter_context(tempfile.TemporaryDirectory())) / "demo"
                make_demo(folder, frames=250, size=DEMO)
            result = soak(folder, sessions=options.soak, told=_say) if options.soak else _measure(folder, options)
    except GpupipeError as error:
        print(f"error: {error.on_command_line()}", file=sys.stderr)
        return 1
    if options.json is not None:
        write_json(options.json, result)
    if options.html is not None:
        write_text(options.html, serving_page(result))
    return 0


def _measure(folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    character = Character.load(folder)
    pcm = np.concatenate(list(read_pcm(character.sound_path or folder)))
    said = Said(folder.resolve().name, options.output, pcm, options.seconds, float(character.body.fps))
    result: dict[str, Any] = {
        "machine": facts(),
        "settings": {
            "width": character.body.width,
            "height": character.body.height,
            "frames": character.count,
            "output": options.output,
            "seconds": options.seconds,
            "network": options.network,
        },
    }
    served = partial(OverNetwork if options.network else WithoutNetwork, folder, said)
    with served(most_load=1.0) as tried:
        result["served"] = _searched("served", tried, options)
    inside = result["served"]["largest"]
    if options.alone:
        codec = options.output if options.output in ("h264", "hevc") else None

        def alone(clients: int) -> Together:
            return together(crowd_alone(folder, codec, options.seconds, clients, SPREAD_FRAMES))

        result["alone"] = _searched("alone", alone, options)
        most = result["alone"]["largest"]
        _say(f"{inside} talks are served in time, {most} processes alone" + (f": {inside / most:.1f}x" if most else ""))
    if options.overload:
        with served(most_load=options.most_load) as tried:
            clients = ceil(OVERLOAD * inside)
            told = tried(clients)
            _say(f"overload: {_line(told)}, refused within {told.refused_seconds * 1e3:.0f} ms")
            result["overload"] = told.as_dict()
    return result


def _searched(name: str, tried: Callable[[int], Together], options: argparse.Namespace) -> dict[str, Any]:
    def told(clients: int) -> Together:
        found = tried(clients)
        _say(f"{name}: {_line(found)}")
        return found

    most, found = largest(told, options.first, options.most)
    return {"largest": most, "tried": [each.as_dict() for each in found.values()]}


def _line(found: Together) -> str:
    p50, p95, p99 = found.latency_ms
    parts = [
        f"{found.clients} clients",
        f"{found.refused} refused" if found.refused else "",
        f"{found.failed} failed ({found.errors[0]})" if found.failed else "",
        f"{found.late_share:.2%} of {found.frames} frames late",
        f"latency {p50:.0f}, {p95:.0f}, {p99:.0f} ms (50, 95, 99 %)",
        "" if found.batch_fill is None else f"batches {found.batch_fill:.0%} full",
        "" if found.cores is None else f"{found.cores:.2f} of {cpu_count()} cores",
    ]
    return ", ".join(part for part in parts if part)


def _say(line: str) -> None:
    print(line, flush=True)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "python -m gpupipe.serve.load",
        description="Find how many clients a server holds in real time, with less than 1 % of their frames late.",
        formatter_class=Help,
    )
    add = parser.add_argument
    add("character", type=Path, nargs="?", metavar="CHARACTER", help="a character's folder; else a small demo")
    add("--output", choices=("nv12", "h264", "hevc", "jpeg"), default="nv12", help="what clients ask for")
    add("--network", action="store_true", help="over gRPC, with a server in a process of its own; else without either")
    add("--seconds", type=number(2), default=10, metavar="S", help="that each client talks")
    add("--first", type=number(1), default=4, metavar="N", help="clients that come first")
    add("--most", type=number(1), default=256, metavar="N", help="clients that come at most")
    add("--alone", action="store_true", help="compare with processes that draw frame by frame, each for itself")
    add("--overload", action="store_true", help="then let a fifth more come than are held, to see them refused")
    add("--most-load", type=float, default=MOST_LOAD, metavar="SHARE", help="of the server with --overload")
    add("--soak", type=number(1), metavar="N", help="instead: N sessions that come and go, break off, and send rubbish")
    add("--json", type=Path, metavar="FILE", help="write the results")
    add("--html", type=Path, metavar="FILE", help="write a page of plots")
    return parser
