"""What is logged: which events, with which fields, where; and that nothing is, unless somebody asks."""

from __future__ import annotations

import argparse
import io
import json
import logging
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import small

import gpupipe
from gpupipe.character.folder import Character
from gpupipe.cli import main
from gpupipe.cli.log import LOGGED, Lines, logging_as
from gpupipe.errors import InferenceError, OptionError
from gpupipe.filelock import FileLock
from gpupipe.log import ROOT, Log, job
from gpupipe.model.model import Model

FRAMES = 30
KEYS = ["time", "level", "event", "logger", "thread", "job", "session"]
OPTIONS = ("--device", "cpu", "--quiet")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = small.small_character(tmp_path / "anna")
    np.save(folder / "aud_ave.npy", small.features(FRAMES))
    return folder


def told(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def of(events: list[dict[str, Any]], name: str) -> list[dict[str, Any]]:
    return [event for event in events if event["event"] == name]


@pytest.fixture
def log(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    caplog.set_level(logging.DEBUG, ROOT)
    return caplog


def test_nothing_is_shown_to_who_does_not_ask() -> None:
    code = "import gpupipe.log; gpupipe.log.Log('gpupipe.x').event('it burns', 40); import logging; "
    code += "print(logging.getLogger().handlers, logging.getLogger('gpupipe').level)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert (done.stdout, done.stderr) == ("[] 0\n", "")


def test_nothing_is_made_of_the_fields_when_it_is_off() -> None:
    class Unread:
        def __str__(self) -> str:
            raise AssertionError("read")

    assert not logging.getLogger(ROOT).isEnabledFor(logging.DEBUG)
    Log("gpupipe.x").event("silent", logging.DEBUG, value=Unread())


def test_an_event_is_a_record_for_people_and_for_programs(log: pytest.LogCaptureFixture) -> None:
    with job("a.mp4"):
        Log("gpupipe.x").event("model opened", path=Path("m.onnx"), seconds=0.1234567, notes=("b c", "d"), none=None)
    record: Any = log.records[-1]
    assert record.getMessage() == "model opened job=a.mp4 path=m.onnx seconds=0.123457 notes=b c; d"
    assert (record.event, record.name, record.funcName) == (
        "model opened",
        "gpupipe.x",
        "test_an_event_is_a_record_for_people_and_for_programs",
    )
    assert record.fields["path"] == Path("m.onnx")
    with pytest.raises(ValueError, match="burnt"), Log("gpupipe.x").timed("frames loaded"):
        raise ValueError("burnt")
    assert len(log.records) == 1


def test_a_render_tells_what_it_does(folder: Path, tmp_path: Path) -> None:
    path, out = tmp_path / "log.jsonl", str(tmp_path / "talk.mp4")
    arguments = ["render", str(folder), "-o", out, "--segment-frames", "8", "--encoders", "2", *OPTIONS]
    assert main([*arguments, "--log-json", str(path)]) == 0
    events = told(path)
    assert all(list(event)[: len(KEYS)] == KEYS for event in events)
    names = [event["event"] for event in events]
    assert names[:3] == ["command begun", "engine opened", "render begun"]
    assert names[-3:] == ["output placed", "render ended", "command ended"]
    (model,) = of(events, "model opened")
    assert (model["path"], model["provider"]) == (str(folder / "checkpoint" / "model_best.onnx"), "cpu")
    (frames,) = of(events, "frames loaded")
    assert (frames["character"], frames["frames"]) == (str(folder), small.FRAMES)
    assert sorted(event["session"] for event in of(events, "session opened")) == [1, 2]
    assert {event["thread"] for event in of(events, "session opened")} == {"encode"}
    assert sorted(event["segment"] for event in of(events, "segment finished")) == [0, 1, 2, 3]
    assert sum(event["frames"] for event in of(events, "session ended")) == FRAMES
    assert {event["job"] for event in events[2:-1]} == {out}
    assert all(event["seconds"] >= 0 for event in (model, frames, events[-1], events[-2]))
    assert len(events) < FRAMES, "no event for each frame"
    assert logging.getLogger(ROOT).level == logging.NOTSET
    assert [type(handler) for handler in logging.getLogger(ROOT).handlers] == [logging.NullHandler]


def test_lines_for_people_and_json_on_standard_output(
    folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    arguments = ["render", str(folder), "-o", str(tmp_path / "talk.mp4"), *OPTIONS]
    assert main([*arguments, "-vv", "--log-json", "-"]) == 0
    out, err = capfd.readouterr()
    names = [json.loads(line)["event"] for line in out.splitlines()]
    assert "encoder opened" in names, "a detail"
    assert len(err.splitlines()) == len(names)
    assert " info [MainThread] render ended job=" in err
    assert main(arguments) == 1
    assert capfd.readouterr().err.startswith("error: ")
    assert main([*arguments, "-v", "--overwrite"]) == 0
    out, err = capfd.readouterr()
    assert (out, "encoder opened" in err, "model opened" in err) == ("", False, True)
    assert main([*arguments, "-v"]) == 1
    assert " error [MainThread] command failed command=render error=" in capfd.readouterr().err


@pytest.mark.parametrize("command", LOGGED)
def test_commands_that_render_have_a_log(command: str, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main([command, "--help"])
    text = capfd.readouterr().out
    assert "-v, --verbose" in text
    assert "--log-json" in text


@pytest.mark.parametrize(("command", "told"), [("serve", ["went wrong"]), ("render", [])])
def test_a_servers_warnings_are_told_unasked(command: str, told: list[str], capfd: pytest.CaptureFixture[str]) -> None:
    log = Log("gpupipe.serve")
    with logging_as(argparse.Namespace(command=command, verbose=0, log_json=None)):
        log.event("went wrong", logging.WARNING)
        log.event("went well")
    with (
        pytest.raises(OptionError),
        logging_as(argparse.Namespace(command=command, verbose=0, log_json=None)),
    ):
        raise OptionError("wrong")  # which the command tells
    assert [line.rpartition("] ")[2] for line in capfd.readouterr().err.splitlines()] == told


def test_a_log_that_cannot_be_written(folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    arguments = ["render", str(folder), "-o", str(tmp_path / "talk.mp4"), *OPTIONS, "--log-json"]
    assert main([*arguments, f"{tmp_path}/missing/log"]) == 1
    assert "no such folder" in capfd.readouterr().err
    assert main([*arguments, str(tmp_path)]) == 1
    assert "--log-json: cannot be written: " in capfd.readouterr().err

    class Full(io.StringIO):
        def write(self, _: str) -> int:
            raise OSError(28, "No space left on device")

    handler = Lines(Full(), logging.Formatter())
    logging.getLogger(ROOT).addHandler(handler)
    for _ in range(3):
        Log("gpupipe.x").event("it burns", logging.ERROR)
    assert capfd.readouterr().err == ("warning: the log ends here, it cannot be written: No space left on device\n")
    assert handler not in logging.getLogger(ROOT).handlers


def test_a_line_stays_one_line(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["render", f"{tmp_path}/a\nb", "-o", f"{tmp_path}/a\nb.mp4", *OPTIONS, "-v"]) == 1
    logged = [line for line in capfd.readouterr().err.splitlines() if not line.startswith("error: ")]
    assert [line.split("] ")[1].split("=")[0] for line in logged] == [
        "command begun command",
        "engine opened device",
        "command failed command",
    ]


def test_a_failed_batch_and_its_frames_one_by_one(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, log: pytest.LogCaptureFixture
) -> None:
    gpupipe.render(folder, tmp_path / "whole.mp4", device="cpu", batch=4, runs=4, inference_threads=4)
    start, count = Model.start, [0]

    def failing(self: Model, bindings: Any, frames: int) -> Any:
        count[0] += 1
        if count[0] == 2:
            raise InferenceError("the model burns")
        return start(self, bindings, frames)

    monkeypatch.setattr(Model, "start", failing)
    log.clear()
    gpupipe.render(folder, tmp_path / "talk.mp4", device="cpu", batch=4, runs=4, inference_threads=4)
    assert (tmp_path / "talk.mp4").read_bytes() == (tmp_path / "whole.mp4").read_bytes()
    records: list[Any] = log.records
    (failed,) = (record for record in records if record.event == "batch failed, its frames are drawn alone")
    assert failed.levelname == "WARNING"
    assert failed.fields["error"] == "the model burns"
    alone = [record.fields["frame"] for record in records if record.event == "frame drawn alone"]
    assert alone == failed.fields["frames"]
    assert len(alone) > 0


def test_jobs_and_evictions(folder: Path, tmp_path: Path) -> None:
    other = small.small_character(tmp_path / "bert")
    jobs, path = tmp_path / "jobs.jsonl", tmp_path / "log.jsonl"
    outputs = [str(tmp_path / f"{name}.mp4") for name in "abc"]
    entries = [
        {"character": str(folder), "output": outputs[0]},
        {"character": str(other), "output": outputs[1]},
        {"character": str(other), "output": outputs[2], "start_frame": 999},
    ]
    jobs.write_text("\n".join(map(json.dumps, entries)))
    size = Character.load(folder).count * 96 * 64 * 3 // 2 * 2  # of one, and of less than two, with their crops
    arguments = ["batch", str(jobs), *OPTIONS, "--parallel", "1", "--cache", str(size), "--log-json", str(path)]
    assert main(arguments) == 1
    events = told(path)
    ended = {event["job"]: event for event in of(events, "job ended")}
    assert [ended[output]["status"] for output in outputs] == ["done", "done", "failed"]
    assert ended[outputs[2]]["level"] == "warning"
    assert "start_frame" in ended[outputs[2]]["error"]
    assert len(of(events, "model opened")) == 1
    evicted = [event["file"] for event in of(events, "frames evicted")]
    assert evicted[0] == str((folder / "full_body_video.mp4").resolve())


def test_waiting_for_a_lock(tmp_path: Path, log: pytest.LogCaptureFixture) -> None:
    lock = FileLock(tmp_path / "lock")
    lock.acquire()
    second = FileLock(tmp_path / "lock")
    thread = threading.Thread(target=second.acquire)
    thread.start()
    while not log.records:
        threading.Event().wait(0.01)
    lock.release()
    thread.join(20)
    second.release()
    assert [getattr(record, "event", "") for record in log.records] == ["waiting for lock", "lock taken"]
