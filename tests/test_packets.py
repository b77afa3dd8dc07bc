"""What a talk's pictures become: packets one by one, images, frames; and the sound that belongs to each."""

from __future__ import annotations

from fractions import Fraction

import av
import numpy as np
import pytest
from numpy.typing import NDArray

from gpupipe.colour import Colour
from gpupipe.errors import OutputError
from gpupipe.media.live_encoder import LiveCodec, LiveEncoder
from gpupipe.serve.encoders import FrameEncoder, JpegEncoder
from gpupipe.serve.grpc.hearing import Samples, SoundOfFrames
from gpupipe.serve.talk import Picture

WIDTH, HEIGHT, FPS = 64, 48, Fraction(10)


def pictures(count: int) -> list[NDArray[np.uint8]]:
    """Grey that changes, so that a frame can be told from another."""
    frames = []
    for number in range(count):
        frame = np.full((HEIGHT * 3 // 2, WIDTH), 128, np.uint8)
        frame[:HEIGHT] = 20 + 4 * number
        frame[:HEIGHT, 8:16] = 200
        frames.append(frame)
    return frames


def decoded(codec: str, packets: list[bytes]) -> list[av.VideoFrame]:
    decoder = av.CodecContext.create(codec, "r")
    shown = [each for data in packets for each in decoder.decode(av.Packet(data))]  # type: ignore[attr-defined]
    return [*shown, *decoder.decode(None)]  # type: ignore[attr-defined]


@pytest.mark.parametrize("codec", ["h264", "hevc"])
def test_every_frame_has_its_packet_at_once(codec: LiveCodec) -> None:
    frames = pictures(45)
    encoder = LiveEncoder(codec, width=WIDTH, height=HEIGHT, fps=FPS, colour=Colour(1, 1, 1, 1))
    packets = []
    for number, frame in enumerate(frames):
        (packet,) = encoder.encode(frame)
        frame[:] = 0  # the encoder is done with it
        assert packet.number == number
        packets.append(packet)
    assert encoder.finish() == []
    encoder.close()
    encoder.close()
    assert [packet.number for packet in packets if packet.keyframe] == [0, 20, 40]  # every two seconds
    assert all(packet.data.startswith((b"\0\0\0\1", b"\0\0\1")) for packet in packets)
    # Who joins at any keyframe sees all from there on: each has the parameter sets.
    for first in (0, 20, 40):
        shown = decoded(codec, [packet.data for packet in packets[first:]])
        assert len(shown) == 45 - first
        assert (shown[0].colorspace, shown[0].color_range) == (1, 1)
        for number, picture in enumerate(shown, first):
            assert abs(picture.to_ndarray()[2, 40].astype(int) - (20 + 4 * number)) < 4


def test_a_stream_has_an_even_size() -> None:
    with pytest.raises(OutputError, match="even"):
        LiveEncoder("h264", width=63, height=48, fps=FPS, colour=Colour())


@pytest.mark.parametrize("encoder", [FrameEncoder(), JpegEncoder(Colour(), 90)])
def test_what_repeats_is_not_sent_again(encoder: FrameEncoder | JpegEncoder) -> None:
    """But the first picture has its bytes, though it stands for one that was passed over."""
    (frame,) = pictures(1)
    shown = [(0, True), (1, True), (2, False), (3, True)]
    answers = [answer for index, again in shown for answer in encoder.encode(Picture(index, frame, again))]
    assert [(each.index, each.repeats, each.keyframe, len(each.data) > 0) for each in answers] == [
        (0, True, True, True),
        (1, True, False, False),
        (2, False, True, True),
        (3, True, False, False),
    ]
    assert list(encoder.finish()) == []


@pytest.mark.parametrize("rate", [16_000, 44_100, 11_025])
def test_each_frame_has_the_samples_of_its_own_time(rate: int) -> None:
    fps = Fraction(30_000, 1001)
    data = np.arange(rate, dtype="<u2").tobytes()
    samples, sound = Samples(np.dtype("<i2"), rate), SoundOfFrames(2, rate, fps)
    for at in range(0, len(data), 777):
        for piece in samples.pieces(data[at : at + 777]):
            sound.add(piece)
    samples.finish()
    given = [sound.of(index) for index in range(29)]
    for index, each in enumerate(given):
        first, end = (int(number * rate / fps) for number in (index, index + 1))
        assert np.array_equal(np.frombuffer(each, "<u2"), np.arange(first, end, dtype="<u2"))
    assert b"".join(given) + sound.rest() == data
    assert sound.of(30) == b""
