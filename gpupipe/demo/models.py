"""The demo's ONNX models: the tiny lip-sync model, the stand-in speech encoder, and the full one (`full`)."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gpupipe.demo.full import full_model
from gpupipe.demo.graph import Dtype, Graph, save
from gpupipe.demo.mouth import draw_mouth, patch, speech_weights, tiny_reference
from gpupipe.geometry import SPEECH_SHAPE, SPEECH_WIDTH
from gpupipe.speech.mel import FFT_SIZE, MEL_BANDS, PREEMPHASIS, SAMPLE_RATE, mel_filters
from gpupipe.speech.windows import WINDOW_COLUMNS

__all__ = ["encoder_model", "encoder_reference", "full_model", "save", "tiny_model", "tiny_reference"]

# Row i of a features file is window i - 1, whose first column is int(3.2 * (i - 1)): output frame i, shown from
# i / 25 s on, begins at its column 3.2 ... 4 and ends 3.2 columns later.
_COLUMNS = slice(4, 6)
# A mel value v is 12.5 dB a unit and stands for the magnitude 10 ** ((12.5 * (v + 4) - 80) / 20); squared, that is a
# power, exp(_POWER_SCALE * v + _POWER_OFFSET).
_POWER_SCALE = 12.5 * math.log(10) / 10
_POWER_OFFSET = (12.5 * 4 - 80) * math.log(10) / 10
# Bands above about 2.7 kHz, where hisses are and vowels are weak.
_BRIGHT_BANDS = slice(45, MEL_BANDS)
# Nearly proportional to the amplitude (which would be the power 0.5), so that the mouth follows it closely.
_LOUDNESS_POWER = 0.4
_LOUDNESS_GAIN = 0.78
_LOUDNESS_FLOOR = 0.05
_BRIGHT_FLOOR = 0.02


def tiny_model(size: int, dtype: Dtype = "float32") -> Any:
    """A cheap lip-sync model that opens a drawn mouth with the energy of the speech; see `tiny_reference`.

    Args:
        size: side of the roi in pixels.
        dtype: of its inputs, output and weights.

    Returns:
        `onnx.ModelProto` with inputs `input` `[B, 6, size, size]` and `audio` `[B, 32, 16, 16]` and output `output`
        `[B, 3, size, size]`, B dynamic.

    Raises:
        GpupipeError: the onnx package is not installed.
    """
    area = patch(size)
    graph = Graph("tiny_lip_sync", dtype)
    visual = graph.input("input", ["batch", 6, size, size])
    audio = graph.input("audio", ["batch", *SPEECH_SHAPE])

    means = graph.op("ReduceMean", audio, axes=[2, 3], keepdims=0)
    drive = graph.op("MatMul", means, speech_weights()).clip(0.0, 1.0)
    drive = graph.op("Unsqueeze", drive, np.array([2, 3]))
    roi = graph.op("Max", graph.cut(visual, 1, 0, 3), graph.cut(visual, 1, 3, 6))

    # The patch is cut out, redrawn and joined to what lies around it: the rest of the roi is only copied.
    band = graph.cut(roi, 2, area.top, area.bottom)
    pixels = graph.cut(band, 3, area.left, area.right)
    drawn = draw_mouth(pixels, area.x, area.y, size, graph.cut(drive, 1, 0, 1), graph.cut(drive, 1, 1, 2))
    sides = graph.cut(band, 3, 0, area.left), drawn, graph.cut(band, 3, area.right, size)
    band = graph.op("Concat", *sides, axis=3)
    parts = graph.cut(roi, 2, 0, area.top), band, graph.cut(roi, 2, area.bottom, size)
    return graph.model(graph.op("Concat", *parts, axis=2), "output", ["batch", 3, size, size])


def _band_weights() -> NDArray[np.float32]:
    """What each mel power of a window adds to the sound's power, to the mel power, and to its bright part.

    The sound's power is taken back from the mel power: each band's area normalisation and pre-emphasis undone.

    Returns:
        float32 `[80 * columns, 3]`.
    """
    filters = mel_filters()
    hertz = np.fft.rfftfreq(FFT_SIZE, 1 / SAMPLE_RATE)
    centre = filters @ hertz / filters.sum(axis=1)
    emphasis = np.abs(1 - PREEMPHASIS * np.exp(-2j * np.pi * centre / SAMPLE_RATE)) ** 2
    columns = _COLUMNS.stop - _COLUMNS.start
    weights = np.zeros((MEL_BANDS, columns, 3))
    weights[..., 0] = (2 / filters.max(axis=1) / 100 / emphasis)[:, None]
    weights[..., 1] = 1
    weights[_BRIGHT_BANDS, :, 2] = 1
    return (weights / columns).reshape(-1, 3).astype(np.float32)


def _spread_weights() -> NDArray[np.float32]:
    """Float32 `[2, 512]`: loudness fills the first half of a row, brightness the second, each with a mean of 1."""
    half = SPEECH_WIDTH // 2
    weights = np.zeros((2, SPEECH_WIDTH))
    pattern = np.random.default_rng(1).uniform(0.5, 1.5, SPEECH_WIDTH)
    weights[0, :half] = pattern[:half] / pattern[:half].mean()
    weights[1, half:] = pattern[half:] / pattern[half:].mean()
    return weights.astype(np.float32)


def encoder_model() -> Any:
    """The stand-in speech encoder: loudness and brightness of a mel window, spread over 512 features.

    Returns:
        `onnx.ModelProto` with input `input` float32 `[B, 1, 80, 16]` (a mel window) and output `output` float32
        `[B, 512]` (≥ 0), B dynamic; see `encoder_reference`.

    Raises:
        GpupipeError: the onnx package is not installed.
    """
    graph = Graph("speech_encoder")
    mel = graph.input("input", ["batch", 1, MEL_BANDS, WINDOW_COLUMNS])
    centre = graph.op("Flatten", graph.cut(mel, 3, _COLUMNS.start, _COLUMNS.stop), axis=1)
    power = graph.op("MatMul", graph.op("Exp", centre * _POWER_SCALE + _POWER_OFFSET), _band_weights())
    loud, total, bright = (graph.cut(power, 1, column, column + 1) for column in range(3))
    loudness = graph.op("Pow", loud, _LOUDNESS_POWER) * _LOUDNESS_GAIN - _LOUDNESS_FLOOR
    both = graph.op("Concat", loudness, bright / (total + _BRIGHT_FLOOR), axis=1)
    return graph.model(graph.op("Relu", graph.op("MatMul", both, _spread_weights())), "output", ["batch", SPEECH_WIDTH])


def encoder_reference(windows: NDArray[np.float32]) -> NDArray[np.float32]:
    """What the stand-in speech encoder answers, computed with NumPy in float32.

    Args:
        windows: float32 `[n, 1, 80, 16]`, mel windows.

    Returns:
        float32 `[n, 512]`, ≥ 0: loudness in the first half of a row, brightness in the second.
    """
    centre = windows[..., _COLUMNS].reshape(len(windows), -1).astype(np.float32)
    power = np.exp(centre * np.float32(_POWER_SCALE) + np.float32(_POWER_OFFSET)) @ _band_weights()
    loud, total, bright = power[:, :1], power[:, 1:2], power[:, 2:]
    loudness = np.power(loud, np.float32(_LOUDNESS_POWER)) * np.float32(_LOUDNESS_GAIN) - np.float32(_LOUDNESS_FLOOR)
    both = np.concatenate([loudness, bright / (total + np.float32(_BRIGHT_FLOOR))], axis=1)
    features: NDArray[np.float32] = np.maximum(both @ _spread_weights(), 0)
    return features
