"""Checks of a model's runs: their order on the stream, who waits, and the memory that they keep."""

from __future__ import annotations

import statistics
import threading
import time
from contextlib import closing

import numpy as np

from gpupipe.doctor.check import RATHER_MS, Check, Found, NotPossible, Subject
from gpupipe.doctor.checks_model import ON_GPU, on
from gpupipe.doctor.on_device import OnDevice, random_inputs
from gpupipe.doctor.scenes import differing
from gpupipe.machine import megabytes, rss_bytes
from gpupipe.model.one_thread import OneThread
from gpupipe.model.runtime import Provider

ORDERED_RUNS = 20
THREADS = 20
ARENA_BYTES = 2_000_000
FLAT_RUNS = 3000
FLAT_BYTES = 1_000_000


def order(subject: Subject, provider: Provider) -> Found:
    """What is queued behind other work on the stream stays in order."""
    rng, gpu = np.random.default_rng(4), subject.gpu
    wrong = 0
    with OnDevice(subject, provider) as opened:
        given = [random_inputs(opened.model, opened.layout, rng) for _ in range(4)]
        wanted = [opened.predict(inputs).copy() for inputs in given]
        for run in range(ORDERED_RUNS):
            subject.spin.queue(gpu.compute_stream, RATHER_MS / 5)
            opened.put(given[run % len(given)])
            opened.run()
            found = opened.queue_copy()
            gpu.synchronize()
            wrong += bool(differing(found, wanted[run % len(given)]))
    return Found(not wrong, f"{wrong} of {ORDERED_RUNS} predictions differ", {"differing": wrong})


def no_wait(subject: Subject, provider: Provider) -> Found:
    """A run returns while the GPU is still busy with what was queued before."""
    subject.need_a_device_that_works_alone()
    with OnDevice(subject, provider) as opened:
        opened.predict(random_inputs(opened.model, opened.layout, np.random.default_rng(5)))
        opened.run()
        return behind_work(subject, opened, "a run")


def behind_work(subject: Subject, opened: OnDevice, what: str) -> Found:
    """Whether a run, or what else `opened.run` does, returns while the GPU is busy with what was queued before."""
    gpu, begin, end = subject.gpu, subject.gpu.event(timing=True), subject.gpu.event(timing=True)
    returned, busy = [], []
    for _ in range(5):
        gpu.synchronize()
        gpu.record(begin, gpu.compute_stream)
        subject.spin.queue(gpu.compute_stream, 2 * RATHER_MS)
        gpu.record(end, gpu.compute_stream)
        began = time.perf_counter()
        opened.run()
        returned.append((time.perf_counter() - began) * 1e3)
        gpu.wait(end)
        busy.append(gpu.elapsed_seconds(begin, end) * 1e3)
    found, work = statistics.median(returned), statistics.median(busy)
    measured = f"{what} returned after {found:.3f} ms behind {work:.0f} ms of work"
    return Found(found < work / 2, measured, {"returned_ms": returned, "work_ms": busy})


def arena(subject: Subject, provider: Provider) -> Found:
    """Threads that come and go leave no memory behind where all runs are made in one, as an audio encoder's are."""
    gpu = subject.gpu
    with OnDevice(subject, provider) as opened, closing(OneThread("runs")) as one:
        for _ in range(3):
            one(opened.run)
        gpu.synchronize()
        before = gpu.free_bytes
        for _ in range(THREADS):
            thread = threading.Thread(target=one, args=[opened.run])
            thread.start()
            thread.join()
            gpu.synchronize()
        grown = before - gpu.free_bytes
    measured = f"{megabytes(max(0, grown))} more after a run for each of {THREADS} threads"
    return Found(grown <= ARENA_BYTES, measured, {"grown_bytes": grown})


def flat(subject: Subject, provider: Provider) -> Found:
    """Runs leave nothing on the host."""
    with OnDevice(subject, provider) as opened:

        def runs(count: int) -> int:
            for number in range(count):
                opened.run()
                if number % 8 == 7:
                    subject.gpu.synchronize()
            subject.gpu.synchronize()
            return rss_bytes()

        before = runs(FLAT_RUNS // 6)
        if not before:
            raise NotPossible("this system does not say how much memory a process holds")
        grown = runs(FLAT_RUNS) - before
    measured = f"{megabytes(max(0, grown))} more of resident memory after {FLAT_RUNS} runs"
    return Found(grown <= FLAT_BYTES, measured, {"grown_bytes": grown, "runs": FLAT_RUNS})


def first_start(subject: Subject, provider: Provider) -> Found:
    """The cost of the first runs."""
    subject.need_a_device_that_works_alone()
    began = time.perf_counter()
    with OnDevice(subject, provider) as opened:
        opening = time.perf_counter() - began
        seconds = []
        for _ in range(23):
            began = time.perf_counter()
            opened.run()
            subject.gpu.synchronize()
            seconds.append(time.perf_counter() - began)
    first, second, third, *rest = (each * 1e3 for each in seconds)
    usual = statistics.median(rest)
    measured = f"opened in {opening:.2f} s; runs of {first:.1f}, {second:.1f}, {third:.1f} ms, then {usual:.2f} ms"
    numbers = {"opening_seconds": opening, "runs_ms": [first, second, third], "median_ms": usual}
    return Found(third <= 1.1 * usual + 1, measured, numbers)


FIRST = tuple(
    Check(f"first start: {name}", "the third run is as fast as the later ones", on(name, first_start))
    for name in ON_GPU
)
"""Made before any other run."""

CHECKS = (
    Check("stream order", "each prediction is that of a run with waits, bit for bit", on("cuda", order)),
    *(
        Check(f"run does not wait: {name}", "it returns before the work ahead of it ends", on(name, no_wait))
        for name in ON_GPU
    ),
    Check(
        "arena and threads",
        f"runs for other threads, made in one, take {megabytes(ARENA_BYTES)} at most",
        on("cuda", arena),
    ),
    Check("host memory flat", f"runs leave less than {megabytes(FLAT_BYTES)}", on("cuda", flat)),
)
"""In the order in which they are made."""
