"""When the GPU did what: events around each step of a batch, read once the batch has been waited for."""

from __future__ import annotations

import time
from typing import Any

from gpupipe.gpu.device import Device
from gpupipe.trace import COMPOSITE, INFER, PASTE, PREPARE, Span, Stage, Trace

STEPS: tuple[Stage, ...] = (PREPARE, INFER, PASTE)


class GpuClock:
    """Times the steps of each batch on the compute stream, without waiting for it.

    Args:
        device: whose stream.
        trace: where the spans go, on a row of their own.
        model_on_device: whether inference runs on the stream, and so is timed here.
    """

    def __init__(self, device: Device, trace: Trace, *, model_on_device: bool) -> None:
        self._device, self._trace = device, trace
        self._steps = STEPS if model_on_device else COMPOSITE
        self._marks: dict[int, dict[Stage, tuple[Any, Any]]] = {}
        self._zero = device.event(timing=True)
        device.record(self._zero, device.compute_stream)
        device.synchronize()
        self._origin = time.perf_counter()

    def add(self, slot: Any) -> None:
        """Make the events of a slot."""
        self._marks[id(slot)] = {
            step: (
                self._device.event(timing=True),
                # What the copy of the frames waits for: a later event could still be to come when they have arrived.
                slot.drawn if step == PASTE else self._device.event(timing=True),
            )
            for step in self._steps
        }

    def mark(self, slot: Any, step: Stage, *, end: bool) -> None:
        """Mark the begin or the end of a step in the stream; the compositor marks the end of the paste itself."""
        if step in self._steps and (step, end) != (PASTE, True):
            self._device.record(self._marks[id(slot)][step][end], self._device.compute_stream)

    def collect(self, slot: Any, frames: int) -> None:
        """Read the events of a slot whose batch of `frames` frames has been waited for."""
        for step, (begin, end) in self._marks[id(slot)].items():
            start = self._origin + self._device.elapsed_seconds(self._zero, begin)
            took = self._device.elapsed_seconds(begin, end)
            self._trace.add(Span(step, self._device.name, start, start + took, frames))
