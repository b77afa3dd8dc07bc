"""A fragmented MP4: its pieces play from the first on, and sound and picture keep their times."""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from numpy.typing import NDArray

from gpupipe.colour import Colour
from gpupipe.errors import OptionError, OutputError
from gpupipe.media.encoders import EncoderOptions
from gpupipe.media.fragments import FRAGMENT_SECONDS, KEYFRAME_SECONDS, SOUND_RATE, FragmentWriter
from gpupipe.media.sound import decode_sound
from gpupipe.media.video import probe, read_frames
from gpupipe.render.verify import verify

WIDTH, HEIGHT = 64, 48


def pictures(count: int) -> NDArray[np.uint8]:
    """nv12 frames whose luma says their number: 2 a frame."""
    frames = np.full((count, HEIGHT * 3 // 2, WIDTH), 128, np.uint8)
    frames[:, :HEIGHT] = 16 + 2 * np.arange(count, dtype=np.uint8)[:, None, None]
    return frames


def clicks(rate: int, channels: int, seconds: float) -> Iterator[NDArray[np.float32]]:
    """A short tone at each half second, in chunks of awkward length."""
    count = round(seconds * rate)
    sound = np.zeros((channels, count), np.float32)
    tone = np.sin(2 * np.pi * 1000 * np.arange(rate // 50) / rate).astype(np.float32)
    for start in range(rate // 2, count - len(tone), rate):
        sound[:, start : start + len(tone)] = tone
    for start in range(0, count, 7001):
        yield sound[:, start : start + 7001]


def boxes(data: bytes) -> list[str]:
    found, at = [], 0
    while at < len(data):
        size = int.from_bytes(data[at : at + 4], "big")
        found.append(data[at + 4 : at + 8].decode("ascii"))
        at += size
    assert at == len(data), "every piece ends with a box"
    return found


@pytest.mark.parametrize(
    ("fps", "rate", "channels", "count"),
    [
        (Fraction(25), SOUND_RATE, 1, 80),
        (Fraction(30_000, 1001), 44_100, 2, 61),
        (Fraction(60), 32_000, 1, 100),
        (Fraction(25), SOUND_RATE, 1, 1),
    ],
)
def test_picture_and_sound_keep_their_times(
    tmp_path: Path, fps: Fraction, rate: int, channels: int, count: int
) -> None:
    colour = Colour(matrix=1, range=1, primaries=1, transfer=1)
    writer = FragmentWriter(
        width=WIDTH,
        height=HEIGHT,
        fps=fps,
        sound=clicks(rate, channels, 1.8),  # shorter than most: silence follows; longer than the others: it is cut
        rate=rate,
        channels=channels,
        colour=colour,
        sample_aspect_ratio=Fraction(4, 3),
    )
    pieces = [writer.write(frame) for frame in pictures(count)]
    pieces.append(writer.finish())
    writer.close()
    path = tmp_path / "answer.mp4"
    path.write_bytes(b"".join(pieces))

    found = verify(path)
    assert found.problems == []
    assert (found.frames, found.width, found.height, found.fps) == (count, WIDTH, HEIGHT, fps)
    assert found.keyframes == list(range(0, count, round(KEYFRAME_SECONDS * fps)))
    info = probe(path)
    assert (info.colour, info.sample_aspect_ratio) == (colour, Fraction(4, 3))
    luma = [float(frame[:HEIGHT].mean()) for frame in read_frames(path, "nv12")]
    assert np.abs(np.array(luma) - (16 + 2 * np.arange(count))).max() < 1.5
    sound = np.concatenate(list(decode_sound(path, rate=rate, layout="mono" if channels == 1 else "stereo")), axis=1)
    assert 0 <= sound.shape[1] / rate - float(count / fps) <= 0.05
    if count > 1:
        loud = np.flatnonzero(np.abs(sound[0]) > 0.3)
        assert abs(loud[0] / rate - 0.5) < 0.002

    given = [piece for piece in pieces if piece]
    assert boxes(given[0])[:4] == ["ftyp", "moov", "moof", "mdat"]
    assert all(boxes(piece) == ["moof", "mdat"] for piece in given[1:-1])
    lengths = np.diff([number for number, piece in enumerate(pieces) if piece], prepend=0) / float(fps)
    assert lengths.max() <= FRAGMENT_SECONDS + 2 / float(fps) + 0.05


def test_the_first_piece_plays_alone(tmp_path: Path) -> None:
    writer = FragmentWriter(width=WIDTH, height=HEIGHT, fps=Fraction(25), sound=clicks(SOUND_RATE, 1, 2))
    piece = next(piece for frame in pictures(50) if (piece := writer.write(frame)))
    writer.close()
    path = tmp_path / "first.mp4"
    path.write_bytes(piece)
    assert writer.codecs == "avc1.64000a,mp4a.40.2"
    with av.open(str(path)) as container:
        assert sum(1 for _ in container.decode(video=0)) >= 4
    with av.open(str(path)) as container:
        assert sum(frame.samples for frame in container.decode(audio=0)) >= 0.1 * SOUND_RATE


def test_without_sound(tmp_path: Path) -> None:
    writer = FragmentWriter(width=WIDTH, height=HEIGHT, fps=Fraction(25), sound=None)
    path = tmp_path / "silent.mp4"
    path.write_bytes(b"".join([*(writer.write(frame) for frame in pictures(10)), writer.finish()]))
    assert writer.codecs == "avc1.64000a"
    found = verify(path)
    assert (found.problems, found.frames, found.sound_seconds) == ([], 10, None)


def test_what_cannot_be_written() -> None:
    with pytest.raises(OutputError, match="even"):
        FragmentWriter(width=63, height=48, fps=Fraction(25), sound=None)
    with pytest.raises(OptionError, match="use libx264"):
        FragmentWriter(width=64, height=48, fps=Fraction(25), sound=None, options=EncoderOptions("mpeg4"))


def test_an_error_of_the_sound_is_told() -> None:
    def broken() -> Iterator[NDArray[np.float32]]:
        yield np.zeros((1, 3000), np.float32)
        raise OutputError("the sound is damaged")

    writer = FragmentWriter(width=WIDTH, height=HEIGHT, fps=Fraction(25), sound=broken())
    writer.write(pictures(1)[0])
    with pytest.raises(OutputError, match="the sound is damaged"):
        writer.write(pictures(1)[0])
    writer.close()
    writer.close()
