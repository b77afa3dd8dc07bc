"""Segments drawn and encoded side by side: the same file, whoever drew and encoded which when."""

import os
import subprocess
import sys
import threading
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import small
from conftest import on_softcuda
from hypothesis import given, settings
from hypothesis import strategies as st

import gpupipe
from gpupipe.engine.outputs import Outputs
from gpupipe.errors import Cancelled, InferenceError, OptionError, OutputError
from gpupipe.render.engine import Engine
from gpupipe.render.segments import Segments
from gpupipe.render.stats import Progress
from gpupipe.render.video_output import SegmentWriter

FRAMES = 61


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = small.small_character(tmp_path / "anna")
    np.save(folder / "aud_ave.npy", small.features(FRAMES))
    return folder


@given(st.integers(1, 500), st.integers(1, 100))
def test_segments_are_all_frames_once_and_in_order(total: int, frames: int) -> None:
    segments = Segments(total, frames)
    taken = list(iter(segments.take, None))
    assert [output for each in taken for output in each] == list(range(total))
    assert all(len(each) == frames for each in taken[:-1])
    assert len(taken) == len(segments.all)
    assert taken == [segments.outputs(number) for number in segments.all]
    assert all(segments.of(output) == number for number, each in enumerate(taken) for output in each)
    assert segments.take() is None


@settings(max_examples=60)
@given(st.lists(st.integers(0, 9), max_size=6), st.lists(st.integers(1, 12), max_size=40))
def test_outputs_are_the_ranges_one_after_the_other(lengths: list[int], wanted: list[int]) -> None:
    starts = np.concatenate([[0], np.cumsum([length + 3 for length in lengths])]).astype(int).tolist()
    ranges = [range(start, start + length) for start, length in zip(starts, lengths, strict=False)]
    frames = [output for each in ranges for output in each]
    outputs = Outputs.of(*ranges)
    for count in wanted:
        assert outputs.left(count) == min(count, len(frames))
        assert outputs.peek(count - 1) == (frames[count - 1] if count <= len(frames) else None)
        if frames:
            assert outputs.pop() == frames.pop(0)


def test_outputs_take_no_range_before_it_is_needed() -> None:
    asked: list[int] = []

    def more() -> range | None:
        asked.append(len(asked))
        return range(len(asked) * 10, len(asked) * 10 + 4) if len(asked) < 4 else None

    outputs = Outputs(more)
    assert (outputs.left(4), len(asked)) == (4, 1)
    assert (outputs.left(5), len(asked)) == (5, 2)
    assert (outputs.peek(8), len(asked)) == (30, 3)
    assert (outputs.left(100), outputs.left(100), len(asked)) == (12, 12, 4)


@pytest.mark.parametrize("segment_frames", [1, 7, 20, 250])
def test_files_are_the_same_for_every_number_of_encoders(folder: Path, tmp_path: Path, segment_frames: int) -> None:
    options: dict[str, Any] = {"device": "cpu", "segment_frames": segment_frames}
    one = tmp_path / "one.mp4"
    gpupipe.render(folder, one, **options)
    assert small.frames_in(one) == FRAMES
    for encoders in (2, 3):
        done: list[Progress] = []
        several = tmp_path / f"{encoders}.mp4"
        stats = gpupipe.render(folder, several, encoders=encoders, progress=done.append, **options)
        assert several.read_bytes() == one.read_bytes()
        assert stats.frames == FRAMES
        assert [progress.done for progress in done] == list(range(1, FRAMES + 1))
        assert stats.stages["save"].frames == FRAMES


def test_encoders_work_side_by_side(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two that wait for each other in the first frame of a segment can only pass if both are at it."""
    meet = threading.Barrier(2, timeout=60)
    write = SegmentWriter.write

    def meeting(self: SegmentWriter, surface: Any) -> None:
        if surface.index in (0, 20):
            meet.wait()
        write(self, surface)

    monkeypatch.setattr(SegmentWriter, "write", meeting)
    gpupipe.render(folder, tmp_path / "talk.mp4", device="cpu", encoders=2, segment_frames=20)
    assert small.frames_in(tmp_path / "talk.mp4") == FRAMES


def test_one_that_fails_ends_all(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    threads = threading.active_count()
    bad = small.features(FRAMES)
    bad[33, 0] = -1.0
    before = small.files_in(tmp_path)
    with pytest.raises(InferenceError, match="output frame 33: the model gave NaN"):
        gpupipe.render(folder, tmp_path / "talk.mp4", device="cpu", encoders=3, segment_frames=10, features=bad)
    write = SegmentWriter.write

    def full(self: SegmentWriter, surface: Any) -> None:
        if surface.index == 41:
            surface.release()
            raise OutputError("no space left")
        write(self, surface)

    monkeypatch.setattr(SegmentWriter, "write", full)
    with Engine(device="cpu") as engine:
        with pytest.raises(OutputError, match="no space left"):
            engine.render(folder, tmp_path / "talk.mp4", encoders=3, segment_frames=10, overwrite=True)
        monkeypatch.setattr(SegmentWriter, "write", write)
        job = engine.submit(folder, tmp_path / "talk.mp4", encoders=2, segment_frames=10, overwrite=True)
        job.cancel()
        with pytest.raises(Cancelled):
            job.result()
        left = {name: data for name, data in small.files_in(tmp_path).items() if ".parts" not in str(name)}
        assert left == before
        engine.render(folder, tmp_path / "talk.mp4", encoders=2, overwrite=True)
    assert threading.active_count() == threads


def test_engines_beside_each_other(folder: Path, tmp_path: Path) -> None:
    with Engine(device="cpu") as one, Engine(device="cpu") as other:
        one.render(folder, tmp_path / "one.mp4", segment_frames=9)
        before = [engine.trace.times("infer").frames for engine in (one, other)]
        stats = one.render(folder, tmp_path / "two.mp4", segment_frames=9, beside=[other])
        after = [engine.trace.times("infer").frames for engine in (one, other)]
    assert (tmp_path / "one.mp4").read_bytes() == (tmp_path / "two.mp4").read_bytes()
    assert stats.frames == FRAMES
    shares = [later - earlier for earlier, later in zip(before, after, strict=True)]
    assert sum(shares) == FRAMES
    assert all(shares)


@pytest.mark.cuda
def test_several_gpus(folder: Path, tmp_path: Path) -> None:
    if not on_softcuda():
        pytest.skip("a machine may have one GPU")
    command = [sys.executable, "-m", "gpupipe", "render", str(folder), "-o", str(tmp_path / "gpu.mp4"), "--quiet"]
    command += ["--device", "cuda:0,cuda:1", "--segment-frames", "8", "--stats", str(tmp_path / "stats.json")]
    done = subprocess.run(
        command, env=os.environ | {"SOFTCUDA_DEVICES": "2"}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "cuda:0 (" in (tmp_path / "stats.json").read_text("utf-8")
    assert "cuda:1 (" in (tmp_path / "stats.json").read_text("utf-8")
    gpupipe.render(folder, tmp_path / "cpu.mp4", device="cpu", segment_frames=8)
    assert (tmp_path / "gpu.mp4").read_bytes() == (tmp_path / "cpu.mp4").read_bytes()


def test_an_engine_has_one_device() -> None:
    with pytest.raises(OptionError, match="an engine has one device"):
        Engine(device="cuda:0,cuda:1")
    for wrong in ("cpu,cuda:0", "auto,cuda", "cuda:0,", "cuda:0,,cuda:1"):
        with pytest.raises(OptionError, match="no such device"):
            gpupipe.render("anna", "a.mp4", device=wrong)


def test_segments_begin_at_keyframes(folder: Path, tmp_path: Path) -> None:
    import av

    gpupipe.render(folder, tmp_path / "talk.mp4", device="cpu", encoders=2, segment_frames=16)
    with av.open(str(tmp_path / "talk.mp4")) as container:
        packets = [packet for packet in container.demux(video=0) if packet.size]
    assert [number for number, packet in enumerate(packets) if packet.is_keyframe] == [0, 16, 32, 48]
    assert all(before.dts < after.dts for before, after in pairwise(packets) if before.dts is not None and after.dts)
