"""Where finished frames go: a video or a folder of images, under its name only when it is complete."""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from gpupipe.colour import PixelFormat
from gpupipe.compose.surface import Surface
from gpupipe.errors import OptionError, OutputError, PackageError
from gpupipe.media.encode import VideoWriter
from gpupipe.media.encoders import EncoderOptions, part_suffix
from gpupipe.media.images import image_name, write_image
from gpupipe.media.join import join
from gpupipe.media.video import VideoInfo, require_even
from gpupipe.options import ImageFormat, OutputOptions

VIDEO_SUFFIXES = (".mp4", ".mkv")

Frame = NDArray[np.uint8]


class Output(Protocol):
    """Takes finished frames in order: a sink."""

    def write(self, surface: Surface) -> None:
        """Take the next frame; it is released once it is written, or has failed."""

    def commit(self) -> None:
        """Finish, and give the result its name."""

    def abort(self) -> None:
        """Remove everything that was written. Does nothing after `commit`."""


def images_in(folder: Path) -> list[Path]:
    """The images in a folder that were written by a render; none if there is no such folder."""
    if not folder.is_dir():
        return []
    return [path for path in folder.iterdir() if re.fullmatch(r"frame_\d{4,}\.(jpg|png)", path.name)]


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
    workers: int = 1,
    sound: Path | None = None,
    gpu: int | None = None,
) -> Output:
    """Open a video or a folder of images for the finished frames of a character.

    Args:
        output: where; see `is_video`.
        body: the body video, whose size, rate and colours the output has.
        pixel_format: of the frames.
        options: how.
        workers: images encoded at a time.
        sound: the file whose sound goes into a video.
        gpu: the number of the GPU that composites, on which NVENC is to encode too; None: the CPU composites.

    Raises:
        OutputError: it exists already, or cannot be written.
        OptionError: an option is out of range, or the encoder does not have it.
    """
    if is_video(output):
        return VideoOutput(Path(output), body, pixel_format, EncoderOptions.of(options, gpu), options, sound)
    if pixel_format != "bgr24":
        raise OptionError("images hold bgr24", field="--pixel-format", value=pixel_format, remedy="leave it out")
    return ImageOutput(Path(output), options, workers)


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


@contextmanager
def releasing(surface: Surface) -> Iterator[None]:
    """Release a surface when a with block ends, well or not."""
    try:
        yield
    finally:
        surface.release()


def on_host(surface: Surface) -> Frame:
    """The pixels of a surface that has them on the host."""
    assert surface.host is not None, "outputs are given frames on the host"
    return surface.host


class VideoOutput:
    """A video, encoded segment by segment and then joined without encoding again; see `open_output`."""

    def __init__(
        self,
        path: Path,
        body: VideoInfo,
        pixel_format: PixelFormat,
        encoding: EncoderOptions,
        options: OutputOptions,
        sound: Path | None,
    ) -> None:
        if path.exists() and not options.overwrite:
            raise OutputError("exists already", file=path, field="output", remedy="use --overwrite or another name")
        require_even(body.path, body.width, body.height, what="video", error=PackageError)
        self.path = path
        self.fps = body.fps
        self._sound = sound
        self._segment_frames = options.segment_frames
        self._suffix = part_suffix(encoding.encoder, path.suffix)
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
                options=encoding,
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

    def write(self, surface: Surface) -> None:
        """Encode the next frame; the encoder has copied it when it returns."""
        with releasing(surface), _naming(self.path):
            if self._in_segment == self._segment_frames:
                self._close_segment()
            if self._writer is None:
                self._writer = self._new_writer()
            self._writer.write(on_host(surface))
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

    def __init__(self, folder: Path, options: OutputOptions, workers: int) -> None:
        self.folder = folder
        if folder.exists() and not folder.is_dir():
            raise OutputError("is a file, not a folder", file=folder, field="output", remedy="use another folder")
        if images_in(self.folder) and not options.overwrite:
            raise OutputError(
                "holds images already", file=folder, field="output", remedy="use --overwrite or another folder"
            )
        self._format: ImageFormat = options.image_format
        self._quality = options.jpeg_quality
        # Inside the folder if it is there already: its own rights are what counts.
        self._work = _work_folder(folder / "images" if folder.is_dir() else folder)
        self._images = self._work / "images"  # with the rights that any new folder of the user gets
        self._images.mkdir()
        self._pool = ThreadPoolExecutor(workers, "image")
        self._workers = workers
        self._writing: deque[tuple[Future[None], Surface]] = deque()
        self._next = 0

    def write(self, surface: Surface) -> None:
        """Write the next frame, beside the ones before it."""
        path = self._images / image_name(self._next, self._format)
        self._next += 1
        if len(self._writing) == self._workers:
            self._finish_oldest()
        self._writing.append((self._pool.submit(self._encode, path, surface), surface))

    def commit(self) -> None:
        """Move the images into the folder."""
        while self._writing:
            self._finish_oldest()
        self._pool.shutdown()
        with _naming(self.folder):
            if not self.folder.is_dir():
                self._images.rename(self.folder)
                self._work.rmdir()
                return
            names = [image_name(number, self._format) for number in range(self._next)]
            old = {path.name for path in images_in(self.folder)}
            for name in names:
                (self._images / name).replace(self.folder / name)
            for name in old.difference(names):
                (self.folder / name).unlink()
        shutil.rmtree(self._work, ignore_errors=True)

    def abort(self) -> None:
        """Remove everything that was written."""
        self._pool.shutdown(cancel_futures=True)
        for _, surface in self._writing:
            surface.release()
        shutil.rmtree(self._work, ignore_errors=True)

    def _encode(self, path: Path, surface: Surface) -> None:
        try:
            write_image(path, on_host(surface), jpeg_quality=self._quality)
        finally:
            surface.release()

    def _finish_oldest(self) -> None:
        with _naming(self.folder):
            self._writing.popleft()[0].result()
