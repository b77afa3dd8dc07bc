"""What is to be rendered: the speech, the source frame of every output frame, and the frames to cache."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from gpupipe.character.folder import Character, GpupipeWarning
from gpupipe.colour import PixelFormat
from gpupipe.compose.frames import FrameSpec
from gpupipe.engine.backend import DeviceChoice, ProviderChoice, Reader
from gpupipe.errors import OptionError, PackageError
from gpupipe.geometry import frame_order
from gpupipe.media.video import read_frames
from gpupipe.speech.speech import Speech, open_speech


@dataclass(frozen=True)
class JobOptions:
    """What to render, and on what.

    Attributes:
        features: speech features, float32 `[N, 512]` or the path of a `.npy` file; None for those of `audio`, or the
            character's own.
        audio: the speech itself, any file that FFmpeg reads; None for the one the character was filmed with.
        audio_encoder: ONNX file that makes features of `audio`; None for the character's own.
        sound: whether sound is to go with the picture.
        model: ONNX file; None for the character's own.
        device: where to composite.
        provider: where to run the model.
        batch: frames in a batch; on the CPU no more than the model runs at a time.
        workers: compositing threads on the CPU; None for one a core, 4 at most.
        frames: the most output frames to render; None for as many as the speech lasts.
        start_frame: position in the ping-pong order at which to start.
        masked_video: take the model's inputs from the recorded videos instead of masking the crops.
        inference_threads: CPU threads for the model; None for one a core.
        tf32: let the CUDA provider use TF32.
        fp16: let TensorRT use float16.
    """

    features: Path | str | NDArray[np.float32] | None = None
    audio: Path | str | None = None
    audio_encoder: Path | str | None = None
    sound: bool = True
    model: Path | str | None = None
    device: DeviceChoice = "auto"
    provider: ProviderChoice = "auto"
    batch: int = 8
    workers: int | None = None
    frames: int | None = None
    start_frame: int = 0
    masked_video: bool = False
    inference_threads: int | None = None
    tf32: bool = False
    fp16: bool = False


class Batch(NamedTuple):
    """Output frames `start` to `start + frames`; the arrays are padded to the full batch size."""

    start: int
    frames: int
    source: NDArray[np.int32]
    speech: NDArray[np.int32]


@dataclass(frozen=True)
class Plan:
    """What is to be rendered.

    Attributes:
        character: whom to render.
        options: what to render, and on what.
        speech: what the character says.
        total: output frames.
        order: the source frame of each, int32 `[total]`.
        spec: the frames to cache, which finished frames look like.
    """

    character: Character
    options: JobOptions
    speech: Speech
    total: int
    order: NDArray[np.int32]
    spec: FrameSpec

    @classmethod
    def make(cls, character: Character, pixel_format: PixelFormat, options: JobOptions) -> Plan:
        """Work out what is to be rendered.

        Raises:
            OptionError: an option is out of range.
            PackageError: the character does not hold what the options need.
            MediaError: the speech cannot be read.
        """
        speech = open_speech(
            character,
            features=options.features,
            audio=options.audio,
            audio_encoder=options.audio_encoder,
            with_sound=options.sound,
        )
        total = min(options.frames or speech.frames, speech.frames)
        order = frame_order(total, *_available(character, options))
        spec = _spec(character, pixel_format, int(order.max()) + 1, options.masked_video)
        return cls(character, options, speech, total, order, spec)

    def batches(self, size: int) -> Iterator[Batch]:
        """Batches of `size` frames, in order; the tail is padded with the last frame: one size for the whole render."""
        for start in range(0, self.total, size):
            frames = np.minimum(np.arange(start, start + size), self.total - 1).astype(np.int32)
            yield Batch(start, min(size, self.total - start), self.order[frames], frames)

    def readers(self) -> tuple[Reader, Reader, Reader | None]:
        """Readers of the body, the crops, and the recorded inputs (or None), as `HostFrames.load` takes them."""
        character, spec = self.character, self.spec
        body = read_frames(character.body.path, spec.pixel_format, spec.count)
        crops = read_frames(character.crops.path, "bgr24", spec.count)
        if not spec.recorded or character.recorded is None:
            return body, crops, None
        roi, masked = (read_frames(info.path, "bgr24", spec.count) for info in character.recorded)
        return body, crops, (np.concatenate(pair, axis=2) for pair in zip(roi, masked, strict=True))


def _available(character: Character, options: JobOptions) -> tuple[int, int]:
    """Frames that can be used, and the position at which to start."""
    count = character.count
    if options.masked_video:
        if character.recorded is None:
            raise PackageError(
                "the recorded model inputs are missing",
                file=character.path,
                field="--masked-video",
                remedy="add rois_320_video.mp4 and model_inputs_video.mp4, or leave --masked-video out",
            )
        shortest = min(info.frames for info in character.recorded)
        if shortest < count:
            note = f"{character.path}: recorded model inputs end after {shortest} of {count} frames; those are used"
            warnings.warn(note, GpupipeWarning, stacklevel=4)
            count = shortest
    if options.start_frame >= count:
        raise OptionError(
            f"the character has {count} frames",
            field="--start-frame",
            value=options.start_frame,
            remedy=f"give 0 to {count - 1}",
        )
    return count, options.start_frame


def _spec(character: Character, pixel_format: PixelFormat, count: int, recorded: bool) -> FrameSpec:
    body = character.body
    if pixel_format == "nv12" and (body.width % 2 or body.height % 2):
        raise PackageError(
            "nv12 needs an even width and height",
            file=body.path,
            field="size",
            value=f"{body.width}x{body.height}",
            remedy="write a folder of images in bgr24, or crop the body video",
        )
    return FrameSpec(
        layout=character.layout,
        pixel_format=pixel_format,
        width=body.width,
        height=body.height,
        rects=character.rects[:count],
        colour=body.colour,
        recorded=recorded,
    )
