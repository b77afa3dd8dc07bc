"""The parts of an output: who shares them, what is removed of them, and what else lies where they go."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import small

import gpupipe
from gpupipe.engine import shelf
from gpupipe.errors import GpupipeError, OutputError
from gpupipe.filelock import FileLock
from gpupipe.render import durable, image_output, video_output
from gpupipe.render.join import join_parts
from gpupipe.render.manifest import Manifest
from gpupipe.render.parts import Parts, Start, parts_folder
from gpupipe.render.verify import verify
from gpupipe.threads import Worker, join_started, start_and_wait

FRAMES, SEGMENT = 43, 8
OPTIONS: dict[str, Any] = {"device": "cpu", "segment_frames": SEGMENT}
ALONE, SHARED, RESUMED = Start(), Start(shared=True), Start(resume=True)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = small.small_character(tmp_path / "anna")
    np.save(folder / "aud_ave.npy", small.features(FRAMES))
    return folder


def manifest(**fingerprint: str) -> Manifest:
    return Manifest(fingerprint, FRAMES, SEGMENT, fps="25")


def parts(out: Path, start: Start, **fingerprint: str) -> Parts:
    return Parts(out, manifest(**fingerprint), start)


def finish(some: Parts, number: int, content: bytes = b"a segment") -> None:
    some.unfinished(some.segment(number, ".mp4").name).write_bytes(content)
    some.finish(number, ".mp4", range(number * SEGMENT, min(FRAMES, (number + 1) * SEGMENT)))


# Who shares them


@pytest.mark.parametrize("output", ["talk.mp4", "images/"])
def test_three_processes_share_an_output(folder: Path, tmp_path: Path, output: str) -> None:
    """Each renders two segments, and one that another renders too."""
    whole, out = f"{tmp_path}/whole-{output}", f"{tmp_path}/{output}"
    gpupipe.render(folder, whole, **OPTIONS)
    quiet = ("--quiet", "--device", "cpu", "--segment-frames", str(SEGMENT))
    started = [
        subprocess.Popen(
            [sys.executable, "-m", "gpupipe", "render", str(folder), "-o", out, "--segments", chosen, *quiet],
            stderr=subprocess.PIPE,
            text=True,
        )
        for chosen in ("0-2", "2-4", "4-5")
    ]
    assert [(process.communicate(timeout=120)[1], process.returncode) for process in started] == [("", 0)] * 3
    folder_of_parts = parts_folder(Path(out))
    kept = sorted(path.name for path in folder_of_parts.iterdir() if not path.name.startswith("segment_"))
    assert kept == ["lock", "manifest.json"]
    join_parts(out)
    read = (lambda path: small.files_in(path)) if output.endswith("/") else Path.read_bytes
    assert read(Path(out)) == read(Path(whole))
    assert not folder_of_parts.exists()


def test_two_jobs_of_one_process_share_an_output(folder: Path, tmp_path: Path) -> None:
    gpupipe.render(folder, tmp_path / "whole.mp4", **OPTIONS)
    out = tmp_path / "talk.mp4"
    with gpupipe.Engine(device="cpu", parallel=3) as engine:
        jobs = [engine.submit(folder, out, segments=chosen, segment_frames=SEGMENT) for chosen in ("0-1", "2-3", "4-5")]
        for job in jobs:
            job.result(timeout=120)
    join_parts(out)
    assert out.read_bytes() == (tmp_path / "whole.mp4").read_bytes()


def test_who_ends_leaves_what_others_have_not_finished(tmp_path: Path) -> None:
    out = tmp_path / "talk.mp4"
    first, second = parts(out, SHARED), parts(out, SHARED)
    begun = second.unfinished("segment_00001.mp4")
    begun.write_bytes(b"begun")
    finish(first, 0)
    first.leave()
    assert begun.exists()
    for start in (ALONE, RESUMED, Start(restart=True)):
        with pytest.raises(OutputError, match=f"is being rendered by process {os.getpid()}; wait for it"):
            parts(out, start)
    with pytest.raises(OutputError, match="is being rendered by process"):
        join_parts(out)
    assert begun.exists()
    second.finish(1, ".mp4", range(8, 16))
    second.leave()
    third = parts(out, RESUMED)
    assert third.finished == {0, 1}
    third.leave()
    third.leave()
    assert parts_folder(out).exists()


def test_nothing_is_left_of_some_that_finish_nothing(tmp_path: Path) -> None:
    out = tmp_path / "talk.mp4"
    first, second = parts(out, SHARED), parts(out, SHARED)
    first.leave()
    assert parts_folder(out).exists()
    second.leave()
    assert not list(tmp_path.iterdir())


def test_two_that_begin_with_other_options_at_the_same_time(tmp_path: Path) -> None:
    out = tmp_path / "talk.mp4"
    first = parts(out, SHARED, **{"--crf": "20"})
    with pytest.raises(OutputError, match="crf is not what it was when this was begun: it was 20, and is 30"):
        parts(out, SHARED, **{"--crf": "30"})
    finish(first, 0)
    first.leave()
    with pytest.raises(OutputError, match="crf is not what it was"):
        parts(out, SHARED, **{"--crf": "30"})


def test_who_was_killed_shares_no_more(tmp_path: Path) -> None:
    """The system lets go of its lock; what it had not finished goes with the next who works alone."""
    out = tmp_path / "talk.mp4"
    killed = parts(out, SHARED, **{"--crf": "20"})
    killed.unfinished("segment_00000.mp4").write_bytes(b"begun")
    killed._lock._sharing.release()
    other = parts(out, SHARED, **{"--crf": "30"})  # nothing is finished: it need not be the same
    finish(other, 1)
    other.leave()
    alone = parts(out, RESUMED, **{"--crf": "30"})
    names = sorted(path.name for path in parts_folder(out).iterdir())
    assert names == ["lock", "manifest.json", "segment_00001.mp4"]
    alone.remove()
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(os.name == "nt", reason="a file that is open is not removed there")
def test_a_lock_on_a_file_that_is_gone_is_none(tmp_path: Path) -> None:
    lock = FileLock(tmp_path / "lock")
    lock.acquire()
    assert lock.in_place
    lock.path.unlink()
    assert not lock.in_place
    lock.path.touch()
    assert not lock.in_place
    lock.release()


def test_many_take_and_remove_a_folder(tmp_path: Path) -> None:
    """None finds another at work who has not been told that he is not alone; none fails as the folder goes."""
    out, inside, most, guard = tmp_path / "talk.mp4", 0, 0, threading.Lock()

    def work(_: int) -> int:
        nonlocal inside, most
        done = 0
        for _ in range(15):
            try:
                some = parts(out, Start(restart=True))
            except OutputError as error:
                assert "is being rendered by" in str(error)  # noqa: PT017
                continue
            with guard:
                inside += 1
                most = max(most, inside)
            finish(some, 0)
            with guard:
                inside -= 1
            some.remove()
            done += 1
        return done

    with ThreadPoolExecutor(4) as pool:
        done = sum(pool.map(work, range(4)))
    assert most == 1
    assert done >= 1  # nobody waits for another, so how many is left to chance
    assert not list(tmp_path.iterdir())


# What is there


def test_what_is_not_ours_in_the_folder_stays(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "talk.mp4"
    parts_folder(out).mkdir()
    for name in ("notes.txt", "segment of mine.mp4"):
        (parts_folder(out) / name).write_text("mine")
    (parts_folder(out) / "unfinished-0-segment_00000.mp4").write_text("left")
    gpupipe.render(folder, out, overwrite=True, **OPTIONS)
    assert small.frames_in(out) == FRAMES
    assert small.files_in(parts_folder(out)) == {"notes.txt": b"mine", "segment of mine.mp4": b"mine"}


@pytest.mark.skipif(os.name == "nt", reason="making links takes a right there")
def test_what_is_in_the_way(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "talk.mp4"
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "manifest.json").write_text("mine")
    parts_folder(out).symlink_to("home")
    with pytest.raises(OutputError, match=r"talk.mp4.parts: is in the way: .*; move it away, or use another name"):
        gpupipe.render(folder, out, overwrite=True, **OPTIONS)
    parts_folder(out).unlink()
    parts_folder(out).write_text("mine")
    with pytest.raises(OutputError, match=r"talk.mp4.parts: is in the way"):
        gpupipe.render(folder, out, overwrite=True, **OPTIONS)
    assert small.files_in(tmp_path / "home") == {"manifest.json": b"mine"}
    assert parts_folder(out).read_text() == "mine"


@pytest.mark.skipif(os.name == "nt", reason="making links takes a right there")
def test_outputs_that_are_links(folder: Path, tmp_path: Path) -> None:
    """What a link leads to is not touched; the link is what is replaced, if that was asked for."""
    out, kept = tmp_path / "talk.mp4", tmp_path / "kept.mp4"
    out.symlink_to(kept)
    with pytest.raises(OutputError, match=r"talk.mp4: output: exists already"):
        gpupipe.render(folder, out, **OPTIONS)
    kept.write_bytes(b"mine")
    gpupipe.render(folder, out, overwrite=True, **OPTIONS)
    assert (out.is_symlink(), small.frames_in(out), kept.read_bytes()) == (False, FRAMES, b"mine")
    (tmp_path / "images").symlink_to("elsewhere")
    with pytest.raises(OutputError, match="images: output: is a link to nothing"):
        gpupipe.render(folder, f"{tmp_path}/images/", **OPTIONS)
    (tmp_path / "elsewhere").mkdir()
    gpupipe.render(folder, f"{tmp_path}/images/", **OPTIONS)
    assert len(list((tmp_path / "elsewhere").iterdir())) == FRAMES
    assert (tmp_path / "images").is_symlink()


def test_outputs_named_from_the_current_folder(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "one" / "two").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "one" / "two")
    for output in ("talk.mp4", "./other.mp4", "../up.mp4", "two/../../over.mp4", "images/", "..", "."):
        if output == "two/../../over.mp4":
            Path("two").mkdir()
        gpupipe.render(folder, output, **OPTIONS)
    assert [len(list(Path(where).glob("frame_*.jpg"))) for where in ("images", "..", ".")] == [FRAMES] * 3
    assert sorted(path.name for path in tmp_path.rglob("*.mp4") if folder not in path.parents) == [
        "other.mp4",
        "over.mp4",
        "talk.mp4",
        "up.mp4",
    ]
    assert not list(tmp_path.rglob("*.parts"))


@pytest.mark.skipif(os.name == "nt", reason="there the whole path has a length")
def test_a_name_that_is_too_long_for_its_parts(folder: Path, tmp_path: Path) -> None:
    name = "x" * 249 + ".mp4"
    with pytest.raises(OutputError, match=r"cannot be written to: File name too long; use a shorter name"):
        gpupipe.render(folder, tmp_path / name, **OPTIONS)
    gpupipe.render(folder, tmp_path / name[10:], **OPTIONS)
    assert small.frames_in(tmp_path / name[10:]) == FRAMES


# Resuming


def test_what_was_finished_before_does_not_count(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "talk.mp4"
    stats = gpupipe.render(folder, out, segments="0-1", **OPTIONS)
    assert stats.notes == ("segments 0-1 of 6, kept for `gpupipe join`",)
    assert stats.fps * stats.total_seconds == pytest.approx(16)
    stats = gpupipe.render(folder, out, resume=True, **OPTIONS)
    assert stats.notes == ("16 of 43 frames were finished before",)
    assert stats.frames == 43
    assert stats.fps * stats.total_seconds == pytest.approx(27)


def test_a_finished_output_is_not_resumed_over(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "talk.mp4"
    gpupipe.render(folder, out, **OPTIONS)
    before = out.read_bytes()
    with pytest.raises(OutputError, match="exists already"):
        gpupipe.render(folder, out, resume=True, **OPTIONS)
    gpupipe.render(folder, out, segments="1-2", overwrite=True, **OPTIONS)
    assert out.read_bytes() == before
    gpupipe.render(folder, out, resume=True, overwrite=True, **OPTIONS)
    assert out.read_bytes() == before
    assert not parts_folder(out).exists()


def test_all_segments_asked_for_one_by_one_wait_for_join(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "talk.mp4"
    gpupipe.render(folder, out, segments="0-5", **OPTIONS)
    assert not out.exists()
    assert join_parts(out).count == 6
    assert small.frames_in(out) == FRAMES


@pytest.mark.parametrize("output", ["talk.mp4", "images/"])
def test_a_disk_that_is_full_when_the_segments_are_joined(
    folder: Path, tmp_path: Path, output: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, out = f"{tmp_path}/whole-{output}", f"{tmp_path}/{output}"
    gpupipe.render(folder, whole, **OPTIONS)

    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(video_output, "join", full)
        if output == "images/":
            patch.setattr(Parts, "place", full)
        with pytest.raises(OutputError, match="cannot be written: No space left on device"):
            gpupipe.render(folder, out, **OPTIONS)
    assert not Path(out).exists()
    gpupipe.render(folder, out, resume=True, **OPTIONS)
    read = (lambda path: small.files_in(path)) if output.endswith("/") else Path.read_bytes
    assert read(Path(out)) == read(Path(whole))


def test_a_folder_that_some_images_have_been_moved_to(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, out = tmp_path / "whole", tmp_path / "images"
    out.mkdir()
    gpupipe.render(folder, f"{whole}/", **OPTIONS)
    moved = [0]

    def stopping(written: Path, final: Path) -> None:
        moved[0] += 1
        if moved[0] > 20:
            raise OSError(errno.EIO, "Input/output error")
        durable.replace(written, final)

    with monkeypatch.context() as patch:
        patch.setattr(image_output, "replace", stopping)
        with pytest.raises(OutputError, match="images: cannot be written: Input/output error"):
            gpupipe.render(folder, out, **OPTIONS)
    with pytest.raises(OutputError, match="holds images already"):
        gpupipe.render(folder, out, **OPTIONS)
    gpupipe.render(folder, out, resume=True, **OPTIONS)
    assert small.files_in(out) == small.files_in(whole)


@pytest.mark.parametrize(
    "change",
    [
        {"segments": {"6": {"name": "segment_00006.mp4", "start": 48, "stop": 56}}},
        {"segments": {"-1": {"name": "segment_-0001.mp4", "start": -8, "stop": 0}}},
        {"segments": {"1": {"name": "segment_00001.mp4", "start": 8, "stop": 15}}},
        {"segments": {"1": {"name": "segment_00002.mp4", "start": 8, "stop": 16}}},
        {"segments": {"1": {"name": "lock", "start": 8, "stop": 16}}},
        {"fps": "0/0"},
        {"fps": "-25"},
        {"fps": "soon"},
        {"frames": 0},
        {"segment_frames": "inf"},
    ],
)
def test_a_manifest_that_says_what_cannot_be(tmp_path: Path, change: dict[str, Any]) -> None:
    out = tmp_path / "talk.mp4"
    some = parts(out, ALONE)
    finish(some, 0)
    some.leave()
    path = parts_folder(out) / "manifest.json"
    found = json.loads(path.read_text())
    segments = {number: one | {"sha256": "0"} for number, one in change.get("segments", {}).items()}
    path.write_text(json.dumps(found | change | {"segments": found["segments"] | segments}))
    for attempt in (lambda: join_parts(out), lambda: parts(out, RESUMED), lambda: parts(out, SHARED)):
        with pytest.raises(OutputError, match=r"manifest.json: cannot be read: "):
            attempt()


def test_joining_what_is_something_else(folder: Path, tmp_path: Path) -> None:
    gpupipe.render(folder, f"{tmp_path}/talk.mp4/", segments="0", **OPTIONS)
    with pytest.raises(OutputError, match=r"are of images; give the output as the renders had it: it ends in /"):
        join_parts(tmp_path / "talk.mp4")


def test_verify_looks_at_the_parts_inside_a_folder(folder: Path, tmp_path: Path) -> None:
    images = tmp_path / "images"
    gpupipe.render(folder, f"{images}/", **OPTIONS)
    gpupipe.render(folder, f"{images}/", segments="0-1", overwrite=True, **OPTIONS)
    assert verify(images).problems == []
    (images / "images.parts" / "segment_00001" / "frame_0009.jpg").write_bytes(b"spoiled")
    assert verify(images).problems == ["images.parts/segment_00001 is not what was written"]


def test_weights_beside_the_model_are_known_again(folder: Path, tmp_path: Path) -> None:
    path = folder / "checkpoint" / "model_best.onnx"
    model = onnx.load(str(path))
    (half,) = (tensor for tensor in model.graph.initializer if tensor.name == "half")
    onnx.external_data_helper.set_external_data(half, "weights.bin")
    onnx.save(model, str(path))
    out = tmp_path / "talk.mp4"
    gpupipe.render(folder, out, segments="0", **OPTIONS)
    weights = path.with_name("weights.bin")
    weights.write_bytes(np.float32(0.25).tobytes())
    with pytest.raises(GpupipeError, match=r"model: weights.bin is not what it was when this was begun"):
        gpupipe.render(folder, out, segments="1", **OPTIONS)


def test_an_engine_reads_a_file_once_to_know_it_again(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[str] = []

    def counted(path: Path, way: Callable[[Path], Any]) -> Any:
        read.append(path.name)
        return way(path)

    for name in ("digest", "sha256"):
        monkeypatch.setattr(shelf, name, partial(counted, way=getattr(shelf, name)))
    with gpupipe.Engine(device="cpu") as engine:
        for name in ("a", "b"):
            engine.render(folder, tmp_path / f"{name}.mp4", segment_frames=SEGMENT)
    assert len(read) == len(set(read)), read
    assert {"full_body_video.mp4", "crops_328_video.mp4", "model_best.onnx", "aud_ave.npy"} <= set(read)


# Windows, whose rules are tried here by hand


def test_a_name_is_asked_for_again_on_windows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written, final = tmp_path / "written", tmp_path / "final"
    written.write_text("new")
    final.write_text("old")
    tried, replace = [0], Path.replace

    def refused(self: Path, target: Path) -> Path:
        tried[0] += 1
        if tried[0] < 4:
            raise PermissionError(errno.EACCES, "Access is denied")
        return replace(self, target)

    monkeypatch.setattr(durable, "PAUSE_SECONDS", 0.0)
    monkeypatch.setattr(Path, "replace", refused)
    with pytest.raises(PermissionError):
        durable.replace(written, final)
    monkeypatch.setattr(durable, "ON_WINDOWS", True)
    durable.replace(written, final)
    assert (tried[0], final.read_text()) == (4, "new")
    tried[0] = -1000
    written.write_text("newer")
    with pytest.raises(PermissionError):
        durable.replace(written, final)
    assert tried[0] == -1000 + durable.TRIES


def test_a_lock_that_cannot_be_removed_while_it_is_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    some = parts(tmp_path / "talk.mp4", ALONE)
    unlink, lock = Path.unlink, some._lock._lock

    def refused(self: Path, missing_ok: bool = False) -> None:
        if self == lock.path and lock._file is not None:
            raise PermissionError(errno.EACCES, "in use")
        unlink(self, missing_ok)

    monkeypatch.setattr(Path, "unlink", refused)
    some.remove()
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(os.name == "nt", reason="signals itself")
def test_who_is_interrupted_still_waits_for_his_workers() -> None:
    """What they write is not cleaned up under their hands."""
    began, may_end, log = threading.Event(), threading.Event(), []

    def work() -> None:
        began.set()
        may_end.wait(20)
        log.append("done")

    def interrupt() -> None:
        began.wait(20)
        os.kill(os.getpid(), signal.SIGINT)

    previous = signal.signal(signal.SIGINT, signal.default_int_handler)
    worker = Worker("work", work)
    threading.Thread(target=interrupt, daemon=True).start()
    try:
        with pytest.raises(KeyboardInterrupt):
            start_and_wait([worker])
    finally:
        signal.signal(signal.SIGINT, previous)
    threading.Timer(0.3, may_end.set).start()
    join_started([worker])
    assert log == ["done"]
