"""Files made to do harm, one by one: what the fuzzing found, and what it is too unlikely to find."""

from __future__ import annotations

import json
import os
import struct
import sys
import threading
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import av
import fuzz
import numpy as np
import onnx
import pytest
import small
from test_bad_input import bound_by_rights

import gpupipe
from gpupipe.character import folder as folders
from gpupipe.character.features import read_features
from gpupipe.character.folder import Character
from gpupipe.errors import GpupipeError, InferenceError, MediaError, OptionError, PackageError
from gpupipe.machine import peak_rss_bytes
from gpupipe.media.limits import Limits
from gpupipe.media.sound import read_pcm
from gpupipe.media.sound_file import probe_sound
from gpupipe.media.video import probe, read_frames
from gpupipe.model import external
from gpupipe.model.runtime import SessionOptions, open_session
from gpupipe.render import jobfile
from gpupipe.render.jobfile import read_jobs

LINUX = pytest.mark.skipif(sys.platform != "linux", reason="pipes and devices are files on Linux")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return small.small_character(tmp_path / "character")


@pytest.fixture
def video(folder: Path) -> Path:
    return folder / "full_body_video.mp4"


def message(work: Callable[[], Any], kind: type[GpupipeError] = MediaError) -> str:
    with pytest.raises(kind) as caught:
        work()
    return str(caught.value)


def patch(path: Path, box: bytes, offset: int, new: bytes) -> None:
    """Overwrite something behind a box's name in an MP4."""
    path.write_bytes(fuzz.lying(path.read_bytes(), [(box, offset, new)]))


# Pictures


def test_limits_of_frames(video: Path) -> None:
    assert probe(video, Limits(max_pixels=96 * 64, max_frames=12)).frames == 12
    assert message(lambda: probe(video, Limits(max_pixels=96 * 64 - 1))) == (
        f"{video}: size: larger than max_pixels 6143 (got '96x64'); make the video smaller, or max_pixels larger"
    )
    assert message(lambda: probe(video, Limits(max_frames=11))) == (
        f"{video}: frames: more than max_frames 11 (got 12); make the video shorter, or max_frames larger"
    )


def test_limits_hold_for_a_character_that_is_loaded_already(folder: Path, video: Path) -> None:
    character = Character.load(folder)
    with gpupipe.Engine(device="cpu", max_frames=11) as engine:
        assert message(lambda: engine.load(character)).startswith(f"{video}: frames: more than max_frames 11 (got 12)")
    with gpupipe.Engine(device="cpu", max_pixels=6143) as engine:
        assert message(lambda: list(engine.frames(character))).startswith(f"{video}: size: larger than max_pixels")


def test_the_limit_of_an_output(folder: Path, tmp_path: Path) -> None:
    np.save(folder / "aud_ave.npy", small.features(30))
    options: Any = {"device": "cpu", "max_frames": 29}
    assert message(lambda: gpupipe.render(folder, tmp_path / "o.mp4", **options), OptionError) == (
        "frames: the output has more than max_frames 29 (got 30); "
        "give shorter speech, fewer frames, or a larger max_frames"
    )
    assert gpupipe.render(folder, tmp_path / "o.mp4", **options, frames=29).frames == 29


def test_a_header_of_a_huge_frame(video: Path) -> None:
    for width, height in ((65535, 65535), (1, 1)):  # the stream itself is told by its own header, and right
        patch(video, b"avc1", 4 + 24, struct.pack(">HH", width, height))
        assert (probe(video).width, probe(video).height) == (96, 64)
    before = peak_rss_bytes()
    # A stream that says, where only its decoder looks, that its frames are larger than is taken.
    assert "larger than max_pixels" in message(lambda: probe(video, Limits(max_pixels=4096)))
    assert peak_rss_bytes() - before < 100_000_000


def raw_h264(width: int, height: int, frames: int) -> bytes:
    file = BytesIO()
    with av.open(file, "w", format="h264") as container:
        stream: Any = container.add_stream("libx264", rate=small.FPS)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for picture in small.pictures(width, height, frames):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="bgr24")))
        container.mux(stream.encode(None))
    return file.getvalue()


def test_a_video_that_changes_its_size(folder: Path, video: Path) -> None:
    video.write_bytes(raw_h264(96, 64, 6) + raw_h264(160, 128, 6))
    said = message(lambda: gpupipe.render(folder, folder.parent / "o.mp4", device="cpu"))
    assert said == (
        f"{video}: frame 6: size: is not 96x64 as the header says (got '160x128'); write it again in one size"
    )
    said = message(lambda: list(read_frames(video, "nv12", 12, Limits(max_pixels=96 * 64))))
    assert ": cannot be decoded: " in said  # at the first frame or later, as its threads go


def test_a_video_that_is_another_by_now(folder: Path, video: Path) -> None:
    character = Character.load(folder)
    small.write_video(video, small.pictures(64, 96, 12))
    said = message(lambda: list(gpupipe.frames(character, device="cpu")))
    assert said == f"{video}: has changed since it was looked at; leave it as it is"


def test_a_header_of_a_hundred_million_frames(video: Path) -> None:
    before = peak_rss_bytes()
    for count in (100_000_000, 1_000_000_000):
        patch(video, b"stsz", 8, struct.pack(">II", 50, count))
        patch(video, b"stts", 8, struct.pack(">II", 1, count))
        assert message(lambda: probe(video)).startswith(f"{video}: frames: more than max_frames 1000000 (got 1")
    assert peak_rss_bytes() - before < 1_000_000_000


@pytest.mark.parametrize("ticks", [1, 1_280_000])
def test_a_frame_rate_that_no_film_has(video: Path, ticks: int) -> None:
    """The time scale stays 12 800 a second."""
    with av.open(str(video)) as container:
        assert container.streams.video[0].time_base.denominator == 12_800  # type: ignore[union-attr]
    patch(video, b"stts", 16, struct.pack(">I", ticks))
    said = message(lambda: probe(video))
    assert said.startswith(f"{video}: fps: is no frame rate from 0.1 to 1000 (got ")


ODD = [
    ("ffv1", "gray16le"),
    ("ffv1", "gray"),
    ("ffv1", "yuva420p"),
    ("ffv1", "yuv410p"),
    ("ffv1", "gbrp12le"),
    ("ffv1", "yuv420p10le"),
    ("libx264", "yuv444p10le"),
    ("libx264rgb", "rgb24"),
    ("png", "monob"),
    ("png", "ya8"),
    ("rawvideo", "yuyv422"),
    ("rawvideo", "nv21"),
    ("rawvideo", "bgr8"),
    ("rawvideo", "rgb48be"),
]


@pytest.mark.parametrize(("codec", "pixel_format"), ODD)
def test_odd_pixel_formats(folder: Path, codec: str, pixel_format: str) -> None:
    for name in ("full_body_video.mp4", "crops_328_video.mp4"):
        container = {"png": "mov", "rawvideo": "nut"}.get(codec, "matroska")
        data = fuzz.video(codec, pixel_format, container, body=name.startswith("full"))
        (folder / name).write_bytes(data)
    frames = list(gpupipe.frames(folder, device="cpu", pixel_format="bgr24"))
    assert len(frames) == small.FRAMES
    for frame, right in zip(frames, fuzz.right_frames(folder, 99), strict=True):
        np.testing.assert_array_equal(frame, right)
    assert {frame.shape for frame in gpupipe.frames(folder, device="cpu")} == {(96, 96)}


@pytest.mark.parametrize(
    "content",
    [
        "ffconcat version 1.0\nfile secret.mp4\n",
        "#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nsecret.mp4\n#EXT-X-ENDLIST\n",
        "#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nhttp://127.0.0.1:9/a.ts\n#EXT-X-ENDLIST\n",
    ],
)
def test_a_file_that_names_others(video: Path, content: str) -> None:
    video.rename(video.with_name("secret.mp4"))
    video.write_text(content)
    assert message(lambda: probe(video)).startswith(f"{video}: cannot be opened as a video: ")
    assert message(lambda: probe_sound(video)).startswith(f"{video}: cannot be opened as a media file")


def test_metadata_that_are_no_text(video: Path) -> None:
    patch(video, b"ftyp", 4, b"\x80")
    assert probe(video).frames == 12


# Sound


def test_a_sound_that_is_longer_than_is_taken(tmp_path: Path) -> None:
    path = tmp_path / "sound.wav"
    path.write_bytes(fuzz.sound("pcm_s16le", "wav"))
    assert probe_sound(path, Limits(max_frames=15)).duration_seconds == pytest.approx(0.6, abs=0.03)
    said = f"{path}: duration: lasts no time from 0 to the 0 s of max_frames 5 (got '1 s'); "
    assert message(lambda: probe_sound(path, Limits(max_frames=5))).startswith(said)
    assert message(lambda: list(read_pcm(path, limits=Limits(max_frames=5)))).startswith(said.partition("(got")[0])


def test_a_sound_of_one_sample_a_second(tmp_path: Path) -> None:
    """A kilobyte that becomes gigabytes: 16 000 samples for each of its own."""
    path = tmp_path / "sound.wav"
    data = bytearray(fuzz.sound("pcm_s16le", "wav"))
    at = data.find(b"fmt ")
    data[at + 12 : at + 20] = struct.pack("<II", 1, 2)
    path.write_bytes(data)
    said = f"{path}: duration: lasts no time from 0 to the 40 s of max_frames 1000 (got "
    assert message(lambda: probe_sound(path, Limits(max_frames=1000))).startswith(said)
    assert message(lambda: list(read_pcm(path, limits=Limits(max_frames=1000)))).startswith(said)


# What is no file


@LINUX
def test_pipes_and_devices(folder: Path, video: Path, tmp_path: Path) -> None:
    """Nothing waits for a pipe that nobody writes into, or reads a device without end."""
    rectangles, features, model = (folder / name for name in (small.RECTANGLES, "aud_ave.npy", folders.MODEL))
    for path in (rectangles, features, model, video):
        path.unlink()
        os.mkfifo(path)
    found: list[GpupipeError] = []

    def look() -> None:
        found.extend(folders.examine(folder)[1])
        for work in (
            lambda: read_features(features),
            lambda: open_session(model, SessionOptions()),
            lambda: probe_sound(video),
        ):
            try:
                work()
            except GpupipeError as error:
                found.append(error)

    looking = threading.Thread(target=look, daemon=True)
    looking.start()
    looking.join(30)
    assert [str(error).split("; ")[0] for error in found] == [
        f"{video}: no such file",
        f"{rectangles}: cannot be read: it is no file",
        f"{features}: features: no such file",
        f"{model}: model: no such file",
        f"{video}: this is a pipe or a device, not a sound file",
    ]


def test_a_folder_whose_name_is_too_long(tmp_path: Path) -> None:
    said = message(lambda: Character.load(tmp_path / ("x" * 5000)), PackageError)
    assert said.startswith(f"{tmp_path / ('x' * 5000)}: cannot be entered: ")


def test_a_rectangle_file_that_is_too_large(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = folder / small.RECTANGLES
    size = path.stat().st_size
    monkeypatch.setattr(folders, "LARGEST_RECTANGLES", size - 1)
    assert message(lambda: Character.load(folder), PackageError).startswith(
        f"{path}: cannot be read: {size} bytes, more than {size - 1}; "
    )
    monkeypatch.setattr(folders, "LARGEST_RECTANGLES", size)
    assert Character.load(folder).count == 12


@pytest.mark.skipif(sys.platform == "win32", reason="a folder's rights are not in its mode there")
def test_a_character_that_cannot_be_written_to(folder: Path, tmp_path: Path) -> None:
    paths = [folder, *folder.rglob("*")]
    for path in paths:
        path.chmod(0o555 if path.is_dir() else 0o444)
    try:
        with bound_by_rights():
            assert gpupipe.render(folder, tmp_path / "o.mp4", device="cpu").frames == 12
    finally:
        for path in paths:
            path.chmod(0o755)


# Models


def with_weights_in(path: Path, location: str) -> None:
    """Let a small model's file say that one of its weights is in another."""
    model = onnx.load(str(path))
    (half,) = (tensor for tensor in model.graph.initializer if tensor.name == "half")
    half.ClearField("raw_data")
    half.data_location = onnx.TensorProto.EXTERNAL
    half.external_data.add(key="location", value=location)
    path.write_bytes(model.SerializeToString())


def test_weights_outside_the_models_folder(folder: Path) -> None:
    path = folder / folders.MODEL
    (folder / "secret").write_bytes(np.float32(0.5).tobytes())
    for location in ("../secret", str(folder / "secret"), "a\0b"):
        small.write_model(path)
        with_weights_in(path, location)
        assert message(lambda: open_session(path, SessionOptions()), InferenceError) == (
            f"{path}: model: names a file with weights that is not in its own folder (got {location!r}); "
            "export it again with its weights inside, or beside it"
        )
        # A group, which every parser passes over, and not the end of what is looked at.
        path.write_bytes(b"\xf3\x01\x08\x01\xf4\x01" + path.read_bytes())
        assert "not in its own folder" in message(lambda: open_session(path, SessionOptions()), InferenceError)


def test_weights_beside_the_model(folder: Path) -> None:
    path = folder / folders.MODEL
    expected = list(gpupipe.frames(folder, device="cpu"))
    with_weights_in(path, "weights")
    assert "names a file with weights that is not there (got 'weights')" in message(
        lambda: open_session(path, SessionOptions()), InferenceError
    )
    (path.parent / "weights").write_bytes(np.float32(0.5).tobytes())
    np.testing.assert_array_equal(list(gpupipe.frames(folder, device="cpu")), expected)


def test_weights_of_a_graph_inside_a_node(folder: Path) -> None:
    """Of a branch, in an attribute, in a function: wherever a tensor can be."""
    tensor = onnx.TensorProto(name="t", data_location=onnx.TensorProto.EXTERNAL, data_type=1, dims=[1])
    tensor.external_data.add(key="location", value="../secret")
    inner = onnx.GraphProto(name="inner", initializer=[tensor])
    sparse = onnx.SparseTensorProto(values=tensor)
    make = onnx.helper.make_node
    path = folder / folders.MODEL
    for node in (
        make("If", ["c"], ["o"], then_branch=inner),
        make("Constant", [], ["o"], value=tensor),
        make("Constant", [], ["o"], sparse_value=sparse),
    ):
        for model in (
            onnx.ModelProto(graph=onnx.GraphProto(node=[node])),
            onnx.ModelProto(functions=[onnx.FunctionProto(name="f", node=[node])]),
            onnx.ModelProto(graph=onnx.GraphProto(node=[make("Loop", [], [], body=onnx.GraphProto(node=[node]))])),
        ):
            path.write_bytes(model.SerializeToString())
            assert "not in its own folder" in message(lambda: external.check_external(path, "model"), InferenceError)


def test_a_model_that_holds_compiled_code(folder: Path) -> None:
    path = folder / folders.MODEL
    node = onnx.helper.make_node("EPContext", [], ["o"], domain="com.microsoft", ep_cache_context="../engine")
    path.write_bytes(onnx.ModelProto(graph=onnx.GraphProto(node=[node])).SerializeToString())
    assert message(lambda: open_session(path, SessionOptions()), InferenceError) == (
        f"{path}: model: holds what a provider has compiled (got 'EPContext'); give the model that it was made of"
    )


def test_names_in_a_model_that_are_no_text(folder: Path) -> None:
    path = folder / folders.MODEL
    for old, new in ((b"visual", b"visu\x80l"), (b"batch", b"b\x80tch")):
        small.write_model(path)
        path.write_bytes(path.read_bytes().replace(old, new))
        assert message(lambda: open_session(path, SessionOptions()), InferenceError).startswith(
            f"{path}: model: cannot be opened: "
        )


# Features and jobs


def test_a_npy_file_of_a_version_that_there_is_not(tmp_path: Path) -> None:
    path = tmp_path / "f.npy"
    np.save(path, small.features(3))
    data = bytearray(path.read_bytes())
    data[6] = 9
    path.write_bytes(data)
    said = message(lambda: read_features(path), PackageError)
    assert said.startswith(f"{path}: features: is no NumPy array: its version is 9.0; ")


def test_jobs_that_lead_out_of_their_folder(tmp_path: Path) -> None:
    here = tmp_path / "jobs"
    here.mkdir()
    if sys.platform != "win32":
        (here / "link").symlink_to(tmp_path)
    path = here / "list.jsonl"
    names = ["o.mp4", "a/../p.mp4", "../o.mp4", str(tmp_path / "o.mp4"), "a/../../o.mp4", "link/q.mp4"]
    good = {"character": "c", "output": "o.mp4"}
    lines = [good | {"output": name} for name in names]
    lines += [good | {"output": "x.mp4", "character": ".."}, good | {"output": "y.mp4", "audio": "../a.wav"}]
    path.write_text("\n".join(map(json.dumps, lines)))
    jobs, faults = read_jobs(path, confined=True)
    assert [job.line for job in jobs] == [1, 2] + [6] * (sys.platform == "win32")
    assert all("leads out of the job file's folder" in str(fault) for fault in faults.values())
    assert str(faults[8]) == (
        f"{path}:8: audio: leads out of the job file's folder (got {str(here / '../a.wav')!r}); "
        "name files below that folder"
    )
    assert len(read_jobs(path)[0]) == 6  # all but those whose output is another's


def test_a_file_of_jobs_that_is_too_large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "list.jsonl"
    path.write_text('{"character": "c", "output": "o.mp4"}\n')
    monkeypatch.setattr(jobfile, "LARGEST", 20)
    assert message(lambda: read_jobs(path), GpupipeError) == (
        f"{path}: larger than 20 bytes (got {path.stat().st_size}); give the jobs in parts"
    )
