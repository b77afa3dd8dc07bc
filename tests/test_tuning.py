"""What is tuned: remembered whole or not at all, for its own machine and model, and used where nothing is given."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import small
import unets

import gpupipe
from gpupipe.character.folder import Character
from gpupipe.cli import main
from gpupipe.errors import GpupipeError, OutputError
from gpupipe.model.digest import digest
from gpupipe.options import ModelOptions, OutputOptions
from gpupipe.render import tuned, tuning
from gpupipe.render.engine import Engine
from gpupipe.render.stats import RenderStats
from gpupipe.render.tuned import spare_encoders
from gpupipe.render.tuning import Settings, Subject, Tuning, forget, of_character, recall, remember

ROOT = Path(__file__).resolve().parents[1]
DAY = "2025-03-01"
NOTE = f"(gpupipe tune, {DAY})"


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("LOCALAPPDATA", str(tmp_path / "cache"))
    monkeypatch.setenv("HOME", str(tmp_path))
    return tuning.folder()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return small.small_character(tmp_path / "anna")


def subject_of(folder: Path, encoder: str = "libx264", **model: Any) -> Subject:
    with Engine(device="cpu") as engine:
        found = Subject.of(engine, Character.load(folder), ModelOptions(**model), encoder)
    assert found is not None
    return found


def a_tuning(subject: Subject, break_even: float | None = None, **settings: Any) -> Tuning:
    if break_even is not None:
        settings["feature_cache"] = "auto"
    return Tuning(subject, Settings(**settings), 1.25, break_even, DAY)


# Remembering

SUBJECT = Subject("a processor", 4, "cpu", "ab" * 32, 1280, 720, "cpu", "fp32", "libx264")


def test_what_is_remembered_is_recalled(own_cache: Path) -> None:
    assert recall(SUBJECT) is None
    for made in (
        a_tuning(SUBJECT, runs=2, encoders=1, workers=3, feature_cache="off"),
        a_tuning(SUBJECT, 2.5, runs=4, encoders=2, workers=4),
        a_tuning(SUBJECT, batch=16, encoders=1),
    ):
        path = remember(made)
        assert recall(SUBJECT) == made
        assert [path] == list(own_cache.iterdir()), "in the place of the one before, and nothing half-written"


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("cpu", "another"),
        ("cores", 8),
        ("device", "a GPU, 24 GiB"),
        ("model", "cd" * 32),
        ("width", 640),
        ("height", 360),
        ("provider", "cuda"),
        ("precision", "int8"),
        ("encoder", "h264_nvenc"),
    ],
)
def test_a_tuning_says_nothing_of_another(field: str, value: Any) -> None:
    other = SUBJECT._replace(**{field: value})
    remember(a_tuning(SUBJECT, runs=2))
    assert recall(other) is None
    remember(a_tuning(other, runs=1))
    assert [recall(each).settings.runs for each in (SUBJECT, other)] == [2, 1]  # type: ignore[union-attr]


def test_a_subject_is_the_machine_the_model_and_how_it_is_run(folder: Path, tmp_path: Path) -> None:
    found = subject_of(folder)
    assert found[2:] == ("cpu", digest(folder / "checkpoint/model_best.onnx").sha256, 96, 64, "cpu", "fp32", "libx264")
    assert found == subject_of(small.small_character(tmp_path / "copy")), "of the same model and size"
    assert subject_of(folder, precision="int8").precision == "int8"
    assert subject_of(folder, encoder="libx265").encoder == "libx265"
    other = tmp_path / "other.onnx"
    small.write_model(other, dtype="float16")
    assert subject_of(folder, model=other).model == digest(other).sha256
    with Engine(device="cpu") as engine:
        missing = ModelOptions(model="missing.onnx")
        assert Subject.of(engine, Character.load(folder), missing, "libx264") is None


def damaged(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], None]:
    """A change of the JSON in a file."""

    def write(path: Path) -> None:
        told = json.loads(path.read_text("utf-8"))
        path.write_text(json.dumps(change(told)), "utf-8")

    return write


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(b"\xff\xfe{"),
        lambda path: path.write_text(path.read_text("utf-8")[:-20], "utf-8"),
        lambda path: path.write_text("[" * 100_000, "utf-8"),
        damaged(lambda told: [told]),
        damaged(lambda told: told | {"settings": {"runs": 0}}),
        damaged(lambda told: told | {"settings": {"runs": "2"}}),
        damaged(lambda told: told | {"settings": {"crf": 2}}),
        damaged(lambda told: told | {"settings": {"feature_cache": "4G"}}),
        damaged(lambda told: told | {"settings": {"feature_cache": "auto"}, "break_even": None}),
        damaged(lambda told: told | {"settings": {"feature_cache": "auto"}, "break_even": float("nan")}),
        damaged(lambda told: told | {"speedup": "fast"}),
        damaged(lambda told: told | {"day": "yesterday"}),
        damaged(lambda told: told | {"subject": told["subject"] | {"cores": 64}}),
        damaged(lambda told: {name: value for name, value in told.items() if name != "subject"}),
    ],
)
def test_a_file_that_is_no_tuning(
    folder: Path, tmp_path: Path, damage: Callable[[Path], None], capfd: pytest.CaptureFixture[str]
) -> None:
    subject = subject_of(folder)
    path = remember(a_tuning(subject, runs=1))
    damage(path)
    said = f"{path}: is no tuning; run `gpupipe tune` again, or remove it"
    with pytest.raises(GpupipeError) as caught:
        recall(subject)
    assert str(caught.value) == said
    stats = gpupipe.render(folder, tmp_path / "talk.mp4", device="cpu")
    assert stats.notes == (f"not tuned: {said}",), "it renders as if there were none, and says so"
    assert of_character(Character.load(folder)) == []
    remember(a_tuning(subject, runs=1))
    assert recall(subject) == a_tuning(subject, runs=1)


def test_a_folder_that_cannot_be_written(own_cache: Path) -> None:
    own_cache.parent.mkdir(parents=True)
    own_cache.write_text("a file")
    with pytest.raises(OutputError, match=r"cannot be written: .*; make it writable"):
        remember(a_tuning(SUBJECT, runs=1))
    assert own_cache.read_text() == "a file"


def test_only_so_many_are_kept(own_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tuning, "MOST", 3)
    now = time.time()
    paths = []
    for cores in range(1, 6):
        paths.append(remember(a_tuning(SUBJECT._replace(cores=cores), runs=1)))
        os.utime(paths[-1], (now - 100 + cores, now - 100 + cores))
    old, new = own_cache / ".a.partial", own_cache / ".b.partial"
    for left in (old, new):
        left.write_text("{")
    os.utime(old, (now - 2 * tuning.LEFT_SECONDS,) * 2)
    paths.append(remember(a_tuning(SUBJECT, runs=2)))  # 4 cores: again
    assert sorted(own_cache.iterdir()) == sorted({*paths[2:], new})


def test_processes_that_remember_at_once() -> None:
    """Whoever reads meanwhile finds one of them, whole."""
    program = """
import sys
sys.path.insert(0, "tests")
import test_tuning as t
for turn in range(200):
    t.remember(t.a_tuning(t.SUBJECT, runs=int(sys.argv[1]), encoders=int(sys.argv[1])))
    found = t.recall(t.SUBJECT)
    assert found.settings.runs == found.settings.encoders
"""
    processes = [subprocess.Popen([sys.executable, "-c", program, str(number)], cwd=ROOT) for number in (1, 2)]
    assert [process.wait(timeout=60) for process in processes] == [0, 0]
    found = recall(SUBJECT)
    assert found is not None
    assert found.settings in (Settings(runs=1, encoders=1), Settings(runs=2, encoders=2))
    assert len(list(tuning.folder().iterdir())) == 1


def test_inspect_and_forget(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    subject = subject_of(folder)
    remember(a_tuning(subject, runs=1))
    remember(a_tuning(subject._replace(precision="int8"), runs=2)._replace(day="2025-04-01"))
    others = [subject._replace(width=98), subject._replace(cores=subject.cores + 1), subject._replace(model="cd" * 32)]
    for other in others:
        remember(a_tuning(other, runs=1))
    assert main(["inspect", str(folder), "--json"]) == 0
    told = json.loads(capfd.readouterr().out)["tunings"]
    assert [(each["precision"], each["settings"], each["day"]) for each in told] == [
        ("int8", "runs 2", "2025-04-01"),
        ("fp32", "runs 1", DAY),
    ]
    assert main(["tune", str(folder), "--forget"]) == 0
    assert capfd.readouterr() == ("", f"{folder}: 2 tunings forgotten\n")
    assert of_character(Character.load(folder)) == []
    assert forget(Character.load(folder)) == 0
    assert all(recall(other) is not None for other in others)


# Using


def rendered(folder: Path, output: Path | str, **options: Any) -> RenderStats:
    return gpupipe.render(folder, output, device="cpu", overwrite=True, inference_threads=4, **options)


def test_what_is_given_goes_before_what_is_tuned(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    subject = subject_of(folder)
    video = tmp_path / "talk.mp4"
    untuned = rendered(folder, video, crf=0)
    bytes_untuned = video.read_bytes()
    assert (untuned.runs, untuned.notes) == (4, ())
    remember(a_tuning(subject, runs=3, encoders=2, workers=2, feature_cache="off"))
    encoders: list[int] = []
    run = Engine.open_session

    def counted(self: Any, *arguments: Any, **options: Any) -> Any:
        encoders.append(1)
        return run(self, *arguments, **options)

    monkeypatch.setattr(Engine, "open_session", counted)

    def drawn(**options: Any) -> tuple[int, int, int, tuple[str, ...]]:
        encoders.clear()
        stats = rendered(folder, video, crf=0, **options)
        return stats.runs, stats.workers, len(encoders), stats.notes

    # 12 frames in segments of 6: two encoders have one each.
    assert drawn(segment_frames=6) == (3, 2, 2, (f"tuned: runs 3, encoders 2, workers 2, feature cache off {NOTE}",))
    assert drawn() == (3, 2, 1, (f"tuned: runs 3, encoders 2, workers 2, feature cache off {NOTE}",)), "one segment"
    assert video.read_bytes() == bytes_untuned, "nothing tuned changes a byte"
    assert drawn(runs=2, segment_frames=6)[0::3] == (2, (f"tuned: encoders 2, workers 2, feature cache off {NOTE}",))
    assert drawn(encoders=1, segment_frames=6)[2:] == (1, (f"tuned: runs 3, workers 2, feature cache off {NOTE}",))
    assert drawn(workers=1)[1::2] == (1, (f"tuned: runs 3, encoders 2, feature cache off {NOTE}",))
    assert drawn(feature_cache="off")[3] == (f"tuned: runs 3, encoders 2, workers 2 {NOTE}",)
    assert drawn(runs=4, encoders=1, workers=4, feature_cache="off") == (4, 4, 1, ())
    assert drawn(runs="auto", workers="auto") == drawn()
    assert drawn(encoder="libx265")[3] == (), "which is another subject"


def test_beside_a_gpu_encoders_take_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tuned, "cpu_count", lambda: 16)
    model, writing = ModelOptions(), OutputOptions()
    assert [spare_encoders(model, writing, jobs=jobs) for jobs in (1, 2, 3, 8)] == [4, 2, 1, 1]
    assert spare_encoders(model, OutputOptions(encoder_threads=2)) == 8
    assert spare_encoders(model, OutputOptions(encoder_threads=1)) == 8, "at the most"
    assert spare_encoders(model, OutputOptions(encoder="h264_nvenc")) == 1
    assert spare_encoders(ModelOptions(provider="cpu"), writing) == 1


def test_images_and_frames_are_tuned_too(folder: Path, tmp_path: Path) -> None:
    remember(a_tuning(subject_of(folder), runs=2, encoders=2, workers=1, feature_cache="off"))
    stats = rendered(folder, f"{tmp_path}/images/")
    assert (stats.runs, stats.workers) == (2, 1)
    assert stats.notes == (f"tuned: runs 2, workers 1, feature cache off {NOTE}",), "images have no segments"
    with Engine(device="cpu") as engine:
        anna = engine.load(folder)
        list(engine.frames(anna, inference_threads=4, batch=3))
        engine.render(anna, tmp_path / "talk.mp4")
        lanes = [entry.opened.result() for entry in engine.holdings._lanes._entries.values()]
        assert [lane.model.runs for lane in lanes] == [min(2, lanes[0].model.options.threads), 2]
        assert [getattr(lane.compositor, "_workers", None) for lane in lanes] == [1, 1]
    plain = list(gpupipe.frames(folder, device="cpu", runs=1, workers=1))
    np.testing.assert_array_equal(np.stack(plain), np.stack(list(gpupipe.frames(folder, device="cpu"))))


def test_jobs_and_the_command_line_are_tuned(folder: Path, tmp_path: Path) -> None:
    remember(a_tuning(subject_of(folder), runs=1, encoders=2, feature_cache="off"))
    jobs = tmp_path / "jobs.jsonl"
    lines: list[dict[str, Any]] = [{"output": "a.mp4"}, {"output": "b.mp4", "runs": "auto", "encoders": 1}]
    jobs.write_text("\n".join(json.dumps({"character": str(folder)} | line) for line in lines), "utf-8")
    report = tmp_path / "report.jsonl"
    assert main(["batch", str(jobs), "--device", "cpu", "--report", str(report), "--quiet"]) == 0
    told = {line["line"]: line["stats"] for line in map(json.loads, report.read_text("utf-8").splitlines())}
    assert [told[line]["runs"] for line in (1, 2)] == [1, 1]
    assert told[1]["notes"] == [f"tuned: runs 1, encoders 2, feature cache off {NOTE}"]
    assert told[2]["notes"] == [f"tuned: runs 1, feature cache off {NOTE}"]
    stats = tmp_path / "stats.json"
    quiet = ["--device", "cpu", "--quiet", "--stats", str(stats)]
    for auto, notes in ((["--runs", "auto"], told[1]["notes"]), (["--runs", "1"], told[1]["notes"])):
        assert main(["render", str(folder), "-o", str(tmp_path / "c.mp4"), "--overwrite", *auto, *quiet]) == 0
        found = json.loads(stats.read_text("utf-8"))
        wanted = notes if auto[1] == "auto" else [notes[0].replace("runs 1, ", "")]
        assert (found["runs"], found["notes"]) == (1, wanted)


RECIPE = unets.Recipe(
    cells=2, widths=(12, 24, 32, 32), first=8, skips=("concat", "concat", "concat", "concat"),
    ups=("linear",) * 4, joins=frozenset({0}), activation="relu", batch_norm=True, residual=True,
)  # fmt: skip


def test_features_are_kept_where_frames_are_shown_often_enough(folder: Path, tmp_path: Path) -> None:
    """36 frames of 12: each is shown three times. Nothing is measured again."""
    onnx.save(unets.unet(RECIPE), str(folder / "checkpoint" / "model_best.onnx"))
    np.save(folder / "aud_ave.npy", small.features(36))
    video = tmp_path / "talk.mp4"
    rendered(folder, video)
    untuned = video.read_bytes()
    subject = subject_of(folder)
    note = f"tuned: runs 2, feature cache auto {NOTE}"
    for break_even, kept in ((2.9, True), (3.1, False)):
        remember(a_tuning(subject, break_even, runs=2))
        stats = rendered(folder, video)
        assert stats.notes[0] == note
        assert [each.split(" are kept, ")[0] for each in stats.notes[1:]] == ["features of 12 of 12 frames"] * kept
        assert video.read_bytes() == untuned
    with Engine(device="cpu") as engine:
        engine.load(folder)  # of which it is not known how often frames will be shown
        engine.render(folder, video, overwrite=True, frames=12)
        lanes = [entry.opened.result() for entry in engine.holdings._lanes._entries.values()]
        assert [lane.split for lane in lanes] == [None]
    remember(a_tuning(subject, 2.9, runs=2))
    assert rendered(folder, video, feature_cache="off").notes == (f"tuned: runs 2 {NOTE}",)


@pytest.mark.cuda
def test_the_batch_is_tuned_on_a_gpu(folder: Path, tmp_path: Path) -> None:
    with Engine(device="cuda") as engine:
        character = Character.load(folder)
        subject = Subject.of(engine, character, ModelOptions(provider="cpu"), "libx264")
        assert subject is not None
        assert engine.backend.gpu is not None
        assert subject.device.startswith(engine.backend.gpu.name)
        assert subject.provider == "cpu"
        on_cuda = Subject.of(engine, character, ModelOptions(), "libx264")
        assert on_cuda == subject._replace(provider="cuda")
        remember(a_tuning(subject, batch=3, runs=2, encoders=1))
        stats = engine.render(folder, tmp_path / "talk.mp4", provider="cpu", inference_threads=4)
        assert (stats.batch, stats.runs) == (3, 2)
        assert stats.notes == (f"tuned: batch 3, runs 2, encoders 1 {NOTE}",)
        stats = engine.render(folder, tmp_path / "talk.mp4", provider="cpu", batch=5, overwrite=True)
        assert stats.batch == 5
        assert stats.notes == (f"tuned: runs 2, encoders 1 {NOTE}",)
    assert gpupipe.render(folder, tmp_path / "talk.mp4", device="cpu", overwrite=True).notes == ()
