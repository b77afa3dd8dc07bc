"""Every option of a render: for the engine, for the model, for the speech and for the output."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal, get_args

from gpupipe import errors
from gpupipe.colour import PixelFormat
from gpupipe.options.declare import DEVICES, All, Checked, declared, option

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray

ProviderChoice = Literal["auto", "cpu", "cuda", "tensorrt"]
"""What runs the model; "auto" takes the device's own."""

Precision = Literal["fp32", "tf32", "fp16", "int8"]
"""In which a model is run. fp32 defines what is drawn. tf32: the same file, and the CUDA provider rounds the inputs of
matrix products to 10 bits (TensorRT does anyway). fp16: a float16 file, made of it; TensorRT may compute in float16.
int8: a quantised file, made of it, for the CPU provider."""

ImageFormat = Literal["jpg", "png"]
"""Of image files, by their suffixes."""

MAX_BATCH: Final = 512
"""Frames a batch may have: one bit each in 64 bytes of status."""

MAX_THREADS: Final = 1024

BATCH: Final = 8
"""Frames in a batch where no number is asked for, and none is tuned."""

MAX_PIXELS: Final = 1 << 25
"""33.5 million: 8K (7680x4320, the largest that cameras and H.264's levels have) and a little. A decoder holds some 30
frames at a time, of this size 1.5 GB."""

MAX_FRAMES: Final = 1_000_000
"""Eleven hours at 25 frames a second: a book read aloud. Features of as many rows take 2 GB; a character's frames are
counted besides, against the memory there is."""


@dataclass(frozen=True)
class EngineOptions(Checked):
    """What lives as long as an engine."""

    device: str = option(
        "auto",
        "where frames are composited; several GPUs, as cuda:0,cuda:1, share the segments of a video",
        kind="device",
        metavar=f"{{{','.join(DEVICES)}}}",
    )
    workers: int | None = option(
        None,
        "threads that composite on the CPU, and that encode images",
        metavar="N",
        least=1,
        most=MAX_THREADS,
        unset="as tuned, else one a core, 4 at most",
        auto=True,
    )
    max_memory: int | None = option(
        None,
        "the most host memory that a job may take, such as 8G",
        kind="bytes",
        metavar="SIZE",
        least=1,
        unset="what is available",
    )
    cache: int | All | None = option(
        None,
        "cached frames of a character stay up to this size, such as 4G, in the memory of what composites; the others "
        "are decoded ahead; characters that nobody uses are kept up to this size too; all: every frame, or an error",
        kind="bytes",
        metavar="SIZE",
        unset="all if they fit, else what fits in half of what is free",
        auto=True,
        words=get_args(All),
    )
    feature_cache: int | str | None = option(
        None,
        "keep what the model makes of each cached frame alone, up to this size, such as 4G, in the memory of what runs "
        "the model; auto: where frames are shown often enough, in a quarter of what is free; on the CPU in fp32 only",
        kind="size",
        metavar="SIZE",
        unset="as tuned, else off",
        words=("auto", "off"),
    )
    max_pixels: int = option(
        MAX_PIXELS, "the most pixels of a video's frame, checked before it is decoded", metavar="N", least=1
    )
    max_frames: int = option(
        MAX_FRAMES,
        "the most frames of a character, and of an output, checked before any is made",
        metavar="N",
        least=1,
    )
    isolate: bool = option(
        False,
        "for files from strangers: decode videos and sounds in processes of their own, with limits on memory and time, "
        "and follow no link or path out of the character's or the job file's folder",
    )


@dataclass(frozen=True)
class ModelOptions(Checked):
    """What picks the opened model: jobs that agree in all of it, and in the character's own model, share one."""

    model: Path | str | None = option(
        None, "lip-sync model", kind="path", metavar="M.onnx", unset="the character's own"
    )
    provider: ProviderChoice = option("auto", "what runs the model", choices=get_args(ProviderChoice))
    batch: int | None = option(
        None,
        "frames in a batch; on the CPU no more than the model runs at a time",
        metavar="N",
        least=1,
        most=MAX_BATCH,
        unset=f"as tuned, else {BATCH}",
        auto=True,
    )
    runs: int | None = option(
        None,
        "frames that the model runs at a time on the CPU, no more than it has threads, which they share",
        metavar="N",
        least=1,
        most=MAX_BATCH,
        unset="as tuned, else one a thread, 4 at most",
        auto=True,
    )
    inference_threads: int | None = option(
        None, "CPU threads for the model", metavar="N", least=1, most=MAX_THREADS, unset="one a core"
    )
    precision: Precision = option(
        "fp32", "in which the model is run; fp16 and int8 are made of it once, and kept", choices=get_args(Precision)
    )

    @property
    def tf32(self) -> bool:
        """Whether a provider may round matrix products to TF32."""
        return self.precision == "tf32"

    @property
    def fp16(self) -> bool:
        """Whether TensorRT may compute in float16."""
        return self.precision == "fp16"


@dataclass(frozen=True)
class SpeechOptions(Checked):
    """What is said, and which frames say it."""

    features: Path | str | NDArray[np.float32] | None = option(
        None,
        "speech features, float32 [N, 512]",
        kind="features",
        metavar="F.npy",
        unset="made of --audio, or the character's own",
    )
    audio: Path | str | None = option(
        None, "the speech: any sound or video file", kind="path", metavar="FILE", unset="the character's own"
    )
    audio_encoder: Path | str | None = option(
        None, "makes features of --audio", kind="path", metavar="M.onnx", unset="the character's own"
    )
    frames: int | None = option(None, "the most frames to render", metavar="N", least=1, unset="all of the speech")
    start_frame: int = option(0, "position in the ping-pong order to start at", metavar="K")
    sound: bool = option(True, "leave the sound out of a video", flag="--no-audio")
    masked_video: bool = option(False, "take the model's inputs from the recorded videos")


@dataclass(frozen=True)
class OutputOptions(Checked):
    """How what is rendered is written."""

    encoder: str = option("libx264", "video encoder; see `gpupipe doctor`")
    crf: int | None = option(
        None, "constant quality, lower is better", kind="number", metavar="Q", unset="20 for libx264"
    )
    preset: str | None = option(None, "encoding speed, by the encoder's names", unset="veryfast for libx264")
    encoder_threads: int | None = option(
        None, "encoder threads", metavar="N", least=1, most=MAX_THREADS, unset="4 on every machine"
    )
    encoders: int | None = option(
        None,
        "segments encoded at a time; the file is the same bytes for every number",
        metavar="N",
        least=1,
        most=MAX_THREADS,
        unset="as tuned, else 1, or where a GPU runs the model 1 for every --encoder-threads cores",
        auto=True,
    )
    segment_frames: int = option(250, "frames encoded on their own, from a keyframe", metavar="N", least=1)
    pixel_format: PixelFormat | None = option(
        None, "of finished frames", choices=get_args(PixelFormat), unset="nv12 for video, else bgr24"
    )
    resume: bool = option(
        False, "go on with a render that was interrupted: what is finished of it is kept beside the output"
    )
    segments: str | None = option(
        None,
        "render these segments only, and keep them beside the output for `gpupipe join`; numbers from 0, such as 3-7",
        kind="text",
        metavar="A-B",
        unset="all",
    )
    image_format: ImageFormat = option("jpg", "of images", choices=get_args(ImageFormat))
    jpeg_quality: int = option(95, "1 to 100, libjpeg's scale", metavar="Q", least=1, most=100)
    overwrite: bool = option(False, "replace an existing output")


GROUPS: Final = (EngineOptions, ModelOptions, SpeechOptions, OutputOptions)
"""All there are, in the order in which `split` gives them."""

for _group in GROUPS:
    for _said in declared(_group).values():
        errors.PYTHON_SPELLINGS.update(_said.python_spellings)
