"""A video as an output: encoded segment by segment, and under its name only when it is complete."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import numpy as np

from gpupipe.colour import PixelFormat
from gpupipe.compose.surface import Surface, SurfaceFormat
from gpupipe.compose.table import device_shape
from gpupipe.errors import OutputError, PackageError
from gpupipe.gpu.device import Device
from gpupipe.log import Log
from gpupipe.media.encode import VideoWriter
from gpupipe.media.encoders import NVENC_DELAY, QUALITY_OPTION, EncoderOptions, part_suffix, takes_gpu_memory
from gpupipe.media.join import join
from gpupipe.media.limits import DEFAULT, Limits
from gpupipe.media.video import VideoInfo, require_even
from gpupipe.options import OutputOptions
from gpupipe.render.durable import hash_of, remove
from gpupipe.render.manifest import Manifest
from gpupipe.render.naming import naming, require_new
from gpupipe.render.parts import Parts, parts_folder, start_of
from gpupipe.render.segments import Segments
from gpupipe.render.sink import on_host

_log = Log(__name__)


class VideoOutput:
    """A video, encoded segment by segment and then joined without encoding again; see `open_output`.

    Args:
        path: the video.
        body: the body video, whose size, rate and colours it has.
        pixel_format: of the frames.
        encoding: how to encode.
        options: of the output.
        sound: the file whose sound goes into it.
        segments: which frames are encoded on their own; those that are finished already are left out.
        manifest: of what is rendered.
        gpus: that draw the frames; None: the CPU does.

    Attributes:
        notes: how NVENC is given the frames.
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
        manifest: Manifest,
        gpus: Sequence[Device | None] = (None,),
    ) -> None:
        require_new(path, overwrite=options.overwrite or may_be_placed(path, options))
        require_even(body.path, body.width, body.height, what="video", error=PackageError)
        self.path = path
        self.segments = segments
        self._body, self._pixel_format, self._encoding, self._sound = body, pixel_format, encoding, sound
        self._suffix = part_suffix(encoding.encoder, path.suffix)
        self._takes_gpu_memory = takes_gpu_memory(encoding.encoder, pixel_format)
        nvenc = encoding.encoder in QUALITY_OPTION
        self.notes = tuple(dict.fromkeys(self._note(gpu) for gpu in gpus)) if nvenc else ()
        self._first: tuple[int, VideoWriter, Device | None] | None = None
        self._parts = Parts(path, manifest, start_of(options))
        try:
            require_placed(self._parts, manifest, options, self._suffix, body.fps, sound, body.limits)
            segments.skip(self._parts.finished)
            for gpu in dict.fromkeys(gpus):
                self._try(gpu)
        except BaseException:
            self.leave()
            raise

    def writer(self, gpu: Device | None = None) -> SegmentWriter:
        """See `Output`."""
        return SegmentWriter(self, gpu)

    def memory_of(self, gpu: Device | None) -> Device | None:
        """The GPU in whose memory the encoder reads the frames that a GPU, or the CPU (None), draws; None: it reads
        them on the host."""
        return gpu if self._takes_gpu_memory else None

    def open_segment(self, segment: int, gpu: Device | None) -> VideoWriter:
        """Begin a segment, whose frames a GPU draws, or the CPU (None)."""
        if self._first is not None and self._first[0] == segment:
            (_, first, of), self._first = self._first, None
            if of is gpu:
                return first
            first.abort()
        return self._open(self._part(segment), gpu)

    def finish_segment(self, segment: int) -> None:
        """Keep a segment that has been encoded completely."""
        self._parts.finish(segment, self._suffix, self.segments.outputs(segment))

    def _open(self, path: Path, gpu: Device | None) -> VideoWriter:
        encoder = self._encoding.encoder
        with naming(self.path), _log.timed("encoder opened", logging.DEBUG, encoder=encoder, output=self.path):
            return VideoWriter(
                path,
                width=self._body.width,
                height=self._body.height,
                fps=self._body.fps,
                pixel_format=self._pixel_format,
                options=replace(self._encoding, gpu=None if gpu is None else gpu.index),
                colour=self._body.colour,
                sample_aspect_ratio=self._body.sample_aspect_ratio,
                gpu=self.memory_of(gpu),
            )

    def _try(self, gpu: Device | None) -> None:
        """Find out whether the encoder opens, before a frame is drawn."""
        memory = self.memory_of(gpu)
        if memory is not None:  # opened by a frame, whatever it shows
            format = SurfaceFormat(self._pixel_format, self._body.width, self._body.height)
            blank = memory.empty(device_shape(format), np.uint8, "a frame to try the encoder with")
            with naming(self.path), self._open(self._parts.unfinished(f"trial{self._suffix}"), gpu) as trial:
                trial.write(blank)
        elif self._first is None and (left := self.segments.left):
            self._first = left[0], self._open(self._part(left[0]), gpu), gpu

    def _note(self, gpu: Device | None) -> str:
        encoder = self._encoding.encoder
        if self.memory_of(gpu) is not None:
            return f"{encoder} encodes the frames where the GPU has drawn them"
        why = "the CPU draws them" if gpu is None else "on a GPU it reads nv12 (see --pixel-format)"
        return f"{encoder} is given the frames by way of the host: {why}"

    def commit(self) -> None:
        """Join the segments and give the video its name."""
        with naming(self.path):
            join_segments(self._parts, self._suffix, self._body.fps, self._sound, self._body.limits)

    def leave(self) -> None:
        """See `Output`."""
        if self._first is not None:
            self._first[1].abort()
            self._first = None
        self._parts.leave()

    def _part(self, segment: int) -> Path:
        return self._parts.unfinished(self._parts.segment(segment, self._suffix).name)


def join_segments(parts: Parts, suffix: str, fps: Fraction, sound: Path | None, limits: Limits = DEFAULT) -> None:
    """Join the finished segments of a video, which are all, add the sound, and give it its name; the parts go.

    Raises:
        OutputError: it cannot be written.
        MediaError: the sound cannot be read.
    """
    parts.place(_joined(parts, suffix, fps, sound, limits))


def _joined(parts: Parts, suffix: str, fps: Fraction, sound: Path | None, limits: Limits) -> Path:
    written = parts.unfinished(f"joined{parts.output.suffix}")
    join(
        [parts.segment(segment, suffix) for segment in sorted(parts.finished)], written, fps, sound=sound, limits=limits
    )
    return written


def is_joined_of(
    parts: Parts, manifest: Manifest, suffix: str, fps: Fraction, sound: Path | None, limits: Limits
) -> bool:
    """Whether the segments of a video are all finished, and the output that has its name is what they are joined to.

    Raises:
        OSError: the disk.
        OutputError: nothing can be written beside it.
        MediaError: the sound cannot be read.
    """
    output = parts.output
    if len(parts.finished) < manifest.count or output.is_symlink() or not output.is_file():
        return False
    written = _joined(parts, suffix, fps, sound, limits)
    try:
        return hash_of(written) == hash_of(output)
    finally:
        remove(written)


def may_be_placed(output: Path, options: OutputOptions) -> bool:
    """Whether a video that is there may be what the parts beside it make, with which a render is to go on."""
    return options.resume and options.segments is None and parts_folder(output).is_dir()


def require_placed(
    parts: Parts,
    manifest: Manifest,
    options: OutputOptions,
    suffix: str,
    fps: Fraction,
    sound: Path | None,
    limits: Limits,
) -> None:
    """Raise an OutputError if there is a video that may not be replaced, unless it is what its parts make: then whoever
    gave it its name was ended before they were removed."""
    output = parts.output
    if options.overwrite or not (output.exists() or output.is_symlink()):
        return
    with naming(output):
        if not is_joined_of(parts, manifest, suffix, fps, sound, limits):
            raise OutputError(
                "exists already, and is not what its parts make",
                file=output,
                field="output",
                remedy="use --resume with --overwrite, or another name",
            )


class SegmentWriter:
    """Encodes whole segments of a video, one after the other.

    Args:
        output: the video.
        gpu: that draws the frames; None: the CPU does.
    """

    def __init__(self, output: VideoOutput, gpu: Device | None) -> None:
        self._output, self._gpu = output, gpu
        self._segment = -1
        self._encoder: VideoWriter | None = None

    @property
    def on_host(self) -> bool:
        """See `Writer`."""
        return self._output.memory_of(self._gpu) is None

    @property
    def kept(self) -> int:
        """See `Writer`."""
        return 0 if self.on_host else NVENC_DELAY

    def write(self, surface: Surface) -> None:
        """Encode the next frame. The encoder has copied it from the host when it returns; on a GPU it reads it later,
        and releases it then."""
        with naming(self._output.path):
            try:
                if (segment := self._output.segments.of(surface.index)) != self._segment:
                    self.close()
                    self._encoder, self._segment = self._output.open_segment(segment, self._gpu), segment
                assert self._encoder is not None
                pixels = on_host(surface) if self.on_host else surface.device
            except BaseException:
                surface.release()
                raise
            self._encoder.write(pixels, surface.release)

    def close(self) -> None:
        """Finish the last segment."""
        if self._encoder is not None:
            with naming(self._output.path):
                self._encoder.close()  # if that fails, there is still something to abort
                self._encoder = None
                self._output.finish_segment(self._segment)

    def abort(self) -> None:
        """Stop."""
        encoder, self._encoder = self._encoder, None
        if encoder is not None:
            encoder.abort()
