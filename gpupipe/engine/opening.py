"""Picking and opening the device that an engine owns."""

from __future__ import annotations

from typing import NamedTuple

from gpupipe.engine.backend import Backend, HostBackend
from gpupipe.engine.gpu_backend import GpuBackend
from gpupipe.errors import DeviceError, OptionError
from gpupipe.gpu.device import open_device
from gpupipe.machine import cpu_count
from gpupipe.options import EngineOptions

WORKERS = 4
"""The most compositing threads where no number is asked for."""


class Picked(NamedTuple):
    """An opened device, and what was picked on its own, and why."""

    backend: Backend
    notes: tuple[str, ...]


def workers(options: EngineOptions) -> int:
    """Compositing threads on the CPU: as many as were asked for, else one a core, 4 at most."""
    return options.workers or min(WORKERS, cpu_count())


def open_backend(options: EngineOptions) -> Picked:
    """Open the device that is asked for; "auto" is the first GPU, or, saying why, the CPU.

    Raises:
        DeviceError: the GPU that was asked for cannot be used.
    """
    if "," in options.device:
        raise OptionError(
            "an engine has one device", field="--device", value=options.device, remedy="open one for each"
        )
    host = HostBackend(workers(options), options.max_memory)
    if options.device == "cpu":
        return Picked(host, ())
    _, _, number = options.device.partition(":")
    try:
        return Picked(GpuBackend(open_device(int(number or 0))), ())
    except DeviceError as error:
        if options.device != "auto":
            raise
        return Picked(host, (f"compositing on the CPU: {error.brief()}",))
