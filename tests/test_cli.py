"""The command line: what it prints where, its exit codes, and the files it writes about a render."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import small

from gpupipe import __version__
from gpupipe.cli import main
from gpupipe.cli.progress import LineProgress
from gpupipe.machine import cpu_count
from gpupipe.options import RenderKeywords, options_of
from gpupipe.render.stats import Progress

ROOT = Path(__file__).resolve().parents[1]
TIMES = r"\(\d+\.\d\dms inf, \d+\.\d\dms comp, \d+\.\d\dms save\)"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return small.small_character(tmp_path / "character")


def run(*arguments: str, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "gpupipe", *arguments],
        cwd=ROOT,
        env=os.environ | (env or {}),
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=60,
        check=False,
    )


# Usage


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "the following arguments are required: COMMAND"),
        (["paint"], "invalid choice: 'paint'"),
        (["render"], "the following arguments are required: CHARACTER, -o/--output"),
        (["render", "c"], "the following arguments are required: -o/--output"),
        (["render", "c", "-o", "o.mp4", "--batch", "0"], "argument --batch: out of range (got 0); give 1 to 512"),
        (["render", "c", "-o", "o.mp4", "--batch", "513"], "argument --batch: out of range (got 513); give 1 to 512"),
        (
            ["render", "c", "-o", "o.mp4", "--batch", "two"],
            "argument --batch: not a whole number (got 'two'); give 1 to 512, or auto",
        ),
        (
            ["render", "c", "-o", "o.mp4", "--batch", "1.5"],
            "argument --batch: not a whole number (got '1.5'); give 1 to 512, or auto",
        ),
        (["render", "c", "-o", "o.mp4", "--workers", "0"], "argument --workers: out of range (got 0); give 1 to 1024"),
        (["render", "c", "-o", "o.mp4", "--frames", "-3"], "argument --frames: out of range (got -3); give 1 or more"),
        (
            ["render", "c", "-o", "o.mp4", "--start-frame", "-1"],
            "argument --start-frame: out of range (got -1); give 0 or more",
        ),
        (["render", "c", "-o", "o.mp4", "--crf", "-1"], "argument --crf: out of range (got -1); give 0 or more"),
        (
            ["render", "c", "-o", "o.mp4", "--jpeg-quality", "0"],
            "argument --jpeg-quality: out of range (got 0); give 1 to 100",
        ),
        (
            ["render", "c", "-o", "o.mp4", "--jpeg-quality", "101"],
            "argument --jpeg-quality: out of range (got 101); give 1 to 100",
        ),
        (
            ["render", "c", "-o", "o.mp4", "--segment-frames", "0"],
            "argument --segment-frames: out of range (got 0); give 1 or more",
        ),
        (
            ["render", "c", "-o", "o.mp4", "--encoder-threads", "0"],
            "argument --encoder-threads: out of range (got 0); give 1 to 1024",
        ),
        (
            ["render", "c", "-o", "o.mp4", "--device", "gpu"],
            "argument --device: no such device (got 'gpu'); give auto, cpu, cuda or cuda:N",
        ),
        (
            ["render", "c", "-o", "o.mp4", "--max-memory", "8X"],
            "argument --max-memory: not a number of bytes (got '8X'); give one such as 8G or 500M",
        ),
        (
            ["render", "c", "-o", "o.mp4", "--max-memory", "0"],
            "argument --max-memory: out of range (got 0); give 1 or more",
        ),
        (
            ["render", "c", "-o", "o.mp4", "--cache", "most"],
            "argument --cache: not a number of bytes (got 'most'); give one such as 8G or 500M",
        ),
        (
            ["render", "c", "-o", "o.mp4", "--audio", ""],
            "argument --audio: not a path (got ''); give the name of a file",
        ),
        (["render", "c", "-o", "o.mp4", "--provider", "x"], "argument --provider: invalid choice: 'x'"),
        (["render", "c", "-o", "o.mp4", "--pixel-format", "rgb24"], "argument --pixel-format: invalid choice: 'rgb24'"),
        (["render", "c", "-o", "o.mp4", "--image-format", "bmp"], "argument --image-format: invalid choice: 'bmp'"),
        (["render", "c", "-o", "o.mp4", "--fast"], "unrecognized arguments: --fast"),
        (["demo", "d", "--size", "720p"], "argument --size: '720p' is not of the form 1280x720"),
        (["demo", "d", "--size", "0x720"], "argument --size: '0x720' is not of the form 1280x720"),
        (["demo", "d", "--frames", "0"], "argument --frames: out of range (got 0); give 1 or more"),
        (["demo", "d", "--model", "huge"], "argument --model: invalid choice: 'huge'"),
        (["inspect"], "the following arguments are required: CHARACTER"),
        (["doctor", "me"], "unrecognized arguments: me"),
    ],
)
def test_wrong_usage(capfd: pytest.CaptureFixture[str], arguments: list[str], said: str) -> None:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    out, err = capfd.readouterr()
    assert (caught.value.code, out) == (2, "")
    assert err.startswith("usage: gpupipe")
    assert said in err.splitlines()[-1]


def test_version(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["--version"])
    assert (caught.value.code, capfd.readouterr().out) == (0, f"{__version__}\n")
    assert re.fullmatch(r"\d+\.\d+\.\d+\S*", __version__)


def test_as_a_module() -> None:
    done = run("--version")
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{__version__}\n", "")
    done = run("inspect", "no such folder")
    assert (done.returncode, done.stderr) == (1, "error: no such folder: no such character folder; give a folder\n")


def test_help_names_every_option(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["render", "--help"])
    assert caught.value.code == 0
    options = set(re.findall(r"^  (?:-o OUT, )?(?:-[ov], )?(--[a-z0-9-]+)", capfd.readouterr().out, re.MULTILINE))
    known = {option.flag for option in options_of(RenderKeywords).values()}
    cluster = {"--ray", "--ray-cores", "--ray-keep"}
    assert options == {"--output", "--stats", "--trace", "--quiet", "--verbose", "--log-json", *cluster, *known}


def test_help_tells_each_default_once(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["render", "--help"])
    text = " ".join(capfd.readouterr().out.split())
    assert (
        "frames in a batch; on the CPU no more than the model runs at a time [default: auto: as tuned, else 8]" in text
    )
    assert "position in the ping-pong order to start at [default: 0]" in text
    assert "lip-sync model [default: the character's own]" in text
    assert "leave the sound out of a video --masked-video" in text
    assert "None" not in text
    assert "(default" not in text


# Progress


def test_a_line_every_20_frames(folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    np.save(folder / "aud_ave.npy", small.features(47))
    arguments = ["render", str(folder), "-o", str(tmp_path / "talk.mp4"), "--device", "cpu", "--batch", "7"]
    assert main(arguments) == 0
    out, err = capfd.readouterr()
    lines = out.splitlines()
    assert [re.sub(TIMES, "(…)", line) for line in lines[:3]] == [
        f"Processed {done}/47 frames (…)" for done in (20, 40, 47)
    ]
    assert re.fullmatch(
        rf"{re.escape(str(tmp_path / 'talk.mp4'))}: 47 frames of 96x64 in \d+\.\d\d s, \d+\.\d FPS "
        r"\(\d+\.\d\d s loading, first frame after \d+\.\d\d s\)",
        lines[3],
    )
    ran = min(4, cpu_count())  # as many frames as the model runs at a time
    assert lines[4] == f"  composited on cpu, model on cpu, batch {ran}, nv12"
    assert re.fullmatch(r"  a frame: inference \d+\.\d\d ms, composite \d+\.\d\d ms, save \d+\.\d\d ms", lines[5])
    assert re.fullmatch(r"  inference alone: \d+\.\d FPS; peak memory \d+ MB, of it \d+ MB cached frames", lines[6])
    assert (len(lines), err) == (7, "")


@pytest.mark.parametrize(
    ("batch", "total", "told"),
    [
        (8, 500, range(20, 501, 20)),
        (1, 45, [20, 40, 45]),
        (64, 100, [20, 40, 60, 80, 100]),
        (20, 60, [20, 40, 60]),
        (8, 5, [5]),
        (512, 19, [19]),
    ],
)
def test_lines_do_not_depend_on_the_batch(batch: int, total: int, told: Any) -> None:
    lines: list[str] = []
    progress = LineProgress(lines.append)
    for done in [*range(batch, total, batch), total]:
        progress(Progress(done, total, 1.0, 8.1, 1.6, 4.1))
    progress.close()
    assert lines == [f"Processed {done}/{total} frames (8.10ms inf, 1.60ms comp, 4.10ms save)" for done in told]


def test_quiet(folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    for output in ("talk.mp4", "talk.mkv", "images/"):
        assert main(["render", str(folder), "-o", f"{tmp_path}/{output}", "--device", "cpu", "--quiet"]) == 0
    assert capfd.readouterr() == ("", "")


@pytest.mark.skipif(sys.platform == "win32", reason="there are no pseudo-terminals")
def test_a_bar_on_a_terminal(folder: Path, tmp_path: Path) -> None:
    import pty

    np.save(folder / "aud_ave.npy", small.features(400))
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "gpupipe", "render", str(folder), "-o", str(tmp_path / "talk.mp4"), "--device", "cpu"],
        cwd=ROOT,
        env=os.environ | {"TERM": "xterm-256color", "COLUMNS": "150", "LINES": "40"},
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
    )
    os.close(theirs)
    shown = b""
    while True:
        try:
            data = os.read(ours, 65536)
        except OSError:  # Linux: the other side has been closed
            break
        if not data:
            break
        shown += data
    os.close(ours)
    assert process.wait(timeout=60) == 0
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown.decode())
    assert "Processed " not in text
    assert re.search(r"400/400 \d+\.\d FPS \d:\d\d:\d\d \d+\.\d\dms inf, \d+\.\d\dms comp, \d+\.\d\dms save", text)
    assert f"{tmp_path / 'talk.mp4'}: 400 frames of 96x64 in " in text.replace("\r\n", "")
    assert shown.rstrip().endswith(b"cached frames")  # the bar is gone


# What a render writes about itself


def test_stats(folder: Path, tmp_path: Path) -> None:
    stats, output = tmp_path / "stats.json", tmp_path / "talk.mp4"
    arguments = ["--batch", "5", "--workers", "2", "--inference-threads", "1", "--stats", str(stats), "--quiet"]
    assert main(["render", str(folder), "-o", str(output), "--device", "cpu", *arguments]) == 0
    told = json.loads(stats.read_text("utf-8"))
    exact = {
        "output": str(output),
        "frames": 12,
        "width": 96,
        "height": 64,
        "pixel_format": "nv12",
        "device": "cpu",
        "provider": "cpu",
        "batch": 1,  # one thread runs one frame at a time
        "runs": 1,
        "workers": 1,
        "inference_threads": 1,
        "cache_bytes": 12 * (96 * 64 * 3 // 2 + 3 * 40 * 40),
        "warnings": [],
        "notes": [],
    }
    assert {name: told[name] for name in exact} == exact
    assert set(told) == {
        *exact,
        *("total_seconds", "load_seconds", "first_frame_seconds", "fps", "inference_fps", "stages", "peak_rss_bytes"),
    }
    assert told["fps"] == pytest.approx(12 / told["total_seconds"])
    assert told["total_seconds"] > told["first_frame_seconds"] > told["load_seconds"] > 0
    assert told["peak_rss_bytes"] > 10e6
    assert set(told["stages"]) == {"inference", "composite", "save"}
    for times in told["stages"].values():
        assert set(times) == {"mean_ms", "median_ms", "p95_ms", "total_seconds", "frames"}
        assert times["frames"] == 12
        assert times["mean_ms"] == pytest.approx(times["total_seconds"] / 12 * 1e3)
        assert 0 < times["median_ms"] <= times["p95_ms"]
    inference = told["stages"]["inference"]
    assert told["inference_fps"] == pytest.approx(12 / inference["total_seconds"])


def test_stats_name_what_was_odd(folder: Path, tmp_path: Path) -> None:
    small.write_rectangles(folder, [small.rectangle(frame) for frame in range(5)])
    stats = tmp_path / "stats.json"
    quiet = ["--device", "cpu", "--quiet", "--stats", str(stats)]
    assert main(["render", str(folder), "-o", f"{tmp_path}/images/", *quiet]) == 0
    told = json.loads(stats.read_text("utf-8"))
    assert len(told["warnings"]) == 1
    assert "counts differ" in told["warnings"][0]
    assert (told["pixel_format"], told["cache_bytes"]) == ("bgr24", 5 * (96 * 64 * 3 + 3 * 40 * 40))


def test_trace(folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "trace.json"
    quiet = ["--batch", "5", "--device", "cpu", "--quiet", "--trace", str(path)]
    assert main(["render", str(folder), "-o", str(tmp_path / "talk.mp4"), *quiet]) == 0
    told = json.loads(path.read_text("utf-8"))
    names = {event["tid"]: event["args"]["name"] for event in told["traceEvents"] if event["ph"] == "M"}
    spans = [event for event in told["traceEvents"] if event["ph"] == "X"]
    for stage in ("prepare", "infer", "paste", "save"):
        mine = sorted((event for event in spans if event["name"] == stage), key=lambda event: float(event["ts"]))
        # On the CPU a batch is taken in parts, as many frames as the model runs at a time.
        taken = [event["args"]["frames"] for event in mine]
        assert sum(taken) == 12
        assert max(taken) <= 5
        assert {names[event["tid"]] for event in mine} == {"MainThread" if stage == "save" else stage}
        for before, after in pairwise(mine):
            assert before["ts"] + before["dur"] <= after["ts"]
    (load,) = (event for event in spans if event["name"] == "load")
    finish = min((event for event in spans if event["name"] == "finish"), key=lambda event: float(event["ts"]))
    assert 0 <= load["ts"] < load["ts"] + load["dur"] < min(e["ts"] for e in spans if e["name"] == "prepare")
    assert finish["ts"] >= max(e["ts"] + e["dur"] for e in spans if e["name"] == "save")


@pytest.mark.parametrize("option", ["--stats", "--trace"])
def test_what_is_measured_does_not_replace_the_video(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], option: str
) -> None:
    video = tmp_path / "talk.mp4"
    assert main(["render", str(folder), "-o", str(video), option, f"{tmp_path}/character/../talk.mp4"]) == 1
    assert "is the output itself" in capsys.readouterr().err
    assert not video.exists()


def test_stats_that_cannot_be_written(folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    for option in ("--stats", "--trace"):
        arguments = ["render", str(folder), "-o", str(tmp_path / "talk.mp4"), option, str(tmp_path)]
        assert main(arguments) == 1
        assert capfd.readouterr() == ("", f"error: {tmp_path}: is a folder; give the name of a file\n")
    assert not (tmp_path / "talk.mp4").exists()


def test_paths_with_spaces_and_other_letters(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    place = tmp_path / "Ein Ordner, 角色 'ü' & é%20"
    place.mkdir()
    folder = small.small_character(place / "my character ☺")
    (folder / "checkpoint" / "model_best.onnx").rename(place / "modèle.onnx")
    (folder / "aud_ave.npy").rename(place / "речь.npy")
    for output in ("vidéo 影.mp4", "vidéo 影.mkv", "bilder ü/"):
        arguments = ["render", str(folder), "-o", f"{place}/{output}", "--device", "cpu"]
        arguments += ["--model", str(place / "modèle.onnx"), "--features", str(place / "речь.npy")]
        arguments += ["--stats", str(place / "zahlen ß.json")]
        assert main(arguments) == 0
        assert f"{place}/{output}: 12 frames" in capfd.readouterr().out
        assert json.loads((place / "zahlen ß.json").read_text("utf-8"))["output"] == f"{place}/{output}"
    assert small.frames_in(place / "vidéo 影.mp4") == small.frames_in(place / "vidéo 影.mkv") == 12
    assert len(list((place / "bilder ü").iterdir())) == 12
    assert main(["inspect", str(folder)]) == 1  # without its model and features
    out, err = capfd.readouterr()
    assert f"path: {folder}" in out
    assert len(err.splitlines()) == 2


@pytest.mark.skipif(sys.platform == "win32", reason="no colons in file names")
@pytest.mark.parametrize("name", ["take 1: final", "http:", "concat:a|b"])
def test_a_colon_is_no_protocol(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    small.small_character(tmp_path / name)
    monkeypatch.chdir(tmp_path)
    for output in (f"{name}.mp4", f"{name} images/"):
        assert main(["render", name, "-o", output, "--device", "cpu", "--quiet"]) == 0, capfd.readouterr().err
    assert small.frames_in(tmp_path / f"{name}.mp4") == len(list((tmp_path / f"{name} images").iterdir())) == 12


def test_a_name_that_is_too_long(folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    name, talk = "x" * 300, str(tmp_path / "talk.mp4")
    for arguments in ([name, "-o", talk], [str(folder), "-o", f"{tmp_path}/{name}/"], [str(folder), "-o", talk]):
        assert main(["render", *arguments, *(("--features", name) if talk == arguments[-1] else ()), "--quiet"]) == 1
        out, err = capfd.readouterr()
        assert out == ""
        assert err.startswith("error: ")
        assert name in err
        assert len(err.splitlines()) == 1
    assert not (tmp_path / "talk.mp4").exists()


def test_a_terminal_that_has_not_all_letters(tmp_path: Path) -> None:
    folder = small.small_character(tmp_path / "角色")
    arguments = ("render", str(folder), "-o", str(tmp_path / "影.mp4"), "--device", "cpu")
    done = run(*arguments, env={"PYTHONIOENCODING": "ascii"})
    assert (done.returncode, done.stderr) == (0, "")
    assert "\\u5f71.mp4: 12 frames of 96x64" in done.stdout


@pytest.mark.skipif(sys.platform == "win32", reason="a pipe that nobody reads is told otherwise there")
def test_a_reader_that_goes_away(folder: Path, tmp_path: Path) -> None:
    before = small.files_in(tmp_path)
    ours, theirs = os.pipe()
    os.close(ours)
    process = subprocess.run(
        [sys.executable, "-m", "gpupipe", "render", str(folder), "-o", str(tmp_path / "talk.mp4"), "--device", "cpu"],
        cwd=ROOT,
        stdout=theirs,
        stderr=subprocess.PIPE,
        text=True,
        timeout=60,
        check=False,
    )
    os.close(theirs)
    assert (process.returncode, process.stderr) == (1, "")
    assert small.files_in(tmp_path) == before


# inspect


def test_inspect(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    small.write_rectangles(folder, [[-4, 5, 20, 40]] + [small.rectangle(frame) for frame in range(1, 12)])
    assert main(["inspect", str(folder), "--json"]) == 0
    out, err = capfd.readouterr()
    assert err == ""
    video = {"codec": "h264", "fps": 25.0, "frames": 12, "largest_group": 12, "matrix": 2, "range": 0}
    tables = {"nv12": 12 * 96 * 96, "bgr24": 12 * 96 * 64 * 3}
    found = json.loads(out)
    device = found["cache_bytes"].pop("device")
    assert found == {
        "path": str(folder),
        "videos": {
            "full_body_video.mp4": video | {"width": 96, "height": 64},
            "crops_328_video.mp4": video | {"width": 40, "height": 40},
        },
        "frames": 12,
        "fps": 25.0,
        "crop_size": 40,
        "model_size": 32,
        "rectangles": {
            "left": -4,
            "top": 5,
            "right": 66,
            "bottom": 48,
            "width": [24, 35],
            "height": [34, 36],
            "partly_outside": 1,
        },
        "features": [12, 512],
        "model": {
            "inputs": ["visual", "audio"],
            "output": "drawn",
            "size": 32,
            "batch": None,
            "dtype": "float32",
        },
        # 12 frames of 25 a second: 7500 times in an hour, in segments and joined.
        "disk_bytes_an_hour": 2 * 7500 * (folder / "full_body_video.mp4").stat().st_size,
        "cache_bytes": {"host": {name: size + 12 * 3 * 40 * 40 for name, size in tables.items()}},
        "kept_frames": {
            where: {name: dict.fromkeys(("256M", "1G", "4G", "16G"), 12) for name in tables}
            for where in ("host", "device")
        },
        "tunings": [],
        "faults": [],
        "notes": [],
    }
    assert set(device) == {"nv12", "bgr24"}
    assert all(device[name] >= tables[name] + 12 * 3 * 40 * 40 for name in device)


def test_inspect_for_people(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    small.write_rectangles(folder, [small.rectangle(frame) for frame in range(9)])
    small.write_model(folder / "checkpoint" / "model_best.onnx", batch=5, dtype="float16")
    assert main(["inspect", str(folder)]) == 0
    out, err = capfd.readouterr()
    lines = out.splitlines()
    for line in ("frames: 9", "fps: 25.0", "crop_size: 40", "features: [12, 512]", "  batch: 5", "  dtype: float16"):
        assert line in lines
    assert err == (
        f"warning: {folder}: counts differ (full_body_video.mp4 12, crops_328_video.mp4 12, "
        "cache/crop_rectangles.json 9); the first 9 frames are used\n"
    )


def test_inspect_tells_every_fault(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    crops, rects = folder / "crops_328_video.mp4", folder / small.RECTANGLES
    features, model = folder / "aud_ave.npy", folder / "checkpoint" / "model_best.onnx"
    crops.unlink()
    entries: dict[str, Any] = {str(frame): {"rect": small.rectangle(frame)} for frame in range(12)}
    del entries["4"]
    small.write_entries(folder, entries | {"6": {"rect": [1, 2, 3]}, "7": {"rect": [50, 20, 40, 30]}})
    np.save(features, np.zeros((12, 80), np.float32))
    model.write_text("no model")
    assert main(["inspect", str(folder), "--json"]) == 1
    out, err = capfd.readouterr()
    found = json.loads(out)
    assert found["faults"][:-1] == [
        f"{crops}: no such file; add it, or check the folder's name",
        f"{rects}: frame 4: missing; add its rectangle",
        f"{rects}: frame 6: rect: not four integers (got [1, 2, 3]); write [x1, y1, x2, y2] in body pixels",
        f"{rects}: frame 7: rect: empty or reversed (got [50, 20, 40, 30]); x2 must be greater than x1, and y2 than y1",
        f"{features}: features: wrong shape (got (12, 80)); give a NumPy file with float32 [N, 512]",
    ]
    assert found["faults"][-1].startswith(f"{model}: model: cannot be opened: ")
    assert err.splitlines() == [f"error: {fault}" for fault in found["faults"]]
    assert list(found["videos"]) == ["full_body_video.mp4"]
    for name in (
        "frames",
        "fps",
        "crop_size",
        "model_size",
        "rectangles",
        "features",
        "model",
        "cache_bytes",
        "disk_bytes_an_hour",
        "kept_frames",
    ):
        assert found[name] is None


def test_inspect_a_model_of_another_size(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    model = folder / "checkpoint" / "model_best.onnx"
    small.write_model(model, size=64)
    assert main(["inspect", str(folder), "--json"]) == 1
    assert json.loads(capfd.readouterr().out)["faults"] == [
        f"{model}: model: the model is for 64x64 images, the crops (40x40) hold 32; "
        "use the model that belongs to the character"
    ]


def test_inspect_no_folder(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    fault = f"{tmp_path / 'none'}: no such character folder; give a folder"
    assert main(["inspect", str(tmp_path / "none"), "--json"]) == 1
    out, err = capfd.readouterr()
    assert (json.loads(out)["faults"], err) == ([fault], f"error: {fault}\n")


# doctor


def test_doctor(capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--json"]) == 0
    out, err = capfd.readouterr()
    found = json.loads(out)
    assert err == ""
    assert set(found) == {
        *("python", "system", "cpu", "cores", "packages", "providers", "gpu", "encoders", "advice"),
    }
    assert found["python"] == ".".join(map(str, sys.version_info[:3]))
    assert found["cores"] >= 1
    assert found["packages"]["gpupipe"] == __version__
    assert found["packages"]["numpy"] == np.__version__
    assert set(found["providers"]) == {"cpu", "cuda", "tensorrt"}
    assert found["providers"]["cpu"] is None
    assert set(found["encoders"]) == {"libx264", "libx265", "h264_nvenc", "hevc_nvenc", "av1_nvenc"}
    assert found["encoders"]["libx264"] is None
    assert set(found["gpu"]) == {"cupy", "driver", "runtime", "devices", "problem"}
    assert all(isinstance(text, str) for text in found["advice"])


def test_doctor_for_people(capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor"]) == 0
    lines = capfd.readouterr().out.splitlines()
    assert "  libx264: opens" in lines
    assert "  cpu: opens" in lines
    assert f"  gpupipe: {__version__}" in lines
