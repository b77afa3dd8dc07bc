"""What a client sends of a speech: its config, and sound in messages that may end anywhere."""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Final, cast

import numpy as np
from numpy.typing import NDArray

from gpupipe.serve.encoders import JPEG_QUALITY, PictureOutput
from gpupipe.serve.grpc import avatar_pb2 as pb
from gpupipe.serve.order import DELAY_SECONDS, LEAST_DELAY_SECONDS, TalkOrder
from gpupipe.serve.refusals import BadRequest
from gpupipe.speech.mel import SAMPLE_RATE

PIECE_SECONDS: Final = Fraction(1, 2)
"""Of sound that a talk is given at a time: a message may hold an hour of it."""

MOST_DELAY_SECONDS: Final = 30.0
RATES: Final = (4_000, 192_000)
"""Samples a second, at least and at most."""

OUTPUTS: Final[dict[Any, PictureOutput]] = {
    pb.OUTPUT_H264: "h264",
    pb.OUTPUT_HEVC: "hevc",
    pb.OUTPUT_JPEG: "jpeg",
    pb.OUTPUT_NV12: "nv12",
}
FORMATS: Final[dict[int, str]] = {
    pb.SAMPLE_FORMAT_UNSPECIFIED: "<i2",
    pb.SAMPLE_FORMAT_PCM_S16LE: "<i2",
    pb.SAMPLE_FORMAT_PCM_F32LE: "<f4",
}


@dataclass(frozen=True)
class Wish:
    """What a config asks for.

    Attributes:
        order: the talk.
        output: what its pictures become.
        dtype: of samples, as they are sent.
        jpeg_quality: of images.
    """

    order: TalkOrder
    output: PictureOutput
    dtype: np.dtype[Any]
    jpeg_quality: int


def wish_of(request: Any) -> Wish:
    """What the first message asks for.

    Raises:
        BadRequest: it is no config, or one of its values cannot be had.
    """
    if request.WhichOneof("request") != "config":
        raise BadRequest("must come first", field="config", remedy="send the config, then sound")
    config = request.config
    if config.output not in OUTPUTS:
        raise BadRequest(
            "no such output",
            field="output",
            value=config.output,
            remedy=f"give one of {', '.join(pb.Output.Name(each) for each in OUTPUTS)}",
        )
    if config.sample_format not in FORMATS:
        raise BadRequest(
            "no such format", field="sample_format", value=config.sample_format, remedy="give PCM_S16LE or PCM_F32LE"
        )
    rate = _within("sample_rate", config.sample_rate, *RATES, default=SAMPLE_RATE)
    delay = config.delay_seconds or DELAY_SECONDS
    if not LEAST_DELAY_SECONDS <= delay <= MOST_DELAY_SECONDS:
        raise BadRequest(
            "out of range",
            field="delay_seconds",
            value=config.delay_seconds,
            remedy=f"give {LEAST_DELAY_SECONDS} to {MOST_DELAY_SECONDS}, or 0 for {DELAY_SECONDS}",
        )
    output = OUTPUTS[config.output]
    order = TalkOrder(
        config.character,
        output,
        realtime=config.realtime,
        delay=delay,
        start_frame=_within("start_frame", config.start_frame, 0, 2**31 - 1, default=0),
        rate=rate,
    )
    quality = _within("jpeg_quality", config.jpeg_quality, 1, 100, default=JPEG_QUALITY)
    return Wish(order, output, np.dtype(FORMATS[config.sample_format]), quality)


def _within(field: str, value: int, least: int, most: int, *, default: int) -> int:
    if value == 0:
        return default
    if not least <= value <= most:
        raise BadRequest("out of range", field=field, value=value, remedy=f"give {least} to {most}")
    return value


class Samples:
    """Sound as bytes that are cut anywhere.

    Args:
        dtype: of a sample.
        rate: samples a second.
    """

    def __init__(self, dtype: np.dtype[Any], rate: int) -> None:
        self._dtype = dtype
        self._piece = max(1, int(rate * PIECE_SECONDS)) * dtype.itemsize
        self._rest = b""

    def pieces(self, data: bytes) -> list[memoryview]:
        """A message's sound, with what was left of the one before, in pieces of whole samples; not copied."""
        joined = memoryview(self._rest + data if self._rest else data)
        whole = len(joined) - len(joined) % self._dtype.itemsize
        self._rest = bytes(joined[whole:])
        return [joined[at : min(at + self._piece, whole)] for at in range(0, whole, self._piece)]

    def pcm(self, piece: memoryview) -> NDArray[np.float32]:
        """A piece as float32 `[n]`, full scale ±1."""
        samples = np.frombuffer(piece, self._dtype)
        if self._dtype.kind == "i":
            return cast(NDArray[np.float32], samples.astype(np.float32) / np.float32(32768))
        return samples.astype(np.float32)

    def finish(self) -> None:
        """The speech is over.

        Raises:
            BadRequest: it ends within a sample.
        """
        if self._rest:
            raise BadRequest(
                "ends within a sample",
                field="audio",
                value=f"{len(self._rest)} bytes too many",
                remedy=f"send {self._dtype.itemsize} bytes a sample",
            )


class SoundOfFrames:
    """The sound of each frame, as it was sent: samples from index / fps up to (index + 1) / fps, rounded down.

    Args:
        itemsize: bytes a sample.
        rate: samples a second.
        fps: frames a second.
    """

    def __init__(self, itemsize: int, rate: int, fps: Fraction) -> None:
        self._itemsize, self._samples = itemsize, rate / fps
        self._pieces: deque[memoryview] = deque()
        self._given = 0

    def add(self, piece: memoryview) -> None:
        """Take sound, in whole samples. It is copied: a piece would keep all of its message in memory."""
        self._pieces.append(memoryview(bytes(piece)))

    def of(self, index: int) -> bytes:
        """That of a frame, each asked for once and in order; less where the sound has ended."""
        end = math.floor((index + 1) * self._samples) * self._itemsize
        return self._take(end - self._given)

    def rest(self) -> bytes:
        """What is left."""
        return self._take(sum(map(len, self._pieces)))

    def _take(self, wanted: int) -> bytes:
        taken = bytearray()
        while self._pieces and len(taken) < wanted:
            piece = self._pieces.popleft()
            part = piece[: wanted - len(taken)]
            taken += part
            if len(part) < len(piece):
                self._pieces.appendleft(piece[len(part) :])
        self._given += len(taken)
        return bytes(taken)
