"""A folder of images as an output: under its name only when it is complete."""

from __future__ import annotations

import re
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from gpupipe.compose.surface import Surface
from gpupipe.errors import OutputError
from gpupipe.gpu.device import Device
from gpupipe.log import Log
from gpupipe.media.images import image_name, write_image
from gpupipe.options import ImageFormat, OutputOptions
from gpupipe.render.durable import replace, sync_folder
from gpupipe.render.manifest import Manifest
from gpupipe.render.naming import naming
from gpupipe.render.parts import Parts, parts_folder, start_of
from gpupipe.render.segments import Segments
from gpupipe.render.sink import on_host

_log = Log(__name__)


def images_in(folder: Path) -> list[Path]:
    """The images in a folder that were written by a render; none if there is no such folder."""
    if not folder.is_dir():
        return []
    return [path for path in folder.iterdir() if re.fullmatch(r"frame_\d{4,}\.(jpg|png)", path.name)]


def parts_beside(folder: Path) -> Path:
    """What the parts of a folder of images lie beside: if it is there already, something in it, for its own rights are
    what counts then; unless it was put in place before its parts could be removed."""
    return folder / "images" if folder.is_dir() and not parts_folder(folder).is_dir() else folder


def open_parts(folder: Path, options: OutputOptions, manifest: Manifest) -> Parts:
    """Begin, or go on with, the parts of a folder of images.

    Raises:
        OutputError: it is no folder, or holds images already; and what `Parts` raises.
    """
    if (folder.exists() or folder.is_symlink()) and not folder.is_dir():
        what = "is a file, not a folder" if folder.exists() else "is a link to nothing"
        raise OutputError(what, file=folder, field="output", remedy="use another folder")
    # Who resumes may find images that were being moved here when the render was cut off.
    resumed = options.resume and parts_folder(parts_beside(folder)).is_dir()
    if images_in(folder) and not (options.overwrite or resumed):
        raise OutputError(
            "holds images already", file=folder, field="output", remedy="use --overwrite or another folder"
        )
    return Parts(parts_beside(folder), manifest, start_of(options), named=folder)


def join_images(parts: Parts, folder: Path) -> None:
    """Move the images of the finished segments, which are all, into their folder, whose other images go.

    Raises:
        OSError: the disk.
    """
    images = [path for segment in sorted(parts.finished) for path in sorted(parts.segment(segment, "").iterdir())]
    if folder.is_dir():
        old = {path.name for path in images_in(folder)}
        for path in images:
            replace(path, folder / path.name)
        for name in old.difference(path.name for path in images):
            (folder / name).unlink()
        sync_folder(folder)
        parts.remove()
        _log.event("output placed", output=folder)
        return
    joined = parts.unfinished("joined")
    joined.mkdir()
    for path in images:
        replace(path, joined / path.name)
    parts.place(joined)


class ImageOutput:
    """A folder of images, `frame_0000.jpg` and on; see `open_output`."""

    def __init__(
        self, folder: Path, options: OutputOptions, workers: int, segments: Segments, manifest: Manifest
    ) -> None:
        self.folder = folder
        self._format: ImageFormat = options.image_format
        self._quality = options.jpeg_quality
        self._parts = open_parts(folder, options, manifest)
        self.segments = segments
        segments.skip(self._parts.finished)
        self._segment: int | None = None
        self._pool = ThreadPoolExecutor(workers, "image")
        self._workers = workers
        self._writing: deque[tuple[Future[None], Surface]] = deque()

    on_host = True
    """Images are encoded by the CPU."""
    notes: tuple[str, ...] = ()

    @property
    def kept(self) -> int:
        """See `Writer`."""
        return self._workers

    def writer(self, gpu: Device | None = None) -> ImageOutput:
        """See `Output`: there is one writer, itself, that encodes several images at a time."""
        return self

    def write(self, surface: Surface) -> None:
        """Write the next frame, beside the ones before it."""
        try:
            if (segment := self.segments.of(surface.index)) != self._segment:
                self.close()
                with naming(self.folder):
                    self._folder(segment).mkdir()
                self._segment = segment
            path = self._folder(segment) / image_name(surface.index, self._format)
            if len(self._writing) == self._workers:
                self._finish_oldest()
            self._writing.append((self._pool.submit(self._encode, path, surface), surface))
        except BaseException:
            surface.release()
            raise

    def close(self) -> None:
        """Wait for the images that are being written, and keep the segment."""
        while self._writing:
            self._finish_oldest()
        segment, self._segment = self._segment, None
        if segment is not None:
            with naming(self.folder):
                self._parts.finish(segment, "", self.segments.outputs(segment))

    def commit(self) -> None:
        """Move the images into the folder."""
        self._pool.shutdown()
        with naming(self.folder):
            join_images(self._parts, self.folder)

    def abort(self) -> None:
        """See `Writer`."""
        while self._writing:
            future, surface = self._writing.popleft()
            future.cancel()
            surface.release()
        self._segment = None

    def leave(self) -> None:
        """See `Output`."""
        self._pool.shutdown(cancel_futures=True)
        self.abort()
        self._parts.leave()

    def _folder(self, segment: int) -> Path:
        return self._parts.unfinished(self._parts.segment(segment, "").name)

    def _encode(self, path: Path, surface: Surface) -> None:
        try:
            write_image(path, on_host(surface), jpeg_quality=self._quality)
        finally:
            surface.release()

    def _finish_oldest(self) -> None:
        with naming(self.folder):
            self._writing.popleft()[0].result()
