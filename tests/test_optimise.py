"""`gpupipe optimize`, and renders in another precision: what is calibrated with what, judged, refused and written."""

from __future__ import annotations

import base64
import json
import re
import sys
import warnings
from pathlib import Path
from typing import Any

import cv2
import exported
import numpy as np
import onnx
import pytest
import small
from numpy.typing import NDArray

import gpupipe
from gpupipe.character.folder import Character, GpupipeWarning
from gpupipe.cli import main
from gpupipe.errors import GpupipeError, InferenceError, OptionError
from gpupipe.geometry import frame_at
from gpupipe.model import quality
from gpupipe.model.model import Model
from gpupipe.model.runtime import PROVIDER_NAMES, SessionOptions, open_session, runtime
from gpupipe.options import ModelOptions, ProviderChoice
from gpupipe.render.precision import model_file
from gpupipe.render.samples import Scenes, chosen, sample_set

SIZE = small.MODEL_SIZE
cuda = pytest.mark.cuda


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("LOCALAPPDATA", str(tmp_path / "cache"))
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path / "cache"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A character whose model is an export that can be quantised."""
    folder = small.small_character(tmp_path / "anna")
    onnx.save(exported.random_model(SIZE, 7), str(folder / "checkpoint" / "model_best.onnx"))
    return folder


def test_no_filmed_frame_calibrates_and_judges(folder: Path) -> None:
    character = Character.load(folder)
    for count in (2, 3, 16):
        sides = chosen(character, count)
        frames = [{frame_at(output, character.count) for output in side} for side in sides]
        assert frames[0]
        assert frames[1]
        assert not frames[0] & frames[1]
        assert all(len(side) <= count for side in sides)
        assert all(0 <= output < small.FRAMES for side in sides for output in side)


def test_a_long_speech_is_sampled_all_along(folder: Path) -> None:
    np.save(folder / "aud_ave.npy", small.features(400))
    character = Character.load(folder)
    for side in chosen(character, 8):
        assert len(side) == 8
        assert min(side) < 30
        assert max(side) > 370


def test_samples_are_what_a_render_gives_the_model(folder: Path) -> None:
    character = Character.load(folder)
    outputs = (1, 5, 9)
    found = Scenes(character, outputs).samples
    crops = _decoded(folder / "crops_328_video.mp4")
    for place, output in enumerate(outputs):
        visual, audio = reference_inputs(crops[output], np.load(folder / "aud_ave.npy"), output)
        assert found.visual[place].tobytes() == visual.tobytes()
        assert found.audio[place].tobytes() == audio.tobytes()


def _decoded(path: Path) -> list[NDArray[np.uint8]]:
    import av

    with av.open(str(path)) as container:
        return [np.asarray(frame.to_ndarray(format="bgr24"), np.uint8) for frame in container.decode(video=0)]


def reference_inputs(crop: NDArray[np.uint8], rows: NDArray[np.float32], output: int) -> tuple[Any, Any]:
    """The published rules, written plainly."""
    roi = crop[4:-4, 4:-4].copy()
    masked = roi.copy()
    masked[5 : SIZE - 10, 5 : SIZE - 5] = 0
    visual = np.concatenate([roi, masked], axis=2).transpose(2, 0, 1).astype(np.float32) / np.float32(255)
    window = np.zeros((16, 512), np.float32)
    for row in range(16):
        if 0 <= output - 8 + row < len(rows):
            window[row] = rows[output - 8 + row]
    return np.ascontiguousarray(visual), window.reshape(32, 16, 16)


def test_finished_frames_are_those_of_a_render(folder: Path) -> None:
    character = Character.load(folder)
    rendered = list(gpupipe.frames(folder, pixel_format="bgr24", device="cpu"))
    outputs = (0, 4, 11)
    scenes = Scenes(character, outputs, with_body=True)
    model = onnx.load(character.model_path)
    import onnxruntime

    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    feed = {"visual_input": scenes.samples.visual, "audio_input": scenes.samples.audio}
    for output, frame in zip(outputs, scenes.finished(session.run(None, feed)[0]), strict=True):
        assert np.abs(frame.astype(int) - rendered[output]).max() <= 1  # runs of one and of three frames round apart


def test_keys_of_samples_tell_frames_and_speech(folder: Path) -> None:
    before = sample_set(Character.load(folder)).key
    assert sample_set(Character.load(folder)).key == before
    np.save(folder / "aud_ave.npy", small.features(small.FRAMES, seed=9))
    assert sample_set(Character.load(folder)).key != before


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_the_command(folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], precision: str) -> None:
    out, page = tmp_path / "made.onnx", tmp_path / "report.html"
    command = ["optimize", str(folder), "-o", str(out), "--precision", precision, "--report", str(page), "--force"]
    assert main(command) == 0
    told = capfd.readouterr()
    assert told.out.startswith(f"{out}: {precision}, ")
    assert "PSNR of finished frames" in told.out
    assert "folding the graph" in told.err
    session = Model(out, SessionOptions(), batch=1)
    assert session.dtype == (np.float16 if precision == "fp16" else np.float32)
    html = page.read_text("utf-8")
    assert "http" not in re.sub(r"base64,[^\"]*", "", html)
    pictures = [
        cv2.imdecode(np.frombuffer(base64.b64decode(data), np.uint8), cv2.IMREAD_COLOR)
        for data in re.findall(r"data:image/png;base64,([^\"]+)", html)
    ]
    assert len(pictures) == 6
    assert all(picture is not None for picture in pictures)
    one, other, difference = (np.asarray(picture, np.int64) for picture in pictures[3:])
    assert (np.minimum(np.abs(one - other) * 8, 255) == difference).all()
    assert main(["optimize", str(folder), "-o", str(out)]) == 1
    assert "exists already" in capfd.readouterr().err


def test_a_report_as_json(folder: Path, tmp_path: Path) -> None:
    out, report = tmp_path / "made.onnx", tmp_path / "report.json"
    command = ["optimize", str(folder), "-o", str(out), "--precision", "fp16", "--report", str(report), "--quiet"]
    assert main(command) == 0
    found = json.loads(report.read_text("utf-8"))
    assert found["quality"]["passes"]
    assert found["quality"]["frames"] == 6
    assert 0 <= found["quality"]["worst_output_frame"] < small.FRAMES
    assert found["finished"]["psnr_mean"] > found["quality"]["roi_psnr_mean"]
    assert found["bytes"]["optimised"] == out.stat().st_size
    assert found["ms_a_frame"]["original"] > 0


def test_below_the_floor_nothing_is_written_but_the_report(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(quality, "FLOOR_DB", 101.0)
    out, report = tmp_path / "made.onnx", tmp_path / "report.json"
    command = ["optimize", str(folder), "-o", str(out), "--precision", "fp16", "--report", str(report)]
    assert main(command) == 1
    said = capfd.readouterr().err.splitlines()[-1]
    assert said.startswith("error: ")
    assert said.endswith("use another --precision, or --force")
    assert not out.exists()
    assert not json.loads(report.read_text("utf-8"))["quality"]["passes"]
    assert main([*command, "--force"]) == 0
    assert out.exists()


def test_a_model_alone(folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    model, out = str(folder / "checkpoint" / "model_best.onnx"), tmp_path / "made.onnx"
    assert main(["optimize", model, "-o", str(out), "--precision", "fp16"]) == 0
    assert "judged by: random pictures" in capfd.readouterr().out
    assert main(["optimize", model, "-o", str(out), "--precision", "int8", "--overwrite"]) == 1
    assert "give the character's folder" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--report", "report.txt"], "--report: neither a page nor JSON"),
        (["--model", "none.onnx"], "none.onnx: model: no such file"),
    ],
)
def test_wrong_usage(
    folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], arguments: list[str], said: str
) -> None:
    assert main(["optimize", str(folder), "-o", str(tmp_path / "made.onnx"), *arguments]) == 1
    assert said in capfd.readouterr().err


def test_without_onnx(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "onnx", None)
    assert main(["optimize", str(folder), "-o", str(tmp_path / "made.onnx")]) == 1
    assert "pip install 'gpupipe[optimize]'" in capfd.readouterr().err


@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_a_render_makes_its_model_once(folder: Path, tmp_path: Path, precision: str) -> None:
    options: dict[str, Any] = {"device": "cpu", "pixel_format": "bgr24", "precision": precision}
    with pytest.warns(GpupipeWarning, match=f"is made {precision} once, and kept"):
        stats = gpupipe.render(folder, f"{tmp_path}/one/", **options)
    (note,) = (note for note in stats.notes if note.startswith(f"the model in {precision}: "))
    assert "dB in the mouth region" in note
    assert any("computes a float16 model in float32" in note for note in stats.notes) == (precision == "fp16")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        gpupipe.render(folder, f"{tmp_path}/two/", **options)
        frames = list(gpupipe.frames(folder, **options))
        exact = list(gpupipe.frames(folder, device="cpu", pixel_format="bgr24"))
    assert small.files_in(tmp_path / "one") == small.files_in(tmp_path / "two")
    assert any((one != other).any() for one, other in zip(frames, exact, strict=True))
    assert min(quality.psnr(one, other) for one, other in zip(frames, exact, strict=True)) > 32


def test_fp32_is_the_file_as_it_is(folder: Path, own_cache: Path) -> None:
    character = Character.load(folder)
    for precision in ("fp32", "tf32"):
        assert model_file(character, ModelOptions(precision=precision)).path == character.model_path
    assert model_file(character, ModelOptions(model="other.onnx")).path == Path("other.onnx")
    assert not own_cache.exists()


def test_a_precision_that_the_provider_has_not(folder: Path, tmp_path: Path) -> None:
    character = Character.load(folder)
    for provider in ("auto", "cpu"):
        with pytest.raises(OptionError, match="the CPU has no TF32"):
            gpupipe.render(character, tmp_path / "never.mp4", precision="tf32", provider=provider, device="cpu")
    assert not (tmp_path / "never.mp4").exists()
    with pytest.raises(OptionError, match="needs a GPU"):
        gpupipe.render(character, tmp_path / "never.mp4", precision="int8", provider="cuda", device="cpu")
    assert not (tmp_path / "cache").exists()


@cuda
@pytest.mark.parametrize(
    ("provider", "built", "refused"),
    [
        ("cuda", False, True),
        ("tensorrt", True, True),
        ("auto", True, True),
        ("auto", False, False),
        ("cpu", True, False),
    ],
)
def test_int8_on_a_gpu_is_refused_before_it_is_made(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, provider: ProviderChoice, built: bool, refused: bool
) -> None:
    names = [PROVIDER_NAMES["cpu"], *([PROVIDER_NAMES["cuda"]] if built else [])]
    monkeypatch.setattr(runtime(), "get_available_providers", lambda: names)
    made: list[str] = []

    def making(path: Path, precision: str, *_: Any, **__: Any) -> Any:
        made.append(precision)
        raise InferenceError("enough")

    monkeypatch.setattr(sys.modules["gpupipe.render.precision"], "optimised", making)
    with pytest.raises(GpupipeError, match="runs on the CPU only" if refused else "enough"):
        gpupipe.render(folder, tmp_path / "never.mp4", precision="int8", provider=provider, device="cuda")
    assert made == ([] if refused else ["int8"])


def test_a_render_refuses_what_is_below_the_floor(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quality, "WORST_FLOOR_DB", 101.0)
    character = Character.load(folder)
    for _ in range(2):  # also when it is in the cache
        with pytest.raises(InferenceError, match=r"fp16 draws it with .* the floor is") as caught:
            _ignoring(lambda: model_file(character, ModelOptions(precision="fp16")))
        assert "gpupipe optimize --precision fp16 --force" in str(caught.value)


def _ignoring(work: Any) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        work()


def test_an_int8_model_is_for_the_cpu(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "made.onnx"
    assert main(["optimize", str(folder), "-o", str(out), "--precision", "int8", "--force", "--quiet"]) == 0
    monkeypatch.setattr("gpupipe.model.model.open_session", lambda path, options: open_session(path, SessionOptions()))
    with pytest.raises(OptionError, match="cuda does not run models that are quantised for the CPU"):
        Model(out, SessionOptions("cuda"), batch=8)


def test_a_missing_model_is_told_as_ever(tmp_path: Path) -> None:
    folder = small.small_character(tmp_path / "b")
    (folder / "checkpoint" / "model_best.onnx").unlink()
    with pytest.raises(GpupipeError, match="no such file"):
        gpupipe.render(folder, tmp_path / "out.mp4", device="cpu", precision="int8")


def test_the_notice_is_given_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setattr(warnings, "warn", lambda text, *_, **__: said.append(text))
    model_file(Character.load(folder), ModelOptions(precision="fp16"))
    assert len(said) == 1
