"""The demo: what its folder holds, that its models are what they say, and that nothing half-made is left."""

from __future__ import annotations

import json
import sys
import wave
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.typing import NDArray
from quicker import drawn_once

from gpupipe.character.folder import Character
from gpupipe.demo import folder as demo
from gpupipe.demo import make_demo
from gpupipe.demo import models as demo_models
from gpupipe.demo.draw import TalkingHead
from gpupipe.demo.full import FULL_SIZE, full_model
from gpupipe.demo.models import encoder_model, encoder_reference, tiny_model, tiny_reference
from gpupipe.demo.mouth import patch
from gpupipe.demo.speech import synthesise
from gpupipe.errors import GpupipeError, OptionError, OutputError
from gpupipe.geometry import CropLayout, Rect
from gpupipe.media.video import probe, read_frames
from gpupipe.speech.stream import features_from_pcm

FRAMES = 12
SIZE = (320, 180)
MODEL_SIZE = 160
SMALL: dict[str, Any] = {"frames": FRAMES, "size": SIZE, "model_size": MODEL_SIZE}
# The ONNX and the NumPy arithmetic differ by the order of float32 sums only.
FLOAT32_TOLERANCE = 1e-5
# Three decimals of float16 near 1, through some forty steps.
FLOAT16_TOLERANCE = 2e-2


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_demo(tmp_path_factory.mktemp("demo") / "character", with_recorded=True, **SMALL)


@pytest.fixture(scope="module")
def small_head() -> TalkingHead:
    return TalkingHead(*SIZE, CropLayout(MODEL_SIZE))


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch, small_head: TalkingHead) -> None:
    """Spares tests of the folder the drawing of the head."""
    monkeypatch.setattr(demo, "TalkingHead", lambda *_: small_head)


def run(model: Any, **inputs: NDArray[Any]) -> NDArray[Any]:
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    result: NDArray[Any] = session.run(None, inputs)[0]
    return result


def inputs(size: int, batch: int, seed: int = 0) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Noise for a roi, the same masked, and speech that goes from silent to shouting."""
    random = np.random.default_rng(seed)
    roi = random.random((batch, 3, size, size), np.float32)
    mask = CropLayout(size).mask
    masked = roi.copy()
    masked[:, :, mask.y1 : mask.y2, mask.x1 : mask.x2] = 0
    audio = (
        random.random((batch, 32, 16, 16), np.float32) * np.linspace(0, 2, batch, dtype=np.float32)[:, None, None, None]
    )
    return np.concatenate([roi, masked], axis=1), audio


def test_folder_holds_a_character(folder: Path) -> None:
    assert sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()) == [
        "aud.wav",
        "aud_ave.npy",
        "cache/crop_rectangles.json",
        "checkpoint/audio_encoder.onnx",
        "checkpoint/model_best.onnx",
        "crops_328_video.mp4",
        "full_body_video.mp4",
        "model_inputs_video.mp4",
        "package_info.json",
        "rois_320_video.mp4",
    ]
    for name, size in (("full_body", SIZE), ("crops_328", (168, 168)), ("rois_320", (160, 160))):
        info = probe(folder / f"{name}_video.mp4")
        assert (info.width, info.height, info.frames, info.fps) == (*size, FRAMES, Fraction(25))
    character = Character.load(folder)
    assert (character.count, character.layout.model_size) == (FRAMES, MODEL_SIZE)
    assert character.recorded is not None


def test_rectangles_are_where_the_crops_come_from(folder: Path) -> None:
    stored = json.loads((folder / "cache/crop_rectangles.json").read_text())
    assert list(stored) == [str(i) for i in range(FRAMES)]
    bodies = read_frames(folder / "full_body_video.mp4", "bgr24")
    crops = read_frames(folder / "crops_328_video.mp4", "bgr24")
    for index, (body, crop) in enumerate(zip(bodies, crops, strict=True)):
        x1, y1, x2, y2 = stored[str(index)]["rect"]
        # The mean colour of each quarter agrees, whatever enlarging and encoding do to single pixels.
        for rows, columns in ((0, 0), (0, 1), (1, 0), (1, 1)):
            own = np.array_split(np.array_split(body[y1:y2, x1:x2], 2)[rows], 2, axis=1)[columns]
            cropped = np.array_split(np.array_split(crop, 2)[rows], 2, axis=1)[columns]
            np.testing.assert_allclose(own.mean(axis=(0, 1)), cropped.mean(axis=(0, 1)), atol=4)


def test_recorded_inputs_are_masked(folder: Path) -> None:
    mask = CropLayout(MODEL_SIZE).mask
    roi = next(read_frames(folder / "rois_320_video.mp4", "bgr24"))
    masked = next(read_frames(folder / "model_inputs_video.mp4", "bgr24"))
    inner = np.s_[mask.y1 + 8 : mask.y2 - 8, mask.x1 + 8 : mask.x2 - 8]
    assert masked[inner].max() <= 8
    assert roi[inner].mean() > 60


def test_face_moves_through_odd_coordinates_and_sizes() -> None:
    head = TalkingHead(1280, 720, CropLayout(FULL_SIZE))
    drawn = [head.frame(i / 25) for i in range(0, 125, 4)]
    rects = [rect for _, rect in drawn]
    assert all(frame.shape == (720, 1280, 3) and frame.dtype == np.uint8 for frame, _ in drawn)
    assert all(rect.within(1280, 720) == rect for rect in rects)
    assert all(165 <= side <= 195 for rect in rects for side in (rect.width, rect.height))
    assert all(abs(rect.width - rect.height) <= 1 for rect in rects)
    assert len({rect.width for rect in rects}) >= 6
    for axis in range(4):
        assert {rect[axis] % 2 for rect in rects} == {0, 1}
    # The lips, redder than the skin above and below, are where the model draws them.
    for frame, rect in drawn[::5]:
        face = frame[rect.y1 : rect.y2, rect.x1 : rect.x2].astype(float)
        redness = face[..., 2] / face[..., :2].mean(axis=2)
        middle = round(rect.width / 2)
        column = redness[round(0.22 * rect.height) : round(0.5 * rect.height), middle - 6 : middle + 6].mean(axis=1)
        assert 0.27 < (0.22 * rect.height + column.argmax()) / rect.height < 0.43


@pytest.mark.parametrize("size", [(64, 64), (180, 320), (1920, 1080)])
def test_face_fits_any_picture(size: tuple[int, int]) -> None:
    frame, rect = TalkingHead(*size, CropLayout(MODEL_SIZE)).frame(0.7)
    assert frame.shape == (size[1], size[0], 3)
    assert rect.within(*size) == rect
    assert not rect.empty


def test_speech_file_and_features_agree(folder: Path) -> None:
    with wave.open(str(folder / "aud.wav")) as file:
        assert (file.getframerate(), file.getnchannels(), file.getsampwidth()) == (16000, 1, 2)
        assert file.getnframes() == FRAMES * 16000 // 25
        pcm = np.frombuffer(file.readframes(file.getnframes()), "<i2") / np.float32(32768)
    features = np.load(folder / "aud_ave.npy")
    assert features.shape[1] == 512
    assert features.dtype == np.float32
    assert np.isfinite(features).all()
    assert features.min() >= 0
    encoder = onnx.load(folder / "checkpoint/audio_encoder.onnx")
    encoded = features_from_pcm([pcm.astype(np.float32)], lambda windows: run(encoder, input=windows))
    np.testing.assert_allclose(features, encoded, rtol=1e-4, atol=1e-4)


def test_speech_has_syllables_and_pauses() -> None:
    pcm = synthesise(10 * 16000)
    assert pcm.dtype == np.float32
    assert 0.2 < np.abs(pcm).max() < 0.98
    level = 20 * np.log10(np.sqrt((pcm.reshape(-1, 320).astype(np.float64) ** 2).mean(axis=1)))
    quiet = level < -65
    assert 0.08 < quiet.mean() < 0.5
    changes = np.flatnonzero(np.diff(np.concatenate([[0], quiet, [0]]).astype(int)))
    pauses = (changes[1::2] - changes[::2]) * 0.02
    assert (pauses > 0.3).sum() >= 3
    np.testing.assert_array_equal(synthesise(16000)[:12000], pcm[:12000])


def test_mouth_follows_the_sound() -> None:
    """The opening that the tiny model draws at frame i, against the root mean square about i / 25 s."""
    pcm = synthesise(12 * 16000, seed=3)
    features = np.pad(features_from_pcm([pcm], encoder_reference), ((8, 8), (0, 0)))
    count = len(features) - 16
    visual = np.full((1, 6, 64, 64), 0.7, np.float32)
    area = patch(64)
    dark = np.empty(count)
    for i in range(count):
        drawn = tiny_reference(visual, features[i : i + 16].reshape(1, 32, 16, 16))
        dark[i] = (0.7 - drawn[0, 1, area.top : area.bottom, area.left : area.right]).clip(0).sum()
    energy = [
        np.sqrt(
            (pcm[max(0, round((i / 25 - 0.02) * 16000)) : round((i / 25 + 0.06) * 16000)].astype(float) ** 2).mean()
        )
        for i in range(count)
    ]
    assert np.corrcoef(dark, energy)[0, 1] > 0.9


@pytest.mark.parametrize("size", [32, 96, 160, FULL_SIZE])
def test_tiny_model_is_predicted(size: int) -> None:
    visual, audio = inputs(size, 3)
    predicted = tiny_reference(visual, audio)
    answered = run(tiny_model(size), input=visual, audio=audio)
    assert answered.shape == (3, 3, size, size)
    assert answered.dtype == predicted.dtype == np.float32
    assert np.abs(answered - predicted).max() < FLOAT32_TOLERANCE
    assert answered.min() >= 0
    assert answered.max() <= 1


def test_tiny_model_in_half_precision() -> None:
    visual, audio = inputs(MODEL_SIZE, 2)
    answered = run(tiny_model(MODEL_SIZE, "float16"), input=visual.astype(np.float16), audio=audio.astype(np.float16))
    assert answered.dtype == np.float16
    assert np.abs(answered - tiny_reference(visual, audio)).max() < FLOAT16_TOLERANCE


def test_tiny_model_opens_the_mouth_and_leaves_the_rest() -> None:
    size, area = MODEL_SIZE, patch(MODEL_SIZE)
    visual, _ = inputs(size, 1)
    visual[:, :3] = 0.6 + 0.1 * visual[:, :3]
    visual[:, 3:] = np.minimum(visual[:, 3:], visual[:, :3])
    dark, last = [], None
    for loud in (0.0, 0.25, 0.5, 0.75, 1.0):
        audio = np.zeros((1, 32, 16, 16), np.float32)
        audio[:, ::2] = loud
        drawn = tiny_reference(visual, audio)
        outside = np.ones((size, size), bool)
        outside[area.top : area.bottom, area.left : area.right] = False
        np.testing.assert_array_equal(drawn[:, :, outside], visual[:, :3, outside])
        dark.append(int((drawn[0, 1] < 0.25).sum()))
        assert last is None or np.abs(drawn - last).max() > 0.1
        last = drawn
    assert dark[0] < 30
    assert all(wider > narrower for narrower, wider in pairwise(dark))
    # Every row of the window counts, the frame's own the most.
    silent, changes = np.zeros((1, 32, 16, 16), np.float32), []
    silent[:] = 0.3
    base = tiny_reference(visual, silent)
    for row in range(16):
        louder = silent.copy()
        louder[0, 2 * row : 2 * row + 2] += 0.3
        changes.append(np.abs(tiny_reference(visual, louder) - base).sum())
    assert min(changes) > 0
    assert int(np.argmax(changes)) == 8


def test_encoder_is_predicted() -> None:
    windows = np.random.default_rng(0).uniform(-4, 4, (5, 1, 80, 16)).astype(np.float32)
    windows[0] = -4
    answered = run(encoder_model(), input=windows)
    assert answered.shape == (5, 512)
    assert answered.min() >= 0
    assert not answered[0, :256].any()
    assert answered[0].max() < 1e-4
    np.testing.assert_allclose(answered, encoder_reference(windows), rtol=1e-5, atol=1e-6)


@pytest.fixture(scope="module")
def full() -> Any:
    return full_model()


def count_macs(model: Any) -> int:
    """Multiplications of all convolutions for one frame."""
    inferred = onnx.shape_inference.infer_shapes(model, strict_mode=True)
    pixels = {
        value.name: [dim.dim_value for dim in value.type.tensor_type.shape.dim][2:]
        for value in inferred.graph.value_info
    }
    weights = {tensor.name: list(tensor.dims) for tensor in model.graph.initializer}
    return sum(
        int(np.prod(weights[node.input[1]])) * int(np.prod(pixels[node.output[0]]))
        for node in model.graph.node
        if node.op_type == "Conv"
    )


def test_full_model_has_the_published_cost(full: Any) -> None:
    assert count_macs(full) == pytest.approx(4.886e9, rel=0.001)
    sizes = {tensor.name: int(np.prod(tensor.dims)) for tensor in full.graph.initializer}
    norms = [node for node in full.graph.node if node.op_type == "BatchNormalization"]
    # Running means and variances are statistics, not parameters.
    statistics = sum(sizes[name] for node in norms for name in node.input[3:5])
    assert sum(sizes.values()) - statistics == pytest.approx(12.19e6, rel=0.001)
    assert len(norms) == sum(node.op_type == "Conv" for node in full.graph.node) - 1
    resizes = [node for node in full.graph.node if node.op_type == "Resize"]
    assert len(resizes) == 5


def test_full_model_keeps_the_picture_and_talks(full: Any) -> None:
    size = FULL_SIZE
    x, y = np.meshgrid(np.linspace(0, 1, size), np.linspace(0, 1, size))
    roi = np.stack([0.1 + 0.8 * x, 0.5 + 0.4 * np.sin(9 * x) * np.cos(7 * y), 0.05 + 0.9 * y]).astype(np.float32)
    visual = np.repeat(np.concatenate([roi, roi * 0])[None], 3, axis=0)
    audio = np.zeros((3, 32, 16, 16), np.float32)
    audio[1, ::2], audio[2, ::2] = 0.5, 1.0
    three = run(full, input=visual, audio=audio)
    assert three.shape == (3, 3, size, size)
    assert np.isfinite(three).all()
    for index in range(3):
        one = run(full, input=visual[index : index + 1], audio=audio[index : index + 1])
        np.testing.assert_allclose(one[0], three[index], rtol=0, atol=1e-5)
    # Silence gives the roi back, within the bends of the logit.
    assert np.abs(three[0] - roi).mean() < 0.012
    assert np.abs(three[0] - roi).max() < 0.08
    below = [(roi - picture).max(axis=0) > 0.2 for picture in three]
    areas = [int(mask.sum()) for mask in below]
    assert areas[0] == 0
    assert 200 < areas[1] < areas[2] < 0.08 * size**2
    rows, columns = np.nonzero(below[2])
    assert rows.mean() / size == pytest.approx(0.335, abs=0.02)
    assert columns.mean() / size == pytest.approx(0.5, abs=0.02)


def test_same_call_makes_the_same(folder: Path, tmp_path: Path) -> None:
    with drawn_once():  # anew, as in a process of its own
        again = make_demo(tmp_path / "again", with_recorded=True, **SMALL)
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        assert (again / path.relative_to(folder)).read_bytes() == path.read_bytes(), path.name


@pytest.mark.usefixtures("quick")
def test_progress_and_fps(tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    made = make_demo(
        tmp_path / "a" / "b",
        frames=3,
        size=SIZE,
        model_size=MODEL_SIZE,
        fps=Fraction(30000, 1001),
        progress=lambda done, total: seen.append((done, total)),
    )
    assert made == tmp_path / "a" / "b"
    assert seen == [(1, 3), (2, 3), (3, 3)]
    assert probe(made / "full_body_video.mp4").fps == Fraction(30000, 1001)
    with wave.open(str(made / "aud.wav")) as file:
        assert file.getnframes() == round(3 * 1001 / 30000 * 16000)
    assert not (made / "rois_320_video.mp4").exists()


@pytest.mark.usefixtures("quick")
def test_full_folder_stands_without_the_mouth_of_tiny(
    tmp_path: Path, full: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(demo, "full_model", lambda dtype: full)
    made = make_demo(tmp_path / "full", model="full", frames=1, size=SIZE)
    assert onnx.load(made / "checkpoint/model_best.onnx").graph.name == full.graph.name


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError(28, "No space left on device")])
@pytest.mark.usefixtures("quick")
def test_nothing_half_made_is_left(tmp_path: Path, error: Any) -> None:
    made = make_demo(tmp_path / "c", **SMALL)
    before = (made / "aud.wav").read_bytes()
    (made / "cache" / "mark").touch()

    def stop(done: int, total: int) -> None:
        if done == 2:
            raise error

    expected = KeyboardInterrupt if error is KeyboardInterrupt else OutputError
    for name, overwrite in (("new", False), ("c", True)):
        with pytest.raises(expected):
            make_demo(tmp_path / name, progress=stop, overwrite=overwrite, **SMALL)
        assert [p.name for p in tmp_path.iterdir()] == ["c"]
    assert (made / "aud.wav").read_bytes() == before
    assert (made / "cache" / "mark").exists()


@pytest.mark.usefixtures("quick")
def test_overwriting(tmp_path: Path) -> None:
    target = tmp_path / "c"
    target.mkdir()
    make_demo(target, **SMALL)
    (target / "cache" / "old").touch()
    with pytest.raises(OutputError, match=r"not empty.*overwrite=True"):
        make_demo(target, **SMALL)
    make_demo(target, overwrite=True, **SMALL)
    assert not (target / "cache" / "old").exists()
    assert [p.name for p in tmp_path.iterdir()] == ["c"]
    (target / "thesis.tex").touch()
    with pytest.raises(OutputError, match=r"thesis\.tex"):
        make_demo(target, overwrite=True, **SMALL)
    assert (target / "thesis.tex").exists()
    with pytest.raises(OutputError, match="not a folder"):
        make_demo(target / "thesis.tex", **SMALL)
    with pytest.raises(OutputError, match="cannot be written"):
        make_demo(target / "thesis.tex" / "below", **SMALL)


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"model": "huge"}, "model"),
        ({"frames": 0}, "frames"),
        ({"size": (321, 180)}, "size"),
        ({"size": (32, 32)}, "size"),
        ({"model_size": 31}, "model_size"),
        ({"model": "full", "model_size": MODEL_SIZE}, "model_size"),
        ({"fps": 0}, "fps"),
    ],
)
def test_wrong_options(tmp_path: Path, options: dict[str, Any], field: str) -> None:
    with pytest.raises(OptionError, match=rf"^{field}: "):
        make_demo(tmp_path / "c", **options)
    assert not list(tmp_path.iterdir())


def test_without_onnx(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(GpupipeError, match=r"pip install 'gpupipe\[demo\]'"):
        make_demo(tmp_path / "c", **SMALL)
    assert not list(tmp_path.iterdir())


def test_models_are_found_in_one_place() -> None:
    assert demo_models.full_model is full_model
    assert Rect(*CropLayout(FULL_SIZE).mask).within(FULL_SIZE, FULL_SIZE) == CropLayout(FULL_SIZE).mask
