"""benchmarks/scale.py: the simulated fleet keeps its books, agrees with theory, and with the engine's own scheduler."""

from __future__ import annotations

import json
import math
import random
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks"))

import deadlines
import scale_check
from fleet.cache import Cache
from fleet.node import Machine
from fleet.page import COLUMNS, drawing, pictures, table
from fleet.routing import POLICIES, Board, pick_some
from fleet.simulate import Fleet
from fleet.sweeps import TALK_LOAD, Row, run, world
from fleet.world import SLACK_SECONDS, Arrivals, Catalogue, Costs, Failures, Hardware, Traffic, World

TIMED: dict[str, Any] = {"warm_seconds": 30.0, "seconds": 60.0}


def arrivals(*who: tuple[float, int, float, bool]) -> Arrivals:
    """When, whom, seconds or frames, and whether it is a job."""
    times, characters, sizes, jobs = (np.array(column) for column in zip(*who, strict=True))
    return Arrivals(times, characters, sizes, jobs)


def by_hand(nodes: int = 1, *, costs: Costs, **more: Any) -> World:
    """A machine of some nodes, characters of 100 frames, and nothing that is drawn by chance."""
    hardware = Hardware(nodes=nodes, nodes_each=nodes, cores=4, memory_bytes=350.0)
    traffic = Traffic(characters=10, filmed=100, filmed_spread=0.0, frame_bytes=1.0)
    return World(hardware, costs, traffic, warm_seconds=0, seconds=math.inf, prefill=False, **more)


def test_a_job_takes_what_a_calculation_says() -> None:
    costs = Costs(batch=8, batch_seconds=0.08, job_core_seconds=0.001, job_open_seconds=0.5, load_core_seconds=0.02)
    fleet = Fleet(by_hand(costs=costs), arrivals((1.0, 3, 500.0, True), (20.0, 3, 500.0, True)))
    counts = fleet.run()
    # Fetched for 1 s, half a second to open, then 100 frames a second of the GPU; 100 frames are decoded meanwhile.
    assert [took for took, _ in counts.turnarounds] == pytest.approx([1 + 0.5 + 5, 0.5 + 5])
    blocked = Fleet(by_hand(costs=replace(costs, load_blocks=True)), arrivals((1.0, 3, 500.0, True))).run()
    # They take 20 ms each of one of two cores.
    assert [took for took, _ in blocked.turnarounds] == pytest.approx([1 + 1 + 0.5 + 5])
    assert counts.loads == 1
    assert counts.job_frames == pytest.approx(1000)
    assert counts.busy == pytest.approx(10)


def test_talks_go_before_jobs_and_are_refused_beyond_the_bound() -> None:
    costs = Costs(batch=1, batch_seconds=0.008, talk_core_seconds=0, job_core_seconds=0, job_open_seconds=0)
    costs = replace(costs, load_core_seconds=0, load_open_seconds=0)
    # A talk wants a fifth of the GPU, so four have room below 85 %; a job gets what is left: 25 frames a second.
    coming = [(0.1 * n, n, 100.0, False) for n in range(3)] + [(0.5, 0, 20.0, False), (0.6, 1, 20.0, False)]
    fleet = Fleet(by_hand(costs=costs, most_load=0.85), arrivals(*coming, (1.0, 1, 50.0, True)))
    counts = fleet.run()
    assert (counts.refused, counts.talks) == (1, 5)
    assert counts.turnarounds[0] == pytest.approx((2.0, 50.0))
    assert counts.drawn == pytest.approx(25 * (3 * 100 + 20))
    assert counts.late == 0


def test_what_fails_is_drawn_elsewhere() -> None:
    costs = Costs(batch_seconds=0.008, talk_core_seconds=0, job_core_seconds=0, job_open_seconds=0)
    costs = replace(costs, load_core_seconds=0, load_open_seconds=3.0)
    failures = Failures(killed=1, killed_at=13.0, notice_seconds=2.0)
    coming = arrivals((0.0, 5, 60.0, False), (12.7, 5, 1000.0, True))
    counts = Fleet(replace(by_hand(2, costs=costs, policy="least loaded"), failures=failures), coming).run()
    assert (counts.failures, counts.interrupted, counts.cut_off) == (1, 1, 0)
    assert counts.lost_frames == pytest.approx(25 * (2 + 3))  # noticed, and loaded again
    (took, frames) = counts.turnarounds[0]
    if counts.redrawn_frames:  # the job was there too: its last segment is drawn again
        assert frames > 0
    assert took >= 1000 / 1000


@pytest.mark.parametrize("load", [1.1, 1.2])
def test_lateness_beyond_the_full_load_is_that_of_the_engines_scheduler(load: float) -> None:
    """The fluid's law, against the engine's own scheduler frame by frame on a simulated clock (deadlines.json)."""
    kept = json.loads(Path(deadlines.__file__).with_name("results").joinpath("deadlines.json").read_text("utf-8"))
    rows = [
        row
        for row in kept["rows"]
        if (row["scene"], row["policy"], row["load"]) == (deadlines.SCENES[0].name, "gpupipe", load)
    ]
    assert len(rows) == len(deadlines.BATCHES)
    for row in rows:
        costs = Costs(batch=row["batch"], batch_seconds=row["batch_ms"] / 1e3, talk_core_seconds=0)
        machine = Machine(0, Hardware(nodes=1, nodes_each=1), costs, 0, 1, 25.0, own_models=False)
        (node,) = machine.nodes
        node.device, node.drawing = load, kept["sessions"]
        node.backlog = SLACK_SECONDS  # which in those scenes is but a few batches
        machine.advance(kept["seconds"])
        assert node.late / node.drawn == pytest.approx(row["late"], abs=0.02)


def test_the_least_recently_used_leave_first() -> None:
    """Against a plain list, whatever happens."""
    rng, cache = random.Random(3), Cache(1000.0, 300.0)
    users: dict[int, int] = {}
    unused: list[int] = []
    for _ in range(2000):
        who = rng.randrange(12)
        if users.get(who) and rng.random() < 0.6:
            users[who] -= 1
            left = cache.give_back(who)
            if not users[who]:
                unused.append(who)
        else:
            if sum(count > 0 for count in users.values()) >= 9:
                continue
            if who in unused:
                unused.remove(who)
            users[who] = users.get(who, 0) + 1
            left = cache.acquire(who, 100.0)
        used = sum(count > 0 for count in users.values())
        room = min(3, 10 - used)
        assert left == unused[: max(0, len(unused) - room)]
        unused = unused[len(left) :]
        assert sorted(cache.characters) == sorted([*unused, *(who for who, count in users.items() if count)])


def test_routers_prefer_whom_they_should() -> None:
    fleet = Fleet(world(16, prefill=False))
    board = Board(fleet.nodes)
    board.load[:] = np.linspace(0.5, 0.1, 16)
    dice = random.Random(1).randrange
    board.holds(fleet.nodes[3], 7)
    assert next(POLICIES["power of two"](board, 7, board.load, dice)) is fleet.nodes[3]
    assert next(POLICIES["least loaded"](board, 7, board.load, dice)) is fleet.nodes[15]
    for _ in range(20):
        first, second = pick_some(board.alive, board.load, dice)
        assert first is not second
        assert board.load[first.number] <= board.load[second.number]
    place = next(POLICIES["sticky"](board, 7, board.load, dice))
    board.dies(place)
    place.alive = False
    after = next(POLICIES["sticky"](board, 7, board.load, dice))
    assert after is board.nodes[(place.number + 1) % 16]


def test_the_same_seed_gives_the_same_numbers_and_nothing_is_lost() -> None:
    failures = Failures(killed=8, killed_at=60.0)
    assert len({str(run("", {}, world(4, failures=failures, **TIMED)).found) for _ in range(2)}) == 1
    for policy in POLICIES:
        found = run("", {}, world(12, policy=policy, failures=failures, warm_seconds=30.0, seconds=40.0)).found
        assert found["failures"] == 8
        assert found["interrupted"] > 0
        assert 0 < found["busy"] <= 1
    holding, anywhere = (run("", {}, world(12, policy=name, **TIMED)).found for name in ("power of two", "any two"))
    # What talks want of the GPUs is what they get, within the chance of who comes.
    assert holding["talk_fps"] == pytest.approx(12 * TALK_LOAD / 0.0015, rel=0.12)
    assert holding["loads"] < 0.8 * anywhere["loads"]


def test_characters_are_as_popular_as_zipf_says() -> None:
    rng = np.random.default_rng(0)
    wanted = Catalogue.of(Traffic(characters=100, zipf=1.0), rng).wanted(rng, 100_000)
    share = 1 / np.arange(1, 101) / np.sum(1 / np.arange(1, 101))
    assert np.bincount(wanted, minlength=100)[:10] / 1e5 == pytest.approx(share[:10], rel=0.1)


def test_what_is_shown() -> None:
    found = Fleet(world(8, **TIMED)).run().summary(8, 60.0)
    cases: list[tuple[str, dict[str, Any]]] = [
        ("policies", {"nodes": 8, "policy": "sticky"}),
        ("cache", {"nodes": 8, "gb": 15.0, "policy": "sticky"}),
        ("load", {"nodes": 8, "load": 0.6, "own_models": True}),
        ("failure", {"nodes": 8, "load": 0.6, "killed": 0}),
    ]
    rows = [Row(scene, case, 0.0, found).__dict__ for scene, case in cases]
    for scene in COLUMNS:
        assert len(table(scene, rows).splitlines()) == 3
    for picture in pictures(rows).values():
        text = drawing(picture)
        assert text.startswith("<svg xmlns")
        assert "var(" not in text


def test_a_check_marks_what_differs() -> None:
    found = {
        "real": {"seconds": 10.0, "late": 0.02, "loads": 0},
        "simulated": {"seconds": 12.0, "late": 0.1, "loads": 0},
    }
    first, second, third = scale_check.rows(found)
    assert "differs" in first
    assert "differs" not in second
    assert "differs" not in third
