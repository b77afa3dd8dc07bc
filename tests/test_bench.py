"""The comparison's arithmetic: what is wrong is found and not ranked, what is slow is said to be slow."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from fractions import Fraction
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnx
import pytest
import reference
import small
import unets
from conftest import on_softcuda
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from gpupipe import cli
from gpupipe.bench import BenchOptions, add_arguments, algorithm, run, torch_way
from gpupipe.bench import floor as bench_floor
from gpupipe.bench.floor import MachineRates, model_floor
from gpupipe.bench.gpupipe_way import GpupipeWay
from gpupipe.bench.handover import OpencvNv12
from gpupipe.bench.host_steps import HostSteps
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
from gpupipe.bench.memory import measure_memory
from gpupipe.bench.plain_ways import tuned_cpu
from gpupipe.bench.precisions import Likeness, Mouths, make_files
from gpupipe.bench.registry import FAMILIES, FORMATS, family_of, way_named, ways_here
from gpupipe.bench.scene import Scene, SceneOptions
from gpupipe.bench.stages import Checked, Timetable, add_floors, check
from gpupipe.bench.sweep import Combination, distinct, sweep
from gpupipe.bench.sweep import rows as sweep_rows
from gpupipe.bench.way import BenchStage, Save, Way
from gpupipe.character.folder import MODEL
from gpupipe.colour import Colour, PixelFormat, matrices
from gpupipe.doctor import sample
from gpupipe.errors import GpupipeError, InferenceError, OptionError
from gpupipe.geometry import CropLayout, Rect
from gpupipe.model import rates
from gpupipe.model.cost import ModelFloor, model_cost, moved_bytes
from gpupipe.model.quality import EQUAL_DB, Quality
from gpupipe.model.split_model import SourceNet
from gpupipe.options import Precision
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
    checked: dict[str, dict[BenchStage, Checked]] = {way.name: {"compose": right} for way in ways}
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
    fair: dict[str, Any] = {"ms": {"median": 2.0}, "class": "exact", "right": True, "meaningless": None}
    software = {**fair, "ms": {"median": 1.0}, "meaningless": "a GPU in software"}
    assert rank({"software": software, "fair": fair}) == {"fair": 1}


def test_each_class_has_places_of_its_own() -> None:
    def row(median: float, kind: str, right: bool = True) -> dict[str, Any]:
        return {"ms": {"median": median}, "class": kind, "right": right, "meaningless": None}

    rows = {"a": row(4, "exact"), "b": row(1, "int8"), "c": row(3, "exact"), "d": row(2, "int8"), "e": row(1, "fp16"),
            "f": row(0.5, "fp16", right=False)}  # fmt: skip
    assert rank(rows) == {"c": 1, "a": 2, "b": 1, "d": 2, "e": 1}


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


def drawn(scene: Scene, pixel_format: PixelFormat, output: int) -> Pixels:
    """The reference."""
    return scene.expected(output, scene.predicted(output)[0], pixel_format)


def exactly(found: Mapping[BenchStage, Checked]) -> dict[BenchStage, Difference]:
    """What `check` found of a way that draws the reference."""
    return {stage: entry for stage, entry in found.items() if isinstance(entry, Difference)}


def opened(scene: Scene, name: str) -> Way:
    way = way_named(scene, name)
    way.open()
    return way


@pytest.mark.parametrize("name", [*PLAIN, *OURS])
def test_every_way_draws_the_reference(name: str, scene: Scene) -> None:
    assert name in {way.name for way in ways_here(scene)}
    way = way_named(scene, name)
    started = Comparison(lambda output: scene.expected(output, scene.predicted(output)[0], way.pixel_format), 1)
    assert way.start(started) > 0
    found = check(way, ("compose", "infer", "encode", "render"))
    way.close()
    pixels = small.WIDTH * small.HEIGHT * (3 if name.endswith("nv12") else 2) // 2
    assert started.result() == Difference(pixels)
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
    found = exactly(check(way, ("compose",)))["compose"]
    way.close()
    assert (found.differing, found.largest) == (1, 1)
    assert not found.within(EXACT)


def test_a_wrong_rounding_rule_is_found_by_the_render(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rounding where the algorithm truncates changes few levels, and is wrong all the same."""
    way = opened(scene, "sequential")
    runner = way._runner  # type: ignore[attr-defined]
    monkeypatch.setattr(way, "_runner", lambda *inputs: np.minimum(runner(*inputs) + 0.5 / 255, 1))
    found = exactly(check(way, ("infer", "render")))
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
    """Counted by hand for 96x64 and a model of 32x32, in crops of 40x40, at the mean over the first four frames."""
    rects = [Rect(*small.rectangle(frame)) for frame in range(4)]
    covered = sum(rect.width * rect.height for rect in rects) / 4
    taps = 8 * (sum({rect.width for rect in rects}) + sum({rect.height for rect in rects})) / 4
    speech = (15 + 4) * 512 * 4 / 4 + 16 * 512 * 4
    patch = 12 * 32 * 32 + 3 * (40 * 40 - 32 * 32)
    frame, matrix = 96 * 64 * 3 // 2, matrices()[0].nbytes / 4
    assert bench_floor.frame_bytes(scene, "nv12") == {
        "prepare": round(3 * 32 * 32 + 24 * 32 * 32 + speech + 64),
        "paste": round(2 * frame - 1.5 * covered + patch + taps + 64 + matrix),
        "encode": frame,
        "to_host": frame,
    }
    images = bench_floor.frame_bytes(scene, "bgr24")
    assert images["paste"] == round(2 * frame - 3 * covered + patch + taps + 64) + frame, "read as images, written nv12"
    assert images["to_host"] == 2 * frame
    half = bench_floor.frame_bytes(scene, "nv12", np.float16)
    assert half["paste"] == round(2 * frame - 1.5 * covered + patch - 6 * 32 * 32 + taps + 64 + matrix)


def machine(device: dict[str, float | None] | None = None) -> MachineRates:
    """A machine of round numbers."""
    rates = object.__new__(MachineRates)
    rates.host = {
        "copy_bytes_per_second": 1e9, "threads_copy_bytes_per_second": 2e9, "flops_per_second": 1e12,
        "int8_operations_per_second": 4e12,
    }  # fmt: skip
    rates.device = device
    return rates


def test_the_floor_on_the_host_is_the_sum_and_on_a_gpu_the_longest(scene: Scene) -> None:
    way, model = way_named(scene, "gpupipe-cpu-nv12"), ModelFloor(10.0, 4.0)
    moved = bench_floor.frame_bytes(scene, "nv12")
    compose, encode = (moved["prepare"] + moved["paste"]) / 1e6, moved["encode"] / 1e6
    assert bench_floor.floors(way, machine(), model) == pytest.approx(
        {"compose": compose, "infer": 10.0, "encode": encode, "render": compose + 10 + encode}, abs=1e-3
    )
    unknown = bench_floor.floors(way, machine(), ModelFloor())
    assert (unknown["infer"], unknown["render"]) == (None, None)
    way.gpu_provider = "cuda"
    on_gpu = bench_floor.floors(
        way, machine({"copy_bytes_per_second": 1e12, "to_host_bytes_per_second": 1e10}), ModelFloor(0.25, 1.0)
    )
    assert on_gpu["infer"] == 1.0
    assert on_gpu["render"] == 1.0
    assert on_gpu["compose"] == pytest.approx(
        (moved["prepare"] + moved["paste"]) / 1e9 + moved["to_host"] / 1e7, abs=1e-4
    )


COST = {"macs": 5_000_000_000, "activations": 10_000_000, "weight_bytes": 8_000_000}


def test_the_models_floors_are_of_its_arithmetic_its_bytes_and_its_runs(scene: Scene) -> None:
    """10 GFLOP at 1 TFLOP/s; 10 million numbers of 4 bytes, and 8 MB of weights in a run, at 2 GB/s."""
    way = way_named(scene, "gpupipe-cpu-nv12")
    assert model_floor(way, COST, machine()) == (10.0, 24.0)
    way.frames_a_run = 4
    assert model_floor(way, COST, machine()) == (10.0, 21.0)
    way.dtype = np.dtype(np.float16)
    assert model_floor(way, COST, machine()) == (10.0, 11.0), "the CPU computes it in float32"
    quantised = way_named(scene, "gpupipe-cpu-nv12-int8")
    assert model_floor(quantised, COST, machine()) == (2.5, 9.0)
    gpu: dict[str, float | None] = {
        "copy_bytes_per_second": 1e12, "flops_per_second": 1e13, "tf32_operations_per_second": 4e13,
        "float16_operations_per_second": 1e14,
    }  # fmt: skip
    for name, kind, operations, moved in (
        ("", "f4", 1.0, 0.048), ("-tf32", "f4", 0.25, 0.048), ("-fp16", "f2", 0.1, 0.028)
    ):  # fmt: skip
        way = way_named(scene, f"gpupipe-cuda-nv12{name}")
        way.gpu_provider, way.dtype = "cuda", np.dtype(kind)
        assert model_floor(way, COST, machine(gpu)) == pytest.approx((operations, moved))
        way.keeps_features = True
        assert model_floor(way, COST, machine(gpu)).ms is None, "what is left to do is another graph"


def test_the_larger_floor_counts() -> None:
    found = [ModelFloor(*both).ms for both in ((1.0, 2.0), (3.0, 2.0), (None, 2.0), (None, None))]
    assert found == [2.0, 3.0, 2.0, None]
    assert ModelFloor.of(10, 8.0, None, 1e3) == (None, 8.0)
    assert moved_bytes(COST, 2, 8) == 21_000_000


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
    numbers = (6 + 3) * 32 * 32 + 32 * 16 * 16  # only inputs and prediction: the convolution gives that itself
    cost = model_cost(path, CropLayout(32))
    assert cost == {"macs": 6 * 3 * 32 * 32, "activations": numbers, "weight_bytes": path.stat().st_size}


def test_a_models_activations_are_counted(tmp_path: Path) -> None:
    """Of the self-test's model at 32x32, by hand: its inputs, its prediction, and what four convolutions give between
    them, written and read; nothing of ReLU, Concat, sum and sigmoid."""
    path = tmp_path / "model.onnx"
    path.write_bytes(sample.model_bytes(32, 0))
    whole, half = 32 * 32, 16 * 16
    between = 24 * whole + 24 * half + 24 + 24 * whole
    assert model_cost(path, CropLayout(32))["activations"] == (6 + 3) * whole + 32 * 16 * 16 + 2 * between


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


def ran(scene: Scene, batch_sizes: list[int], worker_counts: list[int]) -> list[tuple[str, int, int]]:
    """What gpupipe makes on the CPU of what is asked for, each run once: the engine picks how many frames are drawn at
    a time, and no more threads draw them."""
    found = []
    for batch_size, workers in product(batch_sizes, worker_counts):
        way = opened(scene.varied(frame_count=4, batch_size=batch_size, workers=workers), "gpupipe-cpu-nv12")
        found.append((way.name, way.batch_size, min(workers, way.batch_size)))
        assert way.threads["render"] == min(workers, way.batch_size)
        way.close()
    return list(dict.fromkeys(found))


def test_a_sweep_renders_each_run_once(scene: Scene, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the engine makes the same of several batches is rendered once."""
    monkeypatch.setattr(scene, "threads", 2)
    ours = ran(scene, [1, 3, 8], [1, 2, 4])
    assert 1 < len(ours) < 9, "some come to the same"
    plain = [("parallel", 1, 1), ("parallel", 3, 1), ("parallel", 3, 2), ("parallel", 3, 3), ("parallel", 8, 1),
             ("parallel", 8, 2), ("parallel", 8, 4)]  # fmt: skip
    found = distinct(scene, ["gpupipe-cpu-nv12", "parallel"], [1, 3, 8], [1, 2, 4])
    assert list(found) == [*ours, *plain]
    assert all(
        asked in set(product(["gpupipe-cpu-nv12", "parallel"], [1, 3, 8], [1, 2, 4])) for asked in found.values()
    )
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
    "schema", "gpupipe", "character", "settings", "machine", "ways", "absent", "precisions", "stages", "floor", "sweep",
    "memory", "complete",
}  # fmt: skip
ROW_KEYS = {
    "class", "quality", "drawn", "ms", "fps", "wall_ms", "cpu_ms", "pixel_format", "batch", "threads",
    "compared_pixels", "differing_pixels", "largest_difference", "right", "meaningless", "rank", "times_faster_than",
    "floor_ms", "times_the_floor",
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
    assert all(row["first_frame_seconds"] > 0 < row["preload_seconds"] for row in result["memory"].values())
    scene = Scene(SceneOptions(folder, folder / MODEL, frame_count=8, batch_size=4, workers=2))
    assert [(row["way"], row["batch"], row["workers"]) for row in result["sweep"]] == ran(scene, [1, 4], [1, 2])
    assert result["floor"]["model_ms"].keys() == ways
    for name, floor in result["floor"]["model_ms"].items():
        assert result["stages"]["infer"][name]["floor_ms"] == max(floor["operations"], floor["bytes"])
    assert result["settings"]["opencv_threads"] == 1
    assert result["settings"]["encoder"]["encoder"] == "libx264"
    assert result["settings"]["command"] == (
        "gpupipe bench talker --frames 8 --ways sequential,gpupipe-cpu --runs 2 --quick"
    )
    assert any(line.startswith("compose: run 2 of 2") for line in said)


def test_ctrl_c_keeps_what_was_compared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*_: Any, **__: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr("gpupipe.bench.compare.sweep", interrupted)
    folder, file = small.small_character(tmp_path / "talker"), tmp_path / "found.json"
    wanted = ["--frames", "8", "--runs", "1", "--ways", "sequential,parallel", "--batches", "1,2", "--workers", "1"]
    assert cli.main(["bench", str(folder), *wanted, "--json", str(file)]) == 130
    out, err = capsys.readouterr()
    result = json.loads(file.read_text("utf-8"))
    assert (result["complete"], result["sweep"], result["memory"]) == (False, [], {})
    assert list(result["stages"]) == ["compose", "infer", "encode", "render"]
    assert "Whole render, to mp4" in out
    assert err.endswith("interrupted\n")


def test_a_single_stage(tmp_path: Path) -> None:
    folder = small.small_character(tmp_path / "talker")
    result = run(BenchOptions(folder, frames=8, runs=1, stage="compose", ways=("sequential", "parallel")))
    assert list(result["stages"]) == ["compose"]
    assert (result["sweep"], result["memory"]) == ([], {})


def test_a_strangers_character_is_taken_within_limits(tmp_path: Path) -> None:
    folder = small.small_character(tmp_path / "talker")
    (folder / "aud_ave.npy").rename(tmp_path / "aud_ave.npy")
    (folder / "aud_ave.npy").symlink_to(tmp_path / "aud_ave.npy")
    for limits, error in (({"isolate": True}, "leads out of"), ({"max_pixels": 6000}, "larger than max_pixels 6000")):
        with pytest.raises(GpupipeError, match=error):
            run(BenchOptions(folder, frames=4, **limits))
    assert BenchOptions(folder, isolate=True).command(folder) == "gpupipe bench talker --isolate"


def test_more_frames_than_speech(tmp_path: Path) -> None:
    """30 frames of a speech of 12: it is said three times, and every way hears the same."""
    folder = small.small_character(tmp_path / "talker")
    said: list[str] = []
    result = run(
        BenchOptions(folder, frames=30, runs=1, stage="render", ways=("sequential", "gpupipe-cpu"), quick=True),
        said.append,
    )
    assert said[0] == "the speech lasts 12 frames: it is said 3 times, in every way"
    assert {name: result["settings"][name] for name in ("frames", "speech_frames", "speech_repeats")} == {
        "frames": 30, "speech_frames": 12, "speech_repeats": 3
    }  # fmt: skip
    scene = Scene(SceneOptions(folder, folder / MODEL, frame_count=30, batch_size=4, workers=2))
    features = small.features(12)
    np.testing.assert_array_equal(scene.features, np.concatenate([features] * 3))
    assert scene.order.tolist() == [*range(12), *range(10, 0, -1), *range(8)]
    for name in ("sequential", "gpupipe-cpu-nv12"):
        way = opened(scene, name)
        frames = Comparison(partial(drawn, scene, way.pixel_format), 30)
        way.render(frames, Trace(), 30)
        way.close()
        assert frames.result().within(EXACT)


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
        found = exactly(check(way, ("compose", "infer", "encode", "render")))
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
    assert all(entry.within(EXACT) for entry in exactly(found).values())
    longer = Scene(SceneOptions(folder, model, frame_count=25, batch_size=4, workers=1))
    assert (longer.speech_frames, longer.speech_repeats, len(longer.features)) == (24, 2, 24)


@pytest.mark.parametrize("name", ["sequential", "gpupipe-cpu-nv12"])
def test_a_model_with_a_fixed_batch(name: str, scene: Scene) -> None:
    """Batches of 2 for 10 frames, the plain way giving it one frame at a time."""
    small.write_model(scene.options.model, batch=2)
    way = opened(scene, name)
    found = check(way, ("compose", "infer", "render"))
    way.close()
    assert all(entry.within(EXACT) for entry in exactly(found).values())


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


@pytest.fixture
def unet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A character of 12 frames with a U-Net for 32x32 images; whose cache folder is its own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("LOCALAPPDATA", str(tmp_path / "cache"))
    folder = small.small_character(tmp_path / "anna")
    recipe = unets.Recipe(
        cells=2, widths=(12, 24, 32, 32), first=8, skips=("concat", "concat", "concat", "concat"),
        ups=("linear",) * 4, joins=frozenset({0}), activation="relu", batch_norm=True, residual=True,
    )  # fmt: skip
    onnx.save(unets.unet(recipe), str(folder / MODEL))
    return folder


def scene_of(folder: Path, *precisions: Precision, feature_cache: str = "off") -> Scene:
    """30 frames of a speech of 12, the files of the precisions made."""
    scene = Scene(SceneOptions(folder, folder / MODEL, 30, 4, 2, precisions, feature_cache))
    scene.made = make_files(scene, precisions)
    return scene


def test_reduced_precisions_have_a_class_of_their_own(unet: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def measured(options: SceneOptions, name: str) -> dict[str, Any]:
        """A process for each takes long."""
        return measure_memory(options, name) if name.endswith("int8-features") else {"peak_rss_bytes": 1}

    monkeypatch.setattr("gpupipe.bench.compare.measure_memory", measured)
    said: list[str] = []
    options = BenchOptions(
        unet, frames=18, runs=1, quick=True, ways=("sequential", "gpupipe-cpu"), precision=("fp32", "int8"),
        feature_cache="1G", batches=(4,), workers=(2,),
    )  # fmt: skip
    result = run(options, said.append)
    assert said.index("int8: the model's file, made once and kept; not timed") < said.index("compose: warm-up")
    assert any(line.startswith("int8: made: ") for line in said)
    exact = {"sequential", "gpupipe-cpu-nv12", "gpupipe-cpu-bgr24", "gpupipe-cpu-nv12-features"}
    reduced = {"gpupipe-cpu-nv12-int8", "gpupipe-cpu-nv12-int8-features"}
    (made,) = result["precisions"].values()
    quality = Quality.from_dict(made["quality"])
    assert made["made_now"]
    for stage in ("compose", "encode"):
        assert set(result["stages"][stage]) == exact - {"gpupipe-cpu-nv12-features"}, "what the model does not change"
    for stage in ("infer", "render"):
        rows = result["stages"][stage]
        assert set(rows) == exact | reduced
        assert sorted(rows[name]["rank"] for name in exact) == [1, 2, 3, 4]
        assert sorted(rows[name]["rank"] for name in reduced) == [1, 2]
        assert all(rows[name]["differing_pixels"] == 0 and rows[name]["quality"] is None for name in exact)
        for name in reduced:
            row = rows[name]
            assert (row["class"], row["right"], row["differing_pixels"]) == ("int8", True, None)
            assert row["quality"]["psnr_mean"] == quality.mouth_psnr_mean
            assert row["quality"]["ssim_worst"] == quality.mouth_ssim_worst
            assert row["drawn"]["frames"] == (4 if stage == "infer" else 8)
            assert 35 < row["drawn"]["psnr_worst"] <= row["drawn"]["psnr_mean"] < 100, "near, and not the same"
            assert row["times_faster_than"]["sequential"]["median"] > 0, "compared all the same"
    infer = result["stages"]["infer"]
    assert infer["gpupipe-cpu-nv12-int8"]["floor_ms"] < infer["gpupipe-cpu-nv12"]["floor_ms"]
    assert infer["gpupipe-cpu-nv12-features"]["floor_ms"] is None
    notes = result["ways"]["gpupipe-cpu-nv12-features"]["notes"]
    assert any(note.startswith("features of 12 of 12 frames are kept") for note in notes)
    assert any(note.endswith("here it is shown 1.5 times") for note in notes)
    assert set(result["memory"]) == exact | reduced
    assert result["memory"]["gpupipe-cpu-nv12-int8-features"]["peak_rss_bytes"] > 1 << 20
    assert result["settings"]["command"].endswith("--precision fp32,int8 --feature-cache 1G --runs 1 --quick")
    again: list[str] = []
    one = BenchOptions(unet, frames=4, runs=1, stage="infer", ways=("gpupipe-cpu",), precision=("int8",))
    assert set(run(one, again.append)["stages"]["infer"]) == {"gpupipe-cpu-nv12-int8"}
    assert any(line.startswith("int8: there from before: ") for line in again)


@pytest.mark.parametrize("name", ["gpupipe-cpu-nv12-int8", "gpupipe-cpu-nv12-fp16"])
def test_a_reduced_precision_that_draws_another_mouth_is_wrong(
    name: str, unet: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pixels may differ, the mouth must not; nor may a frame be missing."""
    scene = scene_of(unet, "int8", "fp16")
    way = opened(scene, name)
    render = way.render

    def spoiled(spoil: Callable[[Pixels], Pixels]) -> Any:
        return lambda save, trace, count: render(lambda frame: save(spoil(frame)), trace, count)

    monkeypatch.setattr(way, "render", spoiled(lambda frame: frame + np.uint8(1)))
    (found,) = check(way, ("render",)).values()
    assert isinstance(found, Likeness)
    assert found.passes, "brighter by a level"
    monkeypatch.setattr(way, "render", spoiled(lambda frame: frame[:, ::-1]))
    (found,) = check(way, ("render",)).values()
    assert isinstance(found, Likeness)
    assert not found.passes
    table = Timetable([way], {way.name: {"render": found}}, 1, tmp_path)
    monkeypatch.setattr(way, "render", render)
    row = table.time("render", ())[way.name]
    assert (row["right"], row["rank"]) == (False, None)
    monkeypatch.setattr(way, "render", lambda save, trace, count: render(save, trace, count - 5))
    (found,) = check(way, ("render",)).values()
    way.close()
    assert (found.frames, found.psnr_worst, found.passes) == (3, 0.0, False)  # type: ignore[union-attr]


def test_likeness_is_that_of_the_mouth(scene: Scene) -> None:
    """A frame that differs by 10 levels in half of the mouth's pixels, and a mouth in nv12 and in bgr24."""
    region = scene.mouth
    for pixel_format in FORMATS:
        mouths = Mouths(scene, "tf32", pixel_format, 1)
        frame = drawn(scene, pixel_format, 0).copy()
        box = mouths._box(0)
        assert Rect(*small.rectangle(0)).within(box.x2, box.y2).x1 < box.x1
        part = frame[box.y1 : box.y2, box.x1 : box.x2]
        rows = (box.y2 - box.y1) // 2
        part[:rows] = np.where(part[:rows] < 128, part[:rows] + 10, part[:rows] - 10)
        mouths(frame)
        found = mouths.result()
        share = rows / (box.y2 - box.y1)
        assert found.psnr_mean == pytest.approx(10 * np.log10(255**2 / (100 * share)))
        assert found.frames == 1
    assert region.x2 <= small.MODEL_SIZE


def test_features_are_made_anew_in_every_pass(unet: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """So that what is timed is a render's own work; and the same bits are drawn."""
    runs: list[int] = []
    make = SourceNet.run

    def counted(self: SourceNet, visual: Any, features: Any) -> None:
        runs.append(len(visual))
        make(self, visual, features)

    monkeypatch.setattr(SourceNet, "run", counted)
    way = opened(scene_of(unet, "fp32", feature_cache="1G"), "gpupipe-cpu-nv12-features")
    assert len([note for note in way.notes if note.startswith("features of 12 of 12 frames are kept")]) == 1
    runs.clear()  # of the break-even
    found = check(way, ("infer", "render"))
    assert all(entry.within(EXACT) for entry in exactly(found).values())
    assert len(found) == 2
    table = Timetable([way], {way.name: found}, 2, tmp_path)
    stages: tuple[BenchStage, ...] = ("infer", "render")
    for stage in stages:
        runs.clear()
        table.time(stage, ())
        assert runs == [1] * 12 * 3, "each frame once in the warm-up and in both runs"
    way.close()


@pytest.mark.cuda
def test_features_under_a_gpu(unet: Path) -> None:
    """Composited there, while the model runs on the CPU: the same frames. Where the model runs there too, it is timed
    by the GPU's own clock."""
    if not on_softcuda():
        pytest.skip("a GPU runs the model itself")
    way = opened(scene_of(unet, "fp32", feature_cache="1G"), "gpupipe-cuda-nv12-features")
    assert way.gpu_provider == "cpu"
    found = check(way, ("infer", "render"))
    assert all(entry.within(ROUNDING) for entry in exactly(found).values())
    assert len(found) == 2
    on_host = way.infer()
    way.gpu_provider = "cuda"
    by_events = way.infer()
    way.close()
    assert on_host is not None
    assert by_events is not None
    assert on_host > 0
    assert by_events > 0


def test_memory_that_a_process_cannot_tell_is_left_out(unet: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Near the break-even another process may find that features do not pay."""

    def measured(_: SceneOptions, name: str) -> dict[str, Any]:
        if name == failing:
            raise GpupipeError("no features are kept")
        return {"peak_rss_bytes": 1}

    monkeypatch.setattr("gpupipe.bench.compare.measure_memory", measured)
    options = BenchOptions(
        unet, frames=4, runs=1, ways=("gpupipe-cpu",), batches=(4,), workers=(1,), feature_cache="1G"
    )
    failing, said = "gpupipe-cpu-nv12-features", list[str]()
    assert set(run(options, said.append)["memory"]) == set(OURS)
    assert said[-1] == f"{failing}: memory is left out: no features are kept"
    failing = "gpupipe-cpu-nv12"
    with pytest.raises(GpupipeError, match="no features are kept"):
        run(options)


def test_features_that_are_not_kept_are_no_way(unet: Path) -> None:
    """They would be the same way once more; the reason is told."""
    small.write_model(unet / MODEL)
    said: list[str] = []
    options = BenchOptions(unet, frames=4, runs=1, stage="infer", ways=("gpupipe-cpu",), feature_cache="auto")
    result = run(options, said.append)
    assert set(result["stages"]["infer"]) == set(OURS)
    assert list(result["absent"]) == ["gpupipe-cpu-nv12-features"]
    assert "no features are kept: " in result["absent"]["gpupipe-cpu-nv12-features"]
    assert any(line.startswith("gpupipe-cpu-nv12-features: left out: no features are kept") for line in said)


def test_a_precision_that_no_way_has(unet: Path) -> None:
    for precision, device in (("tf32", "gpupipe-cuda"), ("int8", "gpupipe-cpu")):
        ways = ("sequential", *([] if device == "gpupipe-cpu" else ["gpupipe-cpu"]))
        with pytest.raises(OptionError, match=f"is a way to run {device}, which is not compared.*'{precision}'"):
            run(BenchOptions(unet, frames=4, runs=1, ways=ways, precision=("fp32", precision)))  # type: ignore[arg-type]


def test_a_file_below_the_floor_is_an_error_as_in_a_render(unet: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gpupipe.model.quality.FLOOR_DB", 99.0)
    with pytest.raises(InferenceError, match="int8 draws it with"):
        run(BenchOptions(unet, frames=4, runs=1, ways=("gpupipe-cpu",), precision=("int8",)))


@pytest.mark.cuda
@pytest.mark.usefixtures("model_on_device")
def test_tf32_is_judged_by_what_is_drawn(unet: Path, tmp_path: Path) -> None:
    """It has no file of its own. Here a provider that is none computes in float32: no pixel differs."""
    scene = scene_of(unet, "fp32", "tf32", "fp16")
    for name, same in (("gpupipe-cuda-nv12-tf32", True), ("gpupipe-cuda-nv12-fp16", False)):
        way = opened(scene, name)
        found = check(way, ("compose", "infer", "render"))
        assert list(found) == ["infer", "render"]
        assert way.dtype == (np.float32 if same else np.float16)
        row = Timetable([way], {way.name: found}, 1, tmp_path).time("infer", ())[way.name]
        way.close()
        for entry in found.values():
            assert isinstance(entry, Likeness)
            assert (entry.psnr_worst == EQUAL_DB) is same
        assert row["right"]
        assert (row["quality"] == row["drawn"]) is same, (
            "tf32 is told what was drawn here, fp16 how its file was judged"
        )


@pytest.mark.cuda
@pytest.mark.usefixtures("model_on_device")
def test_the_floors_of_a_gpu(unet: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each precision over the rate of its own arithmetic, planted."""
    planted = {"float32": 1e9, "tf32": 4e9, "float16": 1.6e10}
    monkeypatch.setattr(rates, "device_matrix_rate", lambda gpu, kind: planted[kind])
    monkeypatch.setattr(bench_floor, "device_matrix_rate", lambda gpu, kind: planted[kind])
    options = BenchOptions(
        unet, frames=8, runs=1, stage="infer", ways=("gpupipe-cuda",), precision=("fp32", "tf32", "fp16"), batches=(4,)
    )
    result = run(options)
    floor = result["floor"]
    macs = floor["model"]["macs"]
    for name, kind in (("", "float32"), ("-tf32", "tf32"), ("-fp16", "float16")):
        both = floor["model_ms"][f"gpupipe-cuda-nv12{name}"]
        assert both["operations"] == pytest.approx(2e3 * macs / planted[kind], abs=1e-4)
        weights = result["precisions"]["fp16"]["bytes"] if name == "-fp16" else floor["model"]["weight_bytes"]
        moved = floor["model"]["activations"] * (2 if name == "-fp16" else 4) + weights / 4
        assert both["bytes"] == pytest.approx(1e3 * moved / floor["device"]["copy_bytes_per_second"], abs=1e-4)


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
    pixels = exactly(found)
    assert all(entry.within(ROUNDING) for entry in pixels.values())
    assert pixels["compose"].within(EXACT)
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
    assert (options.precision, options.feature_cache) == (("fp32",), "off")
    options = parser.parse_args(["--precision", "int8,fp32", "--feature-cache", "4G"])
    assert (options.precision, options.feature_cache) == (("fp32", "int8"), "4G")
    assert {family_of(name), family_of(f"{name}-nv12"), family_of(f"{name}-nv12-int8-features")} == {name}


@pytest.mark.parametrize(
    "arguments",
    [["--ways", "magic"], ["--batches", "0"], ["--frames", "0"], ["--stage", "x"], ["--precision", "fp8"],
     ["--feature-cache", "much"]],
)  # fmt: skip
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
