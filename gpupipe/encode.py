"""Writing video: one encoder for a run of frames, and the joining of such runs into a finished file."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Any, cast

import av
import numpy as np
from av.video.reformatter import VideoReformatter
from numpy.typing import NDArray

from gpupipe.colour import Colour
from gpupipe.compositor import PixelFormat
from gpupipe.errors import OptionError, OutputError

Frame = NDArray[np.uint8]

COPIES_INPUT = frozenset({"libx264", "libx265"})
"""Encoders that have copied a frame's pixels when `encode` returns, so that its buffer may be handed over as it is."""

QUALITY_OPTION = {"h264_nvenc": "cq", "hevc_nvenc": "cq", "av1_nvenc": "cq"}
"""The option that holds the constant quality of encoders that do not call it `crf`."""

DEFAULTS: dict[str, tuple[int, str]] = {
    "libx264": (20, "veryfast"),
    "libx265": (23, "veryfast"),
    "libsvtav1": (30, "10"),
    "h264_nvenc": (20, "p4"),
    "hevc_nvenc": (23, "p4"),
    "av1_nvenc": (28, "p4"),
}
"""Constant quality and preset where none is asked for; other encoders keep their own defaults."""

X264_FAMILY = frozenset({"libx264", "libx265"})
X264_PRESETS = (
    "ultrafast", "superfast", "veryfast", "faster", "fast", "medium", "slow", "slower", "veryslow", "placebo"
)  # fmt: skip
"""The presets of libx264 and libx265, which FFmpeg passes on as text and therefore does not list."""

FIXED: dict[str, dict[str, str]] = {
    # x264's AVX-512 code for the macroblock tree reads memory that nothing has written when a row of macroblocks is no
    # multiple of 16: the same frames give other bytes at every run (seen with the x264 of the PyAV 18.1 wheel).
    "libx264": {"x264-params": "mbtree=0"},
    "libx265": {"x265-params": "log-level=error"},  # it writes to standard error on its own
}
"""Options that an encoder always gets."""

DEFAULT_THREADS = 4
"""Encoder threads, the same on every machine: x264's output depends on their number, and a joined file must not depend
on who encoded which part."""


@dataclass(frozen=True)
class EncoderOptions:
    """How to encode.

    Attributes:
        encoder: FFmpeg's name of the encoder.
        crf: constant quality, lower is better; None for the default (20 for libx264).
        preset: speed against size, by the encoder's own names; None for the default (veryfast for libx264).
        threads: encoder threads.
    """

    encoder: str = "libx264"
    crf: int | None = None
    preset: str | None = None
    threads: int = DEFAULT_THREADS

    def codec_options(self, context: av.VideoCodecContext) -> dict[str, str]:
        """The options in the encoder's own names.

        Raises:
            OptionError: the encoder has no such option, or the option no such value.
        """
        own = {option.name: option for option in context.supported_options.private}
        crf, preset = DEFAULTS.get(self.encoder, (None, None))
        crf, preset = crf if self.crf is None else self.crf, self.preset or preset
        chosen: dict[str, str] = {}
        if crf is not None:
            name = QUALITY_OPTION.get(self.encoder, "crf")
            if name not in own:
                raise OptionError(
                    f"{self.encoder} has no constant quality", field="--crf", value=crf, remedy="leave --crf out"
                )
            # x264 and x265 state no limit, and take what is above 51 for 51.
            highest = min(int(own[name].max), 51 if self.encoder in X264_FAMILY else 255)
            if not 0 <= crf <= highest:
                raise OptionError("out of range", field="--crf", value=crf, remedy=f"give 0 to {highest}")
            chosen[name] = str(crf)
        if preset is not None:
            if "preset" not in own:
                raise OptionError(
                    f"{self.encoder} has no presets", field="--preset", value=preset, remedy="leave --preset out"
                )
            known = X264_PRESETS if self.encoder in X264_FAMILY else [c.name for c in own["preset"].choices or ()]
            if known and preset not in known:
                raise OptionError(
                    f"{self.encoder} has no such preset",
                    field="--preset",
                    value=preset,
                    remedy=f"give one of {', '.join(known)}",
                )
            chosen["preset"] = preset
        chosen |= FIXED.get(self.encoder, {})
        return chosen


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

    Raises:
        OptionError: the encoder or an option of it does not exist.
        OutputError: the file cannot be written or the encoder cannot be opened.
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
    ) -> None:
        options = options or EncoderOptions()
        colour = colour or Colour()
        if width % 2 or height % 2:
            raise OutputError(
                "4:2:0 video needs an even width and height",
                file=path,
                field="size",
                value=f"{width}x{height}",
                remedy="write images instead, or crop the body video",
            )
        self.path = Path(path)
        self._pixel_format = pixel_format
        self._colour = colour
        self._height = height
        self._next = 0
        self._reformatter = VideoReformatter()
        self._zero_copy = options.encoder in COPIES_INPUT and height % 4 == 0
        formats = encoder_formats(options.encoder)
        self._encoder_format = next((f for f in ("nv12", "yuv420p") if f in formats), None)
        if self._encoder_format is None:
            raise OptionError(
                "takes neither nv12 nor yuv420p", field="--encoder", value=options.encoder, remedy="use libx264"
            )
        self._time_base = 1 / fps
        try:
            self._container = av.open(str(path), "w")
        except (av.FFmpegError, OSError) as error:
            raise _write_error(path, error) from error
        try:
            self._stream = cast(av.VideoStream, self._container.add_stream(options.encoder, rate=fps))
            context = self._stream.codec_context
            context.options = options.codec_options(context)
            context.width, context.height, context.pix_fmt = width, height, self._encoder_format
            context.time_base = self._stream.time_base = self._time_base
            context.thread_count = options.threads
            context.sample_aspect_ratio = sample_aspect_ratio
            context.colorspace, context.color_range = colour.matrix, colour.range
            context.color_primaries, context.color_trc = colour.primaries, colour.transfer
            try:
                self._container.start_encoding()
            except (av.FFmpegError, OSError) as error:
                needs = "it needs an NVIDIA GPU and its driver; " if options.encoder.endswith("_nvenc") else ""
                raise OutputError(
                    f"cannot be opened: {_reason(error)}",
                    field="--encoder",
                    value=options.encoder,
                    remedy=f"{needs}see `gpupipe doctor` for the encoders that open here",
                ) from error
        except BaseException:
            self._container.close()
            raise

    def write(self, frame: Frame) -> None:
        """Encode the next frame; its array may be used again afterwards.

        Args:
            frame: uint8 `[H, W, 3]` for bgr24, `[H * 3 // 2, W]` for nv12.
        """
        picture = self._picture(frame)
        picture.pts, picture.time_base = self._next, self._time_base
        self._next += 1
        self._mux(picture)

    def close(self) -> None:
        """Flush the encoder and finish the file."""
        self._mux(None)
        try:
            self._container.close()
        except (av.FFmpegError, OSError) as error:
            raise _write_error(self.path, error) from error

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
            self._container.mux(self._stream.encode(picture))
        except (av.FFmpegError, OSError) as error:
            raise _write_error(self.path, error) from error

    def _picture(self, frame: Frame) -> av.VideoFrame:
        wrap = av.VideoFrame.from_numpy_buffer if self._zero_copy else av.VideoFrame.from_ndarray
        if self._pixel_format == "nv12" and self._encoder_format == "yuv420p":
            picture = av.VideoFrame.from_ndarray(_planar(frame, self._height), format="yuv420p")
        else:
            picture = wrap(frame, format=self._pixel_format)
        if self._pixel_format == "bgr24":
            picture = self._reformatter.reformat(
                picture,
                format=self._encoder_format,
                dst_colorspace=self._colour.matrix,
                dst_color_range=self._colour.range,
            )
        picture.colorspace, picture.color_range = self._colour.matrix, self._colour.range
        return picture


def encoder_formats(encoder: str) -> list[str]:
    """The pixel formats that an encoder takes.

    Raises:
        OptionError: PyAV has no such video encoder.
    """
    return [f.name for f in _codec(encoder).video_formats or ()]


def part_suffix(encoder: str, output_suffix: str) -> str:
    """The suffix of the parts of a video: .mp4, which keeps decoding times, unless it cannot hold the codec.

    Raises:
        OptionError: PyAV has no such video encoder.
    """
    codec = _codec(encoder).canonical_name
    with av.open(io.BytesIO(), "w", format="mp4") as container:
        return ".mp4" if codec in container.supported_codecs else output_suffix


def _codec(encoder: str) -> av.Codec:
    try:
        codec = av.Codec(encoder, "w")
    except ValueError:  # av.codec.codec.UnknownCodecError
        codec = None
    if codec is None or codec.type != "video":
        raise OptionError(
            "is no video encoder of this PyAV",
            field="--encoder",
            value=encoder,
            remedy="use libx264, or see `gpupipe doctor`",
        )
    return codec


def join(parts: Sequence[Path], output: Path, fps: Fraction) -> None:
    """Join parts that were encoded one by one into `output`, without encoding again.

    Args:
        parts: files that `VideoWriter` finished with the same settings, in order.
        output: the joined file.
        fps: frames a second.

    Raises:
        OutputError: `output` cannot be written.
    """
    try:
        with av.open(str(output), "w", options={"movflags": "+faststart"} if output.suffix == ".mp4" else {}) as joined:
            with av.open(str(parts[0])) as first:
                # Opaque: the codec is taken as it is, for some decoders (libdav1d) have no encoder of their name.
                stream = joined.add_stream_from_template(first.streams.video[0], opaque=True)
            stream.time_base = 1 / fps
            for packet in _in_one_time(parts, fps):
                packet.stream = stream
                joined.mux(packet)
    except (av.FFmpegError, OSError) as error:
        raise _write_error(output, error) from error


def _in_one_time(parts: Sequence[Path], fps: Fraction) -> Iterator[Any]:
    """The packets of all parts on one time line.

    Decoding times count on evenly over the joins. A part of one or two frames reorders less than the others do, so its
    own decoding times would leave a gap, and a wrong average frame rate.
    """
    delay: int | None = None
    done = shown = 0
    for path in parts:
        with av.open(str(path)) as part:
            shown = done
            for packet in part.demux(part.streams.video[0]):
                if not packet.size:
                    continue
                assert packet.pts is not None
                assert packet.time_base is not None
                if delay is None:
                    delay = -round((packet.dts or 0) * packet.time_base * fps)
                packet.pts = round(packet.pts * packet.time_base * fps) + shown
                packet.dts = done - delay
                packet.duration = 1
                packet.time_base = 1 / fps
                done += 1
                yield packet


def _planar(frame: Frame, height: int) -> Frame:
    """nv12 as yuv420p, both `[H * 3 // 2, W]`: the two chroma planes one after the other."""
    out = np.empty_like(frame)
    out[:height] = frame[:height]
    chroma = frame[height:].reshape(-1, 2)
    out[height:].reshape(2, -1)[...] = chroma.T
    return out


def _reason(error: Exception) -> str:
    return str(getattr(error, "strerror", None) or error)


def _write_error(path: Path | str, error: Exception) -> OutputError:
    return OutputError(
        f"cannot be written: {_reason(error)}", file=path, remedy="check the folder, its rights and its free space"
    )
