"""What an engine saves: jobs on one that stays open against as many calls of the command line; and that it stays flat.

    python benchmarks/engine_jobs.py [--jobs 20] [--frames 50] [--flat 200] [--json benchmarks/results/engine-jobs.json]

The character is the demo's (1280x720, 125 frames, the tiny model), each job a speech of its own and a video of its own.
Engine and command line take turns, a few jobs each, so that both meet the same machine; the engine's time includes
opening it, loading the character and opening the model, in the first turn. Seconds are those of the clock, and those
of the processor, children's included. Then jobs go through one engine, videos and images of two characters in turn, a
few at a time, while memory, threads and open files are counted: medians of the first and of the last third after a
warm-up. Linux only, for it reads /proc.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from gpupipe import Character
from gpupipe.demo import make_demo
from gpupipe.machine import cpu_count, cpu_name, release_free_memory
from gpupipe.render.engine import Engine

WHO = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)

TURN = 4
"""Jobs of one before it is the other's turn."""
SHORT_FRAMES = 12
"""Frames of a job where only what is left behind is of interest."""
WARM_UP = 0.25
"""The share of jobs after which memory, threads and files must be flat."""


class Spent(NamedTuple):
    """What something took: seconds of the clock, and of the processor, in this process and in those it started."""

    seconds: float
    cpu_seconds: float


def spent(work: Callable[[], Any]) -> Spent:
    def used() -> float:
        return sum(usage.ru_utime + usage.ru_stime for usage in map(resource.getrusage, WHO))

    began, used_before = time.perf_counter(), used()
    work()
    return Spent(time.perf_counter() - began, used() - used_before)


def speeches(folder: Path, jobs: int, frames: int) -> list[Path]:
    """Files of speech features, each of its own."""
    made = []
    for number in range(jobs):
        made.append(folder / f"speech_{number}.npy")
        np.save(made[-1], np.random.default_rng(number).random((frames, 512), np.float32))
    return made


def paired(person: Path, work: Path, jobs: int, frames: int) -> dict[str, Any]:
    """The same jobs on one engine and by calls of the command line, in turn."""
    said = speeches(work, jobs, frames)
    turns = [range(first, min(jobs, first + TURN)) for first in range(0, jobs, TURN)]
    with ExitStack() as opened:
        engines: list[tuple[Engine, Character]] = []

        def on_engine(turn: range) -> None:
            if not engines:
                engines.append((opened.enter_context(Engine(device="cpu")), Character.load(person)))
            engine, character = engines[0]
            under_way = [
                engine.submit(character, work / f"job_{number}.mp4", features=said[number], sound=False)
                for number in turn
            ]
            for job in under_way:
                job.result()

        def by_calls(turn: range) -> None:
            for number in turn:
                command = [
                    sys.executable,
                    "-m",
                    "gpupipe",
                    "render",
                    str(person),
                    "-o",
                    str(work / f"call_{number}.mp4"),
                ]
                options = ["--features", str(said[number]), "--device", "cpu", "--no-audio", "--quiet"]
                subprocess.run([*command, *options], check=True)

        both = [
            (spent(lambda turn=turn: on_engine(turn)), spent(lambda turn=turn: by_calls(turn)))  # type: ignore[misc]
            for turn in turns
        ]
    for number in range(jobs):
        first, second = (work / f"{way}_{number}.mp4" for way in ("job", "call"))
        assert first.read_bytes() == second.read_bytes(), "the files differ"
    mine, theirs = (Spent(*(sum(part) for part in zip(*side, strict=True))) for side in zip(*both, strict=True))
    return {
        "jobs": jobs,
        "frames": frames,
        "engine": mine._asdict(),
        "command_line": theirs._asdict(),
        "ratio": theirs.seconds / mine.seconds,
        "ratio_of_turns": [called.seconds / submitted.seconds for submitted, called in both],
        "cpu_ratio": theirs.cpu_seconds / mine.cpu_seconds,
    }


def level() -> dict[str, int]:
    """What this process holds now, without what only waits to be used again: that differs by 100 MB between moments."""
    gc.collect()
    release_free_memory()
    pages = int(Path("/proc/self/statm").read_text("ascii").split()[1])
    return {
        "rss_bytes": pages * os.sysconf("SC_PAGE_SIZE"),
        "threads": threading.active_count(),
        "open_files": len(list(Path("/proc/self/fd").iterdir())),
    }


def flat(people: list[Path], work: Path, jobs: int) -> dict[str, Any]:
    """Jobs through one engine, and the levels after every tenth."""
    said = speeches(work, 7, SHORT_FRAMES)
    levels: list[dict[str, int]] = []
    with Engine(device="cpu") as engine:
        for first in range(0, jobs, 10):
            under_way = []
            for number in range(first, min(jobs, first + 10)):
                output = f"{work}/flat_{number}" + ("/" if number % 3 == 2 else ".mp4")
                options: dict[str, Any] = {"features": said[number % len(said)]}
                under_way.append((engine.submit(people[number % 2], output, **options), output))
            for job, output in under_way:
                job.result()
                shutil.rmtree(output) if output.endswith("/") else Path(output).unlink()
            levels.append(level())
    warm = levels[int(len(levels) * WARM_UP) :]
    third = -(-len(warm) // 3)
    return {
        "jobs": jobs,
        "frames": SHORT_FRAMES,
        "levels": levels,
        "after_warm_up": {
            name: [statistics.median(each[name] for each in part) for part in (warm[:third], warm[-third:])]
            for name in warm[0]
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=20)
    parser.add_argument("--frames", type=int, default=50)
    parser.add_argument("--flat", type=int, default=200, help="jobs of the second part")
    parser.add_argument("--json", type=Path, help="write the numbers there")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        people = [make_demo(work / "anna"), make_demo(work / "bert", frames=25, size=(640, 360), model_size=160)]
        machine = {"cpu": cpu_name(), "cores": cpu_count()}
        pairs = paired(people[0], work, args.jobs, args.frames)
        flatness = flat(people, work, args.flat)
    found = machine | {"paired": pairs, "flat": flatness}
    print(json.dumps(machine | pairs | {"after_warm_up": flatness["after_warm_up"]}, indent=1))
    if args.json:
        args.json.write_text(json.dumps(found, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main()
