"""Facts about the machine that a reader needs to judge a measurement. Nothing that names the machine or its user."""

from __future__ import annotations

import platform
from typing import Any

from gpupipe.gpu import device
from gpupipe.gpu.state import gpu_state
from gpupipe.machine import PACKAGES, cpu_count, cpu_mhz, cpu_name, load, memory_total_bytes, package_version

PACKAGES_TOO = (*PACKAGES, "torch", "onnx2torch")


def facts() -> dict[str, Any]:
    """CPU, cores, clocks, memory, load, GPU, driver, versions; None for what cannot be read."""
    gpu = device.describe()
    return {
        "cpu": cpu_name(),
        "cores": cpu_count(),
        "cpu_mhz": cpu_mhz(),
        "memory_bytes": memory_total_bytes(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "load": load(),
        "gpu": gpu["devices"][0] if gpu["devices"] else None,
        "gpu_problem": gpu["problem"],
        "cuda_driver": gpu["driver"],
        "gpu_clocks": _gpu_clocks(),
        "packages": {name: version for name in PACKAGES_TOO if (version := package_version(name))},
    }


def _gpu_clocks() -> str | None:
    """Graphics and memory clocks and the driver's version: "1410 MHz, 1215 MHz, 550.54"."""
    state = gpu_state()
    if state is None:
        return None
    clocks = (state[name] for name in ("graphics_mhz", "memory_mhz"))
    return ", ".join((*("[N/A]" if clock is None else f"{clock:.0f} MHz" for clock in clocks), str(state["driver"])))
