"""Whole renders: what comes out of a character is what the plain algorithm says, whatever the way it is run."""

import json
from fractions import Fraction
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import reference

import gpupipe
from gpupipe.character.folder import Character
from gpupipe.colour import PixelFormat
from gpupipe.demo import make_demo
from gpupipe.demo.mouth import tiny_reference
from gpupipe.errors import OptionError
from gpupipe.geometry import frame_order
from gpupipe.media.video import probe, read_frames
from gpupipe.render.render import frames, render
from gpupipe.render.stats import Progress
from gpupipe.trace import Trace

FRAMES = 14


@pytest.fixture(scope="module", params=[320, 160])
def demo(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small demo character of either family."""
    return make_demo(
        tmp_path_factory.mktemp("demo") / "person", frames=FRAMES, size=(480, 270), model_size=request.param
    )


def predicted(
    character: Character, pixel_format: PixelFormat, count: int, start: int = 0
) -> tuple[list[np.ndarray], list[int]]:
    """The frames that the tiny model must give, by the plain algorithm and the model in NumPy; and their sources."""
    layout = character.layout
    bodies = list(read_frames(character.body.path, pixel_format, character.count))
    crops = list(read_frames(character.crops.path, "bgr24", character.count))
    features = np.load(character.features_path)
    order = frame_order(count, character.count, start).tolist()
    out = []
    for number, source in enumerate(order):
        visual = reference.visual_input(crops[source], layout)[None]
        prediction = tiny_reference(visual, reference.speech_window(features, number)[None])[0]
        parts = (prediction, crops[source], bodies[source], character.rects[source], layout)
        if pixel_format == "bgr24":
            out.append(reference.composite_bgr24(*parts))
        else:
            out.append(reference.composite_nv12(*parts, character.body.colour))
    return out, order


@pytest.mark.parametrize("pixel_format", ["nv12", "bgr24"])
@pytest.mark.parametrize(("batch", "workers", "start"), [(1, 1, 0), (3, 2, 1), (8, 2, 5), (32, 3, 0)])
def test_every_frame_is_predicted(demo: Path, pixel_format: PixelFormat, batch: int, workers: int, start: int) -> None:
    character = Character.load(demo)
    got = list(frames(demo, pixel_format=pixel_format, batch=batch, workers=workers, start_frame=start, device="cpu"))
    wanted, order = predicted(character, pixel_format, len(got), start)
    assert len(got) == len(np.load(character.features_path))
    for number, (mine, theirs) in enumerate(zip(got, wanted, strict=True)):
        difference = np.abs(mine.astype(int) - theirs)
        # The model's float arithmetic is not NumPy's to the last bit, so a value may fall to either side of a step.
        assert difference.max() <= 2, f"frame {number}"
        assert (difference > 0).mean() < 0.005
        if pixel_format == "nv12":
            untouched_is_the_body(mine, character, order[number])


def untouched_is_the_body(frame: np.ndarray, character: Character, source: int) -> None:
    """Outside the rectangle, rounded out to whole 2×2 blocks for chroma, nothing differs from the decoded planes."""
    body = list(read_frames(character.body.path, "nv12", source + 1))[source]
    height = character.body.height
    rect = character.rects[source]
    luma = np.ones((height, character.body.width), bool)
    luma[rect.y1 : rect.y2, rect.x1 : rect.x2] = False
    chroma = np.ones((height // 2, character.body.width // 2), bool)
    chroma[rect.y1 // 2 : (rect.y2 + 1) // 2, rect.x1 // 2 : (rect.x2 + 1) // 2] = False
    assert np.array_equal(frame[:height][luma], body[:height][luma])
    ours, theirs = (part[height:].reshape(*chroma.shape, 2)[chroma] for part in (frame, body))
    assert np.array_equal(ours, theirs)


@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_a_video_has_the_bodys_size_rate_and_tags(demo: Path, tmp_path: Path, suffix: str) -> None:
    seen: list[Progress] = []
    trace = Trace(spans=True)
    stats = render(demo, tmp_path / f"talk{suffix}", device="cpu", crf=0, trace=trace, progress=seen.append)
    info, body = probe(tmp_path / f"talk{suffix}"), Character.load(demo).body
    assert (info.width, info.height, info.fps, info.colour) == (body.width, body.height, body.fps, body.colour)
    # As long as the sound: one frame more than the front end made rows of it.
    assert info.frames == stats.frames == FRAMES == len(np.load(demo / "aud_ave.npy")) + 1
    # crf 0 loses nothing: the file holds the frames that were composited.
    kept = list(read_frames(tmp_path / f"talk{suffix}", "nv12"))
    assert all(np.array_equal(a, b) for a, b in zip(kept, frames(demo, device="cpu"), strict=False))
    assert [progress.done for progress in seen][-1] == stats.frames
    assert {span.stage for span in trace.spans} == {"load", "prepare", "infer", "paste", "save", "finish"}
    for name in ("inference", "composite", "save"):
        assert stats.stages[name].frames == stats.frames
        assert stats.stages[name].mean_ms > 0
    assert stats.total_seconds > stats.load_seconds > 0
    assert json.loads(json.dumps(stats.as_dict()))["stages"]["save"]["frames"] == stats.frames
    assert sorted(tmp_path.iterdir()) == [tmp_path / f"talk{suffix}"]


@pytest.mark.parametrize("image_format", ["jpg", "png"])
def test_images(demo: Path, tmp_path: Path, image_format: Any) -> None:
    stats = render(demo, f"{tmp_path}/out/", device="cpu", image_format=image_format, jpeg_quality=97)
    files = sorted((tmp_path / "out").iterdir())
    assert [file.name for file in files] == [f"frame_{number:04d}.{image_format}" for number in range(stats.frames)]
    for file, frame in zip(files, frames(demo, device="cpu", pixel_format="bgr24"), strict=True):
        wanted: Any = frame
        if image_format == "jpg":
            wanted = cv2.imdecode(cv2.imencode(".jpg", frame, [cv2.IMWRITE_JPEG_QUALITY, 97])[1], cv2.IMREAD_COLOR)
        read: Any = cv2.imread(str(file))
        assert np.array_equal(read, wanted)


def test_frames_limits_and_segments_do_not_change_the_pictures(demo: Path, tmp_path: Path) -> None:
    render(demo, tmp_path / "one.mp4", device="cpu", frames=11, crf=0)
    render(demo, tmp_path / "many.mp4", device="cpu", frames=11, crf=0, segment_frames=4, batch=3)
    one, many = (list(read_frames(tmp_path / name, "nv12")) for name in ("one.mp4", "many.mp4"))
    assert len(one) == 11
    assert all(np.array_equal(a, b) for a, b in zip(one, many, strict=True))
    render(demo, tmp_path / "again.mp4", device="cpu", frames=11, crf=0, segment_frames=4, batch=8, workers=1)
    assert (tmp_path / "again.mp4").read_bytes() == (tmp_path / "many.mp4").read_bytes()


def test_longer_speech_goes_back_and_forth(demo: Path) -> None:
    features = np.zeros((3 * FRAMES, 512), np.float32)
    got = list(frames(demo, features=features, device="cpu"))
    order = frame_order(3 * FRAMES, FRAMES)
    assert len(got) == 3 * FRAMES
    # Silence: the same source frame gives the same picture, whenever it is shown. (The first and last 8 see the zeros
    # beyond the speech, which are silence too.)
    for number, source in enumerate(order):
        assert np.array_equal(got[number], got[source])


def test_recorded_inputs(tmp_path: Path) -> None:
    folder = make_demo(tmp_path / "person", frames=6, size=(480, 270), model_size=160, with_recorded=True)
    exact, recorded = (list(frames(folder, device="cpu", masked_video=flag)) for flag in (False, True))
    difference = np.abs(np.stack(exact).astype(int) - np.stack(recorded))
    assert 0 < difference.mean() < 1.5  # the recording is lossy, and only a little different
    with pytest.raises(OptionError, match=r"^start_frame: "):
        next(frames(folder, device="cpu", start_frame=6))


def test_a_float16_model(tmp_path: Path) -> None:
    folder = make_demo(tmp_path / "person", frames=5, size=(480, 270), model_size=160)
    half = make_demo(tmp_path / "half", frames=5, size=(480, 270), model_size=160, model_dtype="float16")
    a, b = (np.stack(list(frames(path, device="cpu"))).astype(int) for path in (folder, half))
    assert np.abs(a - b).max() <= 4


def test_other_rates(tmp_path: Path) -> None:
    folder = make_demo(tmp_path / "person", frames=6, size=(320, 192), model_size=160, fps=Fraction(30000, 1001))
    render(folder, tmp_path / "talk.mp4", device="cpu")
    assert probe(tmp_path / "talk.mp4").fps == Fraction(30000, 1001)


@pytest.mark.talker
def test_the_filmed_character_with_the_tiny_model(talker: Path, demo: Path, tmp_path: Path) -> None:
    character = Character.load(talker)
    model = demo / "checkpoint" / "model_best.onnx"
    if character.layout.model_size != Character.load(demo).layout.model_size:
        pytest.skip("this demo's model is of the other family")
    stats = render(character, tmp_path / "talk.mp4", model=model, frames=40, device="cpu")
    info = probe(tmp_path / "talk.mp4")
    assert (info.frames, info.width, info.height, info.fps) == (40, 1280, 720, Fraction(25))
    assert stats.frames == 40
    wanted, order = predicted(character, "nv12", 3)
    for number, mine in enumerate(frames(character, model=model, frames=3, device="cpu")):
        assert np.abs(mine.astype(int) - wanted[number]).max() <= 2
        untouched_is_the_body(mine, character, order[number])


def test_the_package_offers_its_names() -> None:
    assert gpupipe.Character is Character
    assert gpupipe.render is render
    assert gpupipe.frames is frames
