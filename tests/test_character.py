"""Loading a character folder: what is right loads, what is wrong is named by file, field and value."""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import pytest
import small

from gpupipe.character.folder import Character, GpupipeWarning, examine
from gpupipe.errors import MediaError, PackageError
from gpupipe.geometry import Rect
from gpupipe.media.encode import VideoWriter


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return small.small_character(tmp_path / "character")


def refusal(folder: Path) -> str:
    """The message of the only fault of a folder."""
    with pytest.raises((PackageError, MediaError)) as caught:
        Character.load(folder)
    character, faults, _ = examine(folder)
    assert character is None
    assert [str(fault) for fault in faults] == [str(caught.value)]
    return str(caught.value)


def loaded_with_warning(folder: Path) -> tuple[Character, str]:
    with pytest.warns(GpupipeWarning) as caught:
        character = Character.load(folder)
    assert len(caught) == 1
    assert character.notes == (str(caught[0].message),)
    return character, str(caught[0].message)


def test_what_is_loaded(folder: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        character = Character.load(str(folder))
    assert (character.path, character.count, character.notes, character.recorded) == (folder, 12, (), None)
    assert (character.body.width, character.body.height, character.body.frames) == (96, 64, 12)
    assert (character.body.fps, character.body.codec) == (Fraction(25), "h264")
    assert (character.crops.width, character.crops.height, character.crops.frames) == (40, 40, 12)
    assert (character.layout.crop_size, character.layout.model_size) == (40, 32)
    assert character.rects[:2] == (Rect(31, 11, 62, 45), Rect(32, 12, 63, 46))
    assert character.features_path == folder / "aud_ave.npy"
    assert character.model_path == folder / "checkpoint" / "model_best.onnx"
    assert character.sound_path is None
    (folder / "aud.wav").write_bytes(b"RIFF")
    assert character.sound_path == folder / "aud.wav"


def test_a_folder_with_spaces_and_other_letters(tmp_path: Path) -> None:
    folder = small.small_character(tmp_path / "Ünïcode 角色 'quoted'")
    assert Character.load(folder).count == 12


def test_no_folder(tmp_path: Path) -> None:
    assert refusal(tmp_path / "none") == f"{tmp_path / 'none'}: no such character folder; give a folder"
    (tmp_path / "file").touch()
    assert "no such character folder" in refusal(tmp_path / "file")


@pytest.mark.parametrize("name", ["full_body_video.mp4", "crops_328_video.mp4"])
def test_a_missing_video(folder: Path, name: str) -> None:
    (folder / name).unlink()
    assert refusal(folder) == f"{folder / name}: no such file; add it, or check the folder's name"


@pytest.mark.parametrize(
    ("rect", "what"),
    [
        ([40, 20, 40, 30], "empty or reversed (got [40, 20, 40, 30]); x2 must be greater than x1, and y2 than y1"),
        ([40, 20, 50, 20], "empty or reversed (got [40, 20, 50, 20]); x2 must be greater than x1, and y2 than y1"),
        ([50, 20, 40, 30], "empty or reversed (got [50, 20, 40, 30]); x2 must be greater than x1, and y2 than y1"),
        ([40, 30, 50, 20], "empty or reversed (got [40, 30, 50, 20]); x2 must be greater than x1, and y2 than y1"),
        ([96, 20, 120, 30], "wholly outside the 96x64 body (got [96, 20, 120, 30]); give body pixels"),
        ([40, 64, 50, 70], "wholly outside the 96x64 body (got [40, 64, 50, 70]); give body pixels"),
        ([-20, 20, 0, 30], "wholly outside the 96x64 body (got [-20, 20, 0, 30]); give body pixels"),
        ([40, -9, 50, 0], "wholly outside the 96x64 body (got [40, -9, 50, 0]); give body pixels"),
        ([0, 0, 40000, 64], "beyond 8192 pixels (got [0, 0, 40000, 64]); give body pixels"),
        (
            [-8192, -8192, 8192, 8192],
            "larger than 16777216 pixels (got [-8192, -8192, 8192, 8192]); give the face's rectangle in body pixels",
        ),
        (
            [0, 0, 4096, 4097],
            "larger than 16777216 pixels (got [0, 0, 4096, 4097]); give the face's rectangle in body pixels",
        ),
        ([40.0, 20, 50, 30], "not four integers (got [40.0, 20, 50, 30]); write [x1, y1, x2, y2] in body pixels"),
        (["40", 20, 50, 30], "not four integers (got ['40', 20, 50, 30]); write [x1, y1, x2, y2] in body pixels"),
        ([True, 20, 50, 30], "not four integers (got [True, 20, 50, 30]); write [x1, y1, x2, y2] in body pixels"),
        ([40, 20, 50], "not four integers (got [40, 20, 50]); write [x1, y1, x2, y2] in body pixels"),
        ([40, 20, 50, 30, 1], "not four integers (got [40, 20, 50, 30, 1]); write [x1, y1, x2, y2] in body pixels"),
        ([], "not four integers (got []); write [x1, y1, x2, y2] in body pixels"),
        (None, "not four integers (got None); write [x1, y1, x2, y2] in body pixels"),
        ("40,20,50,30", "not four integers (got '40,20,50,30'); write [x1, y1, x2, y2] in body pixels"),
        ({"x1": 40}, "not four integers (got {'x1': 40}); write [x1, y1, x2, y2] in body pixels"),
    ],
)
def test_a_wrong_rectangle(folder: Path, rect: Any, what: str) -> None:
    rects: list[Any] = [small.rectangle(frame) for frame in range(12)]
    rects[5] = rect
    small.write_rectangles(folder, rects)
    assert refusal(folder) == f"{folder / small.RECTANGLES}: frame 5: rect: {what}"


@pytest.mark.parametrize("entry", [[40, 20, 50, 30], None, "rect", 7])
def test_an_entry_that_is_no_object(folder: Path, entry: Any) -> None:
    small.write_entries(folder, {str(i): {"rect": small.rectangle(i)} for i in range(12)} | {"3": entry})
    assert refusal(folder) == (
        f"{folder / small.RECTANGLES}: frame 3: rect: not four integers (got {entry!r}); "
        "write [x1, y1, x2, y2] in body pixels"
    )


@pytest.mark.parametrize(
    "rect",
    [
        [-20, -20, 1, 1],
        [95, 63, 200, 200],
        [-10, 20, 106, 30],
        [0, 0, 96, 64],
        [-5, -7, 101, 71],
        [0, 0, 4096, 4096],
        [-8192, 10, 8192, 20],
    ],
)
def test_a_rectangle_partly_outside_is_right(folder: Path, rect: list[int]) -> None:
    small.write_rectangles(folder, [rect] * 12)
    assert Character.load(folder).rects == (Rect(*rect),) * 12


def test_a_rectangle_missing_in_the_middle(folder: Path) -> None:
    small.write_entries(folder, {str(i): {"rect": small.rectangle(i)} for i in range(12) if i != 7})
    assert refusal(folder) == f"{folder / small.RECTANGLES}: frame 7: missing; add its rectangle"


def test_every_missing_rectangle_is_told(folder: Path) -> None:
    small.write_entries(folder, {str(i): {"rect": small.rectangle(i)} for i in (0, 2, 5, 6, 7, 8, 9, 10, 11)})
    _, faults, notes = examine(folder)
    file = folder / small.RECTANGLES
    assert [str(fault) for fault in faults] == [f"{file}: frame {i}: missing; add its rectangle" for i in (1, 3, 4)]
    assert notes == []


def test_rectangles_missing_at_the_end_shorten_the_character(folder: Path) -> None:
    small.write_rectangles(folder, [small.rectangle(frame) for frame in range(9)])
    character, warning = loaded_with_warning(folder)
    assert character.count == 9
    assert warning == (
        f"{folder}: counts differ (full_body_video.mp4 12, crops_328_video.mp4 12, cache/crop_rectangles.json 9); "
        "the first 9 frames are used"
    )


def test_rectangles_past_the_last_frame_are_not_looked_at(folder: Path) -> None:
    entries: dict[str, Any] = {str(i): {"rect": small.rectangle(i)} for i in range(12)}
    small.write_entries(folder, entries | {"13": {"rect": "nonsense"}})
    character, warning = loaded_with_warning(folder)
    assert character.count == 12
    assert "cache/crop_rectangles.json 14); the first 12 frames are used" in warning


def test_a_wild_frame_number_is_told_as_few_faults(folder: Path) -> None:
    small.write_entries(folder, {"0": {"rect": small.rectangle(0)}, "900000": {"rect": small.rectangle(1)}})
    for name in ("full_body_video.mp4", "crops_328_video.mp4"):
        (folder / name).unlink()
    _, faults, _ = examine(folder)
    assert [str(fault).rsplit(": ", 1)[-1] for fault in faults[2:]] == ["missing; add its rectangle"] * 4


def test_a_negative_frame_number(folder: Path) -> None:
    small.write_entries(folder, {str(i): {"rect": small.rectangle(i)} for i in range(-1, 11)})
    _, faults, _ = examine(folder)
    assert str(faults[0]) == f"{folder / small.RECTANGLES}: frame -1: no such frame; count from 0"


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("", r"cannot be read: Expecting value: .*"),
        ('{"0": {"rect": [1, 2, 3', r"cannot be read: Expecting .*"),
        ("[[1, 2, 3, 4]]", r"cannot be read: a list instead of an object"),
        ('{"first": {"rect": [1, 2, 3, 4]}}', r"cannot be read: invalid literal for int\(\) with base 10: 'first'"),
        ("[" * 100_000, r"cannot be read: maximum recursion depth .*"),
        ("{}", r"holds no rectangle"),
    ],
)
def test_a_rectangle_file_of_another_kind(folder: Path, text: str, what: str) -> None:
    file = folder / small.RECTANGLES
    file.write_text(text, "utf-8")
    remedy = re.escape('; write {"0": {"rect": [x1, y1, x2, y2]}, …}')
    assert re.fullmatch(re.escape(f"{file}: ") + what + remedy, refusal(folder))


def test_a_missing_rectangle_file(folder: Path) -> None:
    (folder / small.RECTANGLES).unlink()
    assert refusal(folder) == (
        f'{folder / small.RECTANGLES}: no such file; write {{"0": {{"rect": [x1, y1, x2, y2]}}, …}}'
    )


def test_rectangles_written_with_a_byte_order_mark(folder: Path) -> None:
    entries = json.loads((folder / small.RECTANGLES).read_text("utf-8"))
    (folder / small.RECTANGLES).write_text(json.dumps(entries), "utf-8-sig")
    assert Character.load(folder).count == 12


@pytest.mark.parametrize("name", ["full_body_video.mp4", "crops_328_video.mp4"])
def test_counts_that_differ_are_all_named(folder: Path, name: str) -> None:
    size = (96, 64) if name.startswith("full") else (40, 40)
    small.write_video(folder / name, small.pictures(*size, 7))
    character, warning = loaded_with_warning(folder)
    counts = {"full_body_video.mp4": 12, "crops_328_video.mp4": 12, "cache/crop_rectangles.json": 12} | {name: 7}
    listed = ", ".join(f"{file} {count}" for file, count in counts.items())
    assert (character.count, len(character.rects)) == (7, 7)
    assert warning == f"{folder}: counts differ ({listed}); the first 7 frames are used"


def write_at(path: Path, times_ms: Sequence[int]) -> None:
    """A body video whose frames have these times."""
    with av.open(str(path), "w", format=path.suffix[1:].replace("mkv", "matroska")) as container:
        stream = container.add_stream("libx264", rate=1000)
        stream.width, stream.height, stream.pix_fmt = 96, 64, "yuv420p"
        stream.time_base = stream.codec_context.time_base = Fraction(1, 1000)
        stream.codec_context.options = {"bf": "0"}
        for time, pixels in zip(times_ms, small.pictures(96, 64, len(times_ms)), strict=True):
            frame = av.VideoFrame.from_ndarray(pixels, format="bgr24")
            frame.pts, frame.time_base = time, Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def test_a_body_of_varying_rate_is_told(folder: Path) -> None:
    """Six frames at 50 a second, then six at 25: 11 frames in 320 ms, and one whose length the encoder makes up."""
    path = folder / "full_body_video.mp4"
    times = [*range(0, 120, 20), *range(120, 360, 40)]
    write_at(path, times)
    character, warning = loaded_with_warning(folder)
    fps = character.body.fps
    assert 12 / 0.36 <= fps <= 12 / 0.32
    error = max(abs(time / 1000 - number / float(fps)) for number, time in enumerate(times))
    assert character.body.timing_error_seconds == pytest.approx(error, abs=1e-4)
    assert error > 0.03
    assert warning == (
        f"{path}: the frame rate varies; it is taken for its average of {float(fps):.6g} a second, "
        f"which puts frames up to {error * 1000:.0f} ms from their own times; write it again at a constant rate"
    )
    assert character.count == 12


@pytest.mark.parametrize("fps", [Fraction(24), Fraction(30000, 1001), Fraction(60000, 1001), Fraction(120)])
@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_rounded_times_are_no_varying_rate(folder: Path, fps: Fraction, suffix: str) -> None:
    whole = folder / f"body{suffix}"
    with VideoWriter(whole, width=96, height=64, fps=fps, pixel_format="bgr24") as writer:
        for frame in small.pictures(96, 64, 12):
            writer.write(frame)
    whole.replace(folder / "full_body_video.mp4")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        body = Character.load(folder).body
    assert body.timing_error_seconds <= 0.0015  # Matroska counts milliseconds


@pytest.mark.parametrize("size", [(40, 48), (24, 24), (16, 16)])
def test_crops_of_a_wrong_size(folder: Path, size: tuple[int, int]) -> None:
    small.write_video(folder / "crops_328_video.mp4", small.pictures(*size, 12))
    assert refusal(folder) == (
        f"{folder / 'crops_328_video.mp4'}: size: wrong size (got '{size[0]}x{size[1]}'); "
        "give square crops, the model's size plus 8"
    )


def test_recorded_inputs(folder: Path) -> None:
    for name in ("rois_320_video.mp4", "model_inputs_video.mp4"):
        assert Character.load(folder).recorded is None
        small.write_video(folder / name, small.pictures(32, 32, 12))
    recorded = Character.load(folder).recorded
    assert recorded is not None
    assert [info.path.name for info in recorded] == ["rois_320_video.mp4", "model_inputs_video.mp4"]
    small.write_video(folder / "rois_320_video.mp4", small.pictures(40, 40, 12))
    assert refusal(folder) == (
        f"{folder / 'rois_320_video.mp4'}: size: wrong size (got '40x40'); give 32x32 as the crops say"
    )
