"""How long work takes that is queued on a GPU: events around it, runs that count after runs that do not."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from functools import cached_property

import numpy as np

from gpupipe.gpu.device import Device
from gpupipe.gpu.spin import Spin
from gpupipe.gpu.types import DeviceArray, Stream


class Timer:
    """Times work, run by run.

    Args:
        device: which GPU.
        runs: timed runs.
        warm_up: runs that are not counted, first.
        most_seconds: no run is begun after so long, once there are `least_runs`.
        least_runs: see `most_seconds`.
        busy_ms: for `cold` runs: how long the GPU is kept busy while work is queued, which must be longer than queuing
            takes; else the time between the events would be the host's.
        flush_bytes: for `cold` runs: bytes written right before, so that nothing of the work's is in the GPU's caches.
    """

    def __init__(
        self,
        device: Device,
        *,
        runs: int,
        warm_up: int = 1,
        most_seconds: float = math.inf,
        least_runs: int = 3,
        busy_ms: float = 1.0,
        flush_bytes: int = 256_000_000,
    ) -> None:
        self.device = device
        self.runs, self.warm_up = runs, warm_up
        self.most_seconds, self.least_runs = most_seconds, least_runs
        self.busy_ms, self.flush_bytes = busy_ms, flush_bytes
        self._begin, self._end = device.event(timing=True), device.event(timing=True)

    def seconds(
        self, work: Callable[[], object], stream: Stream, *, until: Stream | None = None, cold: bool = False
    ) -> list[float]:
        """Seconds of the GPU's clock for each run.

        Args:
            work: queues something, on `stream` or behind it.
            stream: where it begins.
            until: where it ends, if that is another stream.
            cold: with cold caches, and all of it queued before it begins.
        """

        def run() -> float:
            device = self.device
            if cold:
                self._spin.queue(stream, self.busy_ms)
                device.clear(self._flushed, stream)
            device.record(self._begin, stream)
            with device.use():
                work()
            device.record(self._end, until or stream)
            device.wait(self._end)
            return device.elapsed_seconds(self._begin, self._end)

        return self._each(run)

    def host_seconds(self, work: Callable[[], object]) -> list[float]:
        """Seconds of the host's clock for each run of work that is done when it returns."""

        def run() -> float:
            began = time.perf_counter()
            work()
            return time.perf_counter() - began

        return self._each(run)

    def _each(self, run: Callable[[], float]) -> list[float]:
        for _ in range(self.warm_up):
            run()
        found: list[float] = []
        began = time.perf_counter()
        while len(found) < self.runs:
            if len(found) >= self.least_runs and time.perf_counter() - began > self.most_seconds:
                break
            found.append(run())
        return found

    @cached_property
    def _spin(self) -> Spin:
        return Spin(self.device)

    @cached_property
    def _flushed(self) -> DeviceArray:
        return self.device.empty((self.flush_bytes,), np.uint8, "measuring")
