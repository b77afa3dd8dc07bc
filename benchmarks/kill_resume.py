"""Whether a render that is killed goes on to the same bytes: kill -9 at random times, `--resume`, compare.

    python benchmarks/kill_resume.py [CHARACTER] [--kills 50] [--seed 0] [--frames N] [--json FILE]

The character is the demo's unless a folder is given. It is rendered once without interruption. Each time it is then
rendered again, killed at a moment drawn evenly from the time that a render takes, and gone on with by `--resume`,
which is killed at such a moment too, one time in two; then it is let finish. The time that a render takes is what the
last whole one took, and a tenth more after each that was killed, for other work comes and goes; one that has ended
before its moment is not counted, and begun again. Nothing may have the output's name until it is complete, and then
it holds the same bytes, and nothing is left beside it. SIGKILL leaves the system running: what loss of power takes
besides is simulated in tests/test_faults.py.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from gpupipe.demo import make_demo
from gpupipe.machine import cpu_count, cpu_name

LONGEST_SECONDS = 600


class Renders:
    """Renders of one speech, by the command line.

    Args:
        character: its folder.
        options: of every render.
    """

    def __init__(self, character: Path, options: list[str]) -> None:
        self._command = [sys.executable, "-m", "gpupipe", "render", str(character), *options, "--quiet"]

    def run(self, output: Path, *options: str, kill_after: float | None = None) -> int:
        """Render, or be killed; the exit status."""
        rendering = subprocess.Popen([*self._command, "-o", str(output), *options], stderr=subprocess.PIPE)
        try:
            rendering.wait(LONGEST_SECONDS if kill_after is None else kill_after)
        except subprocess.TimeoutExpired:
            rendering.kill()
            if kill_after is None:
                raise
        _, said = rendering.communicate()
        if rendering.returncode > 0:
            raise RuntimeError(said.decode())
        return rendering.returncode


def finished(output: Path) -> int:
    """Segments that are kept of an output."""
    manifest = output.with_name(f"{output.name}.parts") / "manifest.json"
    return len(json.loads(manifest.read_text("utf-8"))["segments"]) if manifest.exists() else 0


class Killer:
    """Kills renders at random moments.

    Args:
        renders: of what.
        work: an empty folder.
        whole: the bytes of the output.
        draw: the chances.
        seconds: that a render takes.
    """

    def __init__(self, renders: Renders, work: Path, whole: bytes, draw: random.Random, seconds: float) -> None:
        self._renders, self._work, self._whole, self._draw, self._seconds = renders, work, whole, draw, seconds
        self._output = work / "talk.mp4"
        self.ended_before = 0

    def run(self, kills: int) -> dict[str, Any]:
        """One output, killed so many times, then let finish."""
        moments: list[float] = []
        kept: list[int] = []
        while len(moments) < kills:
            moment = round(self._draw.uniform(0, self._seconds), 3)
            began = time.perf_counter()
            if self._renders.run(self._output, *self._again(), kill_after=moment) == 0:
                self._seconds = time.perf_counter() - began
                self.ended_before += 1
                self._output.unlink()
                continue
            self._seconds *= 1.1
            moments.append(moment)
            kept.append(finished(self._output))
            if self._output.exists():
                assert self._output.read_bytes() == self._whole, f"a wrong file has the final name after {moment} s"
        began = time.perf_counter()
        self._renders.run(self._output, *self._again())
        seconds = time.perf_counter() - began
        assert self._output.read_bytes() == self._whole, f"other bytes after kills at {moments} s"
        left = [path.name for path in self._work.iterdir() if path != self._output]
        assert not left, f"left behind: {left}"
        self._output.unlink()
        return {"killed_after_seconds": moments, "segments_kept": kept, "resumed_seconds": round(seconds, 3)}

    def _again(self) -> list[str]:
        # Killed after the output was renamed and before its parts were removed, it is there already.
        return ["--resume", "--overwrite"] if self._output.exists() else ["--resume"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("character", type=Path, nargs="?")
    parser.add_argument("--kills", type=int, default=50, help="renders that are killed, one in two of them twice")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--frames", type=int, default=100)
    parser.add_argument("--segment-frames", type=int, default=10)
    parser.add_argument("--json", type=Path, help="write the numbers there")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder) / "work"
        work.mkdir()
        person = args.character or make_demo(Path(folder) / "demo", frames=50, size=(480, 270))
        settings = {"--frames": args.frames, "--segment-frames": args.segment_frames}
        options = [str(part) for item in settings.items() for part in item]
        renders = Renders(person, [*options, "--device", "cpu"])
        output = work / "whole.mp4"
        renders.run(output)
        output.unlink()
        began = time.perf_counter()
        renders.run(output)
        seconds = time.perf_counter() - began
        whole = output.read_bytes()
        output.unlink()
        killer = Killer(renders, work, whole, random.Random(args.seed), seconds)
        runs = []
        for number in range(args.kills):
            runs.append(killer.run(1 + number % 2))
            print(f"{number + 1}/{args.kills}: {runs[-1]}", flush=True)
    found = {
        "cpu": cpu_name(),
        "cores": cpu_count(),
        "character": person.name,
        "seed": args.seed,
        "options": options,
        "uninterrupted_seconds": seconds,
        "runs": len(runs),
        "kills": sum(len(run["killed_after_seconds"]) for run in runs),
        "ended_before": killer.ended_before,
        "with_segments_kept": sum(any(run["segments_kept"]) for run in runs),
        "same_bytes": len(runs),
        "each": runs,
    }
    print(json.dumps({name: value for name, value in found.items() if name != "each"}, indent=1))
    if args.json:
        args.json.write_text(json.dumps(found, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main()
