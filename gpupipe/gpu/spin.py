"""Keeping a GPU busy for a given time, to see who waits for it."""

from __future__ import annotations

import numpy as np

from gpupipe.gpu.device import Device
from gpupipe.gpu.kernels import load
from gpupipe.gpu.types import Stream

TRIAL_STEPS = 1 << 18
TRIAL_MS = 30.0
MOST_STEPS = (1 << 31) - 1


class Spin:
    """A kernel that takes as long as it is told to.

    Args:
        device: which GPU. How fast it is is measured now, on its compute stream.

    Raises:
        KernelError: the kernel does not compile.
    """

    def __init__(self, device: Device) -> None:
        self.device = device
        with device.use():
            self._kernel = load("spin", np.float32)
        self._out = device.empty((1,), np.uint32, "a kernel's result")
        begin, end = device.event(timing=True), device.event(timing=True)
        steps = TRIAL_STEPS
        # The first launch loads the kernel; a GPU that has rested takes a while to reach its clock.
        for _ in range(3):
            device.record(begin, device.compute_stream)
            self._launch(device.compute_stream, steps)
            device.record(end, device.compute_stream)
            device.wait(end)
            self._steps_a_ms = steps / max(1e-3, 1e3 * device.elapsed_seconds(begin, end))
            steps = min(MOST_STEPS, round(TRIAL_MS * self._steps_a_ms))

    def queue(self, stream: Stream, milliseconds: float) -> None:
        """Queue work that takes about so long."""
        self._launch(stream, min(MOST_STEPS, round(milliseconds * self._steps_a_ms)))

    def _launch(self, stream: Stream, steps: int) -> None:
        with self.device.use():
            self._kernel((1,), (1,), (np.int32(steps), self._out), stream=stream)
