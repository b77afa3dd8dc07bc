"""What the fuzzing tests share: files to spoil, ways to spoil them, and what a render of such files may come to."""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Callable, Iterator
from contextlib import suppress
from fractions import Fraction
from functools import cache
from io import BytesIO
from math import ceil
from pathlib import Path
from typing import Any

import av
import numpy as np
import onnx
import reference
import small
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from gpupipe.errors import GpupipeError
from gpupipe.geometry import CropLayout, Rect
from gpupipe.machine import peak_rss_bytes

FACTOR = int(os.environ.get("GPUPIPE_FUZZ", "1"))
"""How many times as many cases are tried as `make test` does; `make fuzz` sets it."""

MOST_BYTES = 1_000_000_000
"""By how much the peak of this process's memory may grow in a case."""


def cases(number: int) -> settings:
    """The settings of a test that tries so many cases in `make test`."""
    suppressed = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large]
    return settings(max_examples=number * FACTOR, deadline=None, suppress_health_check=suppressed)


def refused_or(work: Callable[[], Any]) -> Any:
    """What some work gives, or its GpupipeError, which must be one line that says something; nothing else is raised."""
    before = peak_rss_bytes()
    try:
        result = work()
    except GpupipeError as error:
        result = error
        for said in (str(error), error.on_command_line()):
            assert said
            assert "\n" not in said
    assert peak_rss_bytes() - before < MOST_BYTES
    return result


# Spoiling

NUMBERS = (0, 1, 2, 3, 0x7F, 0x80, 0xFF, 1000, 0x7FFF, 0xFFFF, 100_000, 1_000_000_000, 0x7FFF_FFFF, 0xFFFF_FFFF)

POSITIONS = st.one_of(st.integers(0, 700), st.integers(-3000, -1), st.integers(0, 1 << 30))
"""Where in a file, modulo its length: its head, its tail or anywhere."""

NEWS = st.one_of(
    st.binary(min_size=1, max_size=8),
    st.sampled_from(NUMBERS).map(lambda number: struct.pack(">I", number)),
    st.sampled_from(NUMBERS).map(lambda number: struct.pack("<I", number)),
)

Edit = tuple[str, int, bytes]
EDITS = st.lists(
    st.tuples(st.sampled_from(["write", "write", "write", "flip", "cut", "insert", "repeat"]), POSITIONS, NEWS),
    min_size=1,
    max_size=3,
)


def spoiled(data: bytes, edits: list[Edit]) -> bytes:
    """A file's bytes after some edits."""
    made = bytearray(data)
    for kind, position, new in edits:
        if not made:
            break
        at = position % len(made)
        if kind == "write":
            made[at : at + len(new)] = new
        elif kind == "flip":
            made[at] ^= 1 << new[0] % 8
        elif kind == "cut":
            del made[at : at + new[0] * 16 + 1]
        elif kind == "insert":
            made[at:at] = new
        else:
            made[at:at] = made[at : at + new[0] * 8 + 1]
    return bytes(made)


ModelLie = tuple[int, int, int]
MODEL_LIES = st.lists(
    st.tuples(st.integers(0, 5), st.integers(0, 40), st.sampled_from([*NUMBERS, -1, 6, 16, 32, 512])),
    min_size=1,
    max_size=3,
)


def lying_model(path: Path, lies: list[ModelLie]) -> None:
    """Change numbers, operators, names and nodes of an ONNX file, which stays one."""
    model = onnx.load(str(path))
    graph = model.graph
    values = [*graph.input, *graph.output]
    for kind, place, number in lies:
        node = graph.node[place % len(graph.node)]
        weight = graph.initializer[place % len(graph.initializer)]
        shape = values[place % len(values)].type.tensor_type.shape
        number = number if number < 1 << 31 else number - (1 << 32)
        if kind == 0:
            shape.dim[place % len(shape.dim)].dim_value = number
        elif kind == 1:
            weight.dims[:] = [number, place] if place % 2 else [number]
        elif kind == 2:
            weight.raw_data = number.to_bytes(8, "little", signed=True)[: len(weight.raw_data)]
        elif kind == 3:
            node.op_type = ("Reshape", "Expand", "Tile", "Conv", "Loop", "Resize", "ConstantOfShape", "No")[place % 8]
        elif kind == 4:
            node.input[place % len(node.input)] = ("visual", "audio", "none", "roi", "")[number % 5]
        else:
            weight.data_type = number % 24
    path.write_bytes(model.SerializeToString())


BOXES = tuple(
    b"ftyp moov mvhd trak tkhd edts elst mdia mdhd hdlr minf stbl stsd avc1 avcC colr pasp stts ctts stss stsc stsz "
    b"stco".split()
)
LIES = st.lists(st.tuples(st.sampled_from(BOXES), st.integers(4, 90), NEWS), min_size=1, max_size=3)
"""What is written where behind a box's name in an MP4."""


def lying(data: bytes, lies: list[tuple[bytes, int, bytes]]) -> bytes:
    """An MP4 with some fields of some boxes overwritten."""
    made = bytearray(data)
    for name, offset, new in lies:
        at = made.find(name)
        if at >= 0:
            made[at + offset : at + offset + len(new)] = new
    return bytes(made)


# Files

VIDEOS = (
    ("libx264", "yuv420p", "mp4"),
    ("libx264", "yuv444p", "matroska"),
    ("mpeg4", "yuv420p", "avi"),
    ("mpeg2video", "yuv422p", "mpegts"),
    ("libvpx-vp9", "yuv420p", "webm"),
    ("mjpeg", "yuvj420p", "avi"),
    ("ffv1", "bgr0", "matroska"),
    ("png", "rgba", "mov"),
)


@cache
def video(codec: str, pixel_format: str, container: str, *, body: bool = True) -> bytes:
    """The small character's body or crops in another codec and container."""
    size = (small.WIDTH, small.HEIGHT) if body else (small.CROP_SIZE, small.CROP_SIZE)
    file = BytesIO()
    with av.open(file, "w", format=container) as opened:
        stream: Any = opened.add_stream(codec, rate=small.FPS)
        stream.width, stream.height, stream.pix_fmt = *size, pixel_format
        for picture in small.pictures(*size, small.FRAMES, seed=0 if body else 1):
            opened.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="bgr24")))
        opened.mux(stream.encode(None))
    return file.getvalue()


SOUNDS = (
    ("pcm_s16le", "wav"),
    ("pcm_f32le", "wav"),
    ("libmp3lame", "mp3"),
    ("flac", "flac"),
    ("aac", "mp4"),
    ("aac", "adts"),
    ("libopus", "ogg"),
    ("aac", "matroska"),
    ("aac", "mpegts"),
)


@cache
def sound(codec: str, container: str, *, seconds: float = 0.6, channels: int = 1) -> bytes:
    """A tone."""
    file = BytesIO()
    rate = 48_000
    with av.open(file, "w", format=container) as opened:
        stream: Any = opened.add_stream(codec, rate=rate, layout="mono" if channels == 1 else "stereo")
        tone = np.sin(np.arange(int(seconds * rate)) * 0.05).astype(np.float32)
        step = stream.codec_context.frame_size or 1024
        resampler = av.AudioResampler(format=stream.codec_context.format, layout=stream.codec_context.layout, rate=rate)
        for at in range(0, len(tone) // step * step, step):
            samples = np.repeat(tone[None, at : at + step], channels, axis=0)
            frame = av.AudioFrame.from_ndarray(samples, format="fltp", layout=stream.codec_context.layout.name)
            frame.sample_rate, frame.pts, frame.time_base = rate, at, Fraction(1, rate)
            for converted in resampler.resample(frame):
                opened.mux(stream.encode(converted))
        opened.mux(stream.encode(None))
    return file.getvalue()


# What is right


def right_frames(folder: Path, most: int) -> Iterator[NDArray[np.uint8]]:
    """The frames in bgr24 that a small character's render must have, drawn by the plain algorithm; 25 a second."""
    body, crops = (_decoded(folder / name) for name in ("full_body_video.mp4", "crops_328_video.mp4"))
    entries = {int(key): value for key, value in json.loads((folder / small.RECTANGLES).read_text("utf-8-sig")).items()}
    period = min(len(body), len(crops), max(entries) + 1)
    there_and_back = [*range(period), *reversed(range(1, period - 1))]
    features = np.load(folder / "aud_ave.npy").astype(np.float32)
    layout = CropLayout.of_crop(crops[0].shape[0])
    for number in range(min(len(features), most)):
        source = there_and_back[number % len(there_and_back)]
        roi = reference.visual_input(crops[source], layout)[:3]
        prediction = (roi + np.sqrt(features[number, 0])) * np.float32(0.5)
        yield reference.composite_bgr24(prediction, crops[source], body[source], Rect(*entries[source]["rect"]), layout)


def right_count(folder: Path, fps: Fraction, most: int) -> int:
    """How many frames a render must have."""
    return min(most, ceil(len(np.load(folder / "aud_ave.npy")) * fps / 25))


def _decoded(path: Path) -> list[NDArray[np.uint8]]:
    """The frames up to one that does not decode."""
    found = []
    with av.open(f"file:{path}", metadata_errors="replace") as container, suppress(av.FFmpegError):
        container.streams.video[0].thread_type = "AUTO"  # what stands in for damaged slices depends on it
        for frame in container.decode(video=0):
            found.append(np.asarray(frame.to_ndarray(format="bgr24"), np.uint8))
    return found
