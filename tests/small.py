"""A very small character, made in a fraction of a second: 12 frames of 96x64, crops of 40x40, a model of 32x32."""

from __future__ import annotations

import atexit
import io
import json
import shutil
import tempfile
import wave
from collections.abc import Sequence
from fractions import Fraction
from functools import cache
from pathlib import Path
from typing import Any, Literal

import av
import cv2
import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper

from gpupipe.media.encode import VideoWriter

FRAMES = 12
WIDTH, HEIGHT = 96, 64
MODEL_SIZE = 32
CROP_SIZE = MODEL_SIZE + 8
FPS = Fraction(25)
RECTANGLES = "cache/crop_rectangles.json"

Frame = NDArray[np.uint8]
Dims = Sequence[int | str]


def small_character(folder: Path) -> Path:
    """A copy of the character, the caller's to damage."""
    return Path(shutil.copytree(_original(), folder))


@cache
def _original() -> Path:
    folder = Path(tempfile.mkdtemp(prefix="gpupipe-small-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    make(folder)
    return folder


def make(folder: Path, *, size: tuple[int, int] = (WIDTH, HEIGHT), model_size: int = MODEL_SIZE) -> None:
    """Make a character in a folder, of another size than usual if told so."""
    write_video(folder / "full_body_video.mp4", pictures(*size, FRAMES))
    write_video(folder / "crops_328_video.mp4", pictures(model_size + 8, model_size + 8, FRAMES, seed=1))
    write_rectangles(folder, [rectangle(frame) for frame in range(FRAMES)])
    np.save(folder / "aud_ave.npy", features(FRAMES))
    write_model(folder / "checkpoint" / "model_best.onnx", size=model_size)


def rectangle(frame: int) -> list[int]:
    """Odd and even corners, odd and even sizes."""
    return [31 + frame % 3, 11 + frame % 2, 62 + frame % 5, 45 + frame % 4]


def write_rectangles(folder: Path, rects: Sequence[Any]) -> None:
    """Write rectangles, right or wrong, as the character folder has them."""
    write_entries(folder, {str(frame): {"rect": rect} for frame, rect in enumerate(rects)})


def write_entries(folder: Path, entries: Any) -> None:
    """Write any JSON as the rectangle file."""
    path = folder / RECTANGLES
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(entries), "utf-8")


def features(rows: int, seed: int = 2) -> NDArray[np.float32]:
    """Speech features for which the model neither fails nor gives NaN: float32 `[rows, 512]`, 0 to 1."""
    return np.random.default_rng(seed).random((rows, 512), np.float32)


def pictures(width: int, height: int, count: int, seed: int = 0) -> list[Frame]:
    """Smooth, colourful pictures that move: uint8 `[H, W, 3]` each."""
    coarse = np.random.default_rng(seed).integers(0, 256, (count + 6, 6, 3), np.uint8)
    return [
        np.asarray(cv2.resize(coarse[i : i + 6], (width, height), interpolation=cv2.INTER_CUBIC), np.uint8)
        for i in range(count)
    ]


def write_video(path: Path, frames: Sequence[Frame]) -> None:
    """Encode bgr24 frames with libx264; sizes that 4:2:0 cannot hold as 4:4:4."""
    path.parent.mkdir(parents=True, exist_ok=True)
    height, width = frames[0].shape[:2]
    if width % 2 or height % 2:
        _write_444(path, frames, width, height)
        return
    with VideoWriter(path, width=width, height=height, fps=FPS, pixel_format="bgr24") as writer:
        for frame in frames:
            writer.write(frame)


def _write_444(path: Path, frames: Sequence[Frame], width: int, height: int) -> None:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=FPS)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv444p"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="bgr24")))
        container.mux(stream.encode(None))


def put_index_first(path: Path) -> None:
    """Rewrite an MP4 so that it can be opened when its end is missing."""
    whole = path.read_bytes()
    with av.open(io.BytesIO(whole), "r") as old, av.open(str(path), "w", options={"movflags": "+faststart"}) as new:
        stream = new.add_stream_from_template(old.streams.video[0])
        for packet in old.demux(video=0):
            if packet.size:
                packet.stream = stream
                new.mux(packet)


def packets_in(path: Path) -> list[tuple[int, int]]:
    """Where each packet of a video begins in its file, and how many bytes it has."""
    with av.open(str(path)) as container:
        return [(packet.pos or 0, packet.size) for packet in container.demux(video=0) if packet.size]


def damage(path: Path, frame: int) -> None:
    """Overwrite the beginning of a packet, behind the length and the type of its first NAL unit."""
    start, size = packets_in(path)[frame]
    with path.open("r+b") as file:
        file.seek(start + 5)
        file.write(bytes(min(20, size - 5)))


def write_wav(path: Path) -> None:
    """A tenth of a second of silence."""
    with wave.open(str(path), "wb") as sound:
        sound.setnchannels(1)
        sound.setsampwidth(2)
        sound.setframerate(16_000)
        sound.writeframes(bytes(3200))


def write_video_without_frames(path: Path) -> None:
    """A Matroska file that has a video stream and ends there."""
    with av.open(str(path), "w", format="matroska") as container:
        stream = container.add_stream("libx264", rate=FPS)
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        container.start_encoding()


def frames_in(path: Path) -> int:
    """Frames that PyAV decodes from a video."""
    with av.open(str(path)) as container:
        return sum(1 for _ in container.decode(video=0))


def files_in(folder: Path) -> dict[str, bytes]:
    """Everything below a folder: the bytes of each file by its path; folders have none, and end in a slash."""
    return {
        path.relative_to(folder).as_posix() + "/" * path.is_dir(): b"" if path.is_dir() else path.read_bytes()
        for path in folder.rglob("*")
    }


def write_model(
    path: Path,
    *,
    size: int | str = MODEL_SIZE,
    batch: int | str = "batch",
    dtype: Literal["float32", "float16"] = "float32",
) -> None:
    """A model whose output is half of the roi, and half of the root of the first feature of each frame's own row.

    It gives NaN for a frame whose first feature is negative, and fails on one whose first feature is 1 or more.
    """
    kind = TensorProto.FLOAT if dtype == "float32" else TensorProto.FLOAT16

    def constant(name: str, values: Any, of: str) -> Any:
        return onnx.numpy_helper.from_array(np.array(values, of), name)

    nodes = [
        helper.make_node("Slice", ["visual", "zero", "three", "one"], ["roi"]),
        # Row i - 8 ... i + 7 of the features as [32, 16, 16]: row i begins at channel 16.
        helper.make_node("Slice", ["audio", "own_first", "own_last", "own_axes"], ["own"]),
        helper.make_node("Sqrt", ["own"], ["root"]),
        helper.make_node("Cast", ["own"], ["index"], to=TensorProto.INT64),
        helper.make_node("Gather", ["nothing", "index"], ["none"]),
        helper.make_node("Add", ["roi", "root"], ["sum"]),
        helper.make_node("Mul", ["sum", "half"], ["mean"]),
        helper.make_node("Add", ["mean", "none"], ["drawn"]),
    ]
    constants = [
        constant("zero", [0], "int64"),
        constant("three", [3], "int64"),
        constant("one", [1], "int64"),
        constant("own_first", [16, 0, 0], "int64"),
        constant("own_last", [17, 1, 1], "int64"),
        constant("own_axes", [1, 2, 3], "int64"),
        constant("nothing", [0], dtype),
        constant("half", 0.5, dtype),
    ]
    write_graph(
        path,
        nodes,
        {"visual": [batch, 6, size, size], "audio": [batch, 32, 16, 16]},
        {"drawn": [batch, 3, size, size]},
        constants,
        kind,
    )


def write_other_model(path: Path, inputs: Sequence[Dims], outputs: Sequence[Dims]) -> None:
    """A model with inputs `in0` … and outputs `out0` …, which are copies of the first input."""
    nodes = [helper.make_node("Identity", ["in0"], [f"out{number}"]) for number in range(len(outputs))]
    named = [
        {f"{kind}{number}": shape for number, shape in enumerate(shapes)}
        for kind, shapes in (("in", inputs), ("out", outputs))
    ]
    write_graph(path, nodes, named[0], named[1], [], TensorProto.FLOAT)


def write_graph(
    path: Path, nodes: list[Any], inputs: dict[str, Dims], outputs: dict[str, Dims], constants: list[Any], kind: int
) -> None:
    """Write an ONNX file that ONNX Runtime 1.20 reads too."""

    def describe(values: dict[str, Dims]) -> list[Any]:
        return [helper.make_tensor_value_info(name, kind, list(shape)) for name, shape in values.items()]

    graph = helper.make_graph(nodes, "small", describe(inputs), describe(outputs), constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(model.SerializeToString())
