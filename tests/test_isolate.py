"""Decoding in a process of its own: the same frames, and one error for whatever becomes of that process."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import fuzz
import numpy as np
import pytest
import small

import gpupipe
from gpupipe.character.folder import Character
from gpupipe.cli import main
from gpupipe.doctor.inspect import inspect
from gpupipe.errors import MediaError, PackageError
from gpupipe.media import isolate
from gpupipe.media.limits import Limits
from gpupipe.media.sound import read_pcm
from gpupipe.media.sound_file import probe_sound
from gpupipe.media.video import probe, read_frames

ISOLATED = Limits(isolate=True)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return small.small_character(tmp_path / "character")


@pytest.fixture
def video(folder: Path) -> Path:
    return folder / "full_body_video.mp4"


def test_the_same_frames_and_facts(video: Path) -> None:
    assert replace(probe(video, ISOLATED), limits=Limits()) == probe(video)
    for pixel_format in ("nv12", "bgr24"):
        here, there = (list(read_frames(video, pixel_format, 7, limits)) for limits in (Limits(), ISOLATED))
        assert len(there) == 7
        np.testing.assert_array_equal(here, there)
    (first, *_), rest = read_frames(video, "nv12", 2, ISOLATED), read_frames(video, "nv12", None, ISOLATED)
    np.testing.assert_array_equal(first, next(rest))
    rest.close()


def test_the_same_sound(tmp_path: Path) -> None:
    path = tmp_path / "sound.m4a"
    path.write_bytes(fuzz.sound("aac", "mp4", seconds=2.5))
    assert probe_sound(path, ISOLATED) == probe_sound(path)
    here, there = (np.concatenate(list(read_pcm(path, limits=limits))) for limits in (Limits(), ISOLATED))
    np.testing.assert_array_equal(here, there)


def test_the_same_render(folder: Path, tmp_path: Path) -> None:
    sound = tmp_path / "sound.m4a"
    sound.write_bytes(fuzz.sound("aac", "mp4"))
    paths = [tmp_path / name for name in ("here.mp4", "there.mp4")]
    for path, isolated in zip(paths, (False, True), strict=True):
        options = {"device": "cpu", "audio": sound, "features": folder / "aud_ave.npy", "isolate": isolated}
        stats = gpupipe.render(folder, path, **options)  # type: ignore[arg-type]
        assert (stats.frames, any("processes of their own" in note for note in stats.notes)) == (15, isolated)
    here, there = (list(read_frames(path, "nv12")) for path in paths)
    np.testing.assert_array_equal(here, there)
    seconds = [probe_sound(path).duration_seconds for path in paths]
    assert seconds == pytest.approx([0.6, 0.6], abs=0.03)
    # Sound is copied here and encoded there, whether one process renders it all or segments are joined.
    assert paths[0].read_bytes() != paths[1].read_bytes()
    joined = tmp_path / "joined.mp4"
    gpupipe.render(folder, joined, device="cpu", audio=sound, features=folder / "aud_ave.npy", segments="0")
    assert main(["join", str(joined), "--isolate"]) == 0
    assert joined.read_bytes() == paths[1].read_bytes()


def test_the_same_errors(video: Path) -> None:
    small.damage(video, frame=5)
    told = []
    for limits in (Limits(), ISOLATED):
        with pytest.raises(MediaError) as caught:
            list(read_frames(video, "nv12", 12, limits))
        told.append(str(caught.value))
    assert told[0] == told[1]
    with pytest.raises(MediaError) as caught:
        probe(video, Limits(max_pixels=6143, isolate=True))
    assert str(caught.value) == (
        f"{video}: size: larger than max_pixels 6143 (got '96x64'); make the video smaller, or max_pixels larger"
    )


def test_a_decoder_that_cannot_be_started(video: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(isolate, "COMMAND", (str(video.with_name("none")),))
    with pytest.raises(MediaError) as caught:
        probe(video, ISOLATED)
    assert str(caught.value) == (
        f"{video}: no process can be started that decodes it: No such file or directory; end other programs"
    )


FAILURES = {
    "import os; os.kill(os.getpid(), 11)": "it was ended by SIGSEGV",
    "raise SystemExit(3)": "it ended with status 3",
    "import sys; sys.stdout.write('no answer')": "it says what is no answer",
    r"import sys; sys.stdout.write('\2\0\0\0[}')": "it says what is no answer",
    r"""import sys; sys.stdout.write('\x37\0\0\0{"shape": [4294967296, 4294967296], "dtype": "float64"}')""": (
        "it says what is no answer"
    ),
    r"""import sys; sys.stdout.write('\x1e\0\0\0{"shape": [1], "dtype": "|O"}  ')""": "it says what is no answer",
    r"""import sys; sys.stdout.write('\x0d\0\0\0{"value": []}\2\0\0\0{}')""": "it says what is no answer",
    r"""import sys; sys.stdout.write('\2\0\0\0{}')""": "it says what is no answer",
    "import time; time.sleep(600)": "it took too long",
}


@pytest.mark.skipif(sys.platform == "win32", reason="signals end processes otherwise there")
@pytest.mark.parametrize("program", FAILURES)
def test_a_decoder_that_fails(video: Path, program: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(isolate, "COMMAND", (sys.executable, "-c", program))
    monkeypatch.setattr(isolate, "SECONDS", 0.5 if "sleep" in program else 60.0)
    with pytest.raises(MediaError) as caught:
        probe(video, ISOLATED)
    assert str(caught.value) == (
        f"{video}: the process that decodes it failed: {FAILURES[program]}; "
        "the file is damaged, or made to do harm: write it again"
    )


@pytest.mark.skipif(sys.platform != "linux", reason="the limit of a process's memory is as on Linux")
def test_a_decoder_that_wants_more_memory_than_it_may(tmp_path: Path) -> None:
    path = tmp_path / "large.mp4"
    small.write_video(path, small.pictures(2560, 1440, 3))
    assert len(list(read_frames(path, "bgr24", 3, Limits(isolate=True, max_memory=1 << 30)))) == 3
    with pytest.raises(MediaError) as caught:
        list(read_frames(path, "bgr24", 3, Limits(isolate=True, max_memory=1 << 23)))
    assert str(caught.value).startswith(f"{path}: ")


def test_modules_of_the_current_folder_are_not_imported(
    video: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "av.py").write_text("raise SystemExit(9)")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry])
    assert probe(video, ISOLATED).frames == 12


@pytest.mark.skipif(sys.platform == "win32", reason="making links takes a right there")
def test_links_out_of_the_folder(folder: Path, tmp_path: Path) -> None:
    original = folder / "aud_ave.npy"
    outside = tmp_path / "outside.npy"
    original.rename(outside)
    original.symlink_to(outside)
    (folder / "inside").symlink_to("cache/crop_rectangles.json")
    (folder / "round").symlink_to("round")
    assert Character.load(folder).count == 12  # of a folder that one trusts, links are followed
    for loaded in (None, Character.load(folder)):
        with pytest.raises(PackageError) as caught:
            Character.load(folder, ISOLATED) if loaded is None else loaded.under(ISOLATED)
        assert str(caught.value) == (
            f"{original}: is a link that leads out of the character's folder (got {str(outside)!r}); "
            "put the file itself there, or leave isolate=True out"
        )
    found = inspect(folder, ISOLATED)
    assert len(found["faults"]) == 1
    assert (found["features"], found["videos"]) == (None, {})
    assert inspect(folder)["features"] == [12, 512]
    original.unlink()
    outside.rename(original)
    assert inspect(folder, ISOLATED)["features"] == [12, 512]
    assert Character.load(folder, ISOLATED).limits == ISOLATED
