"""Matroska files, as which some videos called .mp4 turn out: whole ones are read, cut ones are told."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import small

from gpupipe.character.folder import Character
from gpupipe.errors import MediaError
from gpupipe.media.video import probe, read_frames


@pytest.fixture
def matroska(tmp_path: Path) -> bytes:
    """A video of 12 frames that decode in another order than they are shown in."""
    path = tmp_path / "whole.mkv"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25)
        stream.codec_context.options = {"bf": "2", "b_strategy": "0"}
        stream.width, stream.height, stream.pix_fmt = 96, 64, "yuv420p"
        for frame in small.pictures(96, 64, 12):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="bgr24")))
        container.mux(stream.encode(None))
    with av.open(str(path)) as container:
        times = [packet.pts for packet in container.demux(video=0) if packet.size]
    assert times != sorted(time for time in times if time is not None)
    return path.read_bytes()


def test_a_character_of_matroska_files(tmp_path: Path, matroska: bytes) -> None:
    folder = small.small_character(tmp_path / "character")
    (folder / "full_body_video.mp4").write_bytes(matroska)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        character = Character.load(folder)
    assert (character.count, character.body.frames, character.body.fps) == (12, 12, Fraction(25))
    assert len(list(read_frames(character.body.path, "nv12"))) == 12


def test_one_that_is_cut_off_anywhere(tmp_path: Path, matroska: bytes) -> None:
    path = tmp_path / "cut.mp4"
    path.write_bytes(matroska)
    packets = small.packets_in(path)
    for size in (*(start + length // 2 for start, length in packets), len(matroska) - 1):
        path.write_bytes(matroska[:size])
        with pytest.raises(MediaError) as caught:
            probe(path)
        told = f"is truncated: {size} of {len(matroska)} bytes" if size > packets[1][0] else "holds no frame"
        assert str(caught.value) == f"{path}: {told}; write it again"


@pytest.mark.parametrize("frames", [1, 6, 10])
def test_one_whose_end_was_never_filled_in(tmp_path: Path, matroska: bytes, frames: int) -> None:
    """As an unfinished download leaves it: as many bytes as there should be, zeros from some place on."""
    path = tmp_path / "zeros.mp4"
    path.write_bytes(matroska)
    start = small.packets_in(path)[frames][0] - 8
    path.write_bytes(matroska[:start] + bytes(len(matroska) - start))
    with av.open(str(path)) as container:
        shown = [packet.pts for packet in container.demux(video=0) if packet.size and packet.pts is not None]
    assert 1 <= len(shown) <= frames
    end = (max(shown) + 40) / 1000
    with pytest.raises(MediaError) as caught:
        probe(path)
    assert str(caught.value) == f"{path}: is truncated: {end:.3f} of 0.480 seconds; write it again"


def test_one_of_unknown_length_is_whole(tmp_path: Path, matroska: bytes) -> None:
    """What is written to a pipe has neither its size nor its length in its header."""
    (tmp_path / "whole.mkv").write_bytes(matroska)
    path = tmp_path / "live.mp4"
    with (
        av.open(str(tmp_path / "whole.mkv")) as whole,
        av.open(str(path), "w", format="matroska", options={"live": "1"}) as live,
    ):
        stream = live.add_stream_from_template(whole.streams.video[0])
        for packet in whole.demux(video=0):
            if packet.size:
                packet.stream = stream
                live.mux(packet)
    assert b"\x18\x53\x80\x67\x01\xff\xff\xff\xff\xff\xff\xff" in path.read_bytes()
    assert probe(path).frames == 12


def interleaved(container: Any, fps: Fraction, frames: int, seconds: float) -> Iterator[Any]:
    video = container.add_stream("libx264", rate=fps)
    video.width, video.height, video.pix_fmt = 96, 64, "yuv420p"
    sound = container.add_stream("aac", rate=48_000, layout="mono")
    for index in range(frames):
        picture = av.VideoFrame.from_ndarray(np.full((64, 96, 3), index, np.uint8), format="bgr24")
        picture.pts, picture.time_base = index, 1 / fps
        yield from video.encode(picture)
    yield from video.encode(None)
    heard = av.AudioFrame.from_ndarray(np.zeros((1, round(seconds * 48_000)), np.float32), "fltp", "mono")
    heard.sample_rate, heard.pts, heard.time_base = 48_000, 0, Fraction(1, 48_000)
    yield from sound.encode(heard)
    yield from sound.encode(None)


@pytest.mark.parametrize("seconds", [0.1, 0.5, 3.0])
@pytest.mark.parametrize("fps", [Fraction(25), Fraction(60)])
def test_sound_shorter_or_longer_than_the_picture_cuts_nothing(tmp_path: Path, fps: Fraction, seconds: float) -> None:
    path = tmp_path / "talk.mkv"
    with av.open(str(path), "w") as container:
        for packet in interleaved(container, fps, 30, seconds):
            container.mux(packet)
    assert probe(path).frames == 30
