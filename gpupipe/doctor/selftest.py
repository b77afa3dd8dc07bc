"""The self-test: whether everything that only a GPU can show is as it should be here; a page to read or to report."""

from __future__ import annotations

import platform
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from gpupipe.character.folder import Character
from gpupipe.doctor import (
    checks_encoder,
    checks_features,
    checks_frames,
    checks_graphs,
    checks_machine,
    checks_model,
    checks_runs,
    checks_times,
)
from gpupipe.doctor.check import Check, Subject
from gpupipe.doctor.sample import model_bytes, write_character
from gpupipe.errors import OptionError
from gpupipe.gpu.device import Device, open_device
from gpupipe.gpu.driver import version_text
from gpupipe.machine import PACKAGES, cpu_count, cpu_name, package_version

CHECKS: tuple[Check, ...] = (
    *checks_model.OPENING,
    *checks_runs.FIRST,
    *checks_frames.CHECKS,
    *checks_model.CHECKS,
    *checks_features.CHECKS,
    *checks_runs.CHECKS,
    *checks_graphs.CHECKS,
    *checks_encoder.CHECKS,
    *checks_machine.CHECKS,
    *checks_times.CHECKS,
)
"""In the order in which they are made."""

SIGNS = {"passed": "ok", "failed": "FAILED", "not possible here": "-"}


def run(
    device: str = "cuda", say: Callable[[str], None] = lambda line: None, character: Path | str | None = None
) -> dict[str, Any]:
    """Make every check on a GPU.

    Args:
        device: "cuda" or "cuda:N".
        say: told a line about each check that is made.
        character: whose frames and model are taken; a character without a model gets one of random weights. None: a
            small one that is made for it.

    Returns:
        JSON values: `machine`, `packages`, `gpu`, `character`, `model`; `checks`, each as `Check.made` tells it;
        `counts` of their results; and `passed`, false if any failed.

    Raises:
        DeviceError: the GPU cannot be used.
        PackageError, MediaError: the character cannot be read.
    """
    kind, _, number = device.partition(":")
    if kind not in ("auto", "cuda"):
        raise OptionError("a GPU is what is tested", field="--device", value=device, remedy="give cuda or cuda:N")
    gpu = open_device(int(number or 0))
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as name:
        subject = _subject(gpu, Path(name), character)
        checks = []
        for check in CHECKS:
            made = check.made(subject)
            say(_line(made))
            checks.append(made)
    counts = Counter(check["result"] for check in checks)
    return {
        "machine": {
            "system": platform.platform(),
            "python": platform.python_version(),
            "cpu": cpu_name(),
            "cores": cpu_count(),
        },
        "packages": {name: package_version(name) for name in PACKAGES},
        "gpu": _told(gpu),
        "character": None if character is None else str(character),
        "model": "random weights" if subject.other_model is not None else str(subject.model),
        "checks": checks,
        "counts": dict(counts),
        "passed": not counts["failed"],
    }


def text(result: dict[str, Any]) -> str:
    """What `run` gives, as one page."""
    machine, gpu = result["machine"], result["gpu"]
    packages = ", ".join(f"{name} {version}" for name, version in result["packages"].items() if version)
    lines = [
        f"gpupipe selftest: {gpu['name']}, cuda:{gpu['index']}, compute capability {gpu['compute_capability']}, "
        f"{gpu['total_bytes'] / 1e9:.1f} GB, driver for CUDA {gpu['driver']}",
        f"{machine['system']}, Python {machine['python']}, {machine['cpu']}, {machine['cores']} cores",
        packages,
        f"character: {result['character'] or 'made up'}; model: {result['model']}",
        "",
        *map(_line, result["checks"]),
        "",
        ", ".join(f"{result['counts'].get(outcome, 0)} {outcome}" for outcome in SIGNS),
    ]
    failed = [check for check in result["checks"] if check["result"] == "failed"]
    lines += [f"FAILED {check['name']}: wanted: {check['criterion']}" for check in failed]
    return "\n".join(lines)


def _line(check: dict[str, Any]) -> str:
    return f"{SIGNS[check['result']]:<7}{check['name']:<30} {check['measured'] or check['reason']}"


def _subject(gpu: Device, folder: Path, character: Path | str | None) -> Subject:
    found = Character.load(write_character(folder / "sample") if character is None else character)
    if character is not None and found.model_path.is_file():
        return Subject(gpu, found, found.model_path, None, folder)
    # TensorRT's engines go by the files' name, which is therefore one.
    first, second = (folder / name / found.model_path.name for name in ("one", "other"))
    for seed, path in enumerate((first, second)):
        path.parent.mkdir()
        path.write_bytes(model_bytes(found.layout.model_size, seed))
    return Subject(gpu, found, first, second, folder)


def _told(gpu: Device) -> dict[str, Any]:
    return {
        "index": gpu.index,
        "name": gpu.name,
        "compute_capability": ".".join(map(str, gpu.compute_capability)),
        "total_bytes": gpu.total_bytes,
        "free_bytes": gpu.free_bytes,
        "driver": version_text(gpu.driver_version),
    }
