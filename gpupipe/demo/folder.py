"""A character folder from nothing: a drawn person, a made-up speech, and models that make the one say the other."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import wave
from collections.abc import Callable
from contextlib import ExitStack
from fractions import Fraction
from pathlib import Path
from typing import Literal

import cv2
import numpy as np
from numpy.typing import NDArray

from gpupipe.character.folder import AUDIO_ENCODER, BODY, CROPS, FEATURES, MODEL, MODEL_INPUTS, RECTANGLES, ROIS, SOUND
from gpupipe.demo.draw import TalkingHead
from gpupipe.demo.full import FULL_SIZE, full_model
from gpupipe.demo.graph import Dtype, load_onnx, save
from gpupipe.demo.models import encoder_model, encoder_reference, tiny_model
from gpupipe.demo.speech import synthesise
from gpupipe.errors import OptionError, OutputError, reason
from gpupipe.geometry import CropLayout, Rect
from gpupipe.media.encode import VideoWriter
from gpupipe.media.encoders import EncoderOptions
from gpupipe.speech.mel import FFT_SIZE, HOP, SAMPLE_RATE
from gpupipe.speech.stream import features_from_pcm

DemoModel = Literal["tiny", "full"]

_INFO = "package_info.json"
_FPS = Fraction(25)
_SMALLEST = 64
# The crops are the model's input: they lose less than the body. Presets slower than superfast turn x264's macroblock
# tree on, whose AVX-512 code reads memory that was never written where a row is not a multiple of 16 macroblocks: the
# same frames then give other bytes from run to run.
_BODY_QUALITY = EncoderOptions(crf=15, preset="superfast")
_CROP_QUALITY = EncoderOptions(crf=10, preset="superfast")
# Sound that always holds one window of the speech encoder.
_LEAST_SAMPLES = HOP * 16 + FFT_SIZE


def make_demo(
    folder: str | os.PathLike[str],
    *,
    model: DemoModel = "tiny",
    frames: int = 125,
    size: tuple[int, int] = (1280, 720),
    overwrite: bool = False,
    progress: Callable[[int, int], None] | None = None,
    model_size: int = FULL_SIZE,
    model_dtype: Dtype = "float32",
    fps: Fraction | int = _FPS,
    with_recorded: bool = False,
) -> Path:
    """Make a character folder: videos, rectangles, speech, its features, and models. The same call makes the same.

    It appears under its name only when it is complete; on an error or an interrupt nothing is left.

    Args:
        folder: where; folders above it are made.
        model: "tiny", a small analytic model that draws a mouth (`demo.mouth.tiny_reference` predicts each pixel), or
            "full", the structure and cost of the published one.
        frames: frames of video; the speech lasts as long.
        size: width and height of the body video in pixels, even.
        overwrite: replace a character folder that is there.
        progress: called with the frames drawn so far and `frames`.
        model_size: side of the model's roi in pixels; the crops are larger by the border.
        model_dtype: of the lip-sync model.
        fps: frames a second of the videos.
        with_recorded: write the recorded model inputs too (`--masked-video`).

    Returns:
        The folder.

    Raises:
        OptionError: an option has a value that it cannot have.
        OutputError: the folder is not empty, or cannot be written.
        GpupipeError: the onnx package is not installed.
    """
    width, height = size
    if model not in ("tiny", "full"):
        raise OptionError("must be tiny or full", field="model", value=model)
    if frames < 1:
        raise OptionError("must be at least 1", field="frames", value=frames)
    if min(size) < _SMALLEST or width % 2 or height % 2:
        raise OptionError(
            f"width and height must be even and at least {_SMALLEST}", field="size", value=f"{width}x{height}"
        )
    if model_size < 32 or model_size % 2:
        raise OptionError("must be even and at least 32", field="model_size", value=model_size)
    if model == "full" and model_size != FULL_SIZE:
        raise OptionError(
            f"the full model has {FULL_SIZE}", field="model_size", value=model_size, remedy="use the tiny model"
        )
    if fps <= 0:
        raise OptionError("must be above 0", field="fps", value=str(fps))
    load_onnx()  # before the drawing, not after it

    target = Path(folder).resolve()
    _check_target(target, overwrite)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(
            prefix=f".{target.name}.", suffix=".partial", dir=target.parent, ignore_cleanup_errors=True
        ) as work:
            # Made anew: the temporary folder itself is closed to all other users.
            made = Path(work) / "new"
            for name in (RECTANGLES, MODEL):
                (made / name).parent.mkdir(parents=True, exist_ok=True)
            layout = CropLayout(model_size)
            _write_models(made, model, model_size, model_dtype)
            _write_speech(made, round(frames / Fraction(fps) * SAMPLE_RATE))
            _write_videos(made, layout, size, frames, Fraction(fps), with_recorded, progress)
            _put_in_place(made, target, Path(work) / "old")
    except OSError as error:
        raise OutputError(f"cannot be written: {reason(error)}", file=target, remedy="use another folder") from error
    return target


def _check_target(target: Path, overwrite: bool) -> None:
    if not target.exists():
        return
    if not target.is_dir():
        raise OutputError("is not a folder", file=target, remedy="use another name")
    entries = {entry.name for entry in target.iterdir()}
    if entries and not overwrite:
        raise OutputError("the folder is not empty", file=target, remedy="use another folder, or --overwrite")
    # Overwriting removes the folder, so it must hold a character and nothing else.
    known = {Path(n).parts[0] for n in (BODY, CROPS, ROIS, MODEL_INPUTS, RECTANGLES, FEATURES, SOUND, MODEL, _INFO)}
    if foreign := sorted(entries - known):
        raise OutputError(
            "holds other things than a character, and overwriting would remove them",
            file=target,
            value=foreign[0],
            remedy="use another folder",
        )


def _put_in_place(made: Path, target: Path, aside: Path) -> None:
    """Give the new folder its name; a folder that is there is moved aside first, and back if that fails."""
    had = target.exists()
    if had:
        target.rename(aside)
    try:
        made.rename(target)
    except BaseException:
        if had:
            aside.rename(target)
        raise
    if had:
        shutil.rmtree(aside, ignore_errors=True)


def _write_models(folder: Path, model: DemoModel, model_size: int, dtype: Dtype) -> None:
    save(encoder_model(), folder / AUDIO_ENCODER)
    save(full_model(dtype) if model == "full" else tiny_model(model_size, dtype), folder / MODEL)


def _write_speech(folder: Path, samples: int) -> None:
    """The speech, and its features: those of the samples as stored, so that the file gives the same again."""
    stored = np.rint(synthesise(samples) * 32767).astype("<i2")
    with wave.open(str(folder / SOUND), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(SAMPLE_RATE)
        file.writeframes(stored.tobytes())
    heard: NDArray[np.float32] = np.zeros(max(samples, _LEAST_SAMPLES), np.float32)
    heard[:samples] = stored / np.float32(32768)
    np.save(folder / FEATURES, features_from_pcm([heard], encoder_reference))


def _write_videos(
    folder: Path,
    layout: CropLayout,
    size: tuple[int, int],
    frames: int,
    fps: Fraction,
    with_recorded: bool,
    progress: Callable[[int, int], None] | None,
) -> None:
    width, height = size
    sides = {BODY: size, CROPS: (layout.crop_size,) * 2}
    if with_recorded:
        sides |= {ROIS: (layout.model_size,) * 2, MODEL_INPUTS: (layout.model_size,) * 2}
    head = TalkingHead(width, height, layout)
    rects: list[Rect] = []
    with ExitStack() as stack:
        writers = {
            name: stack.enter_context(
                VideoWriter(
                    folder / name,
                    width=wide,
                    height=high,
                    fps=fps,
                    pixel_format="bgr24",
                    options=_BODY_QUALITY if name == BODY else _CROP_QUALITY,
                )
            )
            for name, (wide, high) in sides.items()
        }
        for index in range(frames):
            body, rect = head.frame(float(index / fps))
            rects.append(rect)
            crop = _crop(body, rect, layout)
            writers[BODY].write(body)
            writers[CROPS].write(crop)
            if with_recorded:
                roi = np.ascontiguousarray(crop[layout.roi, layout.roi])
                writers[ROIS].write(roi)
                masked = roi.copy()
                masked[layout.mask.y1 : layout.mask.y2, layout.mask.x1 : layout.mask.x2] = 0
                writers[MODEL_INPUTS].write(masked)
            if progress is not None:
                progress(index + 1, frames)
    _write_json(folder / RECTANGLES, {str(index): {"rect": list(rect)} for index, rect in enumerate(rects)})
    info = {
        "package_type": "mp4_video_package",
        "package_version": "2.0",
        "dataset_name": "gpupipe-demo",
        "original_shape": [layout.crop_size, layout.crop_size],
        "videos": {
            Path(name).stem.removesuffix("_video"): {"video_file": name, "frame_count": frames, "fps": float(fps)}
            for name in sides
        },
    }
    _write_json(folder / _INFO, info)


def _crop(body: NDArray[np.uint8], rect: Rect, layout: CropLayout) -> NDArray[np.uint8]:
    face = body[rect.y1 : rect.y2, rect.x1 : rect.x2]
    enlarge = layout.crop_size > rect.width
    side = (layout.crop_size,) * 2
    return np.asarray(
        cv2.resize(face, side, interpolation=cv2.INTER_CUBIC if enlarge else cv2.INTER_AREA), dtype=np.uint8
    )


def _write_json(path: Path, content: object) -> None:
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
