"""Features that stay in device memory: the frames of the whole model, at no cost in the steady state."""

from __future__ import annotations

import functools
import gc
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import small
import unets
from conftest import gives_back
from engine_scene import let_draw
from gpu_scene import on_host, put
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from test_feature_cache import RECIPE
from test_feature_cache import folder as folder

from gpupipe.character.folder import Character
from gpupipe.engine import feature_store
from gpupipe.engine.feature_store import feature_budget
from gpupipe.engine.features import SplitModel
from gpupipe.engine.flight import Flight, Steps
from gpupipe.engine.kept_features import KeptFeatures
from gpupipe.errors import DeviceError, DeviceMemoryError, InferenceError
from gpupipe.geometry import SPEECH_SHAPE
from gpupipe.gpu.device import Device, open_device
from gpupipe.gpu.timer import Timer
from gpupipe.model.model import Model
from gpupipe.model.runtime import SessionOptions
from gpupipe.model.split_model import SourceNet
from gpupipe.options import EngineOptions, ModelOptions, SpeechOptions
from gpupipe.render.engine import Engine
from gpupipe.render.plan import Plan
from gpupipe.speech.rows import SpeechRows

pytestmark = [pytest.mark.cuda, pytest.mark.timeout(120)]

BATCH = 4
FRAMES = 9
"""Of each of two characters."""
TOLERANCE = {"float32": 1e-5, "float16": 2e-2}
"""Of a prediction, 0 to 1, against the whole model's; in float16 as `gpupipe selftest` allows."""

OPTIONS: dict[str, Any] = {"provider": "cuda", "batch": BATCH}


class Scene:
    """A split model on the device, a slot, and the cached inputs of two characters; of the second, five have room."""

    def __init__(self, gpu: Device, path: Path, dtype: str, batch: int | None) -> None:
        onnx.save(unets.unet(unets.Recipe(**{**vars(RECIPE), "dtype": dtype, "batch": batch})), str(path))
        self.gpu, self.tolerance = gpu, TOLERANCE[dtype]
        options = SessionOptions("cuda", stream=int(gpu.compute_stream.ptr))
        self.model = Model(path, options, batch=BATCH)
        split = SplitModel.open(self.model, gpu)
        assert isinstance(split, SplitModel)
        self.split, size = split, small.MODEL_SIZE
        self.random = np.random.default_rng(0)
        self.cached = self.random.random((2, FRAMES, 6, size, size)).astype(dtype)
        self.kept: tuple[KeptFeatures, ...] = (split.keep(FRAMES), split.keep(5))
        self.visual, self.audio, self.prediction = (
            gpu.empty((BATCH, *shape), self.model.dtype) for shape in ((6, size, size), SPEECH_SHAPE, (3, size, size))
        )
        self.whole = self.model.bind(self.visual, self.audio, self.prediction)
        self.rest = split.bind(self.audio, self.prediction, self.visual)
        for array in (self.visual, self.audio):
            gpu.clear(array, gpu.compute_stream)

    def check(self, frames: Sequence[tuple[int, int]]) -> None:
        """Draw frames, each told by its character and its number, and compare with what the whole model draws."""
        put(self.gpu, self.visual, np.stack([self.cached[frame] for frame in frames]))
        sound = self.random.random((len(frames), *SPEECH_SHAPE)).astype(self.model.dtype)
        put(self.gpu, self.audio, sound)
        self.model.run(self.whole, len(frames))
        wanted = on_host(self.gpu, self.prediction)[: len(frames)]
        self.gpu.clear(self.prediction, self.gpu.compute_stream)
        shown = [(self.kept[character], frame) for character, frame in frames]
        self.split.start(self.whole, self.rest, self.visual, shown)()
        drawn = on_host(self.gpu, self.prediction)[: len(frames)]
        assert np.abs(drawn.astype(np.float64) - wanted).max() <= self.tolerance

    def runs(self) -> tuple[int, int, int, int]:
        split = self.split
        return split.whole_runs, split.source_runs, split.rest.direct, split.rest.gathered

    def close(self) -> None:
        self.gpu.synchronize()
        self.split.close()
        self.model.close()
        for kept in self.kept:
            kept.close()


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder, with a cache folder of its own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path


@pytest.mark.parametrize(("dtype", "batch"), [("float32", None), ("float16", None), ("float32", 2), ("float32", 1)])
def test_any_batches_are_drawn_as_by_the_whole_model(
    home: Path, model_on_device: list[int], dtype: str, batch: int | None
) -> None:
    gc.collect()
    gpu = open_device()
    before = gpu.free_bytes

    def any_batches() -> None:
        scene = Scene(gpu, home / "model.onnx", dtype, batch)
        frame = st.tuples(st.integers(0, 1), st.integers(0, FRAMES - 1))

        @settings(max_examples=30, deadline=None, suppress_health_check=list(HealthCheck), database=None)
        @given(frames=st.lists(frame, min_size=1, max_size=BATCH))
        def any_batch(frames: list[tuple[int, int]]) -> None:
            scene.check(frames)

        any_batch()
        assert min(scene.runs()[:3]) > 0
        scene.close()

    any_batches()
    gc.collect()
    assert gives_back(before, gpu.free_bytes)


def test_which_way_a_batch_goes(home: Path, model_on_device: list[int]) -> None:
    scene = Scene(open_device(), home / "model.onnx", "float32", None)
    told = []
    for numbers in ([0, 1, 2, 3], [0, 1, 2, 3], [3, 2, 1, 0], [2, 3, 4, 5], [4, 5], [7, 8], [2, 2, 3, 4], [6, 6]):
        before = scene.runs()
        scene.check([(0, number) for number in numbers])
        told.append(tuple(after - was for was, after in zip(before, scene.runs(), strict=True)))
    # whole, source, bound as they lie, gathered
    first, again, back, new, part, at_the_end, twice, alone = told
    assert first == (0, 1, 1, 0)
    assert again == (0, 0, 1, 0)
    assert back == (0, 0, 0, 1)  # which an engine does not ask for: it sorts the places
    assert new == (0, 1, 1, 0)  # two of them
    assert part == (0, 0, 1, 0)  # others lie behind
    assert at_the_end == (0, 1, 0, 1)
    assert twice == (0, 0, 0, 1)
    assert alone == (0, 1, 0, 1)
    before = scene.runs()
    scene.check([(0, 0), (1, 0), (1, 5)])  # which has no room: the whole model draws them all
    assert scene.runs() == (before[0] + 1, *before[1:])
    assert [scene.kept[1].missing(frame) for frame in range(5)] == [True] * 5
    scene.close()


def test_features_that_could_not_be_made_are_missing_still(
    home: Path, model_on_device: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    scene = Scene(open_device(), home / "model.onnx", "float32", None)
    with monkeypatch.context() as patch:

        def fails(*_: Any) -> None:
            raise InferenceError("the model failed")

        patch.setattr(SourceNet, "run", fails)
        with pytest.raises(InferenceError):
            scene.check([(0, 1), (0, 2)])
    assert scene.kept[0].missing(1)
    scene.check([(0, 1), (0, 2)])
    assert not scene.kept[0].missing(1)
    scene.close()


# Engines


def split_of(engine: Engine) -> SplitModel:
    (entry,) = engine.holdings._lanes._entries.values()
    found = entry.opened.result().split
    assert isinstance(found, SplitModel)
    return found


def drawn(engine: Engine, folder: Path, **options: Any) -> NDArray[np.uint8]:
    return np.stack(list(engine.frames(folder, **OPTIONS, **options)))


def distance(one: NDArray[np.uint8], other: NDArray[np.uint8]) -> int:
    """Levels between frames. A prediction that differs in its last bits may be truncated to the next level."""
    return int(np.abs(one.astype(np.int16) - other).max())


def notes(engine: Engine, folder: Path, **options: Any) -> tuple[str, ...]:
    plan = planned(folder, small.features(70), **options)
    with engine.open_session(plan.order, lambda _: SpeechRows(small.features(70))) as session:
        others = ("CUDA graphs", "float16 convolutions")
        return tuple(note for note in session.notes if not any(other in note for other in others))


def planned(folder: Path, features: NDArray[np.float32], start: int = 0, **options: Any) -> Plan:
    speech = SpeechOptions(features=features, start_frame=start)
    return Plan.make(Character.load(folder), "nv12", ModelOptions(**OPTIONS, **options), speech, sound=False)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_a_render_draws_the_whole_models_frames_whatever_has_room(
    folder: Path, model_on_device: list[int], dtype: str
) -> None:
    recipe = unets.Recipe(**{**vars(RECIPE), "dtype": dtype})
    onnx.save(unets.unet(recipe), str(folder / "checkpoint" / "model_best.onnx"))
    gc.collect()
    before = open_device().free_bytes
    with Engine(device="cuda") as engine:
        wanted = drawn(engine, folder)
    with Engine(device="cuda", feature_cache="1G") as engine:
        assert distance(drawn(engine, folder), wanted) <= (1 if dtype == "float32" else 6)
        split = split_of(engine)
        # What no batch had before is made, at most a run for each; and never again.
        assert 3 <= split.source_runs <= 12
        assert split.whole_runs == 0
        made, each = split.source_runs, split.frame_bytes
        assert distance(drawn(engine, folder, start_frame=5), drawn(engine, folder, start_frame=5)) == 0
        assert split.source_runs == made
        (said,) = notes(engine, folder)
        assert said.startswith("features of 12 of 12 frames are kept, ")
        assert said.endswith("; on the GPU, where frames agree with the whole model's within rounding")
    with Engine(device="cuda", feature_cache=str(7 * each + 3)) as engine:
        assert distance(drawn(engine, folder), wanted) <= (1 if dtype == "float32" else 6)
        split = split_of(engine)
        assert min(split.whole_runs, split.source_runs, split.rest.direct) > 0
        assert notes(engine, folder)[0].startswith("features of 7 of 12 frames are kept, ")
    del split
    gc.collect()
    assert gives_back(before, open_device().free_bytes)


def test_sessions_that_share_batches(folder: Path, model_on_device: list[int]) -> None:
    with Engine(device="cuda") as engine:
        wanted = [drawn(engine, folder, start_frame=start) for start in range(3)]
    with Engine(device="cuda", feature_cache="1G") as engine:
        jobs = [engine.frames(folder, start_frame=start, **OPTIONS) for start in range(3)]
        taken: list[list[Any]] = [[], [], []]
        for _ in range(70):  # in turn: their frames share batches
            for number, job in enumerate(jobs):
                taken[number].append(next(job))
        for frames, want in zip(taken, wanted, strict=True):
            assert distance(np.stack(frames), want) <= 1
        assert split_of(engine).rest.gathered > 0


@pytest.mark.parametrize("sessions", [1, 3])
def test_the_steady_state_costs_what_it_does_without(
    folder: Path, model_on_device: list[int], softcuda_counters: Callable[[], dict[str, Any]], sessions: int
) -> None:
    """Forwards and backwards through the frames, ten times."""
    rounds = 220
    features = small.features(rounds + 80)
    with Engine(device="cuda", feature_cache="1G", parallel=sessions) as engine:
        plans = [planned(folder, features, start=start) for start in range(sessions)]
        opened = [engine.open_session(plan.order, lambda _: SpeechRows(features)) for plan in plans]
        split = split_of(engine)

        take = functools.partial(let_draw, engine, opened)
        take(40)
        batches: list[int] = []
        finish = Steps.finish

        def finishing(steps: Steps, flight: Flight) -> None:
            batches.append(len(flight.tasks))
            finish(steps, flight)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Steps, "finish", finishing)
            ways = (split.whole_runs, split.source_runs, split.rest.direct, split.rest.gathered)
            before = softcuda_counters()
            take(rounds)
            after = softcuda_counters()
        whole, source, direct, gathered = (
            now - was
            for now, was in zip(
                (split.whole_runs, split.source_runs, split.rest.direct, split.rest.gathered), ways, strict=True
            )
        )
        for session in opened:
            session.close()
    assert (whole, source) == (0, 0)
    assert direct + gathered == len(batches)
    if sessions == 1:  # all but the turns, of which there are two in 24 frames, and what no four follow
        assert gathered <= rounds / 12 + 3
    frames = sum(batches)
    assert abs(frames - rounds * sessions) < opened[0].lane.batch
    launches = {name: after["launches"][name] - before["launches"].get(name, 0) for name in after["launches"]}
    assert sum(launches.values()) == 2 * len(batches) + gathered
    assert launches.get("gather", 0) == gathered
    grew = {name: after[name] - before[name] for name in after if isinstance(after[name], int)}
    assert grew["h2d_bytes"] <= 64 * frames
    assert grew["d2d_bytes"] == 0
    assert (grew["mallocs"], grew["pinned_allocs"], grew["pageable_async_copies"]) == (0, 0, 0)


def test_what_is_free_on_the_device_bounds_them(
    folder: Path, model_on_device: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    with Engine(device="cuda", feature_cache="1G") as engine:
        engine.load(folder, **OPTIONS)
        each = split_of(engine).frame_bytes
    kept = SplitModel.keep

    def keep(split: SplitModel, frames: int) -> KeptFeatures:
        free = open_device().free_bytes
        assert frames == min(12, (free - vars(feature_store)["SPARE_BYTES"]) // each)
        return kept(split, frames)

    monkeypatch.setattr(SplitModel, "keep", keep)
    with Engine(device="cuda", feature_cache="1G") as engine:
        plan = planned(folder, small.features(70))
        require = engine.backend.require

        def counted(wanted: Any) -> None:
            """When memory is counted both nets have it; then all but little more than six frames is taken."""
            require(wanted)
            (entry,) = engine.holdings._models._entries.values()
            split = entry.opened.result().split
            assert split is not None
            assert split.rest.direct == 2
            monkeypatch.setattr(
                feature_store, "SPARE_BYTES", open_device().free_bytes - sum(wanted.values()) - 6 * each - 8192
            )

        monkeypatch.setattr(engine.backend, "require", counted)
        with engine.open_session(plan.order, lambda _: SpeechRows(small.features(70))) as session:
            assert session.notes[-1].startswith("features of ")
            assert 0 < int(session.notes[-1].split()[2]) < 12


def test_nets_that_do_not_fit_are_left_out_and_that_is_said(
    folder: Path, model_on_device: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_: SplitModel) -> None:
        raise DeviceMemoryError("the model does not fit in the GPU's memory")

    monkeypatch.setattr(SplitModel, "warm_up", full)
    with Engine(device="cuda", feature_cache="1G") as engine:
        (said,) = notes(engine, folder)
        assert said.startswith("no features are kept: both nets do not fit beside the model: ")
        assert len(drawn(engine, folder)) == 70


def test_features_that_do_not_fit_after_all(
    folder: Path, model_on_device: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is free may be free in pieces, too small each."""

    def full(_: SplitModel, frames: int) -> KeptFeatures:
        raise DeviceMemoryError("GPU 0 is out of memory")

    monkeypatch.setattr(SplitModel, "keep", full)
    with Engine(device="cuda", feature_cache="1G") as engine:
        assert notes(engine, folder) == ("no features are kept: GPU 0 is out of memory",)
        assert len(drawn(engine, folder)) == 70


@pytest.mark.parametrize("launches", range(6))
def test_a_device_that_fails_where_features_are_copied(
    folder: Path, model_on_device: list[int], softcuda_fail_after: Callable[[int], None], launches: int
) -> None:
    """Any of three launches a batch: the session ends with the device's error."""
    with Engine(device="cuda", feature_cache="1G") as engine:
        jobs = [engine.frames(folder, features=small.features(400), start_frame=start, **OPTIONS) for start in (0, 2)]

        def take(frames: int) -> None:
            for _ in range(frames):
                for job in jobs:
                    next(job)

        take(40)
        softcuda_fail_after(launches)
        with pytest.raises(DeviceError):
            take(360)
    softcuda_fail_after(-1)


def test_features_go_with_the_frames(folder: Path, model_on_device: list[int]) -> None:
    """When a character's frames leave, so does what is kept with them."""
    gc.collect()
    with Engine(device="cuda", feature_cache="1G") as engine:
        drawn(engine, folder)
        (kept,) = (each for of in engine.holdings._kept._kept.values() for each in of.values())
        nbytes, before = kept.nbytes, open_device().free_bytes
        assert kept.on_device
        engine.holdings.residents.make_room(lambda: True)
        assert engine.holdings._kept._kept == {}
        assert open_device().free_bytes >= before + nbytes
        assert len(drawn(engine, folder)) == 70


@pytest.mark.parametrize(("seconds", "used"), [((4.0, 2.0, 1.0), True), ((4.0, 9.0, 3.0), False)])
def test_auto_measures_on_the_device(
    folder: Path, model_on_device: list[int], monkeypatch: pytest.MonkeyPatch, seconds: tuple[float, ...], used: bool
) -> None:
    """Whole, source net and rest in turn, by the GPU's clock; 70 frames of 12 are 5.8 showings."""
    told: list[float] = []

    def timed(timer: Timer, work: Callable[[], object], stream: Any) -> list[float]:
        assert stream is timer.device.compute_stream
        work()
        told.append(seconds[len(told) % 3])
        return told[-1:]

    monkeypatch.setattr(Timer, "seconds", timed)
    with Engine(device="cuda", feature_cache="auto") as engine:
        budget = engine.holdings._kept._budget
        assert budget is not None
        assert budget.on_device == feature_budget(EngineOptions(feature_cache="auto"), open_device()).on_device  # type: ignore[union-attr]
        (said,) = notes(engine, folder)
        assert len(told) == 12
        worth = 0.7 if used else 9.0
        if used:
            assert f"; worth it from {worth:.1f} showings of a frame on, and there are 5.8; on the GPU" in said
        else:
            assert said == f"no features are kept: a frame must be shown {worth:.1f} times, and is 5.8 times"


def test_nodes_of_the_nets_that_run_elsewhere_are_said(folder: Path, model_on_device: list[int]) -> None:
    with Engine(device="cuda", feature_cache="1G") as engine:
        notes(engine, folder)
        split_of(engine).nodes.update({"OtherExecutionProvider": 2})
        said = notes(engine, folder)[-1]
    assert said.startswith("of ")
    assert " nodes of the model's two nets " in said
    assert said.endswith("2 by OtherExecutionProvider")
