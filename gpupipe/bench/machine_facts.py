"""Facts about the machine that a reader needs to judge a measurement. Nothing that names the machine or its user."""

from __future__ import annotations

import platform
import shutil
import subprocess
from typing import Any

from gpupipe.gpu import device
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
    """Graphics and memory clocks and the driver's version, as the driver's own tool says them."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return None
    query = [tool, "--query-gpu=clocks.gr,clocks.mem,driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(query, capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.splitlines()[0].strip() if done.returncode == 0 and done.stdout.strip() else None
