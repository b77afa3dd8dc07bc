"""Encoding a run of frames into one file."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import cast

import av

from gpupipe.colour import Colour, PixelFormat
from gpupipe.errors import OptionError, OutputError, reason
from gpupipe.media.encoders import NVENC_DRIVER, QUALITY_OPTION, EncoderOptions, encoder_name, silence
from gpupipe.media.handover import Frame, HandOver
from gpupipe.media.opening import media_url
from gpupipe.media.video import require_even

REORDERED = 2
"""Frames by which decoding runs ahead of showing where the encoder does not say."""


class VideoWriter:
    """Encodes frames into one file. A context manager: leaving it on an error leaves a file that is not finished.

    Args:
        path: the file; its suffix names the container.
        width: pixels, even.
        height: pixels, even.
        fps: frames a second.
        pixel_format: of the frames that `write` takes.
        options: how to encode.
        colour: written as the stream's tags; bgr24 frames are converted with its matrix and range.
        sample_aspect_ratio: width of a pixel over its height.
        copies_input: whether the encoder is trusted to have copied a frame when `write` returns; None: as it is known.

    Raises:
        OptionError: the encoder or an option of it does not exist, or the encoder cannot be opened here.
        OutputError: the file cannot be written.
    """

    def __init__(
        self,
        path: Path | str,
        *,
        width: int,
        height: int,
        fps: Fraction,
        pixel_format: PixelFormat,
        options: EncoderOptions | None = None,
        colour: Colour | None = None,
        sample_aspect_ratio: Fraction = Fraction(1),
        copies_input: bool | None = None,
    ) -> None:
        options = options or EncoderOptions()
        options = replace(options, encoder=encoder_name(options.encoder))
        colour = colour or Colour()
        require_even(path, width, height, what="video", error=OutputError)
        self.path = Path(path)
        self._next = 0
        self._last_dts: int | None = None
        self._hand_over = HandOver(pixel_format, colour, options.encoder, copies_input=copies_input)
        self._time_base = 1 / fps
        try:
            self._container = av.open(media_url(path), "w")
        except (av.FFmpegError, OSError) as error:
            raise write_error(path, error) from error
        try:
            try:
                self._stream = cast(av.VideoStream, self._container.add_stream(options.encoder, rate=fps))
            except ValueError as error:
                raise OptionError(
                    f"does not go into {self.path.suffix} files",
                    field="--encoder",
                    value=options.encoder,
                    remedy="use libx264" if self.path.suffix == ".mkv" else "use libx264, or write an .mkv file",
                ) from error
            context = self._stream.codec_context
            context.options = options.codec_options(context)
            context.width, context.height, context.pix_fmt = width, height, self._hand_over.encoder_format
            context.time_base = self._stream.time_base = self._time_base
            context.thread_count = options.threads
            context.sample_aspect_ratio = sample_aspect_ratio
            context.colorspace, context.color_range = colour.matrix, colour.range
            context.color_primaries, context.color_trc = colour.primaries, colour.transfer
            silence(options.encoder)
            try:
                context.open()
            except (av.FFmpegError, OSError) as error:
                needs = ""
                if options.encoder in QUALITY_OPTION:
                    needs = f"it needs an NVIDIA GPU that encodes, and its driver, {NVENC_DRIVER} or later; "
                raise OptionError(
                    f"cannot be opened: {reason(error)}",
                    field="--encoder",
                    value=options.encoder,
                    remedy=f"{needs}see `gpupipe doctor` for the encoders that open here",
                ) from error
            try:
                self._container.start_encoding()
            except (av.FFmpegError, OSError) as error:
                raise write_error(path, error) from error
        except BaseException:
            self._container.close()
            raise

    def write(self, frame: Frame) -> None:
        """Encode the next frame; its array may be used again afterwards.

        Args:
            frame: uint8 `[H, W, 3]` for bgr24, `[H * 3 // 2, W]` for nv12.
        """
        picture = self._hand_over(frame)
        picture.pts, picture.time_base = self._next, self._time_base
        self._next += 1
        self._mux(picture)

    def close(self) -> None:
        """Flush the encoder and finish the file."""
        self._mux(None)
        try:
            self._container.close()
        except (av.FFmpegError, OSError) as error:
            raise write_error(self.path, error) from error

    def abort(self) -> None:
        """Stop, leaving a file that is not finished."""
        try:
            self._container.close()
        except (av.FFmpegError, OSError):
            return  # the file is thrown away: only its handle has to be released

    def __enter__(self) -> VideoWriter:
        """Begin a with block."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Finish the file, or abandon it if the block failed."""
        if kind is None:
            self.close()
        else:
            self.abort()

    def _mux(self, picture: av.VideoFrame | None) -> None:
        try:
            for packet in self._stream.encode(picture):
                self._mend_dts(packet)
                self._container.mux(packet)
        except (av.FFmpegError, OSError) as error:
            raise write_error(self.path, error) from error

    def _mend_dts(self, packet: av.Packet[av.VideoStream]) -> None:
        """Give a packet a decoding time where the encoder gave none: x265 leaves it to chance in a stream of one or
        two frames, shorter than its delay."""
        assert packet.pts is not None
        if packet.dts is None or not packet.pts - self._next <= packet.dts <= packet.pts:
            packet.dts = packet.pts - REORDERED if self._last_dts is None else self._last_dts + 1
        self._last_dts = packet.dts


def write_error(path: Path | str, error: Exception) -> OutputError:
    """What FFmpeg or the system says about a file that cannot be written."""
    return OutputError(
        f"cannot be written: {reason(error)}", file=path, remedy="check the folder, its rights and its free space"
    )
