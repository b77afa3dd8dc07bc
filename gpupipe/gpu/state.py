"""Clocks, temperature and power of a GPU now, as the driver's own tool says them."""

from __future__ import annotations

import shutil
import subprocess

FIELDS = {
    "graphics_mhz": "clocks.gr",
    "memory_mhz": "clocks.mem",
    "temperature_c": "temperature.gpu",
    "power_w": "power.draw",
    "power_limit_w": "power.limit",
    "pcie_generation": "pcie.link.gen.current",
    "pcie_width": "pcie.link.width.current",
    "driver": "driver_version",
}
"""What is asked for, by the names of `nvidia-smi --help-query-gpu`."""

State = dict[str, float | str | None]


def gpu_state(unique_id: str | None = None) -> State | None:
    """`FIELDS` of a GPU, None for what this GPU does not tell; None if there is no tool, or it fails.

    Args:
        unique_id: which (`driver.unique_id`); None: the first that the tool lists.
    """
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return None
    which = [] if unique_id is None else [f"--id={unique_id}"]
    command = [tool, *which, f"--query-gpu={','.join(FIELDS.values())}", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return parsed(done.stdout) if done.returncode == 0 else None


def parsed(told: str) -> State | None:
    """The tool's answer, a line of values separated by commas.

    >>> parsed("1410, 1215, 35, 61.24, [N/A], 4, 16, 550.54.15")["power_w"]
    61.24
    """
    values = [value.strip() for value in told.strip().partition("\n")[0].split(",")]
    if len(values) != len(FIELDS):
        return None
    return {name: _value(text) if name != "driver" else text for name, text in zip(FIELDS, values, strict=True)}


def _value(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:  # [N/A], [Not Supported], [Unknown Error]
        return None
