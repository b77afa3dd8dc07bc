"""A fragmented MP4, made piece by piece in memory while its frames come: what a player shows before it is finished.

The file begins with an index that names no frame (`empty_moov`); fragments follow, each a part of a second with its own
index, so that whoever has received one can play it (ISO/IEC 14496-12, 8.8; W3C, Media Source Extensions, ISO BMFF byte
stream format). A user of `av`, beside `encode`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from fractions import Fraction
from typing import Any, Final, cast

import av
import numpy as np
from av.audio.frame import AudioFrame
from av.audio.stream import AudioStream
from numpy.typing import NDArray

from gpupipe.colour import Colour
from gpupipe.errors import OptionError, OutputError, reason
from gpupipe.media.encoders import EncoderOptions, encoder_name
from gpupipe.media.handover import Frame, HandOver
from gpupipe.media.soundtrack import AAC_RATES, BITS_PER_CHANNEL
from gpupipe.media.video import require_even

FRAGMENT_SECONDS: Final = 0.2
"""A fragment is complete with the first packet that lasts longer than this. Its index takes some 300 bytes."""

KEYFRAME_SECONDS: Final = 1
"""Between the frames at which decoding can begin: a player may jump to them."""

SOUND_RATE: Final = 48_000
"""Samples a second where a sound's own rate is none of AAC's that are kept."""

LOW_DELAY: Final = {"libx264": {"tune": "zerolatency"}}
"""Encoders that give each frame's packet at once, and the options that make them. x264's is without B frames, without
looking ahead, and with threads that share a frame."""

AAC_LC: Final = "mp4a.40.2"


def sound_rate(rate: int) -> int:
    """Samples a second of the sound in a fragmented file, for one with so many.

    >>> sound_rate(44_100), sound_rate(16_000)
    (44100, 48000)
    """
    return rate if rate in AAC_RATES else SOUND_RATE


class FragmentWriter:
    """Encodes frames, and the sound that belongs to them, into a fragmented MP4.

    They become H.264 and AAC. The sound keeps step with the picture, however long its encoder's delay is: its first
    packets have negative times, which the index tells as an edit list.

    Args:
        width: pixels, even.
        height: pixels, even.
        fps: frames a second.
        sound: chunks of samples, float32 `[channels, n]`, from time 0; as many are taken as the picture lasts, so that
            an iterator may decode them as they are asked for. What is missing is silence. None: without sound.
        rate: samples a second of the sound, one of `AAC_RATES`.
        channels: of the sound, 1 or 2.
        options: how to encode, see `LOW_DELAY`.
        colour: written as the stream's tags.
        sample_aspect_ratio: width of a pixel over its height.

    Raises:
        OptionError: the encoder gives no packet at once, or cannot be opened here.
        OutputError: the size or the rate is none that can be written.
    """

    def __init__(
        self,
        *,
        width: int,
        height: int,
        fps: Fraction,
        sound: Iterator[NDArray[np.float32]] | None,
        rate: int = SOUND_RATE,
        channels: int = 1,
        options: EncoderOptions | None = None,
        colour: Colour | None = None,
        sample_aspect_ratio: Fraction = Fraction(1),
    ) -> None:
        options = options or EncoderOptions()
        options = replace(options, encoder=encoder_name(options.encoder))
        if options.encoder not in LOW_DELAY:
            raise OptionError(
                "gives no packet at once",
                field="--encoder",
                value=options.encoder,
                remedy=f"use {', '.join(LOW_DELAY)}",
            )
        colour = colour or Colour()
        require_even("the answer", width, height, what="video", error=OutputError)
        self._fps, self._time_base = fps, 1 / fps
        self.frames = 0
        self._pieces = _Pieces()
        self._hand_over = HandOver("nv12", colour, options.encoder)
        self._container = av.open(
            self._pieces,
            "w",
            format="mp4",
            options={
                # The index waits for the first packets: else it could not say when the sound begins.
                "movflags": "+frag_keyframe+empty_moov+delay_moov+default_base_moof+skip_trailer",
                "frag_duration": str(round(FRAGMENT_SECONDS * 1e6)),
                "min_frag_duration": "0",
            },
        )
        try:
            self._stream = cast(av.VideoStream, self._container.add_stream(options.encoder, rate=fps))
            context = self._stream.codec_context
            context.options = options.codec_options(context) | LOW_DELAY[options.encoder]
            context.width, context.height, context.pix_fmt = width, height, self._hand_over.encoder_format
            context.time_base = self._stream.time_base = self._time_base
            context.gop_size = max(1, round(KEYFRAME_SECONDS * fps))
            context.thread_count = options.threads
            context.sample_aspect_ratio = sample_aspect_ratio
            context.colorspace, context.color_range = colour.matrix, colour.range
            context.color_primaries, context.color_trc = colour.primaries, colour.transfer
            self._sound = None if sound is None else _Sound(self._container, sound, rate, channels)
            try:
                context.open()
            except (av.FFmpegError, OSError) as error:
                raise OptionError(
                    f"cannot be opened: {reason(error)}",
                    field="--encoder",
                    value=options.encoder,
                    remedy="see `gpupipe doctor` for the encoders that open here",
                ) from error
            self._container.start_encoding()
        except (av.FFmpegError, OSError) as error:
            self.close()
            raise _error(error) from error
        except BaseException:
            self.close()
            raise

    @property
    def codecs(self) -> str:
        """What is in the file, as browsers are asked whether they play it (RFC 6381): `avc1.640015,mp4a.40.2`."""
        video = _avc(bytes(self._stream.codec_context.extradata or b""))
        return video if self._sound is None else f"{video},{AAC_LC}"

    def write(self, frame: Frame) -> bytes:
        """Encode the next frame, with the sound that lasts as long.

        Args:
            frame: uint8 nv12 `[H * 3 // 2, W]`; it may be drawn on again once this returns.

        Returns:
            What has been completed of the file, which may be nothing.

        Raises:
            OutputError: an encoder fails.
            MediaError: the sound does.
        """
        try:
            picture = self._hand_over(frame)
            picture.pts, picture.time_base = self.frames, self._time_base
            self.frames += 1
            packets = self._stream.encode(picture)
            if self._sound is not None:
                self._mux(self._sound.until(self.frames / self._fps))
            self._mux(packets)
        except (av.FFmpegError, OSError) as error:
            raise _error(error) from error
        return self._pieces.take()

    def finish(self) -> bytes:
        """The end of the file, after the last frame; raises like `write`."""
        try:
            if self._sound is not None:
                self._mux(self._sound.finish())
            self._mux(self._stream.encode(None))
            self._container.close()
        except (av.FFmpegError, OSError) as error:
            raise _error(error) from error
        return self._pieces.take()

    def close(self) -> None:
        """Release everything, finished or not. More than once is allowed."""
        with suppress(av.FFmpegError, OSError):  # of an unfinished file nothing is wanted any more
            self._container.close()

    def _mux(self, packets: Any) -> None:
        for packet in packets:
            self._container.mux(packet)


class _Sound:
    """Samples on their way to AAC packets, as many as the picture lasts."""

    def __init__(
        self, container: av.container.OutputContainer, chunks: Iterator[NDArray[np.float32]], rate: int, channels: int
    ) -> None:
        self._chunks, self._rate, self._channels = chunks, rate, channels
        self._layout = "mono" if channels == 1 else "stereo"
        self._left = np.empty((channels, 0), np.float32)
        self._given = 0
        self._stream: AudioStream = container.add_stream("aac", rate=rate, layout=self._layout)
        self._stream.codec_context.bit_rate = channels * BITS_PER_CHANNEL
        self._stream.codec_context.open()

    def until(self, seconds: Fraction) -> list[Any]:
        """The packets that are complete with the sound up to a time."""
        samples = self._next(round(seconds * self._rate) - self._given)
        frame = AudioFrame.from_ndarray(samples, format="fltp", layout=self._layout)
        frame.sample_rate, frame.time_base, frame.pts = self._rate, Fraction(1, self._rate), self._given
        self._given += samples.shape[1]
        return self._stream.encode(frame)

    def finish(self) -> list[Any]:
        """The packets that are left."""
        return self._stream.encode(None)

    def _next(self, wanted: int) -> NDArray[np.float32]:
        while self._left.shape[1] < wanted:
            chunk = next(self._chunks, None)
            if chunk is None:
                chunk = np.zeros((self._channels, wanted - self._left.shape[1]), np.float32)
            self._left = np.concatenate([self._left, chunk], axis=1)
        taken, self._left = self._left[:, :wanted], self._left[:, wanted:]
        return np.ascontiguousarray(taken)


class _Pieces:
    """What the muxer writes, until it is taken. It does not seek."""

    def __init__(self) -> None:
        self._written: list[bytes] = []

    def write(self, data: bytes) -> int:
        self._written.append(bytes(data))
        return len(data)

    def take(self) -> bytes:
        data, self._written = b"".join(self._written), []
        return data


def _avc(extradata: bytes) -> str:
    """A stream's H.264 profile and level, of its sequence parameter set: the three bytes behind that one's type 7
    (ITU-T H.264, 7.3.2.1.1 and 7.4.1)."""
    for start in range(3, len(extradata) - 3):
        if extradata[start - 3 : start] == b"\0\0\1" and extradata[start] & 31 == 7:
            return f"avc1.{extradata[start + 1 : start + 4].hex()}"
    raise OutputError("the encoder tells no H.264 profile", field="--encoder", remedy="use libx264")


def _error(error: Exception) -> OutputError:
    return OutputError(f"the video cannot be encoded: {reason(error)}", remedy="see the log")
