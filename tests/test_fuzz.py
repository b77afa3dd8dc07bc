"""Input from strangers, spoiled at random: a render that is right, or one clear error, and nothing else touched.

`make test` tries 500 cases, always the same ones; `make fuzz` 10 000 others.
"""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Iterator
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import fuzz
import numpy as np
import onnx
import pytest
import small
from hypothesis import given
from hypothesis import strategies as st
from numpy.lib import format as npy

from gpupipe.character.features import read_features
from gpupipe.character.folder import Character, GpupipeWarning
from gpupipe.errors import GpupipeError, InferenceError
from gpupipe.media.join import join
from gpupipe.media.limits import Limits
from gpupipe.media.sound import read_pcm
from gpupipe.media.sound_file import probe_sound
from gpupipe.media.video import probe, read_frames
from gpupipe.model import cache
from gpupipe.model.optimise import Optimised
from gpupipe.model.quality import Quality
from gpupipe.model.runtime import SessionOptions
from gpupipe.options import JobKeywords, split
from gpupipe.render.engine import Engine
from gpupipe.render.jobfile import read_jobs
from gpupipe.speech.encoder import AudioEncoder

MOST = 14
"""Frames of a render: the 12 of the small character, and the way back begun."""


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    with Engine(device="cpu", cache=0, max_memory=1 << 30) as opened:
        yield opened


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return small.small_character(tmp_path / "character")


def rendered(engine: Engine, folder: Path) -> Any:
    """The frames of a render, or its error; the folder is as it was."""
    before = small.files_in(folder)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", GpupipeWarning)
        found = fuzz.refused_or(lambda: list(engine.frames(folder, pixel_format="bgr24", frames=MOST, batch=4)))
    assert small.files_in(folder) == before
    return found


def assert_right(found: Any, folder: Path, *, exact: bool = True) -> None:
    """Frames are those of the plain algorithm, unless there is an error instead of them."""
    if isinstance(found, GpupipeError):
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", GpupipeWarning)
        fps = Character.load(folder).body.fps
    assert len(found) == fuzz.right_count(folder, fps, MOST)
    if exact and fps == Fraction(25):
        for frame, right in zip(found, fuzz.right_frames(folder, MOST), strict=True):
            np.testing.assert_array_equal(frame, right)


# Characters

COORDINATES = st.one_of(
    st.integers(-20, 120), st.integers(), st.sampled_from([2**31, -(2**31), 8192, 8193]), st.floats(), st.none()
)
RECTS = st.tuples(st.integers(-60, 95), st.integers(-60, 63), st.integers(1, 200), st.integers(1, 200)).map(
    lambda n: [n[0], n[1], n[0] + n[2], n[1] + n[3]]
)
WRONG = st.lists(COORDINATES, max_size=5)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)


DIGITS = st.sampled_from([*b'0123456789-.,[]{}"e ']).map(lambda digit: bytes([digit]))


def encoded(value: Any) -> bytes:
    return json.dumps(value).encode()


@fuzz.cases(50)
@given(st.lists(RECTS, min_size=1, max_size=12), st.integers(0, 11), st.none() | WRONG)
def test_rectangles(engine: Engine, folder: Path, rects: list[Any], first: int, wrong: Any) -> None:
    every = [small.rectangle(frame) for frame in range(small.FRAMES)]
    every[first : first + len(rects)] = rects if wrong is None else [*rects[:-1], wrong]
    small.write_rectangles(folder, every)
    assert_right(rendered(engine, folder), folder)


@fuzz.cases(30)
@given(
    st.one_of(
        st.dictionaries(st.integers(-2, 14).map(str) | st.text(), JSON, max_size=4).map(
            lambda v: json.dumps(v).encode()
        ),
        JSON.map(encoded),
        st.integers(1, 3000).map(lambda depth: b'{"0": {"rect": ' + b"[" * depth + b"1" + b"]" * depth + b"}}"),
        st.binary(),
    ),
    st.binary(),
)
def test_json_that_is_no_rectangles(folder: Path, content: bytes, about: bytes) -> None:
    (folder / small.RECTANGLES).write_bytes(content)
    (folder / "package_info.json").write_bytes(about)  # which nothing reads
    found = fuzz.refused_or(lambda: Character.load(folder))
    assert isinstance(found, GpupipeError)
    assert str(found).startswith(f"{folder / small.RECTANGLES}: ")


@fuzz.cases(20)
@given(st.lists(st.tuples(st.just("write"), st.integers(0, 1 << 30), DIGITS), min_size=1, max_size=3))
def test_spoiled_rectangles(engine: Engine, folder: Path, edits: list[fuzz.Edit]) -> None:
    small.write_rectangles(folder, [small.rectangle(frame) for frame in range(small.FRAMES)])
    path = folder / small.RECTANGLES
    path.write_bytes(fuzz.spoiled(path.read_bytes(), edits))
    assert_right(rendered(engine, folder), folder)


HEADERS = st.one_of(
    st.tuples(
        st.sampled_from(["<f4", "<f4", "<f8", "<f2", ">f4", "|O", "<c8", "|S4", "<M8[s]", "<f16", "[('a', '<f4')]"]),
        st.booleans() | st.integers() | st.text(max_size=3),
        st.lists(st.sampled_from([0, 1, 2, 12, 512, -1, 2**31, 2**63, 10**30]), max_size=3).map(tuple) | st.text(),
    ).map(lambda entries: str(dict(zip(("descr", "fortran_order", "shape"), entries, strict=True)))),
    st.text(),
    st.integers(1, 3000).map(lambda depth: "(" * depth + ")" * depth),
)


RIGHT_HEADERS = [
    str({"descr": kind, "fortran_order": order, "shape": (2, 512)})
    for kind in ("<f4", "<f8", "<f2")
    for order in (False, True)
]


@fuzz.cases(50)
@given(
    HEADERS | st.sampled_from(RIGHT_HEADERS),
    st.sampled_from([(1, 0), (1, 0), (2, 0), (3, 0), (9, 9)]),
    st.integers(0, 3000) | st.just(8192),
    st.just([]) | fuzz.EDITS,
)
def test_npy_files(tmp_path: Path, header: str, version: tuple[int, int], rows: int, edits: list[fuzz.Edit]) -> None:
    path = tmp_path / "features.npy"
    text = header.encode("utf-8", "surrogatepass")
    size = len(text).to_bytes(2 if version == (1, 0) else 4, "little")
    path.write_bytes(fuzz.spoiled(npy.magic(*version) + size + text + bytes(rows), edits))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", GpupipeWarning)
        found = fuzz.refused_or(lambda: read_features(path))
    if not isinstance(found, GpupipeError):
        np.testing.assert_array_equal(found, np.load(path, allow_pickle=False).astype(np.float32))


# Videos

VIDEOS = ("full_body_video.mp4", "crops_328_video.mp4")


@fuzz.cases(60)
@given(st.sampled_from(fuzz.VIDEOS), st.booleans(), fuzz.EDITS)
def test_videos_with_spoiled_bytes(
    engine: Engine, folder: Path, kind: tuple[str, str, str], body: bool, edits: list[fuzz.Edit]
) -> None:
    for name in VIDEOS:
        is_body = name == VIDEOS[0]
        data = fuzz.video(*kind, body=is_body)
        (folder / name).write_bytes(fuzz.spoiled(data, edits) if is_body == body else data)
    # Where FFV1 without checksums is damaged, its decoder leaves whatever the frame's memory held.
    assert_right(rendered(engine, folder), folder, exact=kind[0] != "ffv1")


@fuzz.cases(60)
@given(st.booleans(), fuzz.LIES)
def test_videos_with_lying_headers(
    engine: Engine, folder: Path, body: bool, lies: list[tuple[bytes, int, bytes]]
) -> None:
    for name in VIDEOS:
        is_body = name == VIDEOS[0]
        data = fuzz.video("libx264", "yuv420p", "mp4", body=is_body)
        (folder / name).write_bytes(fuzz.lying(data, lies) if is_body == body else data)
    assert_right(rendered(engine, folder), folder)


@fuzz.cases(10)
@given(st.sampled_from(fuzz.VIDEOS), fuzz.EDITS)
def test_another_process_finds_the_same(tmp_path: Path, kind: tuple[str, str, str], edits: list[fuzz.Edit]) -> None:
    path = tmp_path / "video"
    path.write_bytes(fuzz.spoiled(fuzz.video(*kind), edits))
    here = fuzz.refused_or(lambda: probe(path))
    there = fuzz.refused_or(lambda: probe(path, Limits(isolate=True)))
    if isinstance(here, GpupipeError):
        assert str(there) == str(here)
        return
    assert replace(there, limits=here.limits) == here
    frames = fuzz.refused_or(lambda: list(read_frames(path, "bgr24", here.frames, there.limits)))
    assert isinstance(frames, GpupipeError) or len(frames) == here.frames


# Sounds


@fuzz.cases(50)
@given(st.sampled_from(fuzz.SOUNDS), fuzz.EDITS)
def test_sounds(tmp_path: Path, kind: tuple[str, str], edits: list[fuzz.Edit]) -> None:
    path = tmp_path / "sound"
    path.write_bytes(fuzz.spoiled(fuzz.sound(*kind), edits))
    fuzz.refused_or(lambda: probe_sound(path))
    samples = fuzz.refused_or(lambda: sum(len(chunk) for chunk in read_pcm(path)))
    if not isinstance(samples, GpupipeError):
        assert samples > 0
    part, output = tmp_path / "part.mkv", tmp_path / "out.mp4"
    if not part.exists():
        small.write_video(part, small.pictures(64, 64, 5))
    if not isinstance(fuzz.refused_or(lambda: join([part], output, small.FPS, sound=path)), GpupipeError):
        assert small.frames_in(output) == 5


# Models


@fuzz.cases(60)
@given(fuzz.EDITS)
def test_models_with_spoiled_bytes(engine: Engine, folder: Path, edits: list[fuzz.Edit]) -> None:
    path = folder / "checkpoint" / "model_best.onnx"
    small.write_model(path)
    path.write_bytes(fuzz.spoiled(path.read_bytes(), edits))
    found = rendered(engine, folder)
    if not isinstance(found, GpupipeError):  # of another model, as far as anyone can know
        assert [frame.shape for frame in found] == [(small.HEIGHT, small.WIDTH, 3)] * small.FRAMES


@fuzz.cases(30)
@given(fuzz.MODEL_LIES)
def test_models_that_lie(engine: Engine, folder: Path, lies: list[fuzz.ModelLie]) -> None:
    path = folder / "checkpoint" / "model_best.onnx"
    small.write_model(path)
    fuzz.lying_model(path, lies)
    found = rendered(engine, folder)
    if not isinstance(found, GpupipeError):
        assert [frame.shape for frame in found] == [(small.HEIGHT, small.WIDTH, 3)] * small.FRAMES


LOCATIONS = st.one_of(
    st.sampled_from(
        ["../secret", "/etc/hostname", "weights", "./weights", "sub/../weights", "sub/../../secret", "link"]
    ),
    st.text(min_size=1, max_size=8),
)


@fuzz.cases(20)
@given(LOCATIONS, st.booleans())
def test_weights_in_other_files(engine: Engine, folder: Path, location: str, again: bool) -> None:
    path = folder / "checkpoint" / "model_best.onnx"
    small.write_model(path)
    (folder / "secret").write_bytes(bytes(64))
    (path.parent / "weights").write_bytes(np.float32(0.5).tobytes())
    (path.parent / "sub").mkdir(exist_ok=True)
    link = path.parent / "link"
    if not link.is_symlink():
        link.symlink_to("../secret")
    model = onnx.load(str(path))
    (half,) = (tensor for tensor in model.graph.initializer if tensor.name == "half")
    half.ClearField("raw_data")
    half.data_location = onnx.TensorProto.EXTERNAL
    if again:
        half.external_data.add(key="location", value="weights")
    half.external_data.add(key="location", value=location)
    path.write_bytes(model.SerializeToString())
    found = rendered(engine, folder)
    if Path(location).name != "weights" or ".." in location.replace("sub/..", "", 1):
        assert isinstance(found, InferenceError)
    elif not again:
        assert_right(found, folder)


@fuzz.cases(15)
@given(fuzz.EDITS)
def test_audio_encoders(tmp_path: Path, edits: list[fuzz.Edit]) -> None:
    path = tmp_path / "encoder.onnx"
    small.write_other_model(path, [["b", 1, 80, 16]], [["b", 512]])
    path.write_bytes(fuzz.spoiled(path.read_bytes(), edits))
    fuzz.refused_or(lambda: AudioEncoder(path, SessionOptions()))


# What else is read


@fuzz.cases(20)
@given(fuzz.EDITS, st.booleans())
def test_files_of_jobs(tmp_path: Path, edits: list[fuzz.Edit], confined: bool) -> None:
    path = tmp_path / "jobs.jsonl"
    line = {"character": "anna", "output": "o.mp4", "audio": "a.wav", "frames": 3, "crf": 20, "sound": True}
    path.write_bytes(
        fuzz.spoiled(b"".join(json.dumps(line | {"output": f"{n}.mp4"}).encode() + b"\n" for n in (1, 2)), edits)
    )
    jobs, faults = read_jobs(path, confined=confined)
    assert all("\n" not in str(fault) for fault in faults.values())
    for job in jobs:
        split(job.options, JobKeywords)
        if confined:
            assert job.character.resolve().is_relative_to(tmp_path.resolve())
            assert Path(job.output).resolve().is_relative_to(tmp_path.resolve())


@fuzz.cases(15)
@given(fuzz.EDITS, st.booleans())
def test_cached_models(tmp_path: Path, edits: list[fuzz.Edit], of_model: bool) -> None:
    small.write_model(tmp_path / "model.onnx")
    model = onnx.load(str(tmp_path / "model.onnx"))
    quality = Quality(1, (0, 0, 1, 1), 50.0, 49.5, 0.99, 0.98, 51.0, 0.25, 3, 0)

    def make() -> Optimised:
        return Optimised(model, quality, *(np.zeros((1, 3, 32, 32), np.float32),) * 2, None)  # type: ignore[arg-type]

    root = tmp_path / "models"
    whole = cache.kept(root, "ab", make, 1 << 30).path
    spoiled = whole if of_model else whole.with_suffix(".json")
    spoiled.write_bytes(fuzz.spoiled(spoiled.read_bytes(), edits))
    found = cache.kept(root, "ab", make, 1 << 30)
    assert found.quality == quality
    assert onnx.load(str(found.path)) == model


NAMES = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="/\0"), min_size=1, max_size=20)


@fuzz.cases(10)
@given(NAMES.filter(lambda name: name not in (".", "..") and len(name.encode()) < 200), st.booleans())
def test_names_of_folders(engine: Engine, tmp_path: Path, folder: Path, name: str, around: bool) -> None:
    named = tmp_path / "in" / name
    named.parent.mkdir(exist_ok=True)
    shutil.copytree(folder, named)
    output = tmp_path / f"{name}.mp4"
    try:
        found = fuzz.refused_or(
            lambda: engine.render(named / ".." / name if around else named, output, frames=3, batch=4)
        )
        assert not isinstance(found, GpupipeError)
        assert small.frames_in(output) == 3
    finally:
        shutil.rmtree(named)
        output.unlink(missing_ok=True)
