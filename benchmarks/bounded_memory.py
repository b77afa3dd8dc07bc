"""What `--cache` costs: a character of twenty minutes in full HD, drawn with a gigabyte of its frames kept.

    python benchmarks/bounded_memory.py [--frames 30000] [--keyframes 250] [--cache 1G] [--json FILE]

First the command line renders the whole speech, to the film's end and some way back, in a process whose resident memory
is sampled and whose most is read. Then a part that fits in memory is rendered in three ways in turn, forwards and
backwards: with all of it kept from before (`cached`), with all of it kept but decoded meanwhile (`loading`), and within
the bound. Speed is that of the frames which are not among those that stay within the bound, by the clock and by the
processor's time, which other work on the machine changes less; the files must be the same bytes. The character
(`long_character`) has 2 GB of video; the long output another 2. Linux only, for it reads /proc.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from long_character import FPS, KEYFRAMES, make_long

from gpupipe import Character
from gpupipe.machine import cpu_count, cpu_name, load
from gpupipe.render.engine import Engine
from gpupipe.render.stats import Progress, RenderStats

EVERY_SECONDS = 0.25
"""Between two looks at the memory of the process that renders."""
LEVELS = 60
"""Of these looks, how many are kept, evenly."""
WAYS = ("cached", "loading", "bounded")
MEGABYTE = 1 << 20


def memory(process: int) -> dict[str, int]:
    """What a process holds resident, now and at most so far, bytes; empty when it has ended."""
    try:
        lines = Path(f"/proc/{process}/status").read_text("ascii").splitlines()
    except OSError:
        return {}
    sizes = dict(line.split(":", 1) for line in lines if line.startswith(("VmRSS", "VmHWM")))
    return {name: int(size.split()[0]) * 1024 for name, size in sizes.items()}


def whole(person: Path, output: Path, cache: str, back: int) -> dict[str, Any]:
    """The whole speech by the command line, begun so late in the film that its end is passed by so many frames."""
    command = [sys.executable, "-m", "gpupipe", "render", str(person), "-o", str(output), "--device", "cpu"]
    command += ["--cache", cache, "--start-frame", str(back), "--no-audio", "--quiet"]
    told = output.with_suffix(".json")
    levels: list[dict[str, int]] = []
    rendering = subprocess.Popen([*command, "--stats", str(told)])
    while rendering.poll() is None:
        if found := memory(rendering.pid):
            levels.append(found)
        time.sleep(EVERY_SECONDS)
    if rendering.returncode:
        raise RuntimeError(f"the render ended with status {rendering.returncode}")
    stats = json.loads(told.read_text("utf-8"))
    output.unlink()
    resident = [level["VmRSS"] for level in levels]
    return {
        "frames": stats["frames"],
        "of_them_backwards": back,
        "cache": cache,
        "peak_rss_mib": round(max(stats["peak_rss_bytes"], *(level["VmHWM"] for level in levels)) / MEGABYTE, 1),
        "seconds": round(stats["total_seconds"], 1),
        "fps": round(stats["fps"], 2),
        "first_frame_seconds": round(stats["first_frame_seconds"], 3),
        "rss_mib": [round(size / MEGABYTE) for size in resident[:: -(-len(resident) // LEVELS)]],
        "notes": stats["notes"],
    }


class Speed(NamedTuple):
    """Frames a second of the clock, and of the processor, all threads together."""

    clock: float
    cpu: float


class Part:
    """The end of the film, as much as fits in memory, drawn forwards or backwards.

    Args:
        person: whose.
        frames: of the film.
        left_out: the first of them, which may stay within a bound and so are not timed.
        work: a folder.
    """

    def __init__(self, person: Character, frames: int, left_out: int, work: Path) -> None:
        self._person, self._frames, self._left_out, self._work = person, frames, left_out, work

    def drawn(self, engine: Engine, *, backwards: bool) -> tuple[bytes, Speed, RenderStats]:
        """The file, how fast the timed frames were, and what the render says of itself."""
        begin = self._person.count - (1 if backwards else self._frames)
        times: list[Speed] = []

        def wrote(_: Progress) -> None:
            times.append(Speed(time.perf_counter(), time.process_time()))

        output = self._work / "part.mp4"
        stats = engine.render(
            self._person, output, start_frame=begin, frames=self._frames, sound=False, progress=wrote, overwrite=True
        )
        timed = times[: -self._left_out] if backwards else times[self._left_out :]
        fps, cpu_fps = ((len(timed) - 1) / (last - first) for first, last in zip(timed[0], timed[-1], strict=True))
        return output.read_bytes(), Speed(fps, cpu_fps), stats


def compared(part: Part, cache: int, turns: int) -> dict[str, Any]:
    """The ways in turn, forwards and backwards."""
    found: dict[str, Any] = {}
    with Engine(device="cpu", cache="auto") as all_kept, Engine(device="cpu", cache=cache) as within:
        files = {False: part.drawn(all_kept, backwards=False)[0], True: part.drawn(all_kept, backwards=True)[0]}
        for backwards, right in files.items():
            speeds: dict[str, list[Speed]] = {way: [] for way in WAYS}
            for _ in range(turns):
                for way in WAYS:
                    with _engine(way, all_kept, within) as engine:
                        drawn, speed, stats = part.drawn(engine, backwards=backwards)
                    assert drawn == right, f"other bytes: {way}"
                    speeds[way].append(speed)
                    print("backwards" if backwards else "forwards", way, speed, flush=True)
                    if way == "bounded":
                        notes = [note for note in stats.notes if "cached frames" in note]
            found["backwards" if backwards else "forwards"] = {
                "fps": {way: [round(one.clock, 2) for one in each] for way, each in speeds.items()},
                "fps_of_the_processor": {way: [round(one.cpu, 2) for one in each] for way, each in speeds.items()},
                "bounded_over_cached": _ratios(speeds["bounded"], speeds["cached"]),
                "bounded_over_loading": _ratios(speeds["bounded"], speeds["loading"]),
                "same_bytes": True,
                "notes": notes,
            }
    return found


@contextmanager
def _engine(way: str, all_kept: Engine, within: Engine) -> Iterator[Engine]:
    with ExitStack() as opened:
        if way == "loading":
            yield opened.enter_context(Engine(device="cpu", cache="auto"))
        else:
            yield all_kept if way == "cached" else within


def _ratios(these: list[Speed], those: list[Speed]) -> dict[str, float]:
    """Medians over the turns."""
    both = list(zip(these, those, strict=True))
    return {
        "clock": round(statistics.median(one.clock / other.clock for one, other in both), 3),
        "cpu": round(statistics.median(one.cpu / other.cpu for one, other in both), 3),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("character", type=Path, nargs="?", help="one that `long_character` has made")
    parser.add_argument("--frames", type=int, default=20 * 60 * FPS)
    parser.add_argument("--size", type=int, nargs=2, default=(1920, 1080), metavar=("WIDTH", "HEIGHT"))
    parser.add_argument("--keyframes", type=int, default=KEYFRAMES, help="frames from keyframe to keyframe")
    parser.add_argument("--cache", type=int, default=1024, help="MiB of frames that stay")
    parser.add_argument("--back", type=int, default=1000, help="frames that the whole render shows on the way back")
    parser.add_argument("--part", type=int, default=1000, help="frames of the part that fits in memory")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--skip-whole", action="store_true", help="compare speeds only")
    parser.add_argument("--json", type=Path, help="write the numbers there")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        path = args.character or make_long(work / "long", args.frames, tuple(args.size), args.keyframes)
        person = Character.load(path)
        found: dict[str, Any] = {
            "cpu": cpu_name(),
            "cores": cpu_count(),
            "load": load(),
            "size": [person.body.width, person.body.height],
            "frames": person.count,
            "keyframes": args.keyframes,
            "turns": args.turns,
        }
        if not args.skip_whole:
            found["whole"] = whole(path, work / "whole.mp4", f"{args.cache}M", args.back)
            print(json.dumps(found["whole"], indent=1), flush=True)
        each = person.body.width * person.body.height * 3 // 2 + 3 * person.layout.crop_size**2
        kept = args.cache * MEGABYTE // each
        part = Part(person, args.part, min(kept, args.part // 2), work)
        found["part"] = {"frames": args.part} | compared(part, args.cache * MEGABYTE, args.turns)
    print(json.dumps(found, indent=1))
    if args.json:
        args.json.write_text(json.dumps(found, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main()
