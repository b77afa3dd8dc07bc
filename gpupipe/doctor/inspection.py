"""What is in a character folder (`gpupipe inspect`), and what this machine can do (`gpupipe doctor`)."""

from __future__ import annotations

import platform
import tempfile
from collections.abc import Iterable
from fractions import Fraction
from pathlib import Path
from typing import Any

import gpupipe.gpu.device
from gpupipe.character.features import read_features
from gpupipe.character.folder import BODY, CROPS, FEATURES, MODEL, MODEL_INPUTS, ROIS, Character, examine
from gpupipe.colour import PixelFormat
from gpupipe.compose.device_frames import bytes_wanted
from gpupipe.compose.frames import FrameSpec
from gpupipe.errors import GpupipeError, reason
from gpupipe.machine import PACKAGES, cpu_count, cpu_name, package_version
from gpupipe.media.encode import VideoWriter
from gpupipe.media.encoders import EncoderOptions
from gpupipe.media.video import probe
from gpupipe.model.runtime import PROVIDER_NAMES, SessionOptions, open_session, probe_provider, runtime
from gpupipe.model.signature import Signature

ENCODERS = ("libx264", "libx265", "h264_nvenc", "hevc_nvenc", "av1_nvenc")


def inspect(path: Path | str) -> dict[str, Any]:
    """Everything about a character folder, faults included.

    Returns:
        JSON values. `faults` lists every fault found, `notes` what is odd but does no harm; entries that a fault hides
        are null.
    """
    path = Path(path)
    character, faults, notes = examine(path)
    videos = {name: _video(path / name) for name in (BODY, CROPS, ROIS, MODEL_INPUTS)}
    features = model = None
    if path.is_dir():
        try:
            features = list(read_features(path / FEATURES).shape)
        except GpupipeError as error:
            faults.append(error)
        try:
            signature = Signature(path / MODEL, open_session(path / MODEL, SessionOptions()))
            model = signature.describe()
            if character is not None:
                signature.check_size(character.layout)
        except GpupipeError as error:
            faults.append(error)
    return {
        "path": str(path),
        "videos": {name: found for name, found in videos.items() if found is not None},
        "frames": character.count if character else None,
        "fps": float(character.body.fps) if character else None,
        "crop_size": character.layout.crop_size if character else None,
        "model_size": character.layout.model_size if character else None,
        "rectangles": _rectangles(character) if character else None,
        "features": features,
        "model": model,
        "cache_bytes": _cache_bytes(character) if character else None,
        "faults": [str(fault) for fault in _once(faults)],
        "notes": notes,
    }


def _once(faults: Iterable[GpupipeError]) -> list[GpupipeError]:
    return list({str(fault): fault for fault in faults}.values())


def _video(path: Path) -> dict[str, Any] | None:
    try:
        info = probe(path)
    except GpupipeError:
        return None  # `examine` has told why, if it matters
    return {
        "codec": info.codec,
        "width": info.width,
        "height": info.height,
        "fps": float(info.fps),
        "frames": info.frames,
        "matrix": info.colour.matrix,
        "range": info.colour.range,
    }


def _rectangles(character: Character) -> dict[str, Any]:
    widths, heights = ([getattr(rect, side) for rect in character.rects] for side in ("width", "height"))
    return {
        "left": min(rect.x1 for rect in character.rects),
        "top": min(rect.y1 for rect in character.rects),
        "right": max(rect.x2 for rect in character.rects),
        "bottom": max(rect.y2 for rect in character.rects),
        "width": [min(widths), max(widths)],
        "height": [min(heights), max(heights)],
        "partly_outside": sum(
            rect != rect.within(character.body.width, character.body.height) for rect in character.rects
        ),
    }


def _cache_bytes(character: Character) -> dict[str, dict[str, int]]:
    body = character.body
    formats: tuple[PixelFormat, ...] = ("nv12", "bgr24")
    specs = {
        name: FrameSpec(character.layout, name, body.width, body.height, character.rects, body.colour)
        for name in formats
    }
    return {
        "host": {name: spec.cache_bytes for name, spec in specs.items()},
        "device": {name: sum(bytes_wanted(spec).values()) for name, spec in specs.items()},
    }


def doctor() -> dict[str, Any]:
    """What is installed, what really opens, and what to install for what is missing. JSON values."""
    versions = {name: package_version(name) for name in PACKAGES}
    providers: dict[str, str | None] = {}
    try:
        runtime()
        for provider in PROVIDER_NAMES:
            providers[provider] = probe_provider(provider)
    except GpupipeError as error:
        providers = dict.fromkeys(PROVIDER_NAMES, str(error))
    encoders = {name: _encoder_problem(name) for name in ENCODERS}
    gpu = gpupipe.gpu.device.describe()
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
            return reason(error.__cause__ or error)
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
