"""A split model, run: every frame is what the whole model draws, wherever its features lie."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnxruntime
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from unets import Recipe, unet

from gpupipe.errors import InferenceError, OptionError
from gpupipe.geometry import SPEECH_SHAPE
from gpupipe.model import split_model
from gpupipe.model.features import ALIGNMENT, FeatureRow, ResidentFeatures, consecutive
from gpupipe.model.nets import TensorSpec
from gpupipe.model.runtime import SessionOptions
from gpupipe.model.split import Split, split
from gpupipe.model.split_model import RestNet, SourceNet

FRAMES, BATCH = 7, 6
TOLERANCE = 1e-5


def recipe(batch: int | None, roi_at_end: bool = False) -> Recipe:
    return Recipe(
        cells=3,
        widths=(5, 3),
        first=3,
        skips=("concat", "add"),
        ups=("linear", "transposed"),
        joins=frozenset({1}),
        activation="relu",
        batch_norm=True,
        residual=True,
        roi_at_end=roi_at_end,
        batch=batch,
    )


class Scene:
    """A small split model opened, the features of seven frames, and what the whole model draws."""

    def __init__(self, folder: Path, batch: int | None, roi_at_end: bool, threads: int) -> None:
        model = unet(recipe(batch, roi_at_end))
        cut = split(model, least_saving=0)
        assert isinstance(cut, Split)
        source, rest = cut.write(folder)
        options = SessionOptions(threads=threads)
        self.source = SourceNet(source.file, options, batch=BATCH)
        self.rest = RestNet(rest.file, self.source, options, batch=BATCH)
        self.whole = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
        self.random = np.random.default_rng(0)
        self.visual = self.random.random((FRAMES, *cut.visual.frame_shape), np.float32)
        self.features = ResidentFeatures.allocate(self.source.features, FRAMES)
        self.source.run(self.visual, self.features.rows(0, FRAMES))
        self.slot_visual = np.zeros((BATCH, *cut.visual.frame_shape), np.float32)
        self.audio = np.zeros((BATCH, *SPEECH_SHAPE), np.float32)
        self.prediction = np.zeros((BATCH, *cut.prediction.frame_shape), np.float32)
        needed = self.slot_visual if self.rest.needs_visual else None
        self.bound = self.rest.bind(self.audio, self.prediction, needed)

    def wanted(self, frames: Sequence[int]) -> NDArray[np.float32]:
        drawn = []
        for place, frame in enumerate(frames):
            batch = self.whole.get_inputs()[0].shape[0]
            times = batch if isinstance(batch, int) else 1
            faces, sound = (np.repeat(part[None], times, 0) for part in (self.visual[frame], self.audio[place]))
            drawn.append(self.whole.run(None, {"faces": faces, "sound": sound})[0][0])
        return np.array(drawn)

    def check(self, frames: Sequence[int], features: ResidentFeatures | None = None) -> None:
        self.audio[:] = self.random.random(self.audio.shape, np.float32)
        self.slot_visual[: len(frames)] = self.visual[list(frames)]
        self.prediction[:] = np.nan
        self.rest.run(self.bound, [FeatureRow(features or self.features, frame) for frame in frames])
        drawn = self.prediction[: len(frames)]
        assert np.abs(drawn - self.wanted(frames)).max() <= TOLERANCE

    def on_host(self) -> list[NDArray[np.float32]]:
        return [array for array in self.features.arrays if isinstance(array, np.ndarray)]

    def close(self) -> None:
        self.source.close()
        self.rest.close()


@pytest.fixture(scope="module", params=[(None, False, 1), (None, True, 2), (3, False, 1), (3, True, 4), (1, False, 2)])
def scene(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    made = Scene(tmp_path_factory.mktemp("nets"), *request.param)
    yield made
    made.close()


@settings(max_examples=20, deadline=None, suppress_health_check=list(HealthCheck))
@given(frames=st.lists(st.integers(0, FRAMES - 1), min_size=1, max_size=BATCH))
def test_frames_in_any_order(scene: Scene, frames: list[int]) -> None:
    scene.check(frames)


def test_features_lie_where_they_are_and_are_not_copied(scene: Scene) -> None:
    """Or another source frame's features would not be seen, once written over those of the first."""
    scene.check([2, 3, 4])
    arrays = scene.on_host()
    rows = [array[3].copy() for array in arrays]
    for array in arrays:
        array[3] = array[6]
    visual = scene.visual[3].copy()
    scene.visual[3] = scene.visual[6]
    try:
        scene.check([2, 3, 4])
    finally:
        scene.visual[3] = visual
        for array, row in zip(arrays, rows, strict=True):
            array[3] = row


def test_frames_of_two_characters(scene: Scene) -> None:
    other = ResidentFeatures(scene.source.features, [array.copy() for array in scene.on_host()])
    scene.audio[:] = scene.random.random(scene.audio.shape, np.float32)
    frames = [0, 5, 1, 2, 3, 4]
    scene.slot_visual[:] = scene.visual[frames]
    stores = (scene.features, other, scene.features, other, other, other)
    scene.rest.run(scene.bound, [FeatureRow(store, frame) for store, frame in zip(stores, frames, strict=True)])
    assert np.abs(scene.prediction - scene.wanted(frames)).max() <= TOLERANCE


def test_what_is_gathered(tmp_path: Path) -> None:
    scene = Scene(tmp_path, 3, False, 1)
    told = []
    for frames in ([0, 1, 2, 3, 4, 5], [5, 4, 3], [4, 5], [5, 6], [0, 2, 4, 4, 5, 6]):
        before = (scene.rest.direct, scene.rest.gathered)
        scene.check(frames)
        told.append((scene.rest.direct - before[0], scene.rest.gathered - before[1]))
    # The last two of seven have no third behind them.
    assert told == [(2, 0), (0, 1), (1, 0), (0, 1), (1, 1)]
    rooms = {id(bound.room): bound.room for bound in scene.bound}
    assert [room.frames for room in rooms.values() if room is not None] == [3, 3]
    scene.close()


def test_frame_by_frame_nothing_is_gathered(tmp_path: Path) -> None:
    scene = Scene(tmp_path, None, False, 2)
    for frames in ([5, 4, 3], [6], [0, 0, 6]):
        scene.check(frames)
    assert (scene.rest.direct, scene.rest.gathered) == (7, 0)
    assert [bound.room for bound in scene.bound] == [None] * BATCH
    # The places 1 and 4 alone, the others being drawn by the whole model.
    scene.audio[:] = scene.random.random(scene.audio.shape, np.float32)
    scene.prediction[:] = -1
    scene.rest.run([scene.bound[1], scene.bound[4]], [FeatureRow(scene.features, frame) for frame in (6, 2)])
    wanted = scene.wanted([0, 6, 0, 0, 2])
    for place in range(BATCH):
        drawn = wanted[place] if place in (1, 4) else np.float32(-1)
        assert np.abs(scene.prediction[place] - drawn).max() <= TOLERANCE
    scene.close()


SPEC = TensorSpec("skip", (None, 3, 2), np.dtype(np.float32), "frame")


@pytest.mark.parametrize(
    ("rows", "count", "start"),
    [([2, 3, 4], 3, 2), ([2, 3], 3, 2), ([8, 9], 3, None), ([4, 3, 2], 3, None), ([2, 2], 2, None), ([9], 1, 9)],
)
def test_consecutive_rows(rows: list[int], count: int, start: int | None) -> None:
    features = ResidentFeatures.allocate([SPEC], 10)
    assert consecutive([FeatureRow(features, row) for row in rows], count) == start
    assert features.nbytes == 10 * 24


def test_rows_of_a_gpu_begin_where_its_kernels_expect_tensors_to_begin() -> None:
    """A row is 24 bytes: every 32nd begins at a multiple of 256."""
    features = ResidentFeatures.allocate([SPEC], 70)
    starts = [row for row in range(68) if consecutive([FeatureRow(features, row)], 2, ALIGNMENT) is not None]
    assert starts == [0, 32, 64]


def test_features_that_do_not_fit_their_description() -> None:
    with pytest.raises(ValueError, match=r"skip: float64\[4, 3, 2\] instead of float32\[4, 3, 2\]"):
        ResidentFeatures([SPEC], [np.zeros((4, 3, 2))])
    with pytest.raises(ValueError, match="do not follow one another"):
        ResidentFeatures([SPEC], [np.zeros((4, 2, 3), np.float32).transpose(0, 2, 1)])


def test_nets_that_do_not_belong_together(tmp_path: Path) -> None:
    wider = Recipe(**{**vars(recipe(None)), "first": 4, "widths": (5, 4)})
    for name, made in (("one", recipe(None)), ("other", wider)):
        (tmp_path / name).mkdir()
        cut = split(unet(made), least_saving=0)
        assert isinstance(cut, Split)
        cut.write(tmp_path / name)
    one, other = tmp_path / "one", tmp_path / "other"
    with pytest.raises(InferenceError, match="is no source net"):
        SourceNet(one / "rest.onnx", SessionOptions(), batch=1)
    source = SourceNet(one / "source.onnx", SessionOptions(), batch=1)
    with pytest.raises(InferenceError, match="does not belong to the source net"):
        RestNet(other / "rest.onnx", source, SessionOptions(), batch=1)


def test_a_batch_that_the_nets_do_not_take(tmp_path: Path) -> None:
    cut = split(unet(recipe(3)), least_saving=0)
    assert isinstance(cut, Split)
    source, _ = cut.write(tmp_path)
    with pytest.raises(OptionError, match="batches of 3 only"):
        SourceNet(source.file, SessionOptions(), batch=4)


class OnDevice:
    """An array that says it is on a GPU, and has an address."""

    def __init__(self, shape: tuple[int, ...], dtype: Any, address: int = 1 << 20) -> None:
        self.shape, self.dtype = shape, np.dtype(dtype)
        self.data, self.device = SimpleNamespace(ptr=address), SimpleNamespace(id=1)
        self.flags = SimpleNamespace(c_contiguous=True)
        self.row_bytes = self.dtype.itemsize * int(np.prod(shape[1:]))
        self.nbytes = self.row_bytes * shape[0]
        self.strides = (self.row_bytes,)

    def __len__(self) -> int:
        return self.shape[0]

    def view(self, dtype: Any) -> OnDevice:
        return OnDevice((self.nbytes // np.dtype(dtype).itemsize,), dtype, self.data.ptr)

    def reshape(self, *shape: int) -> OnDevice:
        assert np.prod(shape) == np.prod(self.shape)
        return OnDevice(shape, self.dtype, self.data.ptr)

    def __getitem__(self, key: Any) -> OnDevice:
        start, stop, _ = key.indices(len(self))
        return OnDevice((stop - start, *self.shape[1:]), self.dtype, self.data.ptr + start * self.row_bytes)


class Recorder:
    """A session that notes what is bound to it, for each run."""

    def __init__(self, session: Any) -> None:
        self.session = session
        self.runs: list[dict[str, tuple[int, ...]]] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self.session, name)

    def io_binding(self) -> Any:
        bound: dict[str, tuple[Any, ...]] = {}

        def bind(name: str, side: str, number: int, dtype: Any, shape: tuple[int, ...], address: int) -> None:
            assert (side, number) == ("cuda", 1)
            bound[name] = (address, *shape)

        return SimpleNamespace(bind_input=bind, bind_output=bind, bound=bound)

    def run_with_iobinding(self, binding: Any, _: Any) -> None:
        self.runs.append(dict(binding.bound))


def test_on_a_gpu_a_batch_is_bound_as_it_lies_or_gathered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cut = split(unet(recipe(None)), least_saving=0)
    assert isinstance(cut, Split)
    source_net, rest_net = cut.write(tmp_path)
    opened = [
        Recorder(onnxruntime.InferenceSession(str(net.file), providers=["CPUExecutionProvider"]))
        for net in (source_net, rest_net)
    ]
    sessions = iter(opened)
    monkeypatch.setattr(split_model, "open_session", lambda *_: next(sessions))
    monkeypatch.setattr(split_model, "assigned_nodes", lambda _: {"CUDAExecutionProvider": 3})
    options, gathered = SessionOptions("cuda"), []

    def gather(rows: Sequence[FeatureRow], into: ResidentFeatures) -> None:
        gathered.append(([row.row for row in rows], [array.shape for array in into.arrays]))

    source = SourceNet(source_net.file, options, batch=2)
    with pytest.raises(ValueError, match="give a gather"):
        RestNet(rest_net.file, source, options, batch=2)
    rest = RestNet(
        rest_net.file,
        source,
        options,
        batch=2,
        gather=gather,
        empty=lambda shape, dtype: OnDevice(shape, dtype, 7 << 20),
    )
    spec = next(spec for spec in source.features if spec.frame_bytes % ALIGNMENT)
    arrays = [OnDevice((200, *spec.frame_shape), spec.dtype, (n + 1) << 24) for n, spec in enumerate(source.features)]
    features = ResidentFeatures(source.features, arrays)

    # Five frames in batches of two: the fourth is made twice.
    source.run(OnDevice((5, 6, 12, 12), np.float32), features.rows(10, 5))
    number = source.features.index(spec)
    first = arrays[number].data.ptr
    addresses = [run[spec.name][0] for run in opened[0].runs]
    assert addresses == [first + (10 + start) * spec.frame_bytes for start in (0, 2, 3)]

    bound = rest.bind(OnDevice((2, *SPEECH_SHAPE), np.float32), OnDevice((2, 3, 12, 12), np.float32))
    for rows in ([0, 1], [64, 65], [65, 64], [1, 2]):
        rest.run(bound, [FeatureRow(features, row) for row in rows])
    at = [run[spec.name] for run in opened[1].runs]
    shape = (2, *spec.frame_shape)
    assert rest.room is not None
    own: Any = rest.room.arrays[number]
    room = (own.data.ptr, *shape)
    assert rest.room.address == 7 << 20
    assert {id(each.room) for each in bound} == {id(rest.room)}, "one for all"
    assert at == [(first, *shape), (first + 64 * spec.frame_bytes, *shape), room, room]
    assert [rows for rows, _ in gathered] == [[65, 64], [1, 2]]  # [1, 2] is not aligned
    assert gathered[0][1] == [(2, *spec.frame_shape) for spec in source.features]
    assert (rest.direct, rest.gathered) == (2, 2)
