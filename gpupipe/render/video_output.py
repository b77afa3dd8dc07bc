"""A video as an output: encoded segment by segment, and under its name only when it is complete."""

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
from gpupipe.render.segments import Segments
from gpupipe.render.sink import on_host, releasing
from gpupipe.render.work_folder import WorkFolder, naming


class VideoOutput:
    """A video, encoded segment by segment and then joined without encoding again; see `open_output`.

    Args:
        path: the video.
        body: the body video, whose size, rate and colours it has.
        pixel_format: of the frames.
        encoding: how to encode.
        options: of the output.
        sound: the file whose sound goes into it.
        segments: which frames are encoded on their own.
    """

    def __init__(
        self,
        path: Path,
        body: VideoInfo,
        pixel_format: PixelFormat,
        encoding: EncoderOptions,
        options: OutputOptions,
        sound: Path | None,
        segments: Segments,
    ) -> None:
        if path.exists() and not options.overwrite:
            raise OutputError("exists already", file=path, field="output", remedy="use --overwrite or another name")
        require_even(body.path, body.width, body.height, what="video", error=PackageError)
        self.path = path
        self.segments = segments
        self._body, self._pixel_format, self._encoding, self._sound = body, pixel_format, encoding, sound
        self._suffix = part_suffix(encoding.encoder, path.suffix)
        self._work = WorkFolder(path)
        self._begun: set[int] = set()
        self._first: VideoWriter | None = None
        try:
            self._first = self.open_segment(0)  # an encoder that does not open is found before a frame is drawn
        except BaseException:
            self.abort()
            raise

    def writer(self) -> SegmentWriter:
        """See `Output`."""
        return SegmentWriter(self)

    def open_segment(self, segment: int) -> VideoWriter:
        """Begin a segment."""
        self._begun.add(segment)
        if segment == 0 and self._first is not None:
            first, self._first = self._first, None
            return first
        with naming(self.path):
            return VideoWriter(
                self._part(segment),
                width=self._body.width,
                height=self._body.height,
                fps=self._body.fps,
                pixel_format=self._pixel_format,
                options=self._encoding,
                colour=self._body.colour,
                sample_aspect_ratio=self._body.sample_aspect_ratio,
            )

    def commit(self) -> None:
        """Join the segments and give the video its name."""
        with naming(self.path):
            joined = self._work.path / f"joined{self.path.suffix}"
            parts = [self._part(segment) for segment in sorted(self._begun)]
            join(parts, joined, self._body.fps, sound=self._sound, limits=self._body.limits)
            joined.replace(self.path)
        self._work.remove()

    def abort(self) -> None:
        """Remove everything that was written."""
        if self._first is not None:
            self._first.abort()
            self._first = None
        self._work.remove()

    def _part(self, segment: int) -> Path:
        return self._work.path / f"segment_{segment:05d}{self._suffix}"


class SegmentWriter:
    """Encodes whole segments of a video, one after the other.

    Args:
        output: the video.
    """

    def __init__(self, output: VideoOutput) -> None:
        self._output = output
        self._segment = -1
        self._encoder: VideoWriter | None = None

    def write(self, surface: Surface) -> None:
        """Encode the next frame; the encoder has copied it when it returns."""
        with releasing(surface), naming(self._output.path):
            if (segment := self._output.segments.of(surface.index)) != self._segment:
                self.close()
                self._encoder, self._segment = self._output.open_segment(segment), segment
            assert self._encoder is not None
            self._encoder.write(on_host(surface))

    def close(self) -> None:
        """Finish the last segment."""
        encoder, self._encoder = self._encoder, None
        if encoder is not None:
            with naming(self._output.path):
                encoder.close()

    def abort(self) -> None:
        """Stop."""
        encoder, self._encoder = self._encoder, None
        if encoder is not None:
            encoder.abort()
