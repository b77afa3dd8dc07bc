"""Whether an engine that lives long stays as it is: 100,000 frames through one, then 2,000 short sessions.

    python benchmarks/soak.py [--frames 100000] [--sessions 2000] [--json FILE] [--html FILE]
    python tests/softcuda/run.py python benchmarks/soak.py --device cuda --frames 4000 --sessions 200

Memory, threads and open files are counted over time, and on a GPU the bytes of its memory that are taken; the page
draws them. The characters are small and their model is the demo's tiny one, so that what is left behind is large
beside what is done. Every frame's bytes are compared with those of the frame that it must be: speech and ping-pong
repeat after the same number of frames, so output frames do, too, and none of one period equals another; a frame that
is missing, given twice or in the wrong place is seen. Short sessions are of eight characters, some at a time, for
only a few of whom there is room; one in seven is closed halfway, and one in thirteen has speech that the model makes
NaN of. Linux only, for it reads /proc.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
import time
import zlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
from engine_jobs import level
from numpy.typing import NDArray

from gpupipe import Character
from gpupipe.demo import make_demo
from gpupipe.errors import InferenceError
from gpupipe.machine import cpu_count, cpu_name
from gpupipe.render.engine import Engine
from gpupipe.report.plots import lines
from gpupipe.report.style import STYLE

FILMED = 25
"""Frames of a character."""
PERIOD = 2 * FILMED - 2
"""Output frames after which the ping-pong begins again, and the speech with it."""
EDGE = 8
"""Frames at each end of a speech that hear silence beyond it, and so are drawn once."""
LONG = 20_000
"""Frames of a long session."""
SHORT = 12
PEOPLE = 8
WIDTHS = (96, 128)
"""Of their bodies, pixels; all are 64 high."""
LARGEST = FILMED * (WIDTHS[-1] * 64 * 3 // 2 + 3 * 72 * 72)
"""Bytes that the largest character keeps."""
OPTIONS: dict[str, Any] = {"provider": "cpu"}
"""The model runs on the CPU everywhere, for softcuda has no CUDA provider."""
AT_A_TIME = 4
LEVELS = 20
"""How often everything is counted, in each part."""
DRAWN = {
    "rss_bytes": ("Resident memory of the process", "Megabytes", 1e6),
    "threads": ("Threads of the process", "Number of threads", 1),
    "open_files": ("Open files of the process", "Number of open files", 1),
    "free_device_bytes": ("Free memory of the GPU", "Megabytes", 1e6),
}
"""What the page draws of what is counted: its name, its unit, and how many go into one."""
WARM_UP = 0.25
"""The share of each part after which it must be flat."""


def speech(frames: int, seed: int = 0) -> NDArray[np.float32]:
    """Features that repeat with the ping-pong, and open the mouth of the tiny model: float32 `[frames, 512]`."""
    loud_and_bright = np.random.default_rng(seed).random((PERIOD, 2), np.float32)
    return np.resize(np.repeat(loud_and_bright, 256, axis=1), (frames, 512))


def crc32(frame: NDArray[np.uint8]) -> int:
    return zlib.crc32(frame.data)


def sums(engine: Engine, person: Character, said: NDArray[np.float32]) -> list[int]:
    return [crc32(frame) for frame in engine.frames(person, features=said, **OPTIONS)]


def counted(engine: Engine) -> dict[str, int]:
    """What is taken now of the process, and what is free on the device."""
    gpu = engine.backend.gpu
    return level() if gpu is None else level() | {"free_device_bytes": gpu.free_bytes}


def flat(levels: Sequence[dict[str, int]]) -> dict[str, list[int]]:
    """The least and the most after the warm-up, in its first and in its last third."""
    warm = levels[int(len(levels) * WARM_UP) :]
    third = max(1, len(warm) // 3)
    return {
        name: [side(each[name] for each in part) for part in (warm[:third], warm[-third:]) for side in (min, max)]
        for name in warm[0]
        if name != "done"
    }


def long(engine: Engine, person: Character, frames: int) -> dict[str, Any]:
    """Long sessions, one after the other."""
    right = sums(engine, person, speech(EDGE + PERIOD + EDGE))[EDGE : EDGE + PERIOD]
    assert len(set(right)) == PERIOD, f"{PERIOD - len(set(right))} frames look like others"
    levels: list[dict[str, int]] = []
    done = wrong = 0
    began = time.perf_counter()
    every = -(-frames // LEVELS)
    while done < frames:
        total = min(LONG, frames - done)
        given = 0
        for number, frame in enumerate(engine.frames(person, features=speech(total), **OPTIONS)):
            if EDGE <= number < total - EDGE:
                wrong += crc32(frame) != right[(number - EDGE) % PERIOD]
            given += 1
            if (done + given) % every == 0:
                levels.append({"done": done + given} | counted(engine))
        wrong += abs(total - given)
        done += total
    seconds = time.perf_counter() - began
    return {"frames": done, "wrong": wrong, "seconds": seconds, "levels": levels, "after_warm_up": flat(levels)}


def short(engine: Engine, people: Sequence[Path], sessions: int) -> dict[str, Any]:
    """Short sessions, some at a time, of characters that leave and come again."""
    loaded = [Character.load(person) for person in people]
    right = [sums(engine, person, speech(SHORT, seed)) for seed, person in enumerate(loaded)]
    none = speech(SHORT)
    none[SHORT // 2] = np.resize([3e38, 3e38, -3e38, -3e38], 512)  # beyond float32, once added up

    def one(number: int) -> tuple[str, int]:
        """What became of a session, and how many of its frames were wrong."""
        who = number % PEOPLE
        if number % 13 == 12:
            try:
                given = sum(1 for _ in engine.frames(loaded[who], features=none, **OPTIONS))
            except InferenceError:
                return "failed as it must", 0
            return "did not fail", given
        half = number % 7 == 6
        drawn = engine.frames(loaded[who], features=speech(SHORT, who), **OPTIONS)
        found = []
        for frame in drawn:
            found.append(crc32(frame))
            if half and len(found) == SHORT // 2:
                drawn.close()  # type: ignore[attr-defined]  # a generator
                break
        wanted = right[who][: SHORT // 2] if half else right[who]
        wrong = sum(a != b for a, b in zip(found, wanted, strict=False)) + abs(len(found) - len(wanted))
        return "closed halfway" if half else "whole", wrong

    levels: list[dict[str, int]] = []
    became: dict[str, int] = {}
    wrong = 0
    began = time.perf_counter()
    every = -(-sessions // LEVELS)
    with ThreadPoolExecutor(AT_A_TIME) as pool:
        for first in range(0, sessions, every):
            numbers = range(first, min(sessions, first + every))
            for what, of_it in pool.map(one, numbers):
                became[what] = became.get(what, 0) + 1
                wrong += of_it
            levels.append({"done": numbers.stop} | counted(engine))
    seconds = time.perf_counter() - began
    return {
        "sessions": sessions,
        "became": became,
        "wrong": wrong,
        "seconds": seconds,
        "levels": levels,
        "after_warm_up": flat(levels),
    }


def page(found: dict[str, Any]) -> str:
    """The curves."""
    title = "Soak: one engine that lives long"
    out = [
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{title}</title>\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<style>{STYLE}</style></head>\n<body><h1>{title}</h1>\n"
        f"<p>{escape(found['cpu'])}, {found['cores']} cores, on {escape(found['device'])}. First long sessions, one "
        f"after the other, then short ones, {AT_A_TIME} at a time, of {PEOPLE} characters that come and go. Every "
        "frame was compared with the one that it must be. What is taken is to become flat.</p>\n"
    ]
    for part, across in (("long", "frames"), ("short", "sessions")):
        told = found[part]
        out.append(f"<h2>{told[across]:,} {across} in {told['seconds']:.0f} s: {told['wrong']} frames wrong</h2>\n")
        for name, (what, unit, scale) in DRAWN.items():
            if name not in told["levels"][0]:
                continue
            points = [(_number(each["done"]), each[name] / scale) for each in told["levels"][1::2]]
            drawn = lines({what: points}, across=f"{across} done", unit=unit, title=f"{what}, over {across} done")
            out.append(f"<h3>{what}</h3>\n{drawn}\n")
    return "".join(out) + "</body></html>\n"


def _number(done: int) -> str:
    """How much was done, short enough for an axis."""
    return f"{done // 1000}k" if done >= 10_000 and done % 1000 == 0 else f"{done:,}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--frames", type=int, default=100_000)
    parser.add_argument("--sessions", type=int, default=2_000)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--json", type=Path, help="write the numbers there")
    parser.add_argument("--html", type=Path, help="draw them there")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        drawn = [
            make_demo(Path(folder) / f"of_{width}", frames=FILMED, size=(width, 64), model_size=64) for width in WIDTHS
        ]
        people = [Path(shutil.copytree(drawn[n % len(drawn)], Path(folder) / f"person_{n}")) for n in range(PEOPLE)]
        with Engine(device=args.device, cache=3 * LARGEST) as engine:
            found: dict[str, Any] = {
                "cpu": cpu_name(),
                "cores": cpu_count(),
                "device": engine.device,
                "long": long(engine, Character.load(people[0]), args.frames),
                "short": short(engine, people, args.sessions),
            }
    print(json.dumps({part: {**found[part], "levels": "…"} for part in ("long", "short")}, indent=1))
    if args.json:
        args.json.write_text(json.dumps(found, indent=1) + "\n", "utf-8")
    if args.html:
        args.html.write_text(page(found), "utf-8")
    assert not found["long"]["wrong"]
    assert not found["short"]["wrong"]


if __name__ == "__main__":
    main()
