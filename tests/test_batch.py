"""`gpupipe batch`: many jobs on one engine, each told of on its own."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import small
from conftest import on_softcuda

import gpupipe
from gpupipe.cli import main
from gpupipe.media.video import read_frames
from gpupipe.options import JobKeywords
from gpupipe.render import engine
from gpupipe.render.queue import is_complete


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A folder with two characters: anna, who says 12 frames, and bert, who is larger and says 20."""
    small.small_character(tmp_path / "anna")
    small.make(tmp_path / "bert", size=(128, 80))
    np.save(tmp_path / "bert" / "aud_ave.npy", small.features(20, seed=3))
    return tmp_path


def jobs(place: Path, *lines: dict[str, Any] | str) -> Path:
    path = place / "jobs.jsonl"
    path.write_text("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines), "utf-8")
    return path


def report(place: Path) -> dict[int, dict[str, Any]]:
    rows = [json.loads(line) for line in (place / "report.jsonl").read_text("utf-8").splitlines()]
    return {row["line"]: row for row in rows}


def run(place: Path, *arguments: str, device: str = "cpu") -> int:
    return main(["batch", f"{place}/jobs.jsonl", "--device", device, "--report", f"{place}/report.jsonl", *arguments])


FOUR: tuple[dict[str, Any], ...] = (
    {"character": "anna", "output": "a.mp4"},
    {"character": "bert", "output": "b.mkv", "frames": 15, "batch": 3, "start_frame": 2},
    {"character": "anna", "output": "c/", "image_format": "png", "features": "bert/aud_ave.npy"},
    {"character": "bert", "output": "d.mp4", "sound": False, "crf": 0},
)


def alone(place: Path, line: dict[str, Any], to: Path, **device: Any) -> dict[str, bytes]:
    """What `render` makes of a job's options."""
    options = {name: value for name, value in line.items() if name not in ("character", "output")}
    if "features" in options:
        options["features"] = place / options["features"]
    to.mkdir(parents=True)
    gpupipe.render(place / line["character"], f"{to}/{line['output']}", **{"device": "cpu"} | device, **options)
    return small.files_in(to)


@pytest.mark.parametrize("parallel", ["1", "2", "4"])
def test_every_job_is_what_render_makes(place: Path, parallel: str, capfd: pytest.CaptureFixture[str]) -> None:
    jobs(place, *FOUR)
    assert run(place, "--parallel", parallel) == 0
    out, err = capfd.readouterr()
    lines = out.splitlines()
    assert err == ""
    assert lines[-1] == "4 of 4 jobs are complete"
    assert {line.split("] ")[1].split(": ")[0] for line in lines[:-1]} == {
        f"{place}/{name}" for name in ("a.mp4", "b.mkv", "c/", "d.mp4")
    }
    told = report(place)
    assert {number: row["status"] for number, row in told.items()} == dict.fromkeys((1, 2, 3, 4), "done")
    assert [told[number]["stats"]["frames"] for number in (1, 2, 3, 4)] == [12, 15, 20, 20]
    for number, line in enumerate(FOUR):
        wanted = alone(place, line, place / f"alone{number}")
        made = {name: content for name, content in small.files_in(place).items() if name in wanted}
        assert made == wanted


def test_a_character_is_decoded_once(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    decoded: list[str] = []

    def counted(path: Path, *rest: Any) -> Any:
        decoded.append(f"{path.parent.name}/{path.name}")
        return read_frames(path, *rest)

    monkeypatch.setattr("gpupipe.engine.order.read_frames", counted)
    jobs(place, *({"character": name, "output": f"{name}{n}.mp4"} for n in range(4) for name in ("anna", "bert")))
    assert run(place) == 0
    assert sorted(decoded) == [
        f"{name}/{video}.mp4" for name in ("anna", "bert") for video in ("crops_328_video", "full_body_video")
    ]


def test_complete_outputs_are_skipped_and_others_are_not(place: Path, capfd: pytest.CaptureFixture[str]) -> None:
    jobs(place, *FOUR)
    assert run(place) == 0
    before = small.files_in(place)
    assert run(place) == 0
    assert {row["status"] for row in report(place).values()} == {"skipped"}
    del before["report.jsonl"]
    assert {name: content for name, content in small.files_in(place).items() if name != "report.jsonl"} == before
    # Of other lengths, so not what these jobs would make: told, and kept.
    (place / "a.mp4").write_bytes((place / "d.mp4").read_bytes())
    next((place / "c").iterdir()).unlink()
    capfd.readouterr()
    assert run(place) == 1
    told = report(place)
    assert [told[number]["status"] for number in (1, 2, 3, 4)] == ["failed", "skipped", "failed", "skipped"]
    assert told[1]["error"] == f"{place}/a.mp4: output: exists already; use overwrite=True or another name"
    assert capfd.readouterr().err.count("error: ") == 2
    assert run(place, "--overwrite") == 0
    assert {row["status"] for row in report(place).values()} == {"done"}
    made = small.files_in(place)
    assert {name: made[name] for name in before} == before


def test_failures_are_told_and_the_others_finish(place: Path, capfd: pytest.CaptureFixture[str]) -> None:
    bad = small.features(12)
    bad[7, 0] = -1.0
    np.save(place / "nan.npy", bad)
    jobs(
        place,
        {"character": "anna", "output": "a.mp4"},
        {"character": "nobody", "output": "b.mp4"},
        "not JSON",
        {"character": "anna", "output": "c.mp4", "features": "nan.npy"},
        {"character": "bert", "output": "no/such/d.mp4"},
        {"character": "bert", "output": "e.mp4", "crf": 99},
        {"character": "bert", "output": "f/", "device": "cpu"},
        {"character": "bert", "output": "g.mp4"},
    )
    assert run(place) == 1
    out, err = capfd.readouterr()
    told = report(place)
    assert {number for number, row in told.items() if row["status"] == "done"} == {1, 8}
    assert told[2]["error"] == f"{place}/nobody: no such character folder; give a folder"
    assert told[3]["error"].startswith(f"{place}/jobs.jsonl:3: ")
    assert "output frame 7: the model gave NaN" in told[4]["error"]
    assert told[5]["error"] == f"{place}/no/such: output: no such folder; create it first"
    assert told[6]["error"] == "crf: out of range (got 99); give 0 to 51"
    assert "give it on the command line" in told[7]["error"]
    assert len(err.splitlines()) == 6
    assert out.splitlines()[-1] == "2 of 8 jobs are complete"
    assert sorted(path.name for path in place.iterdir() if path.suffix == ".mp4" or path.name.startswith(".")) == [
        "a.mp4",
        "g.mp4",
    ]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["none.jsonl"], "none.jsonl: cannot be read: No such file or directory"),
        (["jobs.jsonl", "--report", "no/report"], "no: no such folder; create it first"),
    ],
)
def test_what_cannot_begin(
    place: Path, arguments: Sequence[str], said: str, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(place)
    jobs(place, *FOUR)
    assert main(["batch", *arguments, "--device", "cpu"]) == 1
    assert capfd.readouterr().err.startswith(f"error: {said}")


def test_no_jobs_at_all(place: Path, capfd: pytest.CaptureFixture[str]) -> None:
    jobs(place, "")
    assert run(place) == 0
    assert capfd.readouterr() == ("0 of 0 jobs are complete\n", "")
    assert report(place) == {}


def test_ctrl_c_leaves_what_is_complete_and_nothing_half(
    place: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    previous = signal.signal(signal.SIGINT, signal.default_int_handler)
    jobs(place, *({"character": "anna", "output": f"{n}.mp4"} for n in range(20)))
    done = 0
    render = engine.Engine.render

    def counted(self: Any, *rest: Any, **options: Any) -> Any:
        nonlocal done
        stats = render(self, *rest, **options)
        done += 1
        if done == 3:
            os.kill(os.getpid(), signal.SIGINT)
        return stats

    monkeypatch.setattr(engine.Engine, "render", counted)
    try:
        assert run(place) == 130
    finally:
        signal.signal(signal.SIGINT, previous)
    assert capfd.readouterr().err == "interrupted\n"
    made = [path for path in place.iterdir() if path.suffix == ".mp4"]
    assert 2 <= len(made) < 20
    assert all(small.frames_in(path) == 12 for path in made)
    assert not [path for path in place.iterdir() if path.name.startswith(".")]
    monkeypatch.setattr(engine.Engine, "render", render)
    assert run(place) == 0
    assert sum(row["status"] == "skipped" for row in report(place).values()) == len(made)


def test_completeness(place: Path) -> None:
    anna = gpupipe.Character.load(place / "anna")
    options: JobKeywords = {"frames": 9}
    assert not is_complete(anna, place / "x.mp4", options)
    gpupipe.render(anna, place / "x.mp4", device="cpu", frames=9)
    assert is_complete(anna, place / "x.mp4", options)
    assert not is_complete(anna, place / "x.mp4", {"frames": 10})
    (place / "cut.mp4").write_bytes((place / "x.mp4").read_bytes()[:-500])
    assert not is_complete(anna, place / "cut.mp4", options)
    (place / "images").mkdir()
    assert not is_complete(anna, f"{place}/images", options)


@pytest.mark.cuda
def test_several_devices(place: Path) -> None:
    """Each GPU gets jobs as it becomes free, and every file is what the CPU makes."""
    if not on_softcuda():
        pytest.skip("a machine may have one GPU")
    jobs(place, *FOUR, *({"character": "anna", "output": f"more{n}.mp4"} for n in range(8)))
    command = [sys.executable, "-m", "gpupipe", "batch", f"{place}/jobs.jsonl", "--device", "cuda:0,cuda:1"]
    done = subprocess.run(
        [*command, "--report", f"{place}/report.jsonl", "--parallel", "1"],
        env=os.environ | {"SOFTCUDA_DEVICES": "2"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert {row["stats"]["device"].split(" ")[0] for row in report(place).values()} == {"cuda:0", "cuda:1"}
    for number, line in enumerate(FOUR):
        wanted = alone(place, line, place / f"alone{number}")
        assert {name: small.files_in(place)[name] for name in wanted} == wanted


@pytest.mark.cuda
def test_a_device_that_there_is_not(place: Path, capfd: pytest.CaptureFixture[str]) -> None:
    if not on_softcuda():
        pytest.skip("a machine may have so many GPUs")
    jobs(place, *FOUR)
    assert run(place, device="cuda:0,cuda:7") == 1
    assert "no such GPU" in capfd.readouterr().err
    assert not list(place.glob("*.mp4"))
