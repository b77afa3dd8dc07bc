"""Is the simulated fleet like a real one? 1 to 4 worker processes on this machine, and the simulator, side by side.

    python benchmarks/scale_check.py [--seconds 30] [--workers 1,2,4] [--json FILE] [--docs docs/scale.md]

Each worker is a process with an engine on the CPU, and room for a few characters that nobody uses. It has its share of
the cores, as a replica has that `gpupipe serve --replicas` starts; where there are fewer cores, workers share one.
First one worker is measured, on all cores: what a load, a job, a job's frame and a realtime frame take. Then the same
arrivals, by the same router, go to real workers and to the simulator, which is told those numbers and nothing else:

    jobs    all come at once, for as many seconds of work as are asked for
    mixed   realtime talks take some of the cores, jobs that come at once the rest
    crowd   more realtime talks than the cores can serve: those for whom there is no room are refused

The characters are the demo's, 1280x720 with the tiny model. A machine that does other work meanwhile gives other
numbers: what others took of the cores during a run is measured, and told to the simulator. What differs by more than
15 % is marked. Linux only, for it reads /proc.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
from fleet.counts import Counts
from fleet.measure import measured
from fleet.page import filled
from fleet.real import RealFleet
from fleet.simulate import Fleet
from fleet.workers import Worker
from fleet.world import Arrivals, Catalogue, Costs, Hardware, Traffic, World

from gpupipe.demo import make_demo
from gpupipe.machine import cpu_count, cpu_name

FPS = 25
FILMED = 50
FRAME_BYTES = 1280 * 720 * 3 // 2 + 3 * 328 * 328
PEOPLE = 6
KEPT = 3
"""Characters for which a worker has room when nobody uses them."""
WITHIN = 0.15
SCENES = ("jobs", "mixed", "crowd")


def processor_seconds() -> tuple[float, float]:
    """Of all cores since the machine began: those that are over, and those in which they did nothing."""
    times = [int(each) for each in Path("/proc/stat").read_text("ascii").splitlines()[0].split()[1:9]]
    tick = os.sysconf("SC_CLK_TCK")
    return sum(times) / tick, (times[3] + times[4]) / tick


def nodes_each(count: int) -> int:
    """Of so many workers, those that share a core, or cores: the machine is as many small ones in the simulation."""
    return max(1, count // cpu_count())


def cores_of(number: int, count: int) -> set[int]:
    """On which one of so many workers runs."""
    cores, each = sorted(os.sched_getaffinity(0)), nodes_each(count)
    share = len(cores) * each // count
    return set(cores[number // each * share :][:share])


def coming(scene: str, costs: Costs, seconds: float, rng: np.random.Generator) -> Arrivals:
    """Who comes when, sized by what this machine can do.

    Args:
        scene: one of `SCENES`.
        costs: as measured.
        seconds: that it lasts, about.
        rng: draws them.
    """
    power = cpu_count()
    talk = FPS * costs.talk_core_seconds
    length = seconds / 3
    events: list[tuple[float, float, bool]] = []
    if scene != "jobs":
        load = 0.4 if scene == "mixed" else 1.4
        at_a_time = load * power / talk
        lasting = length if scene == "mixed" else seconds
        count = max(1, round(at_a_time * (seconds - lasting) / lasting + at_a_time))
        times = np.linspace(0, seconds - lasting, count) if scene == "mixed" else np.zeros(count)
        events += [(float(at), lasting, False) for at in times]
    if scene != "crowd":
        left = power * seconds * (1.0 if scene == "jobs" else 0.6) * 0.85
        while left > 0:
            frames = float(round(100 * math.exp(rng.normal(0, 0.5))))
            events.append((0.0, frames, True))
            left -= (
                costs.job_open_core_seconds + frames * costs.job_core_seconds + 0.3 * FILMED * costs.load_core_seconds
            )
    events.sort(key=lambda each: each[0])
    wanted = Catalogue.of(_traffic(), rng).wanted(rng, len(events))
    times, sizes, jobs = (np.array(column) for column in zip(*events, strict=True))
    return Arrivals(times, wanted, sizes, jobs)


def _traffic() -> Traffic:
    return Traffic(characters=PEOPLE, filmed=FILMED, filmed_spread=0.0, frame_bytes=FRAME_BYTES, fps=FPS)


def told(counts: Counts) -> dict[str, float]:
    """What is compared."""
    found: dict[str, float] = {}
    if counts.job_frames:
        took = [each for each, _ in counts.turnarounds]
        found |= {
            "seconds": max(took),
            "job frames a second": counts.job_frames / max(took),
            "turnaround": float(np.mean(took)),
        }
    if counts.drawn:
        found |= {"talk frames": counts.drawn, "late": counts.late / counts.drawn}
    return found | {"loads": counts.loads, "refused": counts.refused}


def run(scene: str, costs: Costs, workers: list[Worker], seconds: float, seed: int) -> dict[str, Any]:
    """One scene with some workers, really and simulated."""
    rng = np.random.default_rng(seed)
    each = nodes_each(len(workers))
    hardware = Hardware(
        nodes=len(workers),
        nodes_each=each,
        cores=cpu_count() * each // len(workers),
        memory_bytes=math.inf,
        unused_bytes=KEPT * FILMED * FRAME_BYTES,
    )
    world = World(hardware, costs, _traffic(), warm_seconds=0.0, seconds=math.inf, prefill=False, seed=seed)
    arrivals = coming(scene, costs, seconds, rng)
    catalogue = Catalogue.of(world.traffic, rng)
    real = RealFleet(world, arrivals, catalogue, workers)
    before = processor_seconds()
    really = told(real.run())
    past, idle = (b - a for a, b in zip(before, processor_seconds(), strict=True))
    speed = (real.cpu_seconds + idle) / past  # the rest was others'
    world = replace(world, hardware=replace(hardware, core_speed=speed))
    simulated = Fleet(world, arrivals, catalogue)
    counts = simulated.run()
    return {
        "scene": scene,
        "workers": len(workers),
        "core_speed": speed,
        "talks": counts.talks,
        "jobs": counts.jobs,
        "cpu_seconds": real.cpu_seconds,
        "real": really,
        "simulated": told(counts),
    }


def rows(found: dict[str, Any]) -> Iterator[str]:
    """A run for people: each number, really and simulated, and what differs by too much."""
    for name, real in found["real"].items():
        simulated = found["simulated"][name]
        off = differs(name, real, simulated)
        mark = "  <-- differs" if off > WITHIN else ""
        yield f"  {name:20} {real:9.3f} {simulated:9.3f} {off:+7.1%}{mark}"


def table(runs: list[dict[str, Any]]) -> str:
    """All runs as a Markdown table: really · simulated."""
    heads = dict.fromkeys(name for run in runs for name in run["real"])
    lines = ["| | workers | cores | " + " | ".join(heads) + " |", "|---" * (3 + len(heads)) + "|"]
    for each in runs:
        pairs = (_pair(name, each["real"].get(name), each["simulated"].get(name)) for name in heads)
        cores = f"{each['core_speed']:.0%}"
        lines.append(f"| {each['scene']} | {each['workers']} | {cores} | " + " | ".join(pairs) + " |")
    return "\n".join(lines) + "\n"


def _pair(name: str, real: float | None, simulated: float | None) -> str:
    if real is None or simulated is None:
        return ""
    form = ".1%" if name == "late" else ".1f" if real < 100 and real != round(real) else ".0f"
    text = f"{real:{form}} · {simulated:{form}}"
    return text if differs(name, real, simulated) <= WITHIN else f"**{text}**"


def differs(name: str, real: float, simulated: float) -> float:
    """By how much a simulated number differs from the real one: shares absolutely, others relatively."""
    if name == "late":
        return abs(simulated - real)
    return abs(simulated - real) / max(1.0, abs(real))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=30, help="that each run lasts, about")
    parser.add_argument(
        "--workers", default="1,2,4", help="how many, of each run: they divide the cores or are a multiple"
    )
    parser.add_argument("--scenes", default=",".join(SCENES), help="which")
    parser.add_argument("--docs", type=Path, help="put the table into this page, docs/scale.md")
    parser.add_argument("--json", type=Path, help="write the numbers there")
    args = parser.parse_args()
    numbers = [int(each) for each in args.workers.split(",")]
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        drawn = make_demo(Path(folder) / "person_0", frames=FILMED)
        people = [drawn, *(Path(shutil.copytree(drawn, Path(folder) / f"person_{n}")) for n in range(1, PEOPLE))]

        def worker(cores: set[int] | None = None) -> Worker:
            found = Worker(people, KEPT * FILMED * FRAME_BYTES, cores)
            stack.callback(found.close)
            return found

        first = worker()
        costs = measured(first, args.seconds / 3, PEOPLE, FILMED)
        first.close()
        print(json.dumps(asdict(costs)))
        runs = []
        for count in numbers:
            for scene in args.scenes.split(","):
                workers = [worker(cores_of(number, count)) for number in range(count)]  # which have loaded nothing yet
                runs.append(run(scene, costs, workers, args.seconds, seed=1))
                for each in workers:
                    each.close()
                print(
                    f"{scene}, {count} workers, {runs[-1]['core_speed']:.2f} of the cores: real, simulated, difference"
                )
                print("\n".join(rows(runs[-1])), flush=True)
    found = {"cpu": cpu_name(), "cores": cpu_count(), "seconds": args.seconds, "costs": asdict(costs), "runs": runs}
    if args.docs:
        args.docs.write_text(filled(args.docs.read_text("utf-8"), {"check": table(runs)}), "utf-8")
    if args.json:
        args.json.write_text(json.dumps(found, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main()
