"""How long the first finished frame takes, with nothing loaded: a filmed character, and one of an hour.

    python benchmarks/first_frame.py [CHARACTER] [--frames 90000] [--runs 5] [--json FILE]

Each render is one of a whole speech, in a process of its own that ends with the first frame: what is counted is from
the call of `render` to where that frame is with the encoder, and apart from it, from the start of the process. The hour
(`long_character`, 1280x720) is 3 GB of video, which the system keeps in memory once it has been read; its `render` does
not know the files. Renders of the two take turns. Seconds are those of the clock, and those of the processor, all
threads together, which other work on the machine changes less.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from long_character import FPS, KEYFRAMES, make_long

from gpupipe.machine import cpu_count, cpu_name, load, peak_rss_bytes
from gpupipe.render.render import render
from gpupipe.render.stats import Progress


class FirstFrame(Exception):
    """The first frame is there."""


def first_frame(person: Path, output: Path) -> dict[str, float]:
    """Seconds from here to the first frame, in this process, and what it takes by then."""
    began, used_before = time.perf_counter(), time.process_time()

    def wrote(_: Progress) -> None:
        raise FirstFrame(time.perf_counter() - began, time.process_time() - used_before)

    try:
        render(person, output, device="cpu", sound=False, progress=wrote)
    except FirstFrame as found:
        seconds, used = found.args
    return {"seconds": seconds, "cpu_seconds": used, "peak_rss_bytes": peak_rss_bytes()}


def in_a_process(person: Path, output: Path) -> dict[str, float]:
    """The same in a new process, and the seconds since that was started."""
    began = time.time()
    command = [sys.executable, __file__, str(person), "--once", str(output)]
    found: dict[str, Any] = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    assert not output.exists(), "the render was to end with its first frame"
    return {
        "first_frame_seconds": found["seconds"],
        "cpu_seconds": found["cpu_seconds"],
        "since_the_process_began_seconds": found["at"] - began,
        "peak_rss_mib": found["peak_rss_bytes"] / (1 << 20),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("character", type=Path, nargs="?", help="a filmed one; the demo's is not measured instead")
    parser.add_argument("--long", type=Path, help="one that `long_character` has made, instead of making it")
    parser.add_argument("--frames", type=int, default=60 * 60 * FPS)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--json", type=Path, help="write the numbers there")
    parser.add_argument("--once", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.once is not None:
        found = first_frame(args.character, args.once)
        print(json.dumps(found | {"at": time.time()}))
        return
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        people = {"hour": args.long or make_long(work / "hour", args.frames, (1280, 720), KEYFRAMES)}
        if args.character is not None:
            people = {"filmed": args.character} | people
        runs: dict[str, list[dict[str, float]]] = {name: [] for name in people}
        for _ in range(args.runs):
            for name, person in people.items():
                runs[name].append(in_a_process(person, work / "talk.mp4"))
                print(name, runs[name][-1], flush=True)
    machine = {"cpu": cpu_name(), "cores": cpu_count(), "load": load()}
    result: dict[str, Any] = machine | {"runs": args.runs, "keyframes": KEYFRAMES}
    for name, each in runs.items():
        result[name] = {key: round(statistics.median(run[key] for run in each), 3) for key in each[0]} | {
            "each_first_frame_seconds": [round(run["first_frame_seconds"], 3) for run in each]
        }
    print(json.dumps(result, indent=1))
    if args.json:
        args.json.write_text(json.dumps(result, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main()
