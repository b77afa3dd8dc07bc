"""Where finished frames go: a video or a folder of images, under its name only when it is complete."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from gpupipe.colour import PixelFormat
from gpupipe.errors import OptionError, OutputError
from gpupipe.gpu.device import Device
from gpupipe.media.encoders import EncoderOptions
from gpupipe.media.video import VideoInfo
from gpupipe.options import OutputOptions
from gpupipe.render.image_output import ImageOutput
from gpupipe.render.segments import Segments
from gpupipe.render.sink import Output, Writer
from gpupipe.render.video_output import VideoOutput

__all__ = ["ImageOutput", "Output", "VideoOutput", "Writer", "is_video", "open_output"]

VIDEO_SUFFIXES = (".mp4", ".mkv")


def is_video(output: Path | str) -> bool:
    """Whether an output path names a video; any other names a folder of images.

    Raises:
        OutputError: it is neither: a file name with another suffix.
    """
    text, path = str(output), Path(output)
    if text.endswith(("/", os.sep)) or (text and path.is_dir()):
        return False
    if path.suffix.lower() in VIDEO_SUFFIXES:
        return True
    raise OutputError(
        "neither a video nor a folder",
        file=text,
        field="output",
        value=path.suffix,
        remedy=f"end it in {', '.join(VIDEO_SUFFIXES)} for a video, or in / for a folder of images",
    )


def open_output(
    output: Path | str,
    body: VideoInfo,
    pixel_format: PixelFormat,
    options: OutputOptions,
    *,
    segments: Segments,
    workers: int = 1,
    sound: Path | None = None,
    gpus: Sequence[Device | None] = (None,),
) -> Output:
    """Open a video or a folder of images for the finished frames of a character.

    Args:
        output: where; see `is_video`.
        body: the body video, whose size, rate and colours the output has.
        pixel_format: of the frames.
        options: how.
        segments: which frames of a video are encoded on their own.
        workers: images encoded at a time.
        sound: the file whose sound goes into a video.
        gpus: that draw the frames, on which NVENC is to encode too; None: the CPU draws them. The encoder is tried.

    Raises:
        OutputError: it exists already, or cannot be written.
        OptionError: an option is out of range, or the encoder does not have it.
    """
    if is_video(output):
        encoding = EncoderOptions.of(options)
        return VideoOutput(Path(output), body, pixel_format, encoding, options, sound, segments, gpus)
    if pixel_format != "bgr24":
        raise OptionError("images hold bgr24", field="--pixel-format", value=pixel_format, remedy="leave it out")
    return ImageOutput(Path(output), options, workers)
