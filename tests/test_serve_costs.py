"""What talks cost, as it is counted from totals, and who may come in by that."""

from __future__ import annotations

import os
import sys
import threading
from pathlib import Path

import pytest

from gpupipe.render.engine import Engine
from gpupipe.serve.costs import Costs
from gpupipe.serve.meter import Meter, Spent
from gpupipe.threads import Worker, yield_to_others


class Process:
    """A process whose costs are known: of a frame by its character, of a second of sound, of a picture's encoding."""

    def __init__(self, **frame: float) -> None:
        self.frame, self.busy = frame, False
        self.cpu = self.encoding = self.hearing = self.heard = 0.0
        self.frames = dict.fromkeys(frame, 0)
        self.others = 0

    def work(self, seconds: int, **talks: int) -> None:
        """Let so many talks of each character go on for some seconds."""
        for name, count in talks.items():
            frames = 25 * seconds * count
            self.frames[name] += frames
            self.heard += seconds * count
            self.hearing += 0.01 * seconds * count
            self.encoding += 0.003 * frames
            self.cpu += 0.01 * seconds * count + (0.003 + self.frame[name]) * frames

    def spent(self) -> Spent:
        return Spent(self.cpu, self.encoding, self.hearing, self.heard, dict(self.frames), self.others, self.busy)


def test_costs_come_to_what_they_are() -> None:
    process, costs = Process(anna=0.004, ben=0.004), Costs()
    meter = Meter(costs, process.spent)
    costs.drawn("anna", None, 0.001)
    costs.drawn("ben", None, 0.020)
    for _ in range(20):
        process.work(1, anna=3)
        meter.look()
    assert costs.cores("anna") == pytest.approx(0.004, rel=0.02)
    assert costs.cores("ben") == 0.020
    assert costs.hearing() == pytest.approx(0.01)
    for _ in range(20):
        process.work(1, ben=4)
        meter.look()
    assert costs.cores("ben") == pytest.approx(0.004, rel=0.02)
    assert costs.cores("anna") == pytest.approx(0.004, rel=0.02)


def test_what_cannot_be_told_apart_is_not_counted() -> None:
    process, costs = Process(anna=0.004), Costs()
    meter = Meter(costs, process.spent)
    costs.drawn("anna", None, 0.004)
    process.work(2, anna=4)
    process.others += 100  # a job's, with its encoder
    process.cpu += 5.0
    meter.look()
    process.work(2, anna=4)
    process.busy = True  # a character is loaded
    process.cpu += 5.0
    meter.look()
    assert costs.cores("anna") == 0.004
    process.busy = False
    process.work(2, anna=4)
    meter.look()
    process.work(1, anna=2)
    process.cpu += 1000.0  # one window is not believed everything
    meter.look()
    assert 0.004 < (costs.cores("anna") or 0.0) < 0.008


def priority() -> int:
    """Of the calling thread."""
    return os.getpriority(os.PRIO_PROCESS, threading.get_native_id())


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere threads have no priorities that anybody may lower")
def test_a_thread_yields_alone() -> None:
    found: list[int] = []

    def work() -> None:
        yield_to_others()
        inner = threading.Thread(
            target=lambda: found.append(os.getpriority(os.PRIO_PROCESS, threading.get_native_id()))
        )
        inner.start()
        inner.join()

    before = priority()
    worker = Worker("w", work)
    worker.start()
    worker.wait()
    assert found == [min(19, before + 10)]
    assert priority() == before


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere threads have no priorities that anybody may lower")
@pytest.mark.parametrize("yields", [False, True])
def test_what_a_server_encodes_yields_to_talks(folder: Path, tmp_path: Path, yields: bool) -> None:
    found: set[int] = set()
    with Engine(device="cpu", yields=yields) as engine:
        rendered = engine.submit(
            folder / "anna", tmp_path / "anna.mp4", frames=3, progress=lambda _: found.add(priority())
        )
        assert rendered.result().frames == 3
    assert found == {min(19, priority() + 10) if yields else priority()}
