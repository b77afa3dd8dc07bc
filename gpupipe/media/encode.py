"""Encoding a run of frames into one file."""

from __future__ import annotations

import errno
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Any, cast

import av

from gpupipe.colour import Colour, PixelFormat
from gpupipe.errors import OptionError, OutputError, reason
from gpupipe.media.device_handover import DeviceHandOver, FrameGpu
from gpupipe.media.encoders import (
    NVENC_DELAY,
    NVENC_DRIVER,
    QUALITY_OPTION,
    EncoderOptions,
    encoder_name,
    silence,
    takes_gpu_memory,
)
from gpupipe.media.handover import Frame, HandOver
from gpupipe.media.opening import media_url
from gpupipe.media.video import require_even

REORDERED = 2
"""Frames by which decoding runs ahead of showing where the encoder does not say."""

TOO_MANY = (errno.ENOMEM, errno.EINVAL)
"""How FFmpeg tells that the driver allows no more encoders, when it opens one on a GPU that it is given: out of memory,
or with newer drivers an incompatible client key (libavcodec/nvenc.c, `nvenc_open_session`;
https://github.com/obsproject/obs-studio/pull/11259)."""


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
        gpu: the GPU in whose memory the frames that `write` takes lie, for encoders that read them there
            (`takes_gpu_memory`); None: they lie on the host. The encoder is then opened by the first frame: PyAV takes
            from it what FFmpeg must know of the memory (https://github.com/PyAV-Org/PyAV/pull/2328).

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
        gpu: FrameGpu | None = None,
    ) -> None:
        options = options or EncoderOptions()
        options = replace(options, encoder=encoder_name(options.encoder))
        colour = colour or Colour()
        require_even(path, width, height, what="video", error=OutputError)
        self.path = Path(path)
        self._next = 0
        self._last_dts: int | None = None
        self._reading: dict[int, tuple[Any, Callable[[], None]]] = {}
        self._encoder, self._gpu = options.encoder, gpu
        self._time_base = 1 / fps
        self._hand_over: Callable[[Any], av.VideoFrame]
        encoder_format: str
        if gpu is None:
            on_host = HandOver(pixel_format, colour, options.encoder, copies_input=copies_input)
            self._hand_over, encoder_format = on_host, on_host.encoder_format
        else:
            if not takes_gpu_memory(options.encoder, pixel_format):
                raise ValueError(f"{options.encoder} does not take {pixel_format} frames in GPU memory")
            on_gpu = DeviceHandOver(gpu, colour, width)
            self._hand_over, encoder_format = on_gpu, on_gpu.encoder_format
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
            context.width, context.height, context.pix_fmt = width, height, encoder_format
            context.time_base = self._stream.time_base = self._time_base
            context.thread_count = options.threads
            context.sample_aspect_ratio = sample_aspect_ratio
            context.colorspace, context.color_range = colour.matrix, colour.range
            context.color_primaries, context.color_trc = colour.primaries, colour.transfer
            silence(options.encoder)
            if gpu is None:
                try:
                    context.open()
                except (av.FFmpegError, OSError) as error:
                    raise self._not_opened(error) from error
                self._begin_file()
        except BaseException:
            self._container.close()
            raise

    def write(self, frame: Frame | Any, read: Callable[[], None] = lambda: None) -> None:
        """Encode the next frame.

        Args:
            frame: uint8 `[H, W, 3]` for bgr24, `[H * 3 // 2, W]` for nv12; on a GPU a `gpu.types.DeviceArray`, see
                `DeviceHandOver`.
            read: called once, when the frame's memory may be drawn on again: before `write` returns if it lies on the
                host, with the frame's packet if on a GPU; `close` and `abort` see to what is left.

        Raises:
            OptionError: the encoder, which the first frame on a GPU opens, cannot be opened.
            OutputError: the file cannot be written, or the encoder fails.
        """
        number, self._next = self._next, self._next + 1
        # The frame too: FFmpeg lets go of frames in the order they came, not in that of their packets.
        self._reading[number] = frame, read
        self._mux(self._picture(frame, number))
        if self._gpu is None:
            self._has_read(number)
        elif len(self._reading) > NVENC_DELAY:
            # All surfaces would end up here, and the next frame would never come.
            raise OutputError(
                f"{self._encoder} gives no packets for {len(self._reading)} frames",
                file=self.path,
                remedy="use libx264",
            )

    def close(self) -> None:
        """Flush the encoder and finish the file."""
        try:
            if self._stream.codec_context.is_open:
                self._mux(None)
        except BaseException:
            self.abort()
            raise
        try:
            self._container.close()
        except (av.FFmpegError, OSError) as error:
            raise write_error(self.path, error) from error
        finally:
            self._let_go()

    def abort(self) -> None:
        """Stop, leaving a file that is not finished."""
        if self._gpu is not None and self._reading:
            with suppress(av.FFmpegError, OSError):  # what has failed was told: this is to wait for what is being read
                self._stream.encode(None)
        with suppress(av.FFmpegError, OSError):  # the file is thrown away: only its handle has to be released
            self._container.close()
        self._let_go()

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

    def _picture(self, frame: Any, number: int) -> av.VideoFrame:
        try:
            picture = self._hand_over(frame)
        except av.FFmpegError as error:
            raise self._not_opened(error) from error
        picture.pts, picture.time_base = number, self._time_base
        return picture

    def _mux(self, picture: av.VideoFrame | None) -> None:
        packet: Any = None
        packets: Any = None
        try:
            opened = self._stream.codec_context.is_open
            try:
                packets = self._stream.encode(picture)
            except (av.FFmpegError, OSError) as error:
                if not self._stream.codec_context.is_open:
                    raise self._not_opened(error) from error
                raise
            if not opened:
                self._begin_file()
            for packet in packets:
                # Packets come in the order of decoding: a frame has been read when its own is there.
                if packet.pts is not None:
                    self._has_read(packet.pts)
                self._mend_dts(packet)
                self._container.mux(packet)
        except (av.FFmpegError, OSError) as error:
            raise write_error(self.path, error) from error
        finally:
            packet = packets = picture = None  # a traceback that held them would hold the encoder, too

    def _has_read(self, number: int) -> None:
        if number in self._reading:
            _, read = self._reading.pop(number)
            read()

    def _let_go(self) -> None:
        """Drop the encoder, then give back every frame that it has not.

        Whoever still holds this, as an error's traceback does, holds no place among the encoders that the driver
        allows. Collected in a cycle, PyAV's `CudaContext` writes to standard error (its `__dealloc__`, PyAV 18.1).
        """
        for name in ("_stream", "_hand_over"):
            vars(self).pop(name, None)
        for number in list(self._reading):
            self._has_read(number)

    def _begin_file(self) -> None:
        try:
            self._container.start_encoding()
        except (av.FFmpegError, OSError) as error:
            raise write_error(self.path, error) from error

    def _not_opened(self, error: Exception) -> OptionError:
        remedy = "see `gpupipe doctor` for the encoders that open here"
        if self._gpu is not None and getattr(error, "errno", None) in TOO_MANY:
            remedy = (
                "the driver may allow no more encoders at a time: use fewer --encoders, end other programs that "
                "encode, or use libx264"
            )
        elif self._encoder in QUALITY_OPTION:
            remedy = f"it needs an NVIDIA GPU that encodes, and its driver, {NVENC_DRIVER} or later; {remedy}"
        return OptionError(f"cannot be opened: {reason(error)}", field="--encoder", value=self._encoder, remedy=remedy)

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
