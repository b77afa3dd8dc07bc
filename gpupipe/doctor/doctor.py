"""What this machine can do, and what is missing: `gpupipe doctor`."""

from __future__ import annotations

import platform
import tempfile
from fractions import Fraction
from pathlib import Path
from typing import Any

from gpupipe.errors import GpupipeError, reason
from gpupipe.gpu.device import describe
from gpupipe.machine import PACKAGES, cpu_count, cpu_name, package_version
from gpupipe.media.encode import VideoWriter
from gpupipe.media.encoders import EncoderOptions
from gpupipe.model.runtime import PROVIDER_NAMES, probe_provider, runtime

ENCODERS = ("libx264", "libx265", "h264_nvenc", "hevc_nvenc", "av1_nvenc")


def doctor() -> dict[str, Any]:
    """What is installed, what really opens, and what to install for what is missing. JSON values."""
    versions = {name: package_version(name) for name in PACKAGES}
    providers: dict[str, str | None] = {}
    try:
        runtime()
        for provider in PROVIDER_NAMES:
            providers[provider] = probe_provider(provider)
    except GpupipeError as error:
        providers = dict.fromkeys(PROVIDER_NAMES, error.on_command_line())
    encoders = {name: _encoder_problem(name) for name in ENCODERS}
    gpu = describe()
    return {
        "python": platform.python_version(),
        "system": platform.platform(),
        "cpu": cpu_name(),
        "cores": cpu_count(),
        "packages": versions,
        "providers": providers,
        "gpu": gpu,
        "encoders": encoders,
        "advice": _advice(versions, providers, gpu),
    }


def _encoder_problem(encoder: str) -> str | None:
    with tempfile.TemporaryDirectory() as folder:
        try:
            writer = VideoWriter(
                Path(folder) / "probe.mp4",
                width=256,
                height=256,
                fps=Fraction(25),
                pixel_format="nv12",
                options=EncoderOptions(encoder),
            )
        except GpupipeError as error:
            return error.on_command_line() if error.__cause__ is None else reason(error.__cause__)
        writer.abort()
    return None


def _advice(versions: dict[str, str | None], providers: dict[str, str | None], gpu: dict[str, Any]) -> list[str]:
    advice = []
    if not versions["onnxruntime"] and not versions["onnxruntime-gpu"]:
        advice.append("no ONNX Runtime: pip install 'gpupipe[cpu]', or 'gpupipe[cuda]' on a machine with an NVIDIA GPU")
    if versions["onnxruntime"] and versions["onnxruntime-gpu"]:
        advice.append("two ONNX Runtimes: pip uninstall -y onnxruntime onnxruntime-gpu, then install one extra again")
    if versions["opencv-python"] and versions["opencv-python-headless"]:
        advice.append("two OpenCVs share one module: pip uninstall -y opencv-python")
    if gpu["problem"]:
        advice.append(f"--device cuda: {gpu['problem']}")
    elif providers["cuda"]:
        advice.append(f"--provider cuda: {providers['cuda']}")
    return advice
