"""A folder of images as an output: under its name only when it is complete."""

from __future__ import annotations

import re
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from gpupipe.compose.surface import Surface
from gpupipe.errors import OutputError
from gpupipe.gpu.device import Device
from gpupipe.media.images import image_name, write_image
from gpupipe.options import ImageFormat, OutputOptions
from gpupipe.render.sink import on_host
from gpupipe.render.work_folder import WorkFolder, naming, remove_abandoned


def images_in(folder: Path) -> list[Path]:
    """The images in a folder that were written by a render; none if there is no such folder."""
    if not folder.is_dir():
        return []
    return [path for path in folder.iterdir() if re.fullmatch(r"frame_\d{4,}\.(jpg|png)", path.name)]


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
        if folder.is_dir():
            remove_abandoned(folder)  # of a render that was killed before there was a folder
        # Inside the folder if it is there already: its own rights are what counts.
        self._work = WorkFolder(folder / "images" if folder.is_dir() else folder)
        self._images = self._work.path / "images"  # with the rights that any new folder of the user gets
        self._images.mkdir()
        self._pool = ThreadPoolExecutor(workers, "image")
        self._workers = workers
        self._writing: deque[tuple[Future[None], Surface]] = deque()
        self._next = 0

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
        path = self._images / image_name(self._next, self._format)
        self._next += 1
        try:
            if len(self._writing) == self._workers:
                self._finish_oldest()
            self._writing.append((self._pool.submit(self._encode, path, surface), surface))
        except BaseException:
            surface.release()
            raise

    def close(self) -> None:
        """Wait for the images that are being written."""
        while self._writing:
            self._finish_oldest()

    def commit(self) -> None:
        """Move the images into the folder."""
        self._pool.shutdown()
        with naming(self.folder):
            if not self.folder.is_dir():
                self._images.rename(self.folder)
                self._work.remove()
                return
            names = [image_name(number, self._format) for number in range(self._next)]
            old = {path.name for path in images_in(self.folder)}
            for name in names:
                (self._images / name).replace(self.folder / name)
            for name in old.difference(names):
                (self.folder / name).unlink()
        self._work.remove()

    def abort(self) -> None:
        """Remove everything that was written."""
        self._pool.shutdown(cancel_futures=True)
        for _, surface in self._writing:
            surface.release()
        self._work.remove()

    def _encode(self, path: Path, surface: Surface) -> None:
        try:
            write_image(path, on_host(surface), jpeg_quality=self._quality)
        finally:
            surface.release()

    def _finish_oldest(self) -> None:
        with naming(self.folder):
            self._writing.popleft()[0].result()
