"""Renders that are interrupted: what is finished is kept, known again, and gone on with, to the same bytes."""

from __future__ import annotations

import itertools
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import small

import gpupipe
from gpupipe.character.folder import Character
from gpupipe.cli import main
from gpupipe.errors import GpupipeError, OutputError
from gpupipe.filelock import FileLock
from gpupipe.media.encode import VideoWriter
from gpupipe.options import JobKeywords, OutputOptions
from gpupipe.render.gather import Gathered
from gpupipe.render.image_output import ImageOutput
from gpupipe.render.jobfile import JobLine
from gpupipe.render.join import join_parts
from gpupipe.render.manifest import read_manifest
from gpupipe.render.parts import Parts, parts_folder
from gpupipe.render.queue import run_jobs
from gpupipe.render.segments import Segments
from gpupipe.render.verify import verify

FRAMES, SEGMENT = 43, 8
OPTIONS: dict[str, Any] = {"device": "cpu", "segment_frames": SEGMENT}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = small.small_character(tmp_path / "anna")
    np.save(folder / "aud_ave.npy", small.features(FRAMES))
    return folder


class PowerCut(BaseException):
    """Ends a render as nothing else does."""


def content(output: Path) -> Any:
    return small.files_in(output) if output.is_dir() else output.read_bytes()


def interrupted(folder: Path, output: str, count: int, **options: Any) -> None:
    """A render that is cut off when so many segments are finished."""
    with pytest.MonkeyPatch.context() as patch:
        finish, begun = Parts.finish, itertools.count()

        def cutting(self: Parts, number: int, suffix: str, frames: range) -> None:
            if next(begun) >= count:  # not by what is finished: several may be at it
                raise PowerCut
            finish(self, number, suffix, frames)

        patch.setattr(Parts, "finish", cutting)
        patch.setattr(Parts, "leave", lambda self: self._lock.release())  # nothing is cleaned up
        with pytest.raises(PowerCut):
            gpupipe.render(folder, output, **OPTIONS | options)


@pytest.mark.parametrize("output", ["talk.mp4", "talk.mkv", "images/", "existing/"])
@pytest.mark.parametrize("count", [0, 1, 4])
@pytest.mark.parametrize("encoders", [1, 3])
def test_what_is_resumed_is_what_was_never_interrupted(
    folder: Path, tmp_path: Path, output: str, count: int, encoders: int
) -> None:
    (tmp_path / "one").mkdir()
    (tmp_path / "existing").mkdir()
    whole = tmp_path / "one" / output.strip("/")
    gpupipe.render(folder, f"{whole}/" if output.endswith("/") else whole, **OPTIONS)
    interrupted(folder, f"{tmp_path}/{output}", count, encoders=encoders)
    drawn: list[int] = []
    with pytest.MonkeyPatch.context() as patch:
        for kind in (VideoWriter, ImageOutput):
            write = kind.write

            def counted(self: Any, *given: Any, write: Any = write) -> None:
                drawn.append(1)
                write(self, *given)

            patch.setattr(kind, "write", counted)
        gpupipe.render(folder, f"{tmp_path}/{output}", resume=True, encoders=encoders, **OPTIONS)
    assert len(drawn) <= FRAMES - count * SEGMENT + SEGMENT  # the last segment is shorter
    assert content(tmp_path / output.strip("/")) == content(whole)
    assert not list(tmp_path.rglob("*.parts"))


def test_what_could_be_resumed_is_not_thrown_away_unasked(
    folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "talk.mp4"
    interrupted(folder, str(out), 3)
    with pytest.raises(OutputError, match=r"was not finished: 3 of its 6 segments are; go on with resume=True"):
        gpupipe.render(folder, out, **OPTIONS)
    assert main(["render", str(folder), "-o", str(out), "--device", "cpu", "--segment-frames", "8", "--quiet"]) == 1
    assert "3 of 6 segments are finished; go on with --resume" in capfd.readouterr().err
    gpupipe.render(folder, out, overwrite=True, **OPTIONS)
    assert small.frames_in(out) == FRAMES
    assert not parts_folder(out).exists()


def test_a_segment_that_is_not_what_was_written_is_made_again(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "talk.mp4"
    gpupipe.render(folder, tmp_path / "whole.mp4", **OPTIONS)
    interrupted(folder, str(out), 4)
    parts = parts_folder(out)
    one, two, three, _ = sorted(parts.glob("segment_*"))
    one.write_bytes(one.read_bytes()[:-7])
    two.write_bytes(two.read_bytes()[:-1] + b"?")
    three.unlink()
    found = verify_problems(out)
    assert len(found) == 3
    gpupipe.render(folder, out, resume=True, **OPTIONS)
    assert out.read_bytes() == (tmp_path / "whole.mp4").read_bytes()


def verify_problems(out: Path) -> list[str]:
    """What `verify` says of the parts of an output that is not there: a finished one lies in for it."""
    shutil.copy(out.with_name("whole.mp4"), out)
    try:
        return verify(out).problems
    finally:
        out.unlink()


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"crf": 30}, "--crf"),
        ({"frames": 40}, "--frames"),
        ({"start_frame": 2}, "--start-frame"),
        ({"segment_frames": 9}, "--segment-frames"),
        ({"sound": False}, None),  # the character has none
        ({"encoders": 2}, None),
        ({"workers": 1}, None),
        ({"batch": 3}, None),
    ],
)
def test_what_has_changed_is_named(folder: Path, tmp_path: Path, change: dict[str, Any], named: str | None) -> None:
    out = tmp_path / "talk.mp4"
    interrupted(folder, str(out), 2)
    if named is None:
        gpupipe.render(folder, out, resume=True, **OPTIONS | change)
        return
    before = content(parts_folder(out))
    with pytest.raises(OutputError) as caught:
        gpupipe.render(folder, out, resume=True, **OPTIONS | change)
    assert f"{named} is not what it was" in caught.value.on_command_line()
    assert content(parts_folder(out)) == before
    gpupipe.render(folder, out, resume=True, **OPTIONS)


@pytest.mark.parametrize(
    "file", ["full_body_video.mp4", "cache/crop_rectangles.json", "aud_ave.npy", "model_best.onnx"]
)
def test_a_changed_file_is_named(folder: Path, tmp_path: Path, file: str) -> None:
    out = tmp_path / "talk.mp4"
    interrupted(folder, str(out), 2)
    path = next(folder.rglob(file))
    if file.endswith(".json"):
        rects = json.loads(path.read_text())
        path.write_text(json.dumps(rects, indent=3))
    elif file.endswith(".npy"):
        np.save(path, small.features(FRAMES) * 2)
    elif file.endswith(".onnx"):
        small.write_model(path, dtype="float16")
    else:
        path.write_bytes(path.read_bytes() + b"\0")
    with pytest.raises(OutputError, match="is not what it was when this was begun"):
        gpupipe.render(folder, out, resume=True, **OPTIONS)


def test_ranges_are_joined(folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    for output in ("talk.mp4", "images/"):
        whole, out = f"{tmp_path}/whole-{output}", f"{tmp_path}/{output}"
        gpupipe.render(folder, whole, **OPTIONS)
        for chosen in ("4-5", "0", "1-2"):
            gpupipe.render(folder, out, segments=chosen, **OPTIONS)
            assert not Path(out).exists()
        with pytest.raises(OutputError, match="1 of 6 segments are missing, or not what was written: 3; render them"):
            join_parts(out)
        gpupipe.render(folder, out, segments="2-3", **OPTIONS)
        assert main(["join", out]) == 0
        assert "43 frames, joined of 6 segments" in capfd.readouterr().out
        assert content(Path(out)) == content(Path(whole))
    with pytest.raises(OutputError, match="no such parts"):
        join_parts(tmp_path / "talk.mp4")


@pytest.mark.parametrize("chosen", ["6", "3-6", "-1", "2-1", "a", "1-", ""])
def test_segments_that_there_are_not(folder: Path, tmp_path: Path, chosen: str) -> None:
    with pytest.raises(GpupipeError, match="segments"):
        gpupipe.render(folder, tmp_path / "talk.mp4", segments=chosen, **OPTIONS)
    assert not list(tmp_path.glob("talk*"))


def cut_off_before_its_parts_were_removed(folder: Path, output: str, **options: Any) -> None:
    """A render that gives its output the name, and is cut off then."""

    def cutting(_: Parts) -> None:
        raise PowerCut

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Parts, "remove", cutting)
        patch.setattr(Parts, "leave", lambda self: self._lock.release())
        with pytest.raises(PowerCut):
            gpupipe.render(folder, output, **OPTIONS | options)


@pytest.mark.parametrize("output", ["talk.mp4", "images/", "existing/"])
def test_batch_removes_the_parts_of_what_is_complete(folder: Path, tmp_path: Path, output: str) -> None:
    (tmp_path / "existing").mkdir()
    out = f"{tmp_path}/{output}"
    cut_off_before_its_parts_were_removed(folder, out)
    (parts,) = tmp_path.rglob("*.parts")
    aside = parts.rename(tmp_path / "aside")
    whole = content(Path(out))
    aside.rename(parts)
    (parts / "notes.txt").write_text("somebody else's")
    jobs: list[Any] = []
    options: JobKeywords = {"segment_frames": SEGMENT}

    def batch() -> str:
        run_jobs([JobLine(1, folder, out, options)], ["cpu"], {}, told=jobs.append)
        return str(jobs[-1].status)

    lock = FileLock(parts / "lock")
    with lock:
        assert batch() == "skipped"
    assert (parts / "manifest.json").exists()
    assert batch() == "skipped"
    assert [path.name for path in parts.iterdir()] == ["notes.txt"]
    (parts / "segment_00002").touch()  # the manifest is removed first
    assert batch() == "skipped"
    assert [path.name for path in parts.iterdir()] == ["notes.txt"]
    (parts / "notes.txt").unlink()
    parts.rmdir()
    assert content(Path(out)) == whole


def test_batch_keeps_the_parts_of_what_was_to_replace_a_video(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "talk.mp4"
    gpupipe.render(folder, out, **OPTIONS)
    gpupipe.render(folder, out, segments="0-5", overwrite=True, crf=30, **OPTIONS)
    jobs: list[Any] = []
    run_jobs([JobLine(1, folder, str(out), {"segment_frames": SEGMENT})], ["cpu"], {}, told=jobs.append)
    assert jobs[0].status == "skipped"
    join_parts(out, overwrite=True)
    assert not parts_folder(out).exists()


def test_what_was_cut_off_before_its_parts_were_removed_is_finished(
    folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "talk.mp4"
    asked = ["render", str(folder), "-o", str(out), "--device", "cpu", "--segment-frames", str(SEGMENT)]
    cut_off_before_its_parts_were_removed(folder, str(out))
    whole = out.read_bytes()
    assert main(asked) == 1
    assert "6 of 6 segments are finished; go on with --resume --overwrite" in capfd.readouterr().err
    with pytest.raises(OutputError, match="crf is not what it was"):
        gpupipe.render(folder, out, resume=True, crf=30, **OPTIONS)
    out.write_bytes(whole + b"?")
    with pytest.raises(OutputError, match="exists already, and is not what its parts make; use resume=True with over"):
        gpupipe.render(folder, out, resume=True, **OPTIONS)
    assert out.read_bytes() == whole + b"?"
    out.write_bytes(whole)
    assert main([*asked, "--resume"]) == 0
    assert "43 of 43 frames were finished before" in capfd.readouterr().out
    assert out.read_bytes() == whole
    assert not parts_folder(out).exists()


def test_what_others_have_drawn_is_finished_too(folder: Path, tmp_path: Path) -> None:
    out, body = tmp_path / "talk.mp4", Character.load(folder).body
    cut_off_before_its_parts_were_removed(folder, str(out))
    whole = out.read_bytes()
    manifest = read_manifest(parts_folder(out))
    assert manifest is not None
    options = OutputOptions(resume=True, segment_frames=SEGMENT)
    out.write_bytes(b"another")
    with pytest.raises(OutputError, match="exists already, and is not what its parts make"):
        Gathered(out, body, options, segments=Segments(FRAMES, SEGMENT), manifest=manifest)
    out.write_bytes(whole)
    Gathered(out, body, options, segments=Segments(FRAMES, SEGMENT), manifest=manifest).commit()
    assert out.read_bytes() == whole
    assert not parts_folder(out).exists()


def test_batch_goes_on(folder: Path, tmp_path: Path) -> None:
    gpupipe.render(folder, tmp_path / "whole.mp4", **OPTIONS)
    out = tmp_path / "talk.mp4"
    interrupted(folder, str(out), 3)
    reports: list[Any] = []
    options: JobKeywords = {"segment_frames": SEGMENT}
    run_jobs([JobLine(1, folder, str(out), options)], ["cpu"], {}, told=reports.append)
    assert [report.status for report in reports] == ["done"]
    assert out.read_bytes() == (tmp_path / "whole.mp4").read_bytes()


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '{"version": 2}', "null", '{"version": 1, "segments": {"0": {"name": "../x"}}}']
)
def test_a_manifest_that_is_none(folder: Path, tmp_path: Path, text: str) -> None:
    out = tmp_path / "talk.mp4"
    interrupted(folder, str(out), 2)
    (parts_folder(out) / "manifest.json").write_text(text)
    with pytest.raises(OutputError, match=r"manifest.json: cannot be read: .*; begin again with overwrite=True"):
        gpupipe.render(folder, out, resume=True, **OPTIONS)
    gpupipe.render(folder, out, **OPTIONS)
    assert small.frames_in(out) == FRAMES


def test_verify(folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "talk.mp4"
    gpupipe.render(folder, out, **OPTIONS)
    found = verify(out)
    assert (found.frames, found.keyframes, found.problems) == (FRAMES, list(range(0, FRAMES, SEGMENT)), [])
    assert main(["verify", str(out)]) == 0
    assert "whole" in capfd.readouterr().out
    gpupipe.render(folder, f"{tmp_path}/images/", **OPTIONS)
    assert verify(f"{tmp_path}/images/").frames == FRAMES
    (tmp_path / "images" / "frame_0003.jpg").unlink()
    (tmp_path / "images" / "frame_0007.jpg").write_bytes(b"no picture")
    assert main(["verify", f"{tmp_path}/images/", "--json"]) == 1
    assert len(json.loads(capfd.readouterr().out)["problems"]) == 2
    data = bytearray(out.read_bytes())
    middle = data.index(b"mdat") + 4000
    data[middle : middle + 400] = bytes(400)
    out.write_bytes(data)
    assert verify(out).problems
    out.write_bytes(data[: len(data) // 2])
    with pytest.raises(GpupipeError):
        verify(out)
