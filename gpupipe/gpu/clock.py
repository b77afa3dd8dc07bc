"""When the GPU did what: events around each step of a batch, read once the batch has been waited for."""

from __future__ import annotations

import threading
import time
from typing import NamedTuple

from gpupipe.gpu.device import Device
from gpupipe.gpu.types import Event
from gpupipe.trace import Stage

RESTART_SECONDS = 600.0
"""How long one zero serves: CUDA gives the time between two events in float32 milliseconds, here then to 0.06 ms."""


class Step(NamedTuple):
    """One step of a batch: its name, and when it began and ended, in seconds on `time.perf_counter`'s clock."""

    name: Stage
    start: float
    end: float


class GpuClock:
    """Tells when events on a device's compute stream took place, by the host's clock.

    Args:
        device: whose stream. Waits for it once, now, and again every ten minutes that the clock is used.
    """

    def __init__(self, device: Device) -> None:
        self.device = device
        self._zero = device.event(timing=True)
        self._zeros = 0
        self._lock = threading.Lock()
        self._restart()

    def marks(self) -> Marks:
        """Marks for one slot."""
        return Marks(self)

    def record(self, event: Event) -> int:
        """Record an event on the compute stream.

        Returns:
            What `seconds` wants to know of it.
        """
        with self._lock:
            self.device.record(event, self.device.compute_stream)
            return self._zeros

    def seconds(self, event: Event, zeros: int) -> float:
        """When an event that `record` recorded, and that is past, took place."""
        with self._lock:
            if zeros == self._zeros:
                return self._origin + self.device.elapsed_seconds(self._zero, event)
            return self._origin - self.device.elapsed_seconds(event, self._zero)

    def restart_if_old(self) -> None:
        """Take a new zero if the last one is long past."""
        with self._lock:
            if time.perf_counter() - self._origin > RESTART_SECONDS:
                self._restart()

    def _restart(self) -> None:
        self._zeros += 1
        self.device.record(self._zero, self.device.compute_stream)
        self.device.wait(self._zero)
        self._origin = time.perf_counter()


class Marks:
    """The events around the steps of one slot's batches; made by `GpuClock.marks`.

    A step's events are made when it is first marked, and used again for every batch.
    """

    def __init__(self, clock: GpuClock) -> None:
        self._clock = clock
        self._events: dict[Stage, tuple[Event, Event]] = {}
        self._begun: dict[Stage, int] = {}
        self._ended: dict[Stage, int] = {}

    def begin(self, step: Stage) -> None:
        """Mark the beginning of a step, after all that is queued on the compute stream."""
        if step not in self._events:
            device = self._clock.device
            self._events[step] = (device.event(timing=True), device.event(timing=True))
        self._begun[step] = self._clock.record(self._events[step][0])

    def end(self, step: Stage) -> Event:
        """Mark the end of a step that has begun.

        Returns:
            The mark, for a stream to wait for.
        """
        mark = self._events[step][1]
        self._clock.record(mark)
        self._ended[step] = self._begun.pop(step)
        return mark

    def collect(self) -> list[Step]:
        """The steps that have ended since the last call, in order. The batch must have been waited for."""
        steps = []
        for name, zeros in self._ended.items():
            begin, end = self._events[name]
            start = self._clock.seconds(begin, zeros)
            steps.append(Step(name, start, start + self._clock.device.elapsed_seconds(begin, end)))
        self._ended.clear()
        self._clock.restart_if_old()
        return steps
