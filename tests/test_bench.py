"""The comparison's arithmetic: what is wrong is found and not ranked, what is slow is said to be slow."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import reference
import small
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from gpupipe import cli
from gpupipe.bench import BenchOptions, add_arguments, algorithm, run, torch_way
from gpupipe.bench import floor as bench_floor
from gpupipe.bench.gpupipe_way import GpupipeWay, HostSteps
from gpupipe.bench.handover import OpencvNv12
from gpupipe.bench.measure import (
    EXACT,
    ROUNDING,
    Comparison,
    Difference,
    Times,
    difference,
    in_turn,
    paired,
    rank,
    spread,
    timing,
)
from gpupipe.bench.plain_ways import tuned_cpu
from gpupipe.bench.registry import FAMILIES, family_of, way_named, ways_here
from gpupipe.bench.scene import Scene, SceneOptions
from gpupipe.bench.stages import Timetable, add_floors, check
from gpupipe.bench.sweep import Combination, distinct, sweep
from gpupipe.bench.sweep import rows as sweep_rows
from gpupipe.bench.way import BenchStage, Save, Way
from gpupipe.colour import Colour, PixelFormat
from gpupipe.errors import InferenceError, OptionError
from gpupipe.geometry import CropLayout, Rect
from gpupipe.machine import cpu_count
from gpupipe.model import rates
from gpupipe.model.cost import model_cost
from gpupipe.trace import Trace

Pixels = NDArray[np.uint8]

numbers = st.lists(st.floats(0.001, 1e6), min_size=1, max_size=20)


PLAIN = ("sequential", "parallel", "tuned-cpu")
OURS = ("gpupipe-cpu-nv12", "gpupipe-cpu-bgr24")


class FakeClock:
    """A clock that only moves when told to."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture(autouse=True)
def in_a_hurry(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Little is copied and multiplied to measure the machine; OpenCV's threads, which a run sets, are set back."""
    monkeypatch.setattr(rates, "COPY_BYTES", 1 << 20)
    monkeypatch.setattr(rates, "MATRIX_SIDE", 64)
    monkeypatch.setattr(rates, "DEVICE_MATRIX_SIDE", 64)
    threads = cv2.getNumThreads()
    yield
    cv2.setNumThreads(threads)


@pytest.fixture
def scene(tmp_path: Path) -> Scene:
    folder = small.small_character(tmp_path / "talker")
    model = folder / "checkpoint" / "model_best.onnx"
    return Scene(SceneOptions(folder, model, frame_count=10, batch_size=4, workers=2))


class Fake(Way):
    """A way that takes the seconds it is told to, on a fake clock."""

    def __init__(self, name: str, scene: Scene, clock: FakeClock, seconds: Iterator[float]) -> None:
        super().__init__(name, "", scene)
        self._clock, self._seconds = clock, seconds

    def open(self) -> None:
        raise AssertionError("it is not opened")

    def compose(self, save: Save) -> None:
        self._clock.now += next(self._seconds)

    infer = render = predicted = open  # type: ignore[assignment]


def timetable(ways: list[Way], clock: FakeClock, folder: Path, runs: int, right: Difference) -> Timetable:
    checked: dict[str, dict[BenchStage, Difference]] = {way.name: {"compose": right} for way in ways}
    return Timetable(ways, checked, runs, folder, clocks=(clock, clock))


@settings(deadline=None)
@given(numbers)
def test_spread_is_the_median_and_numpys_quartiles(values: list[float]) -> None:
    found = spread(values, digits=9)
    q1, median, q3 = np.quantile(values, [0.25, 0.5, 0.75])
    assert found == pytest.approx({"median": median, "q1": q1, "q3": q3}, abs=1e-8)


def test_a_machine_that_slows_down_changes_times_but_no_ratio() -> None:
    speeds = [1.0, 3.0, 1.0, 7.0, 2.0]
    slow, fast = [0.9 * s for s in speeds], [0.3 * s for s in speeds]
    assert paired(slow, fast) == {"median": 3.0, "q1": 3.0, "q3": 3.0}
    assert spread(slow)["q3"] > 2 * spread(slow)["q1"]


def test_ways_run_in_turn_after_a_warm_up_that_is_not_counted() -> None:
    clock, log = FakeClock(), []

    def way(name: str, seconds: float) -> Callable[[], None]:
        def one() -> None:
            log.append(name)
            clock.now += seconds if len(log) > 3 else 1000  # the first pass of each is slow

        return one

    passes = {name: way(name, seconds) for name, seconds in (("a", 1.0), ("b", 2.0), ("c", 4.0))}
    told: list[tuple[str, int]] = []
    times = in_turn(passes, 2, clock=clock, cpu_clock=clock, progress=lambda *at: told.append(at))
    assert "".join(log) == "abcabcabc"
    assert {name: found.seconds for name, found in times.items()} == {"a": [1, 1], "b": [2, 2], "c": [4, 4]}
    assert [run for _, run in told] == [-1, -1, -1, 0, 0, 0, 1, 1, 1]


def test_a_pass_that_knows_its_own_time_is_believed() -> None:
    clock = FakeClock()

    def on_a_gpu() -> float:
        clock.now += 5
        return 0.25

    (times,) = in_turn({"gpu": on_a_gpu}, 3, clock=clock, cpu_clock=clock).values()
    assert times == Times([0.25] * 3, [5.0] * 3, [5.0] * 3)
    found = timing(times, frame_count=10)
    assert (found["ms"]["median"], found["wall_ms"], found["fps"]) == (25.0, 500.0, 40.0)


def test_a_planted_slow_way_is_reported_as_slow(scene: Scene, tmp_path: Path) -> None:
    clock = FakeClock()
    machine = [1, 1, 5, 1, 2, 1]  # a warm-up and five runs, the machine itself now and then slow
    ways: list[Way] = [
        Fake("sequential", scene, clock, iter([0.10 * s for s in machine])),
        Fake("slow", scene, clock, iter([0.25 * s for s in machine])),
        Fake("fast", scene, clock, iter([0.02 * s for s in machine])),
    ]
    table = timetable(ways, clock, tmp_path, 5, Difference(100)).time("compose", ("sequential",))
    assert [table[name]["rank"] for name in ("fast", "sequential", "slow")] == [1, 2, 3]
    assert table["slow"]["ms"]["median"] == 25.0
    assert table["slow"]["ms"]["runs"] == [25.0, 125.0, 25.0, 50.0, 25.0]
    assert table["slow"]["times_faster_than"]["sequential"] == {"median": 0.4, "q1": 0.4, "q3": 0.4}
    assert table["fast"]["times_faster_than"]["sequential"]["median"] == 5.0
    assert table["fast"]["fps"] == 500.0


def test_a_wrong_way_is_not_ranked_however_fast(scene: Scene, tmp_path: Path) -> None:
    clock = FakeClock()
    ways: list[Way] = [
        Fake(name, scene, clock, iter([seconds] * 4)) for name, seconds in (("sequential", 0.2), ("wrong", 0.01))
    ]
    table = timetable(ways, clock, tmp_path, 3, Difference(1000))
    table._checked["wrong"] = {"compose": Difference(1000, 1, 1)}  # type: ignore[index]
    rows = table.time("compose", ("sequential", "wrong"))
    assert rows["wrong"]["right"] is False
    assert rows["wrong"]["rank"] is None
    assert rows["wrong"]["times_faster_than"] == {}
    assert rows["sequential"]["rank"] == 1
    assert rows["sequential"]["times_faster_than"] == {}, "nothing is compared with what is wrong"


def test_times_that_say_nothing_are_not_ranked() -> None:
    fair: dict[str, Any] = {"ms": {"median": 2.0}, "right": True, "meaningless": None}
    software = {"ms": {"median": 1.0}, "right": True, "meaningless": "a GPU in software"}
    assert rank({"software": software, "fair": fair}) == {"fair": 1}


def test_difference_counts_pixels_and_levels() -> None:
    wanted = np.full((4, 6, 3), 100, np.uint8)
    got = wanted.copy()
    assert difference(got, wanted) == Difference(24, 0, 0)
    got[1, 2] = (101, 99, 100)
    got[3, 5, 2] = 0
    assert difference(got, wanted) == Difference(24, 2, 100)
    assert difference(got[:3], wanted) == Difference(24, 24, 255), "another shape"
    planes = np.zeros((6, 4), np.uint8)
    assert difference(planes + np.uint8(255), planes) == Difference(24, 24, 255)


def test_a_comparison_misses_no_frame() -> None:
    frames = [np.full((2, 3, 3), value, np.uint8) for value in range(3)]
    some = Comparison(lambda output: frames[output], 3)
    some(frames[0])
    some(frames[2])
    assert some.result() == Difference(18, 12, 255), "one wrong by 1, one that never came"
    every = Comparison(lambda output: frames[output], 2)
    for frame in frames:
        every(frame)
    assert every.result() == Difference(12)


@pytest.mark.parametrize(
    ("found", "exact", "rounding"),
    [
        (Difference(10_000), True, True),
        (Difference(10_000, 1, 1), False, True),
        (Difference(10_000, 11, 1), False, False),  # more than rounding does: another rule
        (Difference(10_000, 1, 2), False, False),
        (Difference(), False, False),  # nothing was compared
    ],
)
def test_what_counts_as_right(found: Difference, exact: bool, rounding: bool) -> None:
    assert (found.within(EXACT), found.within(ROUNDING)) == (exact, rounding)


@settings(deadline=None)
@given(data=st.data(), seed=st.integers(0, 1 << 16), size=st.sampled_from([32, 48]))
def test_the_benchs_algorithm_is_the_plain_one(data: st.DataObject, seed: int, size: int) -> None:
    """`bench.algorithm` against the tests' own, rectangles partly outside and at odd places included."""
    random, layout = np.random.default_rng(seed), CropLayout(size)
    width, height = 64, 48
    x, y = data.draw(st.integers(-20, width - 1)), data.draw(st.integers(-20, height - 1))
    wide = data.draw(st.integers(max(1, 1 - x), 60))
    high = data.draw(st.integers(max(1, 1 - y), 60))
    rect = Rect(x, y, x + wide, y + high)
    crop = random.integers(0, 256, (layout.crop_size, layout.crop_size, 3), np.uint8)
    prediction = random.uniform(-0.1, 1.1, (3, size, size)).astype(np.float32)
    prediction[0, 0, :3] = np.nan, np.inf, -np.inf
    body, planes = random.integers(0, 256, (height, width, 3), np.uint8), random.integers(0, 256, (72, width), np.uint8)
    colour = Colour(matrix=data.draw(st.sampled_from([1, 2, 9])), range=data.draw(st.integers(0, 2)))
    drawn = algorithm.in_range(prediction)
    np.testing.assert_array_equal(
        algorithm.composite_bgr24(drawn, crop, body, rect, layout),
        reference.composite_bgr24(prediction, crop, body, rect, layout),
    )
    np.testing.assert_array_equal(
        algorithm.composite_nv12(drawn, crop, planes, rect, layout, colour),
        reference.composite_nv12(prediction, crop, planes, rect, layout, colour),
    )
    np.testing.assert_array_equal(algorithm.visual_input(crop, layout), reference.visual_input(crop, layout))


@given(st.integers(-20, 40), st.sampled_from([0, 1, 21845, 32768, 65535]))
def test_the_benchs_speech_is_the_plain_one(row: int, fraction: int) -> None:
    features = small.features(20)
    got, wanted = (room.speech_window(features, row, fraction) for room in (algorithm, reference))
    np.testing.assert_array_equal(got, wanted)


def opened(scene: Scene, name: str) -> Way:
    way = way_named(scene, name)
    way.open()
    return way


@pytest.mark.parametrize("name", [*PLAIN, *OURS])
def test_every_way_draws_the_reference(name: str, scene: Scene) -> None:
    assert name in {way.name for way in ways_here(scene)}
    way = opened(scene, name)
    found = check(way, ("compose", "infer", "encode", "render"))
    way.close()
    pixels = small.WIDTH * small.HEIGHT * (3 if name.endswith("nv12") else 2) // 2
    assert found == {
        "compose": Difference(10 * pixels),
        "infer": Difference(4 * 3 * small.MODEL_SIZE**2),
        "render": Difference(8 * pixels),
    }


@pytest.mark.parametrize("name", ["sequential", "gpupipe-cpu-nv12"])
def test_a_planted_wrong_way_is_found(name: str, scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """One pixel of one frame, by one level."""
    way = opened(scene, name)
    compose, count = way.compose, 0

    def wrong(save: Save) -> float | None:
        def spoil(frame: Pixels) -> None:
            nonlocal count
            count += 1
            if count == 7:
                frame[3, 5] ^= 1
            save(frame)

        return compose(spoil)

    monkeypatch.setattr(way, "compose", wrong)
    found = check(way, ("compose",))["compose"]
    way.close()
    assert (found.differing, found.largest) == (1, 1)
    assert not found.within(EXACT)


def test_a_wrong_rounding_rule_is_found_by_the_render(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rounding where the algorithm truncates changes few levels, and is wrong all the same."""
    way = opened(scene, "sequential")
    runner = way._runner  # type: ignore[attr-defined]
    monkeypatch.setattr(way, "_runner", lambda *inputs: np.minimum(runner(*inputs) + 0.5 / 255, 1))
    found = check(way, ("infer", "render"))
    way.close()
    assert found["infer"].largest == 1
    assert not found["infer"].within(ROUNDING)
    assert not found["render"].within(ROUNDING)


def test_pasting_in_place_leaves_the_body_as_it_was(scene: Scene) -> None:
    before = [frame.copy() for frame in scene.body]
    predictions = scene.predictions

    def fail(frame: Pixels) -> None:
        raise RuntimeError

    tuned_cpu(scene, lambda *_: predictions[:1], lambda frame: None, Trace())
    with pytest.raises(RuntimeError):
        tuned_cpu(scene, lambda *_: predictions[:1], fail, Trace())
    for frame, kept in zip(scene.body, before, strict=True):
        np.testing.assert_array_equal(frame, kept)


def test_opencv_converts_as_bt601_says() -> None:
    bgr = small.pictures(96, 64, 1)[0]
    weights = np.array([[0.114, 0.587, 0.299], [0.5, -0.331264, -0.168736], [-0.081312, -0.418688, 0.5]])
    full = bgr.astype(np.float64) @ weights.T
    got = OpencvNv12()(bgr)
    assert np.abs(got[:64] - (16 + full[..., 0] * 219 / 255)).max() <= 1
    chroma = 128 + full[::2, ::2, 1:] * 224 / 255  # of one pixel of four
    assert np.abs(got[64:].reshape(32, 48, 2) - chroma).max() <= 1


@pytest.mark.parametrize(
    ("colour", "height", "fits"),
    [(Colour(), 720, True), (Colour(matrix=6), 720, True), (Colour(matrix=1), 720, False),
     (Colour(range=2), 720, False), (Colour(), 722, False)],
)  # fmt: skip
def test_opencv_converts_only_what_it_can(colour: Colour, height: int, fits: bool) -> None:
    assert OpencvNv12.fits(colour, 1280, height) is fits


def test_bytes_that_must_move(scene: Scene) -> None:
    """Counted by hand for 96x64 and a model of 32x32, in crops of 40x40."""
    assert bench_floor.stage_bytes(scene, "nv12") == {
        "prepare": 3 * 32 * 32 + 24 * 32 * 32 + 2 * 32 * 16 * 16 * 4,
        "paste": 12 * 32 * 32 + 3 * (40 * 40 - 32 * 32) + 2 * 96 * 64 * 3 // 2,
        "encode": 96 * 64 * 3 // 2,
        "to_host": 96 * 64 * 3 // 2,
    }
    assert bench_floor.stage_bytes(scene, "bgr24")["paste"] == 12288 + 1728 + 96 * 64 * 3 + 96 * 64 * 3 // 2


def test_the_floor_on_the_host_is_the_sum_and_on_a_gpu_the_longest(scene: Scene) -> None:
    host = {"copy_bytes_per_second": 1e9, "flops_per_second": 1e12}
    moved = bench_floor.stage_bytes(scene, "nv12")
    found = bench_floor.floors(scene, "nv12", host, None, macs=5_000_000_000)
    compose, encode = (moved["prepare"] + moved["paste"]) / 1e6, moved["encode"] / 1e6
    assert found == pytest.approx(
        {"compose": compose, "infer": 10.0, "encode": encode, "render": compose + 10 + encode}, abs=1e-3
    )
    gpu: dict[str, float | None] = {
        "copy_bytes_per_second": 1e12,
        "to_host_bytes_per_second": 1e10,
        "flops_per_second": 1e13,
    }
    on_gpu = bench_floor.floors(scene, "nv12", host, gpu, macs=5_000_000_000)
    assert on_gpu["infer"] == 1.0
    assert on_gpu["render"] == 1.0
    assert on_gpu["compose"] == pytest.approx(
        (moved["prepare"] + moved["paste"]) / 1e9 + moved["to_host"] / 1e7, abs=1e-4
    )


def test_floors_go_into_the_rows() -> None:
    rows: dict[str, dict[str, Any]] = {"a": {"ms": {"median": 6.0}}, "b": {"ms": {"median": 6.0}}}
    add_floors(rows, {"a": 1.5, "b": None})
    assert (rows["a"]["floor_ms"], rows["a"]["times_the_floor"], rows["b"]["times_the_floor"]) == (1.5, 4.0, None)


def test_a_models_multiply_adds_are_counted(tmp_path: Path) -> None:
    """A 1x1 convolution from 6 planes to 3 of 32x32: 6 * 3 * 32 * 32."""
    from onnx import TensorProto, helper, numpy_helper

    weights = numpy_helper.from_array(np.ones((3, 6, 1, 1), np.float32), "w")
    zero = numpy_helper.from_array(np.zeros(1, np.float32), "zero")
    nodes = [
        helper.make_node("Conv", ["visual", "w"], ["drawn"]),
        helper.make_node("ReduceMean", ["audio"], ["mean"], keepdims=1),
        helper.make_node("Mul", ["mean", "zero"], ["nothing"]),
        helper.make_node("Add", ["drawn", "nothing"], ["out"]),
    ]
    path = tmp_path / "model.onnx"
    small.write_graph(
        path,
        nodes,
        {"visual": ["b", 6, 32, 32], "audio": ["b", 32, 16, 16]},
        {"out": ["b", 3, 32, 32]},
        [weights, zero],
        TensorProto.FLOAT,
    )
    cost = model_cost(path, CropLayout(32))
    assert cost == {"macs": 6 * 3 * 32 * 32, "weight_bytes": path.stat().st_size}


def test_the_sweeps_speed_ups_are_paired_with_its_first_line() -> None:
    parts = {"prepare": 1.0, "infer": 4.0, "paste": 2.0, "save": 3.0, "finish": 0.0}
    times = {
        Combination("parallel", 1, 1): Times([1.0, 3.0, 1.0], [], []),
        Combination("parallel", 4, 1): Times([0.5, 1.5, 0.5], [], []),
        Combination("other", 1, 1): Times([0.1, 0.1, 0.1], [], []),
    }
    table = sweep_rows(times, {key: [parts] * 3 for key in times}, frame_count=10)
    assert [row["speedup"]["median"] for row in table] == [1.0, 2.0, 1.0]
    assert [row["best"] for row in table] == [False, True, True]
    assert table[1] | {"speedup": None} == {
        "way": "parallel", "batch": 4, "workers": 1, "fps": 20.0, "inference_ms": 4.0, "composite_ms": 3.0,
        "save_ms": 3.0, "total_ms": 50.0, "speedup": None, "best": True,
    }  # fmt: skip


def test_a_sweep_renders_each_run_once(scene: Scene, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two cores run two frames at a time: batches of 3 and 8 are batches of 2, and take no third thread."""
    monkeypatch.setattr(scene, "threads", 2)
    ours = [("gpupipe-cpu-nv12", 1, 1), ("gpupipe-cpu-nv12", 2, 1), ("gpupipe-cpu-nv12", 2, 2)]
    plain = [("parallel", 1, 1), ("parallel", 3, 1), ("parallel", 3, 2), ("parallel", 3, 3), ("parallel", 8, 1),
             ("parallel", 8, 2), ("parallel", 8, 4)]  # fmt: skip
    found = distinct(scene, ["gpupipe-cpu-nv12", "parallel"], [1, 3, 8], [1, 2, 4])
    assert list(found) == [*ours, *plain]
    assert found[Combination("gpupipe-cpu-nv12", 2, 1)] == ("gpupipe-cpu-nv12", 3, 1), "what was asked for first"
    table = sweep(scene, ["gpupipe-cpu-nv12"], [1, 3, 8], [1, 2, 4], runs=1, folder=tmp_path)
    assert [(row["way"], row["batch"], row["workers"]) for row in table] == ours
    assert all(row["inference_ms"] > 0 and row["total_ms"] > 0 for row in table)


def test_a_sweep_leaves_out_what_the_model_does_not_take(scene: Scene) -> None:
    """A model with a fixed batch of 2, in batches of 1 and 2."""
    small.write_model(scene.options.model, batch=2)
    said: list[str] = []
    found = distinct(scene, ["gpupipe-cpu-nv12"], [1, 2], [1], said.append)
    assert list(found) == [("gpupipe-cpu-nv12", 2, 1)]
    assert len(said) == 1
    assert "gpupipe-cpu-nv12, batch 1, workers 1 is left out" in said[0]
    assert "batches of 2 only" in said[0]


KEYS = {
    "schema", "gpupipe", "character", "settings", "machine", "ways", "absent", "stages", "floor", "sweep", "memory",
}  # fmt: skip
ROW_KEYS = {
    "ms", "fps", "wall_ms", "cpu_ms", "pixel_format", "batch", "threads", "compared_pixels", "differing_pixels",
    "largest_difference", "right", "meaningless", "rank", "times_faster_than", "floor_ms", "times_the_floor",
}  # fmt: skip


def test_a_quick_run(tmp_path: Path) -> None:
    """All of it, in this process (and one for each way's memory), on a very small character."""
    folder = small.small_character(tmp_path / "talker")
    said: list[str] = []
    options = BenchOptions(folder, frames=8, runs=2, quick=True, ways=("sequential", "gpupipe-cpu"))
    result = run(options, said.append)
    text = json.dumps(result)
    assert set(result) == KEYS
    assert str(tmp_path) not in text, "the JSON names a path of this machine"
    assert result["character"]["name"] == "talker"
    ways = {"sequential", "gpupipe-cpu-nv12", "gpupipe-cpu-bgr24"}
    assert list(result["stages"]) == ["compose", "infer", "encode", "render"]
    for stage, rows in result["stages"].items():
        assert set(rows) == ways
        for row in rows.values():
            assert set(row) == ROW_KEYS | ({"parts", "video_bytes"} if stage == "render" else set())
            assert row["right"]
            assert row["differing_pixels"] == (None if stage == "encode" else 0)
            assert len(row["ms"]["runs"]) == 2
        assert sorted(row["rank"] for row in rows.values()) == [1, 2, 3]
    assert set(result["memory"]) == ways
    assert all(row["peak_rss_bytes"] > row["cache_bytes"] > 0 for row in result["memory"].values())
    at_once = min(4, cpu_count())  # frames that the model runs at a time
    ran = [(min(batch, at_once), min(workers, batch, at_once)) for batch in (1, 4) for workers in (1, 2)]
    assert [(row["batch"], row["workers"]) for row in result["sweep"]] == list(dict.fromkeys(ran))
    assert result["settings"]["opencv_threads"] == 1
    assert result["settings"]["encoder"]["encoder"] == "libx264"
    assert result["settings"]["command"] == (
        "gpupipe bench talker --frames 8 --ways sequential,gpupipe-cpu --runs 2 --quick"
    )
    assert any(line.startswith("compose: run 2 of 2") for line in said)


def test_a_single_stage(tmp_path: Path) -> None:
    folder = small.small_character(tmp_path / "talker")
    result = run(BenchOptions(folder, frames=8, runs=1, stage="compose", ways=("sequential", "parallel")))
    assert list(result["stages"]) == ["compose"]
    assert (result["sweep"], result["memory"]) == ([], {})


def test_more_frames_than_speech(tmp_path: Path) -> None:
    folder = small.small_character(tmp_path / "talker")
    with pytest.raises(OptionError, match="speaks for 12 frames only"):
        run(BenchOptions(folder, frames=13))


def test_who_is_absent_and_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = small.small_character(tmp_path / "talker")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert torch_way.problem() == "not installed: pip install torch onnx2torch"
    with pytest.raises(OptionError, match="pytorch cannot run here: not installed"):
        run(BenchOptions(folder, frames=4, ways=("pytorch",)))
    nothing: dict[str, Any] = {"devices": [], "problem": "no NVIDIA driver is installed", "driver": None}
    monkeypatch.setattr("gpupipe.gpu.device.describe", lambda: nothing)
    result = run(BenchOptions(folder, frames=4, runs=1, stage="infer"))
    assert result["absent"] == {
        "gpupipe-cuda": "no NVIDIA driver is installed",
        "pytorch": "not installed: pip install torch onnx2torch",
    }
    assert set(result["stages"]["infer"]) == {*PLAIN, *OURS}


def test_packages_that_do_not_fit_each_other_are_said_to(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(name: str) -> None:
        raise RuntimeError("operator torchvision::nms\n does not exist")

    monkeypatch.setattr("importlib.util.find_spec", lambda name: name)
    monkeypatch.setattr("importlib.import_module", fail)
    torch_way._import_problem.cache_clear()
    problem = torch_way.problem()
    assert problem is not None
    assert problem.startswith("cannot be imported: operator torchvision::nms does not exist; install torch and ")
    torch_way._import_problem.cache_clear()


def test_pytorch_predicts_what_onnxruntime_does(scene: Scene) -> None:
    """Where both packages are: `pip install torch onnx2torch`."""
    if torch_way.problem() is not None:
        pytest.skip(f"PyTorch is optional: {torch_way.problem()}")
    models: list[tuple[dict[str, Any], int]] = [({}, 0), ({"batch": 3}, 0), ({"dtype": "float16"}, 1)]
    for model, levels in models:
        small.write_model(scene.options.model, **model)
        way = opened(Scene(scene.options), "pytorch")
        way.infer()
        found = check(way, ("compose", "infer", "encode", "render"))
        way.close()
        assert set(found) == {"infer"}
        assert found["infer"].pixels == 4 * 3 * 32**2
        assert found["infer"].largest <= levels


def test_without_a_way_that_cannot_be_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As PyTorch where onnx2torch does not know the model's operators: the others are compared all the same."""
    folder = small.small_character(tmp_path / "talker")

    def fail(way: torch_way.TorchWay) -> None:
        raise InferenceError("onnx2torch cannot convert it: Resize", file=way.scene.options.model, field="model")

    monkeypatch.setattr("gpupipe.bench.torch_way.problem", lambda: None)
    monkeypatch.setattr("gpupipe.bench.torch_way.TorchWay.open", fail)
    monkeypatch.setattr("gpupipe.gpu.device.describe", lambda: {"devices": [], "problem": "none", "driver": None})
    result = run(BenchOptions(folder, frames=4, runs=1, stage="infer"))
    assert result["absent"]["pytorch"] == "model_best.onnx: model: onnx2torch cannot convert it: Resize"
    assert set(result["ways"]) == set(result["stages"]["infer"]) == {*PLAIN, *OURS}
    with pytest.raises(InferenceError, match="cannot convert it"):
        run(BenchOptions(folder, frames=4, runs=1, stage="infer", ways=("sequential", "pytorch")))


@pytest.mark.parametrize("name", [*PLAIN, *OURS])
def test_a_body_at_50_frames_a_second(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every second frame hears a window between two rows of speech, of which there are half as many as frames."""
    folder = small.small_character(tmp_path / "talker")
    monkeypatch.setattr(small, "FPS", Fraction(50))
    small.write_video(folder / "full_body_video.mp4", small.pictures(small.WIDTH, small.HEIGHT, small.FRAMES))
    model = folder / "checkpoint" / "model_best.onnx"
    way = opened(Scene(SceneOptions(folder, model, frame_count=24, batch_size=4, workers=1)), name)
    found = check(way, ("compose", "infer", "render"))
    way.close()
    assert all(entry.within(EXACT) for entry in found.values())
    with pytest.raises(OptionError, match="speaks for 24 frames only"):
        Scene(SceneOptions(folder, model, frame_count=25, batch_size=4, workers=1))


@pytest.mark.parametrize("name", ["sequential", "gpupipe-cpu-nv12"])
def test_a_model_with_a_fixed_batch(name: str, scene: Scene) -> None:
    """Batches of 2 for 10 frames, the plain way giving it one frame at a time."""
    small.write_model(scene.options.model, batch=2)
    way = opened(scene, name)
    found = check(way, ("compose", "infer", "render"))
    way.close()
    assert all(entry.within(EXACT) for entry in found.values())


@pytest.mark.parametrize("pixel_format", ["nv12", "bgr24"])
def test_single_steps_draw_finished_frames(pixel_format: PixelFormat, scene: Scene) -> None:
    """Every frame of each batch differs from its body inside the rectangle, and nowhere else."""
    steps = HostSteps(scene.character, pixel_format, frame_count=8, batch_size=4)
    steps.each_batch(steps.prepare, steps.paste)
    bodies = scene.body_nv12 if pixel_format == "nv12" else scene.body
    for finished, decoded, rect in zip(steps.finished, bodies[4:8], scene.rects[4:8], strict=True):
        frame, body = finished[: small.HEIGHT], decoded[: small.HEIGHT]
        inside = np.s_[rect.y1 : rect.y2, rect.x1 : rect.x2]
        assert (frame[inside] != body[inside]).mean() > 0.9
        frame[inside] = body[inside]
        np.testing.assert_array_equal(frame, body)


@pytest.mark.cuda
@pytest.mark.parametrize("pixel_format", ["nv12", "bgr24"])
def test_the_gpu_is_compared_with_the_reference_too(pixel_format: str, scene: Scene, tmp_path: Path) -> None:
    way = opened(scene, f"gpupipe-cuda-{pixel_format}")
    assert isinstance(way, GpupipeWay)
    found = check(way, ("compose", "infer", "render"))
    assert way.device_bytes > 0
    table = Timetable([way], {way.name: found}, 2, tmp_path)
    rows = table.time("compose", ()) | {}
    way.close()
    assert all(entry.within(ROUNDING) for entry in found.values())
    assert found["compose"].within(EXACT)
    row = rows[way.name]
    assert row["right"]
    assert row["ms"]["median"] > 0, "the GPU's own clock"
    if way.meaningless is not None:
        assert row["rank"] is None


@pytest.mark.parametrize("name", FAMILIES)
def test_every_way_can_be_asked_for(name: str) -> None:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    options = parser.parse_args(["--ways", name, "--batches", "8,1,4", "--workers", "2"])
    assert (options.ways, options.batches, options.workers) == ((name,), (1, 4, 8), (2,))
    assert family_of(f"{name}-nv12") == name


@pytest.mark.parametrize("arguments", [["--ways", "magic"], ["--batches", "0"], ["--frames", "0"], ["--stage", "x"]])
def test_wrong_usage(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        cli.main(["bench", *arguments])
    assert stopped.value.code == 2
    assert capsys.readouterr().out == ""


def test_the_demos_character_is_made_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Path] = []

    def make(folder: Path, frames: int) -> None:
        made.append(folder)
        small.small_character(folder)

    monkeypatch.setattr("gpupipe.bench.compare.cache_folder", lambda: tmp_path)
    monkeypatch.setattr("gpupipe.demo.make_demo", make)
    for _ in range(2):
        result = run(BenchOptions(frames=4, runs=1, stage="infer", ways=("sequential",)))
        assert result["character"]["name"] == "demo"
        assert result["settings"]["command"].startswith("gpupipe bench --frames 4")
    assert len(made) == 1


def test_python_m_gpupipe_bench_is_the_command() -> None:
    told = subprocess.run([sys.executable, "-m", "gpupipe.bench", "--ways", "none"], capture_output=True, text=True)
    assert told.returncode == 2
    assert "'none' is none of sequential, parallel" in told.stderr
