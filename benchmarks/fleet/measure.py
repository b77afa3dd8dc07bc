"""What work takes on a real worker, as the simulator is told it."""

from __future__ import annotations

import math
import time

from fleet.workers import Spent, Told, Worker
from fleet.world import Costs
from gpupipe.machine import cpu_count


def heard(worker: Worker, count: int) -> list[Told]:
    told = [worker.pipe.recv() for _ in range(count)]
    assert all(isinstance(each, Told) and each.error is None for each in told), told
    return told


def measured(worker: Worker, seconds: float, people: int, filmed: int) -> Costs:
    """What work takes: CPU seconds with the cores kept busy, as they will be.

    Args:
        worker: to be measured; it does nothing else.
        seconds: that each part lasts, about.
        people: characters that it knows.
        filmed: frames of each.
    """

    def spent(before: Spent, frames: int) -> float:
        return (worker.spent().cpu_seconds - before.cpu_seconds) / frames

    loads = 6
    before = worker.spent()
    for number in range(loads):
        worker.tell("load", number, number % people)
        heard(worker, 1)
    load = spent(before, loads * filmed)
    short = 25
    worker.tell("job", 0, 0, short)
    heard(worker, 1)
    before = worker.spent()
    pairs = 4
    for _ in range(pairs):
        for number in range(2):
            worker.tell("job", number, 0, short)
        heard(worker, 2)
    short_job = spent(before, 2 * pairs)
    frames = 100
    while True:  # long enough to be measured
        before, began = worker.spent(), time.monotonic()
        for number in range(2):
            worker.tell("job", number, 0, frames)
        heard(worker, 2)
        if (took := time.monotonic() - began) >= seconds / 2:
            break
        frames = math.ceil(frames * max(1.5, min(8.0, 0.7 * seconds / took)))
    long_job = spent(before, 2)
    used = (worker.spent().cpu_seconds - before.cpu_seconds) / took
    job = (long_job - short_job) / (frames - short)
    job_open = max(0.0, short_job - short * job)
    began = time.monotonic()
    worker.tell("job", 0, 0, frames)
    heard(worker, 1)
    job_fps = frames / (time.monotonic() - began)
    talks = cpu_count() * 4
    before = worker.spent()
    for number in range(talks):
        worker.tell("talk", number, number % people, seconds)
    drawn = sum(told.frames for told in heard(worker, talks))
    # The characters that had to be loaded for them.
    new = worker.spent().loads - before.loads
    talk = (worker.spent().cpu_seconds - before.cpu_seconds - new * filmed * load) / drawn
    before = worker.spent()
    worker.tell("hear", 0, 10 * seconds)
    hear = spent(before, heard(worker, 1)[0].frames)
    return Costs(
        batch_seconds=0.0,
        talk_core_seconds=talk,
        hear_core_seconds=hear,
        job_core_seconds=job,
        job_open_core_seconds=job_open,
        engine_cores=used,
        job_fps=job_fps,
        job_open_seconds=0.0,
        load_core_seconds=load,
        load_open_seconds=0.0,
    )
