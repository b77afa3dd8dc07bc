"""index: reading that begins at any frame gives the same frames as reading from the beginning."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import small

from gpupipe.errors import MediaError
from gpupipe.media.index import FrameIndex, Start, index_frames
from gpupipe.media.limits import DEFAULT
from gpupipe.media.video import probe, read_frames

FRAMES = 23
ENCODED = {
    "b-frames": {"g": "5", "bf": "2", "sc_threshold": "0"},
    "open-gop": {"x264-params": "keyint=6:min-keyint=6:open-gop=1:bframes=3:b-adapt=0:scenecut=0"},
    "one-group": {"g": "250"},
    "all-intra": {"g": "1"},
}


def write(path: Path, options: dict[str, str]) -> Path:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=small.FPS, options=options)
        stream.width, stream.height, stream.pix_fmt = 96, 64, "yuv420p"
        for picture in small.pictures(96, 64, FRAMES):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="bgr24")))
        container.mux(stream.encode(None))
    return path


@pytest.fixture(params=ENCODED)
def video(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return write(tmp_path / "video.mp4", ENCODED[request.param])


def test_frames_are_the_same_from_wherever_they_are_read(video: Path) -> None:
    whole, index = list(read_frames(video, "nv12")), index_frames(video)
    assert len(index.pts) == FRAMES
    assert probe(video).index == index
    for first in range(FRAMES):
        for end in {first + 1, min(FRAMES, first + 7), FRAMES}:
            start = index.start(first, end)
            assert (start.seek is None) == (index.keyframe(first) == 0)
            found = list(read_frames(video, "nv12", end, DEFAULT, start))
            assert len(found) == end - first
            for frame, wanted in zip(found, whole[first:end], strict=True):
                assert np.array_equal(frame, wanted)


def test_keyframes_are_those_of_the_file(tmp_path: Path) -> None:
    index = index_frames(write(tmp_path / "video.mp4", ENCODED["b-frames"]))
    assert [number for number, _ in index.keyframes] == [0, 5, 10, 15, 20]
    assert [index.keyframe(number) for number in (0, 4, 5, 9, 22)] == [0, 0, 5, 5, 20]


def test_what_lies_before_the_keyframe_is_not_decoded(tmp_path: Path) -> None:
    path = write(tmp_path / "video.mp4", ENCODED["all-intra"])
    whole, index = list(read_frames(path, "nv12")), index_frames(path)
    small.damage(path, 3)
    with pytest.raises(MediaError, match="frame 3"):
        list(read_frames(path, "nv12"))
    found = list(read_frames(path, "nv12", FRAMES, DEFAULT, index.start(10, FRAMES)))
    assert all(np.array_equal(*pair) for pair in zip(found, whole[10:], strict=True))


def test_what_cannot_be_sought_in_is_decoded_from_its_beginning(tmp_path: Path) -> None:
    path = write(tmp_path / "video.mkv", ENCODED["b-frames"])
    index = index_frames(path)
    assert index == FrameIndex()
    assert index.start(12, 15) == Start(12)
    whole = list(read_frames(path, "bgr24"))
    found = list(read_frames(path, "bgr24", 15, DEFAULT, index.start(12, 15)))
    assert all(np.array_equal(*pair) for pair in zip(found, whole[12:15], strict=True))


@pytest.mark.parametrize("wrong", ["seek too late", "another time", "a frame too many"])
def test_a_table_that_says_other_than_the_frames_changes_nothing(tmp_path: Path, wrong: str) -> None:
    path = write(tmp_path / "video.mp4", ENCODED["b-frames"])
    whole, index = list(read_frames(path, "nv12")), index_frames(path)
    start = index.start(12, 18)
    if wrong == "seek too late":
        start = start._replace(seek=index.keyframes[-1][1])
    elif wrong == "another time":
        start = start._replace(pts=[*start.pts[:3], start.pts[3] + 1, *start.pts[4:]])
    else:
        start = index.start(12, FRAMES)._replace(pts=[*index.pts[12:20], index.pts[19] + 1, *index.pts[20:]])
    found = list(read_frames(path, "nv12", 18, DEFAULT, start))
    assert all(np.array_equal(*pair) for pair in zip(found, whole[12:18], strict=True))


def test_a_process_of_its_own_reads_the_same(tmp_path: Path) -> None:
    path = write(tmp_path / "video.mp4", ENCODED["b-frames"])
    limits = replace(DEFAULT, isolate=True)
    index = index_frames(path, limits)
    assert index == index_frames(path)
    found = list(read_frames(path, "nv12", 15, limits, index.start(12, 15)))
    whole = list(read_frames(path, "nv12", 15))
    assert all(np.array_equal(*pair) for pair in zip(found, whole[12:], strict=True))


def test_the_index_of_a_long_film_comes_from_another_process(tmp_path: Path) -> None:
    """30 000 keyframes, whose times have up to 13 digits: 1.2 MB of JSON."""
    short = write(tmp_path / "short.mp4", ENCODED["all-intra"])
    path, count, step = tmp_path / "long.mp4", 30_000, 40_000_000
    with av.open(str(short)) as source, av.open(str(path), "w", options={"video_track_timescale": str(10**9)}) as out:
        packet = next(source.demux(source.streams.video[0]))
        stream = out.add_stream_from_template(source.streams.video[0])
        for number in range(count):
            packet.time_base = Fraction(1, 10**9)
            packet.pts = packet.dts = number * step
            packet.duration, packet.stream = step, stream
            out.mux(packet)
    index = index_frames(path, replace(DEFAULT, isolate=True))
    assert index.pts == tuple(range(0, count * step, step))
    assert index.keyframes == tuple(enumerate(index.pts))
