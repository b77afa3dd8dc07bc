"""A video as an output: under its name only when it is complete."""

from __future__ import annotations

from pathlib import Path

from gpupipe.colour import PixelFormat
from gpupipe.compose.surface import Surface
from gpupipe.errors import OutputError, PackageError
from gpupipe.media.encode import VideoWriter
from gpupipe.media.encoders import EncoderOptions, part_suffix
from gpupipe.media.join import join
from gpupipe.media.video import VideoInfo, require_even
from gpupipe.options import OutputOptions
from gpupipe.render.sink import on_host, releasing
from gpupipe.render.work_folder import WorkFolder, naming


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
        self._work = WorkFolder(path)
        self._segments: list[Path] = []
        self._in_segment = 0
        self._writer: VideoWriter | None = None

        def writer() -> VideoWriter:
            self._segments.append(self._work.path / f"segment_{len(self._segments):05d}{self._suffix}")
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
            with naming(path):
                self._writer = writer()  # an encoder that does not open is found before the first frame is drawn
        except BaseException:
            self.abort()
            raise

    def write(self, surface: Surface) -> None:
        """Encode the next frame; the encoder has copied it when it returns."""
        with releasing(surface), naming(self.path):
            if self._in_segment == self._segment_frames:
                self._close_segment()
            if self._writer is None:
                self._writer = self._new_writer()
            self._writer.write(on_host(surface))
            self._in_segment += 1

    def commit(self) -> None:
        """Join the segments and give the video its name."""
        with naming(self.path):
            self._close_segment()
            joined = self._work.path / f"joined{self.path.suffix}"
            join(self._segments, joined, self.fps, sound=self._sound)
            joined.replace(self.path)
        self._work.remove()

    def abort(self) -> None:
        """Remove everything that was written."""
        if self._writer is not None:
            self._writer.abort()
            self._writer = None
        self._work.remove()

    def _close_segment(self) -> None:
        if self._writer is not None:
            self._writer.close()
        self._writer, self._in_segment = None, 0
