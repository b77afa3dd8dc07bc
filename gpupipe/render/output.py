"""Where finished frames go: a video or a folder of images, under its name only when it is complete."""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from gpupipe.colour import PixelFormat
from gpupipe.errors import OptionError, OutputError, PackageError
from gpupipe.media.encode import VideoWriter
from gpupipe.media.encoders import EncoderOptions, part_suffix
from gpupipe.media.images import image_name, write_image
from gpupipe.media.join import join
from gpupipe.media.video import VideoInfo
from gpupipe.options import ImageFormat

VIDEO_SUFFIXES = (".mp4", ".mkv")

Frames = NDArray[np.uint8]


class Output(Protocol):
    """Takes finished frames in order."""

    def write(self, frames: Frames) -> None:
        """Take the next frames, uint8 `[n, *frame_shape]`; the array may be used again afterwards."""

    def commit(self) -> None:
        """Finish, and give the result its name."""

    def abort(self) -> None:
        """Remove everything that was written. Does nothing after `commit`."""


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


@dataclass(frozen=True)
class OutputOptions:
    """How to write what is rendered.

    Attributes:
        encoder: how videos are encoded.
        segment_frames: frames encoded on their own, from a keyframe.
        image_format: of images.
        jpeg_quality: 1 to 100, libjpeg's scale.
        image_workers: images encoded at a time.
        overwrite: replace an existing output.
    """

    encoder: EncoderOptions = field(default_factory=EncoderOptions)
    segment_frames: int = 250
    image_format: ImageFormat = "jpg"
    jpeg_quality: int = 95
    image_workers: int = 1
    overwrite: bool = False


def open_output(
    output: Path | str,
    body: VideoInfo,
    pixel_format: PixelFormat,
    options: OutputOptions,
    *,
    sound: Path | None = None,
) -> Output:
    """Open a video or a folder of images for the finished frames of a character.

    Args:
        output: where; see `is_video`.
        body: the body video, whose size, rate and colours the output has.
        pixel_format: of the frames.
        options: how.
        sound: the file whose sound goes into a video.

    Raises:
        OutputError: it exists already, or cannot be written.
        OptionError: an option is out of range, or the encoder does not have it.
    """
    if is_video(output):
        return VideoOutput(Path(output), body, pixel_format, options, sound)
    if pixel_format != "bgr24":
        raise OptionError("images hold bgr24", field="--pixel-format", value=pixel_format, remedy="leave it out")
    return ImageOutput(Path(output), options)


def _work_folder(beside: Path) -> Path:
    """A new folder on the same file system as `beside`, so that moving into place is a rename."""
    if not beside.parent.is_dir():
        raise OutputError("no such folder", file=beside.parent, field="output", remedy="create it first")
    try:
        return Path(tempfile.mkdtemp(prefix=f".{beside.name}.", suffix=".partial", dir=beside.parent))
    except OSError as error:
        raise OutputError(
            f"cannot be written to: {error.strerror}", file=beside.parent, field="output", remedy="use another folder"
        ) from error


@contextmanager
def _naming(output: Path) -> Iterator[None]:
    """Let what fails inside name the output, not the part of it that could not be written and is gone."""
    try:
        yield
    except OutputError as error:
        raise error.naming(output) from error
    except OSError as error:
        raise OutputError(
            f"cannot be written: {error.strerror}",
            file=output,
            remedy="check the folder, its rights and its free space",
        ) from error


class VideoOutput:
    """A video, encoded segment by segment and then joined without encoding again; see `open_output`."""

    def __init__(
        self, path: Path, body: VideoInfo, pixel_format: PixelFormat, options: OutputOptions, sound: Path | None
    ) -> None:
        if path.exists() and not options.overwrite:
            raise OutputError("exists already", file=path, field="output", remedy="use --overwrite or another name")
        if body.width % 2 or body.height % 2:
            raise PackageError(
                "video needs an even width and height",
                file=body.path,
                field="size",
                value=f"{body.width}x{body.height}",
                remedy="write a folder of images instead, or crop the body video",
            )
        self.path = path
        self.fps = body.fps
        self._sound = sound
        self._segment_frames = options.segment_frames
        self._suffix = part_suffix(options.encoder.encoder, path.suffix)
        self._work = _work_folder(path)
        self._segments: list[Path] = []
        self._in_segment = 0
        self._writer: VideoWriter | None = None

        def writer() -> VideoWriter:
            self._segments.append(self._work / f"segment_{len(self._segments):05d}{self._suffix}")
            return VideoWriter(
                self._segments[-1],
                width=body.width,
                height=body.height,
                fps=body.fps,
                pixel_format=pixel_format,
                options=options.encoder,
                colour=body.colour,
                sample_aspect_ratio=body.sample_aspect_ratio,
            )

        self._new_writer = writer
        try:
            with _naming(path):
                self._writer = writer()  # an encoder that does not open is found before the first frame is drawn
        except BaseException:
            self.abort()
            raise

    def write(self, frames: Frames) -> None:
        """Encode the next frames."""
        with _naming(self.path):
            for frame in frames:
                if self._in_segment == self._segment_frames:
                    self._close_segment()
                if self._writer is None:
                    self._writer = self._new_writer()
                self._writer.write(frame)
                self._in_segment += 1

    def commit(self) -> None:
        """Join the segments and give the video its name."""
        with _naming(self.path):
            self._close_segment()
            joined = self._work / f"joined{self.path.suffix}"
            join(self._segments, joined, self.fps, sound=self._sound)
            joined.replace(self.path)
        shutil.rmtree(self._work, ignore_errors=True)

    def abort(self) -> None:
        """Remove everything that was written."""
        if self._writer is not None:
            self._writer.abort()
            self._writer = None
        shutil.rmtree(self._work, ignore_errors=True)

    def _close_segment(self) -> None:
        if self._writer is not None:
            self._writer.close()
        self._writer, self._in_segment = None, 0


class ImageOutput:
    """A folder of images, `frame_0000.jpg` and on; see `open_output`."""

    def __init__(self, folder: Path, options: OutputOptions) -> None:
        self.folder = folder
        if folder.exists() and not folder.is_dir():
            raise OutputError("is a file, not a folder", file=folder, field="output", remedy="use another folder")
        if self._old() and not options.overwrite:
            raise OutputError(
                "holds images already", file=folder, field="output", remedy="use --overwrite or another folder"
            )
        self._format: ImageFormat = options.image_format
        self._quality = options.jpeg_quality
        # Inside the folder if it is there already: its own rights are what counts.
        self._work = _work_folder(folder / "images" if folder.is_dir() else folder)
        self._images = self._work / "images"  # with the rights that any new folder of the user gets
        self._images.mkdir()
        self._pool = ThreadPoolExecutor(options.image_workers, "image")
        self._next = 0

    def write(self, frames: Frames) -> None:
        """Write the next frames."""
        paths = [self._images / image_name(self._next + number, self._format) for number in range(len(frames))]
        self._next += len(frames)
        with _naming(self.folder):
            list(
                self._pool.map(lambda path, frame: write_image(path, frame, jpeg_quality=self._quality), paths, frames)
            )

    def commit(self) -> None:
        """Move the images into the folder."""
        self._pool.shutdown()
        with _naming(self.folder):
            if not self.folder.is_dir():
                self._images.rename(self.folder)
                self._work.rmdir()
                return
            names = [image_name(number, self._format) for number in range(self._next)]
            old = {path.name for path in self._old()}
            for name in names:
                (self._images / name).replace(self.folder / name)
            for name in old.difference(names):
                (self.folder / name).unlink()
        shutil.rmtree(self._work, ignore_errors=True)

    def abort(self) -> None:
        """Remove everything that was written."""
        self._pool.shutdown(cancel_futures=True)
        shutil.rmtree(self._work, ignore_errors=True)

    def _old(self) -> list[Path]:
        if not self.folder.is_dir():
            return []
        return [path for path in self.folder.iterdir() if re.fullmatch(r"frame_\d{4,}\.(jpg|png)", path.name)]
