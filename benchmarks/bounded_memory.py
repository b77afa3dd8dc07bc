"""What `--cache` costs: a character in full HD, drawn with a gigabyte of its frames kept.

    python benchmarks/bounded_memory.py speed [--keyframes 25 250] [--turns 3] [--json FILE]
    python benchmarks/bounded_memory.py memory [--frames 30000] [--json FILE]

`speed` renders a film that fits in memory forwards and backwards, in turn with all of it kept from before and within
the bound; the files must be the same bytes. What is compared is the clock's time and the processor's for the frames in
the middle, where as many are decoded as shown: those that stay within the bound are left out, and so are the first ones
of a render, whose group must be there before any of it is shown.

`memory` renders twenty minutes by the command line, to the film's end and some way back, in a process whose resident
memory is sampled and whose most is read. That film has 2 GB of video, and the output another 2. Linux only, for it
reads /proc.

Each writes its own part of FILE, and leaves the other as it is. The films are `long_character`'s.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

from long_character import FPS, KEYFRAMES, make_long

from gpupipe import Character
from gpupipe.machine import cpu_count, cpu_name, load
from gpupipe.render.engine import Engine
from gpupipe.render.stats import Progress

EVERY_SECONDS = 0.25
"""Between two looks at the memory of the process that renders."""
LEVELS = 60
"""Of these looks, how many are kept, evenly."""
WAYS = ("cached", "bounded")
MEGABYTE = 1 << 20


def resident(process: int) -> dict[str, int]:
    """What a process holds resident, now and at most so far, bytes; empty when it has ended."""
    try:
        lines = Path(f"/proc/{process}/status").read_text("ascii").splitlines()
    except OSError:
        return {}
    sizes = dict(line.split(":", 1) for line in lines if line.startswith(("VmRSS", "VmHWM")))
    return {name: int(size.split()[0]) * 1024 for name, size in sizes.items()}


def memory(person: Path, output: Path, cache: str, back: int) -> dict[str, Any]:
    """The whole speech by the command line, begun so late in the film that its end is passed by so many frames."""
    command = [sys.executable, "-m", "gpupipe", "render", str(person), "-o", str(output), "--device", "cpu"]
    command += ["--cache", cache, "--start-frame", str(back), "--no-audio", "--quiet"]
    told = output.with_suffix(".json")
    levels: list[dict[str, int]] = []
    before = os.times()
    rendering = subprocess.Popen([*command, "--stats", str(told)])
    while rendering.poll() is None:
        if found := resident(rendering.pid):
            levels.append(found)
        time.sleep(EVERY_SECONDS)
    if rendering.returncode:
        raise RuntimeError(f"the render ended with status {rendering.returncode}")
    after = os.times()
    used = after.children_user + after.children_system - before.children_user - before.children_system
    stats = json.loads(told.read_text("utf-8"))
    output.unlink()
    sizes = [level["VmRSS"] for level in levels]
    return {
        "frames": stats["frames"],
        "of_them_backwards": back,
        "cache": cache,
        "peak_rss_mib": round(max(stats["peak_rss_bytes"], *(level["VmHWM"] for level in levels)) / MEGABYTE, 1),
        "seconds": round(stats["total_seconds"], 1),
        "fps": round(stats["fps"], 2),
        "processor_fps": round(stats["frames"] / used, 2),
        "first_frame_seconds": round(stats["first_frame_seconds"], 3),
        "rss_mib": [round(size / MEGABYTE) for size in sizes[:: -(-len(sizes) // LEVELS)]],
        "notes": stats["notes"],
    }


class Drawn(NamedTuple):
    """One render.

    Attributes:
        video: the file.
        fps: frames a second in the middle, by the clock.
        processor_fps: the same by the processor's time, all threads together.
        note: what the render says of the frames that are kept.
    """

    video: bytes
    fps: float
    processor_fps: float
    note: str


def drawn(engine: Engine, person: Character, output: Path, timed: range, *, backwards: bool) -> Drawn:
    """A whole film, and how fast some of its output frames were."""
    times: list[tuple[float, float]] = []

    def wrote(_: Progress) -> None:
        times.append((time.perf_counter(), time.process_time()))

    begin, frames = (person.count - 1 if backwards else 0), person.count
    stats = engine.render(person, output, start_frame=begin, frames=frames, sound=False, progress=wrote, overwrite=True)
    fps, processor_fps = (len(timed) / (times[timed.stop - 1][by] - times[timed.start - 1][by]) for by in (0, 1))
    note = next((note for note in stats.notes if "cached frames" in note), "")
    return Drawn(output.read_bytes(), fps, processor_fps, note)


def compared(person: Character, keyframes: int, cache: int, turns: int, work: Path) -> dict[str, Any]:
    """Both ways in turn, forwards and backwards."""
    each = person.body.width * person.body.height * 3 // 2 + 3 * person.layout.crop_size**2
    room = cache // each
    # The first frames may stay, which are the last ones backwards, where besides a group is decoded ahead.
    middle = {
        True: range(keyframes, person.count - keyframes - max(0, room - keyframes)),
        False: range(room, person.count),
    }
    found: dict[str, Any] = {}
    for backwards, timed in middle.items():
        name, speeds = "backwards" if backwards else "forwards", dict[str, list[Drawn]]()
        with Engine(device="cpu", cache="auto") as all_kept, Engine(device="cpu", cache=cache) as within:
            all_kept.load(person)
            right: bytes | None = None
            for _ in range(turns):
                for way, engine in zip(WAYS, (all_kept, within), strict=True):
                    one = drawn(engine, person, work / "part.mp4", timed, backwards=backwards)
                    right = right or one.video
                    assert one.video == right, f"other bytes: {way}"
                    speeds.setdefault(way, []).append(one)
                    shown = f"{one.fps:6.2f} frames a second, {one.processor_fps:6.2f} of processor time"
                    print(f"keyframe every {keyframes:3}, {name:9} {way:8} {shown}", flush=True)
        found[name] = {
            "timed_frames": len(timed),
            "fps": {way: [round(one.fps, 2) for one in each] for way, each in speeds.items()},
            "processor_fps": {way: [round(one.processor_fps, 2) for one in each] for way, each in speeds.items()},
            "bounded_over_cached": _ratio(
                [one.fps for one in speeds["bounded"]], [one.fps for one in speeds["cached"]]
            ),
            "bounded_over_cached_processor": _ratio(
                [one.processor_fps for one in speeds["bounded"]], [one.processor_fps for one in speeds["cached"]]
            ),
            "same_bytes": True,
            "note": speeds["bounded"][-1].note,
        }
    return found


def _ratio(these: list[float], those: list[float]) -> float:
    return round(statistics.median(one / other for one, other in zip(these, those, strict=True)), 3)


def speed(args: argparse.Namespace, work: Path) -> dict[str, Any]:
    """What `speed` measures, of each interval of keyframes."""
    found: dict[str, Any] = {"size": list(args.size), "frames": args.part, "cache_mib": args.cache, "keyframes": {}}
    for keyframes in args.keyframes:
        person = Character.load(make_long(work / f"every-{keyframes}", args.part, tuple(args.size), keyframes))
        found["keyframes"][str(keyframes)] = compared(person, keyframes, args.cache * MEGABYTE, args.turns, work)
    for keyframes, ways in found["keyframes"].items():
        for name, each in ways.items():
            clock, processor = each["bounded_over_cached"], each["bounded_over_cached_processor"]
            print(f"keyframe every {keyframes:>3}, {name:9} {clock:.2f} of cached, {processor:.2f} by processor time")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("speed", "memory"))
    parser.add_argument("--size", type=int, nargs=2, default=(1920, 1080), metavar=("WIDTH", "HEIGHT"))
    parser.add_argument("--cache", type=int, default=1024, help="MiB of frames that stay")
    parser.add_argument("--keyframes", type=int, nargs="+", default=(25, KEYFRAMES), help="frames between keyframes")
    parser.add_argument("--part", type=int, default=800, help="frames of the film that fits in memory")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--frames", type=int, default=20 * 60 * FPS, help="of the long film")
    parser.add_argument("--back", type=int, default=1000, help="frames that its render shows on the way back")
    parser.add_argument("--json", type=Path, help="write the numbers there")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        machine = {"cpu": cpu_name(), "cores": cpu_count(), "load": load()}
        if args.what == "speed":
            found = machine | speed(args, work)
        else:
            path = make_long(work / "long", args.frames, tuple(args.size), args.keyframes[-1])
            found = machine | {"size": list(args.size), "keyframes": args.keyframes[-1]}
            found |= memory(path, work / "talk.mp4", f"{args.cache}M", args.back)
            print(f"{found['frames']} frames, {found['fps']} a second, at most {found['peak_rss_mib']} MiB resident")
    if args.json:
        kept = json.loads(args.json.read_text("utf-8")) if args.json.exists() else {}
        args.json.write_text(json.dumps(kept | {args.what: found}, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main()
