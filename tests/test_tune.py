"""`gpupipe tune`: what is compared with what, who wins, and when it stops; with made-up times, and once in truth."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import small
import unets
from test_tuning import RECIPE

import gpupipe
from gpupipe.cli import main
from gpupipe.engine.features import SplitModel
from gpupipe.errors import GpupipeError, InferenceError, OptionError
from gpupipe.options import ModelOptions, OutputOptions
from gpupipe.render import tuned, tuning
from gpupipe.render.engine import Engine
from gpupipe.render.tuning import Settings, recall
from gpupipe.tune import search, tune
from gpupipe.tune.rig import EngineRig
from gpupipe.tune.run import LEAST_FRAMES, MOST_FRAMES, defaults, frames_for, steps_from
from gpupipe.tune.search import MOST_TURNS, TURNS, Row, Search, Step, grid

Speed = Callable[[Settings, int], float]
"""Seconds that a render with settings takes; the number of the measurement."""

START = Settings(runs=2, encoders=1, workers=2, feature_cache="off")


class FakeRig:
    """Takes made-up times, by a clock of its own."""

    def __init__(self, seconds: Speed, opening: float = 0.0) -> None:
        self._seconds, self._opening = seconds, opening
        self.now = 0.0
        self.opened: set[Settings] = set()
        self.most_open = 0
        self.log: list[Settings] = []

    def clock(self) -> float:
        return self.now

    def keep(self, settings: Sequence[Settings]) -> None:
        self.opened &= set(settings)

    def prepare(self, settings: Settings) -> None:
        if settings not in self.opened:
            self.now += self._opening
            if self._seconds(settings, 0) == float("inf"):
                raise GpupipeError("does not fit", remedy="use --device cpu")
            self.opened.add(settings)
            self.most_open = max(self.most_open, len(self.opened))

    def measure(self, settings: Settings) -> float:
        assert settings in self.opened, "measured warm"
        self.log.append(settings)
        seconds = self._seconds(settings, len(self.log))
        self.now += seconds
        return seconds


def searched(
    rig: FakeRig, steps: Sequence[Step], ends: float = 1e6, start: Settings = START
) -> tuple[Settings, float, Search, list[str]]:
    told: list[str] = []
    looking = Search(rig, ends, rig.clock, told.append)
    best, speedup = looking.fastest(start, steps)
    return best, speedup, looking, told


RUNS = Step(grid({"runs": (1, 2, 4, 8, 16), "encoders": (1, 2, 4)}), share=2)
WORKERS = Step(lambda best: [best._replace(workers=count) for count in (1, 2, 4) if count != best.workers])
FEATURES = Step(lambda best: [best._replace(feature_cache="auto")] if best.feature_cache == "off" else [])
STEPS = (RUNS, WORKERS, FEATURES)


def test_it_climbs_to_the_fastest_step_by_step() -> None:
    def seconds(settings: Settings, _: int) -> float:
        runs = {1: 1.4, 2: 1.0, 4: 0.8, 8: 0.7, 16: 0.72}[settings.runs or 0]
        encoders = {1: 1.0, 2: 0.9, 4: 1.0}[settings.encoders or 0]
        workers = {1: 0.9, 2: 1.0, 4: 1.1}[settings.workers or 0]
        return runs * encoders * workers * (0.5 if settings.feature_cache == "auto" else 1.0)

    rig = FakeRig(seconds)
    best, speedup, looking, told = searched(rig, STEPS)
    assert best == Settings(runs=8, encoders=2, workers=1, feature_cache="auto")
    assert speedup == pytest.approx(1 / (0.7 * 0.9 * 0.9 * 0.5))
    assert rig.most_open <= 9, "the neighbours of one, not the whole product"
    last = looking.rows[-1]
    assert (last.settings, last.against, last.speedup) == (best, START, speedup), "compared with the default at the end"
    assert all(len(row.speedups) == MOST_TURNS or row.hopeless for row in looking.rows)
    assert told[0] == "compared with runs 2, encoders 1, workers 2, feature cache off:"
    assert "  runs 2, encoders 2, workers 2, feature cache off: 900.00 ms a frame, speedup 1.111" in told


def test_in_turn_forth_and_back() -> None:
    """So that a machine that slows down slows down for all."""
    one, two = START._replace(runs=1), START._replace(encoders=2)
    rig = FakeRig(lambda settings, number: 1.0 + 0.01 * number)
    best, speedup, looking, _ = searched(rig, [Step(lambda best: [one, two])])
    assert rig.log[:9] == [START, one, two, two, one, START, START, one, two]
    assert (best, speedup) == (START, 1.0)
    assert len(looking.rows) == 2


@pytest.mark.parametrize(("gain", "wins"), [(1.03, True), (1.021, True), (1.019, False), (1.0, False), (0.5, False)])
def test_only_more_than_the_noise_wins(gain: float, wins: bool) -> None:
    rig = FakeRig(lambda settings, _: 1.0 / (gain if settings.workers == 4 else 1.0))
    best, speedup, _, _ = searched(rig, [Step(lambda best: [START._replace(workers=4)])])
    assert (best.workers, speedup) == ((4, pytest.approx(gain)) if wins else (2, 1.0))


def test_one_lucky_turn_does_not_win() -> None:
    """A pause of the machine in one turn of the default; and in every turn of one comparison, which is not repeated."""
    other = START._replace(workers=4)
    step = Step(lambda best: [other])
    rig = FakeRig(lambda settings, number: 10.0 if number == 1 else 1.0)
    assert searched(rig, [step])[:2] == (START, 1.0)
    rig = FakeRig(lambda settings, number: 1.5 if settings == START and number <= 2 * MOST_TURNS else 1.0)
    best, speedup, looking, told = searched(rig, [step])
    assert [row.wins for row in looking.rows] == [True, False]
    assert (best, speedup) == (START, 1.0)
    assert told[-1] == f"{other}: not confirmed against {START}, which stays"


def test_what_is_hopeless_is_measured_twice() -> None:
    slow = START._replace(runs=1)
    rig = FakeRig(lambda settings, _: 2.0 if settings == slow else 1.0)
    _, _, looking, _ = searched(rig, [Step(lambda best: [slow, START._replace(runs=4)])])
    assert rig.log.count(slow) == 2
    assert [len(row.speedups) for row in looking.rows] == [2, MOST_TURNS]
    assert looking.rows[0].decided


def test_what_cannot_be_had_is_left_out() -> None:
    broken, late = START._replace(runs=4), START._replace(runs=8)

    def seconds(settings: Settings, number: int) -> float:
        if settings == late and number == 6:
            raise GpupipeError("out of memory")
        return float("inf") if settings == broken else 1.0

    _, _, looking, told = searched(FakeRig(seconds), [Step(lambda best: [broken, late])])
    assert f"  {broken}: left out: does not fit; use --device cpu" in told
    assert f"  {late}: left out: out of memory" in told
    assert [(row.settings, len(row.speedups)) for row in looking.rows] == [(late, 2)]
    with pytest.raises(GpupipeError, match="does not fit"):
        searched(FakeRig(lambda settings, _: float("inf")), STEPS)


@pytest.mark.parametrize("each", [0.5, 1.0, 3.0])
@pytest.mark.parametrize("opening", [0.0, 2.0])
@pytest.mark.parametrize("ends", [1.0, 10.0, 90.0, 300.0])
def test_it_stops_in_time(each: float, opening: float, ends: float) -> None:
    """But for what is under way, a turn of six settings and what is being opened; and for the last comparison."""
    rig = FakeRig(lambda settings, _: each * (0.8 if settings.workers == 1 else 1.0), opening)
    looking = Search(rig, ends, rig.clock, lambda _: None)
    best, error = START, None
    try:
        best, _ = looking.fastest(START, STEPS)
    except GpupipeError as caught:
        error = str(caught)
    assert (error is None) == any(row.decided for row in looking.rows)
    assert error in (None, "there was no time to compare anything often enough; give more seconds")
    assert best in (START, START._replace(workers=1))
    assert rig.now <= ends + 6 * each + opening + 2 * (TURNS * each + opening)
    if ends >= 300:
        assert (best.workers, looking.late) == (1, False)


def test_undecided_does_not_win() -> None:
    row = Row(START._replace(runs=1), START, [1.0] * (TURNS - 1), [1.5] * (TURNS - 1))
    assert not row.wins
    assert str(row).endswith("speedup 1.500 (undecided)")


def test_nothing_to_compare() -> None:
    """One core, and features that cannot be kept."""
    rig = FakeRig(lambda settings, _: float("inf") if settings.feature_cache == "auto" else 1.0)
    assert searched(rig, [Step(grid({"runs": (2,), "encoders": (1,)})), FEATURES])[:2] == (START, 1.0)


# What is compared on a machine


def test_what_is_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    def told(cores: int, **where: Any) -> tuple[Settings, list[list[tuple[Any, ...]]]]:
        for room in ("gpupipe.tune.run", "gpupipe.engine.opening"):
            monkeypatch.setattr(f"{room}.cpu_count", lambda: cores)
        monkeypatch.setattr(tuned, "cpu_count", lambda: cores)
        given = {"provider": where.pop("provider")} if "provider" in where else {}
        default = defaults(ModelOptions(**given), OutputOptions(), **where)
        return default, [[tuple(each) for each in step.rivals(default)] for step in steps_from(default)]

    default, (first, second, third) = told(2, on_gpu=False)
    assert default == Settings(None, 2, 1, 2, "off")
    assert first == [(None, 1, 1, 2, "off"), (None, 1, 2, 2, "off"), (None, 2, 2, 2, "off")]
    assert second == [(None, 2, 1, 1, "off")]
    assert third == [(None, 2, 1, 2, "auto")]
    default, (first, second, _) = told(16, on_gpu=False)
    assert default == Settings(None, 4, 1, 4, "off")
    assert [(runs, encoders) for _, runs, encoders, *_ in first] == [(2, 1), (2, 2), (4, 2), (8, 1), (8, 2)]
    assert [each[3] for each in second] == [1, 2]
    default, (first, second, _) = told(1, on_gpu=False)
    assert (first, second) == ([], [])
    default, (first, second, third) = told(16, on_gpu=True)
    assert default == Settings(8, None, 4, None, "off")
    assert [(batch, encoders) for batch, _, encoders, *_ in first] == [
        (4, 2), (4, 4), (4, 8), (8, 2), (8, 8), (16, 2), (16, 4), (16, 8),
    ]  # fmt: skip
    assert (second, third) == ([], [(8, None, 4, None, "auto")])
    default, _ = told(16, on_gpu=True, provider="cpu")
    assert default == Settings(8, 4, 1, None, "off")


def test_as_many_frames_as_there_is_time_for() -> None:
    steps = [Step(lambda best: [best] * 3), Step(lambda best: []), Step(lambda best: [best])]
    renders = (4 + 2 + 2) * (TURNS + 1)
    assert frames_for(90.0, 0.05, START, steps) == int(90 * 0.8 / renders / 0.05) == 45
    assert frames_for(90.0, 1.0, START, steps) == LEAST_FRAMES
    assert frames_for(90.0, 1e-5, START, steps) == MOST_FRAMES


# In truth


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("LOCALAPPDATA", str(tmp_path / "cache"))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return small.small_character(tmp_path / "anna")


def test_a_small_character(folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    video, told = tmp_path / "talk.mp4", tmp_path / "tune.json"
    gpupipe.render(folder, video, device="cpu")
    before = video.read_bytes()
    assert main(["tune", str(folder), "--device", "cpu", "--seconds", "60", "--json", str(told)]) == 0
    out, err = capfd.readouterr()
    found = json.loads(told.read_text("utf-8"))
    remembered = recall(tuning.Subject(**found["tuning"]["subject"]))
    assert remembered is not None
    assert remembered.as_dict() == found["tuning"]
    default = defaults(ModelOptions(), OutputOptions(), on_gpu=False)
    assert found["default"] == default.known()
    assert set(remembered.settings.known()) == set(default.known())
    assert remembered.settings == default or remembered.speedup > search.WIN
    assert found["complete"]
    rows = found["comparisons"]
    assert rows
    for row in rows:
        assert len(row["ms"]) == len(row["speedups"]) >= 1
        assert all(ms > 0 for ms in row["ms"])
        assert row["speedup"] == pytest.approx(np.median(row["speedups"]))
    lines = out.splitlines()
    assert lines[0].split() == [
        "runs",
        "encoders",
        "workers",
        "feature",
        "cache",
        "ms",
        "a",
        "frame",
        "speedup",
        "against",
    ]
    assert len(lines) == len(rows) + 3
    assert lines[-1].endswith(f"remembered in {remembered.subject.file}")
    assert "feature cache auto: left out: no features are kept: " in err
    stats = gpupipe.render(folder, video, device="cpu", overwrite=True)
    assert stats.notes == (f"tuned: {remembered.settings} (gpupipe tune, {remembered.day})",)
    assert video.read_bytes() == before
    assert list(tmp_path.glob("gpupipe-tune-*")) == []


def test_features_that_win_are_remembered_with_their_break_even(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With times that are made up: nothing but the features is faster."""
    onnx.save(unets.unet(RECIPE), str(folder / "checkpoint" / "model_best.onnx"))
    measured: dict[Settings, tuple[str, ...]] = {}

    def measure(rig: EngineRig, settings: Settings) -> float:
        if settings not in measured:
            measured[settings] = rig.render(settings).notes
        return 1.0 if settings.feature_cache == "auto" else 2.0

    monkeypatch.setattr(EngineRig, "measure", measure)
    monkeypatch.setattr(SplitModel, "_measured", lambda self: 2.25)
    report = tune(folder, device="cpu", seconds=60, precision="fp32")
    assert (report.tuning.settings.feature_cache, report.tuning.break_even, report.tuning.speedup) == (
        "auto",
        2.25,
        2.0,
    )
    for settings, notes in measured.items():
        assert any(note.startswith("features of 12 of 12") for note in notes) == (settings.feature_cache == "auto")
    for shown, kept in ((24, False), (36, True)):
        np.save(folder / "aud_ave.npy", small.features(shown))
        stats = gpupipe.render(folder, tmp_path / "talk.mp4", device="cpu", overwrite=True)
        assert stats.notes[0].startswith("tuned: ")
        assert (len(stats.notes) == 2) == kept
    monkeypatch.setattr(SplitModel, "_measured", lambda self: float("inf"))
    told: list[str] = []
    report = tune(folder, device="cpu", seconds=60, told=told.append)
    assert report.tuning.settings.feature_cache == "off"
    assert any(line.endswith("left out: the model is no faster with them") for line in told)


def test_faults_leave_nothing(folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    for options, error in (
        ({"model": tmp_path / "missing.onnx"}, InferenceError),
        ({"device": "cuda:0,cuda:1"}, OptionError),
        ({"encoder": "no such"}, OptionError),
        ({"provider": "cuda"}, OptionError),
    ):
        with pytest.raises(error):
            tune(folder, **{"device": "cpu"} | options)
    with pytest.raises(TypeError, match=r"^tune\(\) got an unexpected keyword argument 'batch'$"):
        tune(folder, batch=3)  # type: ignore[call-arg]
    assert main(["tune", str(tmp_path / "nobody"), "--device", "cpu"]) == 1
    assert "no such character folder" in capfd.readouterr().err
    assert not tuning.folder().exists()


@pytest.mark.cuda
def test_on_a_gpu_the_batch_is_tuned(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(EngineRig, "measure", lambda rig, settings: rig.render(settings).frames / (settings.batch or 1))
    monkeypatch.setattr("gpupipe.tune.run.BATCHES", (4, 8, 16))
    report = tune(folder, device="cuda", provider="cpu", seconds=60)
    assert report.tuning.settings.batch == 16
    assert report.tuning.settings.workers is None
    stats = gpupipe.render(folder, tmp_path / "talk.mp4", device="cuda", provider="cpu")
    assert stats.batch == 16
    assert f"tuned: {report.tuning.settings} " in stats.notes[-1]


@pytest.mark.cuda
def test_a_model_that_does_not_run_on_the_gpu(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It would be remembered as the GPU's, and used when the provider is there."""
    with Engine(device="cuda") as engine:
        notes = engine.render(folder, folder / "talk.mp4").notes
    if not any("running the model on the CPU" in note for note in notes):
        pytest.skip("the CUDA provider is here")
    with pytest.raises(InferenceError, match=r"the model runs on cpu here .*; see `gpupipe doctor`, or use provider="):
        tune(folder, device="cuda", seconds=10)
    assert not tuning.folder().exists()
