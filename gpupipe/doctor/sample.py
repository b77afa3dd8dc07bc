"""What the self-test renders where no character is given: a small character of noise, and a model made of bytes.

The model needs no `onnx` package, which only the demo has: an ONNX file is Protocol Buffers, and the few messages that
it takes are written here by hand (field numbers: https://github.com/onnx/onnx/blob/main/onnx/onnx.proto).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from gpupipe.character.folder import BODY, CROPS, FEATURES, RECTANGLES
from gpupipe.geometry import SPEECH_SHAPE, SPEECH_WIDTH, CropLayout
from gpupipe.media.encode import VideoWriter

SIZE: Final = 96
"""Side of the model's images, pixels."""
FRAMES: Final = 12
BODY_SIZE: Final = (480, 272)
CHANNELS: Final = 24

_FLOAT, _FLOAT16 = 1, 10
_INT, _INTS = 2, 7

IR_VERSION, OPSET = 8, 17


def write_character(
    folder: Path, *, seed: int = 0, model_size: int = SIZE, body_size: tuple[int, int] = BODY_SIZE, frames: int = FRAMES
) -> Path:
    """Write a character of noise, without a model, in a new folder; the folder.

    Args:
        folder: where.
        seed: of the noise.
        model_size: side of the images of its model.
        body_size: width and height, even.
        frames: of its videos; its speech lasts twice as long.
    """
    rng = np.random.default_rng(seed)
    layout, (width, height) = CropLayout(model_size), body_size
    least, most, outside = (height * pixels // BODY_SIZE[1] for pixels in (40, 150, 20))
    (folder / RECTANGLES).parent.mkdir(parents=True)
    _write_video(folder / BODY, rng, width, height, frames)
    _write_video(folder / CROPS, rng, layout.crop_size, layout.crop_size, frames)
    rects = {}
    for frame in range(frames):
        x, y = rng.integers(-outside, (width - 3 * outside, height - 3 * outside))  # some lie partly outside
        x2, y2 = x + rng.integers(least, most), y + rng.integers(least, most)
        rects[str(frame)] = {"rect": [int(x), int(y), int(x2), int(y2)]}
    (folder / RECTANGLES).write_text(json.dumps(rects), "utf-8")
    np.save(folder / FEATURES, rng.standard_normal((2 * frames, SPEECH_WIDTH)).astype(np.float32))
    return folder


def _write_video(path: Path, rng: np.random.Generator, width: int, height: int, frames: int) -> None:
    with VideoWriter(path, width=width, height=height, fps=Fraction(25), pixel_format="bgr24") as writer:
        for _ in range(frames):
            blocks = rng.integers(0, 256, (-(-height // 8), -(-width // 8), 3), np.uint8)
            writer.write(np.ascontiguousarray(blocks.repeat(8, axis=0).repeat(8, axis=1)[:height, :width]))


def model_bytes(size: int, seed: int, *, half: bool = False) -> bytes:
    """A lip-sync model with random weights: convolutions down and up again, one skip, a Concat; an ONNX file.

    Args:
        size: side of its images, even.
        seed: of its weights; the graph is always the same.
        half: float16 instead of float32.

    Returns:
        A model with inputs `visual` `[B, 6, S, S]` and `audio` `[B, 32, 16, 16]`, and output `prediction`
        `[B, 3, S, S]`, 0 to 1, B open.
    """
    kind, dtype = (_FLOAT16, np.float16) if half else (_FLOAT, np.float32)
    rng = np.random.default_rng(seed)

    def weights(name: str, *shape: int, scale: float = 1.0) -> bytes:
        deviation = scale * np.sqrt(2 / np.prod(shape[1:]))
        return _tensor(name, (deviation * rng.standard_normal(shape)).astype(dtype), kind)

    middle, speech = CHANNELS, SPEECH_SHAPE[0]
    tensors = (
        weights("w_in", middle, 6, 3, 3),
        weights("w_down", middle, middle, 3, 3),
        weights("w_speech", middle, speech, 1, 1),
        weights("w_up", middle, middle, 2, 2),
        weights("w_out", 3, 2 * middle, 3, 3, scale=4),
    )
    around = _ints("pads", [1, 1, 1, 1])
    nodes = (
        _node("Conv", ["visual", "w_in"], "edges", around),
        _node("Relu", ["edges"], "skip"),
        _node("Conv", ["skip", "w_down"], "halved", around, _ints("strides", [2, 2])),
        _node("Relu", ["halved"], "seen"),
        _node("ReduceMean", ["audio"], "mean", _ints("axes", [2, 3])),
        _node("Conv", ["mean", "w_speech"], "heard"),
        _node("Add", ["seen", "heard"], "both"),
        _node("ConvTranspose", ["both", "w_up"], "grown", _ints("strides", [2, 2])),
        _node("Concat", ["grown", "skip"], "joined", _integer("axis", 1)),
        _node("Conv", ["joined", "w_out"], "drawn", around),
        _node("Sigmoid", ["drawn"], "prediction"),
    )
    graph = b"".join(
        (
            *(_bytes(1, node) for node in nodes),
            _text(2, "selftest"),
            *(_bytes(5, tensor) for tensor in tensors),
            _bytes(11, _value("visual", kind, (6, size, size))),
            _bytes(11, _value("audio", kind, SPEECH_SHAPE)),
            _bytes(12, _value("prediction", kind, (3, size, size))),
        )
    )
    opset = _text(1, "") + _varint(2, OPSET)
    return _varint(1, IR_VERSION) + _text(2, "gpupipe") + _bytes(7, graph) + _bytes(8, opset)


def _node(kind: str, inputs: Sequence[str], output: str, *attributes: bytes) -> bytes:
    told = b"".join(_text(1, name) for name in inputs) + _text(2, output) + _text(3, output) + _text(4, kind)
    return told + b"".join(_bytes(5, attribute) for attribute in attributes)


def _ints(name: str, values: Sequence[int]) -> bytes:
    return _text(1, name) + b"".join(_varint(8, value) for value in values) + _varint(20, _INTS)


def _integer(name: str, value: int) -> bytes:
    return _text(1, name) + _varint(3, value) + _varint(20, _INT)


def _tensor(name: str, values: NDArray[Any], kind: int) -> bytes:
    dims = b"".join(_varint(1, side) for side in values.shape)
    return dims + _varint(2, kind) + _text(8, name) + _bytes(9, values.astype(values.dtype.newbyteorder("<")).tobytes())


def _value(name: str, kind: int, shape: Sequence[int]) -> bytes:
    sides = b"".join(_bytes(1, _varint(1, side)) for side in shape)
    dims = _bytes(1, _text(2, "batch")) + sides
    return _text(1, name) + _bytes(2, _bytes(1, _varint(1, kind) + _bytes(2, dims)))


def _number(value: int) -> bytes:
    """A whole number in groups of 7 bits, the lowest first."""
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes((*out, value))


def _varint(field: int, value: int) -> bytes:
    return _number(field << 3) + _number(value)


def _bytes(field: int, value: bytes) -> bytes:
    return _number(field << 3 | 2) + _number(len(value)) + value


def _text(field: int, value: str) -> bytes:
    return _bytes(field, value.encode("utf-8"))
