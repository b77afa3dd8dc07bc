"""The GPU: its driver, memory, streams and copies, the kernels and their launch, and when it did what.

The only package that imports CuPy, and that only when a device is opened; the only one that waits for the GPU. It knows
arrays and addresses, and nothing of characters, models or engines.
"""

from gpupipe.gpu.clock import GpuClock, Marks, Step
from gpupipe.gpu.device import Device, describe, open_device
from gpupipe.gpu.types import Array, DeviceArray, Event, PitchedRows, Stream

__all__ = [
    "Array",
    "Device",
    "DeviceArray",
    "Event",
    "GpuClock",
    "Marks",
    "PitchedRows",
    "Step",
    "Stream",
    "describe",
    "open_device",
]
