"""What changes a pixel or a sample of an output, told by hashes and values: see `parts`."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np

from gpupipe.engine.core import EngineCore
from gpupipe.errors import OutputError, reason
from gpupipe.machine import cpu_name, package_version
from gpupipe.media.encoders import EncoderOptions
from gpupipe.model.external import weight_files
from gpupipe.options import ModelOptions, OutputOptions, SpeechOptions
from gpupipe.render.plan import Plan

PACKAGES = ("gpupipe", "numpy", "av", "onnxruntime", "onnxruntime-gpu", "opencv-python-headless", "opencv-python")
"""Whose versions change what is drawn, or how it is encoded."""
GPU_PACKAGES = ("cupy-cuda12x", "cupy-cuda13x")


def fingerprint(
    plan: Plan,
    model: ModelOptions,
    said: SpeechOptions,
    writing: OutputOptions,
    engines: Sequence[EngineCore],
    *,
    video: bool,
) -> dict[str, str]:
    """Of a render.

    Args:
        plan: what is rendered.
        model, said, writing: its options.
        engines: that draw it.
        video: whether a video is written; else images.

    Raises:
        OutputError: an input file cannot be read.
    """
    order = plan.order
    gpus = [engine.backend.gpu for engine in engines]
    on_gpu = any(gpu is not None for gpu in gpus)
    digests = engines[0].holdings.digests  # which knows what an earlier job has read: a body of an hour takes seconds

    def hash_of(path: Path, *, is_model: bool = False) -> str:
        try:
            return digests.sha256(path, is_model=is_model)
        except OSError as error:
            raise OutputError(f"cannot be read: {reason(error)}", file=path, remedy="check its rights") from error

    found = {path.name: hash_of(path) for path in order.files()}
    if order.model.is_file():  # else opening it says that it is missing
        files = [file for file in weight_files(order.model, "model") if file.is_file()]
        found["model"] = hash_of(order.model, is_model=True)
        found |= {f"model: {file.name}": hash_of(file) for file in files}
    found |= _speech(plan, said, hash_of)
    found |= {
        "--frames": str(plan.total),
        "--start-frame": str(order.start),
        "--masked-video": str(order.spec.recorded),
        "--pixel-format": order.spec.pixel_format,
        "--provider": model.provider,
        "--precision": model.precision,
        "--segment-frames": str(writing.segment_frames),
        "--device": ", ".join(dict.fromkeys("cpu" if gpu is None else gpu.name for gpu in gpus)),
        # It draws in its own way on the CPU; and encodes so, wherever frames are drawn: x264 sums mbtree costs as suits
        # the processor, unless it is told to be `--cpu-independent` (x264_mc_init, common/mc.c).
        "processor": cpu_name(),
    }
    if on_gpu:  # on the CPU the model runs frame by frame
        found["--batch"] = str(model.batch)
    if video:
        encoder = asdict(EncoderOptions.of(writing))
        found |= {
            f"--{name.replace('threads', 'encoder-threads')}": str(encoder[name]) for name in encoder if name != "gpu"
        }
    else:
        found |= {"--image-format": writing.image_format, "--jpeg-quality": str(writing.jpeg_quality)}
    packages = (*PACKAGES, *(GPU_PACKAGES if on_gpu else ()))
    return found | {name: version for name in packages if (version := package_version(name)) is not None}


def _speech(plan: Plan, said: SpeechOptions, hash_of: Callable[..., str]) -> dict[str, str]:
    """Of the files and arrays that the features and the sound come from."""
    found = {"sound": "none" if plan.speech.sound is None else hash_of(plan.speech.sound)}
    if isinstance(said.features, np.ndarray):
        found["features"] = hashlib.sha256(np.ascontiguousarray(said.features).tobytes()).hexdigest()
    elif said.features is not None:
        found["features"] = hash_of(Path(said.features))
    elif said.audio is not None:
        encoder = plan.character.audio_encoder_path if said.audio_encoder is None else Path(said.audio_encoder)
        found |= {"--audio": hash_of(Path(said.audio)), "audio encoder": hash_of(encoder, is_model=True)}
    else:
        found["features"] = hash_of(plan.character.features_path)
    return found
