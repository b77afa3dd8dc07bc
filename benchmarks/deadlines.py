"""Who is late? The engine's scheduler against first come, first served, on a simulated device.

    python benchmarks/deadlines.py --json benchmarks/results/deadlines.json --table benchmarks/results/deadlines.md

A discrete-event simulation without threads or clocks: the same numbers come out every time. 200 live sessions speak in
chunks of 20 ms, each with its own phase, and up to 10 ms of jitter on the way. A frame can be drawn once the 16 rows of
speech around it are there, at most 350 ms after the frame's own time; it is due a stated delay after that time. The
device takes so many milliseconds for a batch, full or not (a model's batch is padded), give or take 5 %: so many that
the live sessions need the stated share of it. Beside them there may be offline sessions, which always have frames to
draw, up to four batches at a time.

    gpupipe           `engine.scheduler.Scheduler` as it is, with the engine's slots, and its measure of a batch's time
    fcfs              whenever the device is free, the frames that came first: a batch, or as many as there are
    fcfs, full        the same, but only whole batches leave
    fcfs, live first  as fcfs, but no offline frame goes before a live one

Late: the share of live frames that were finished after they were due. Wait: milliseconds from when a live frame could
have been drawn until it was finished. Fill: frames in a batch, of those that it has room for. Offline: frames of the
offline sessions, of all that the device could have drawn.
"""

from __future__ import annotations

import argparse
import json
import math
from collections import deque
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path

import numpy as np
from simulated import FPS, POLICIES, SimulatedLane, SimulatedSession, live_session

SESSIONS = 200
DEVICE_JITTER = 0.05
OFFLINE_SESSIONS = 4

LOADS = (0.6, 0.8, 0.9, 1.0, 1.1, 1.2)
BATCHES = (8, 16, 32)


@dataclass(frozen=True)
class Scene:
    """What is simulated.

    Attributes:
        name: for people.
        delays: seconds from a frame's own time to its deadline, of the sessions in turn.
        offline: offline sessions.
    """

    name: str
    delays: tuple[float, ...]
    offline: int = 0


SCENES = (
    Scene("every frame is due after 400 ms", (0.4,)),
    Scene("half of the sessions are due after 360 ms, half after 600 ms", (0.36, 0.6)),
    Scene("every frame is due after 400 ms; 4 offline sessions beside", (0.4,), OFFLINE_SESSIONS),
)


@dataclass(frozen=True)
class Row:
    """What one policy did in one scene; times in milliseconds, the others shares of 1."""

    scene: str
    policy: str
    batch: int
    batch_ms: float
    load: float
    late: float
    wait_median_ms: float
    wait_p95_ms: float
    wait_p99_ms: float
    fill: float
    offline: float


def simulate(scene: Scene, policy_name: str, batch: int, load: float, seconds: float) -> Row:
    """Run one policy until every live frame is finished."""
    rng = np.random.default_rng(batch)  # the same speech for every policy and load
    lane = SimulatedLane(batch)
    batch_seconds = load * batch / (SESSIONS * FPS)
    lane.pace.took(batch_seconds)  # not the first batch that it ever does
    delays = [scene.delays[number % len(scene.delays)] for number in range(SESSIONS)]
    live = [live_session(lane, rng, delay, seconds) for delay in delays]
    offline = [SimulatedSession(lane) for _ in range(scene.offline)]
    policy = POLICIES[policy_name](lane, [*live, *offline])
    coming = sorted((float(time), number) for number, session in enumerate(live) for time in session.arrivals)
    coming.reverse()
    left, batches, frames = len(coming), 0, 0
    now = device_free = 0.0
    wake = math.inf
    landing: deque[tuple[float, list[SimulatedSession]]] = deque()
    while left:
        now = max(now, min(wake, coming[-1][0] if coming else math.inf, landing[0][0] if landing else math.inf))
        while coming and coming[-1][0] <= now:
            session = live[coming.pop()[1]]
            session.arrived += 1
            policy.changed(session)
        while landing and landing[0][0] <= now:
            _, done = landing.popleft()
            policy.landed(now)
            for session in done:
                session.under_way -= 1
                session.finished.append(now)
                left -= session.arrivals is not None
            for session in dict.fromkeys(done):
                policy.changed(session)
        while True:
            picked, wake = policy.choose(now, len(landing), not coming and not landing)
            if not picked:
                break
            for session in picked:
                session.started += 1
                session.under_way += 1
            for session in dict.fromkeys(picked):
                policy.changed(session)
            took = batch_seconds * rng.uniform(1 - DEVICE_JITTER, 1 + DEVICE_JITTER)
            device_free = max(device_free, now) + took
            landing.append((device_free, picked))
            batches, frames = batches + 1, frames + len(picked)
    finished, arrived, due = (
        np.concatenate([getattr(session, name) for session in live]) for name in ("finished", "arrivals", "due")
    )
    waited_ms = (finished - arrived) * 1e3
    return Row(
        scene=scene.name,
        policy=policy_name,
        batch=batch,
        batch_ms=batch_seconds * 1e3,
        load=load,
        late=float((finished > due).mean()),
        wait_median_ms=float(np.median(waited_ms)),
        wait_p95_ms=float(np.percentile(waited_ms, 95)),
        wait_p99_ms=float(np.percentile(waited_ms, 99)),
        fill=frames / batches / batch,
        offline=sum(len(session.finished) for session in offline) / (now / batch_seconds * batch),
    )


def rows(seconds: float) -> Iterator[Row]:
    for scene in SCENES:
        for batch, load, policy in product(BATCHES, LOADS, POLICIES):
            yield simulate(scene, policy, batch, load, seconds)


def table(rows: list[Row], seconds: float) -> str:
    """The rows for people: of each scene one table, a cell for each load."""
    lines = [
        "# Deadlines",
        "",
        f"    python benchmarks/deadlines.py --seconds {seconds:g} --json … --table …",
        "",
        f"{SESSIONS} live sessions at {FPS} fps, {seconds:g} s each, simulated; `benchmarks/deadlines.py` says how,",
        "and `deadlines.json` holds every number. A column is what the live sessions need of the device. A cell: live",
        "frames that were late, in %; the median and the 99th percentile of their waits, in ms; how full the batches",
        "were; and, with offline sessions beside, what these got of the device.",
    ]
    for scene in SCENES:
        lines += ["", f"## {scene.name[0].upper()}{scene.name[1:]}", ""]
        lines.append("| batch | | " + " | ".join(f"{load:.0%}" for load in LOADS) + " |")
        lines.append("|---" * (2 + len(LOADS)) + "|")
        for batch, policy in product(BATCHES, POLICIES):
            if policy == "fcfs, live first" and not scene.offline:
                continue
            cells = [
                f"**{100 * row.late:.1f}** · {row.wait_median_ms:.1f} · {row.wait_p99_ms:.1f} · {row.fill:.2f}"
                + f" · {row.offline:.2f}" * bool(scene.offline)
                for row in rows
                if (row.scene, row.batch, row.policy) == (scene.name, batch, policy)
            ]
            lines.append(f"| {batch} | {policy} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=3, help="how long each session speaks")
    parser.add_argument("--json", type=Path, help="write every number there")
    parser.add_argument("--table", type=Path, help="write the tables there")
    args = parser.parse_args()
    found = list(rows(args.seconds))
    text = table(found, args.seconds)
    print(text)
    if args.json:
        settings = {"sessions": SESSIONS, "fps": FPS, "seconds": args.seconds, "device_jitter": DEVICE_JITTER}
        args.json.write_text(json.dumps(settings | {"rows": [asdict(row) for row in found]}, indent=1), "utf-8")
    if args.table:
        args.table.write_text(text, "utf-8")


if __name__ == "__main__":
    main()
