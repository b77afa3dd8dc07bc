"""The mouth of the demo: how speech opens it and what it looks like, as plain arithmetic.

The same lines are run by NumPy (`tiny_reference`) and recorded as ONNX nodes (`models.tiny_model`), so every pixel
of a demo render can be predicted. Only +, -, *, / and clip are used: nothing that rounds differently on a GPU by more
than the last bits.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from gpupipe.geometry import SPEECH_BEFORE, SPEECH_ROWS

MOUTH_X, MOUTH_Y = 0.5, 0.335
"""Centre of the mouth, as a share of the roi's side: where the drawn head has it, and filmed ones nearly."""

_HALF_WIDTH, _HALF_HEIGHT = 0.21, 0.165
"""Reach of the redrawn patch from the centre of the mouth, as a share of the roi's side."""


class Patch(NamedTuple):
    """The part of a roi that the tiny model redraws, in roi pixels, and its pixels' coordinates.

    `x` float32 `[1, 1, 1, width]` and `y` float32 `[1, 1, height, 1]` are relative to the centre of the mouth, in
    sides of the roi.
    """

    top: int
    bottom: int
    left: int
    right: int
    x: NDArray[np.float32]
    y: NDArray[np.float32]


def patch(size: int) -> Patch:
    """The patch in a roi of `size` pixels."""
    left, right = round((MOUTH_X - _HALF_WIDTH) * size), round((MOUTH_X + _HALF_WIDTH) * size)
    top, bottom = round((MOUTH_Y - _HALF_HEIGHT) * size), round((MOUTH_Y + _HALF_HEIGHT) * size)
    x = (np.arange(left, right) + 0.5) / size - MOUTH_X
    y = (np.arange(top, bottom) + 0.5) / size - MOUTH_Y
    return Patch(
        top, bottom, left, right, x.astype(np.float32)[None, None, None, :], y.astype(np.float32)[None, None, :, None]
    )


def speech_weights() -> NDArray[np.float32]:
    """What the mean of each of the 32 speech channels adds to the mouth's opening and to its spread.

    A row of features is two channels: the first says how loud the speech is, the second how bright. The frame's own
    row leads; its neighbours smooth the movement, and all others count a little, so that a wrong window shows.

    Returns:
        float32 `[32, 2]`.
    """
    rows = np.full(SPEECH_ROWS, 0.06 / (SPEECH_ROWS - 3))
    rows[SPEECH_BEFORE - 1 : SPEECH_BEFORE + 2] = 0.09, 0.76, 0.09
    weights = np.zeros((SPEECH_ROWS, 2, 2))
    weights[:, 0, 0] = weights[:, 1, 1] = rows
    return weights.reshape(2 * SPEECH_ROWS, 2).astype(np.float32)


def _colour(blue: float, green: float, red: float) -> NDArray[np.float32]:
    return np.array([blue, green, red], np.float32)[None, :, None, None]


_UPPER_LIP = _colour(0.34, 0.37, 0.65)
_LOWER_LIP = _colour(0.40, 0.45, 0.75)
_CAVITY = _colour(0.07, 0.05, 0.16)
_TONGUE = _colour(0.31, 0.29, 0.60)
_TEETH = _colour(0.80, 0.86, 0.88)


def draw_mouth(pixels: Any, x: Any, y: Any, size: int, opening: Any, spread: Any) -> Any:
    """Draw lips and, behind them, the inside of the mouth.

    Arguments are NumPy arrays or graph values alike.

    Args:
        pixels: BGR planes `[B, 3, height, width]`, 0 … 1.
        x, y: coordinates, as in `Patch`.
        size: side of the roi in pixels, which says how soft an edge is.
        opening: `[B, 1, 1, 1]`, 0 (closed) … 1.
        spread: `[B, 1, 1, 1]`, 0 (an o) … 1 (an s).

    Returns:
        `pixels` with the mouth drawn over it.
    """
    edge = size / 2.2
    soft = size / 6.0
    width = 0.163 + 0.016 * spread - 0.024 * opening
    across = x / width
    arch = (1.0 - across * across).clip(0.0, 1.0)
    # A steeper arch than the parabola gives full lips that still meet at the corners.
    full = arch * (1.5 - 0.5 * arch)
    middle = x * x * (-0.5 - 0.25 * opening)
    upper = middle - 0.016 * opening * full
    lower = middle + (0.006 + 0.072 * opening) * full
    bow = 1.0 - 0.22 * (1.0 - x * x * 1800.0).clip(0.0, 1.0)
    outer_top = upper - 0.036 * full * bow
    outer_bottom = lower + (0.047 - 0.008 * opening) * full
    corners = (arch * 5.0).clip(0.0, 1.0)

    # Skin: the lower lip's shadow on the chin.
    below = y - outer_bottom
    shade = (below * 30.0 + 0.6).clip(0.0, 1.0) * (1.0 - below * 24.0).clip(0.0, 1.0) * arch
    pixels = pixels * (1.0 - (0.14 + 0.16 * opening) * shade)

    # Lips: the upper one lies in its own shade, the lower one catches the light.
    upper_light = 1.0 - 0.26 * ((y - outer_top) * 26.0).clip(0.0, 1.0)
    round_lip = (y - lower) * 30.0 - 0.5
    light = 1.08 - 0.9 * round_lip * round_lip
    gloss = (1.0 - 9.0 * (round_lip + 0.12) * (round_lip + 0.12)).clip(0.0, 1.0) * (arch - 0.45).clip(0.0, 1.0)
    is_lower = ((y - lower) * edge + 0.5).clip(0.0, 1.0)
    lip = _UPPER_LIP * upper_light * (1.0 - is_lower) + (_LOWER_LIP * light.clip(0.62, 1.1) + 0.28 * gloss) * is_lower
    covered = ((y - outer_top) * soft + 0.5).clip(0.0, 1.0) * ((outer_bottom - y) * soft + 0.5).clip(0.0, 1.0)
    covered = covered * corners * 0.93
    pixels = pixels + covered * (lip - pixels)

    # The inside: the upper teeth hang from the upper lip, the tongue lies behind the lower one.
    depth = y - upper
    teeth = ((0.021 * full * (opening * 3.0).clip(0.0, 1.0) - depth) * edge + 0.5).clip(0.0, 1.0)
    teeth = teeth * ((1.0 - across * across * 1.5) * 3.0).clip(0.0, 1.0) * (0.62 + depth * 14.0).clip(0.0, 1.0)
    tongue = (1.0 - (lower - y) * 26.0 - across * across * 1.6).clip(0.0, 1.0) * (opening * 1.6 - 0.25).clip(0.0, 0.8)
    inside = _CAVITY + tongue * (_TONGUE - _CAVITY)
    inside = inside + teeth * (_TEETH - inside)
    hole = (depth * edge + 0.5).clip(0.0, 1.0) * ((lower - y) * edge + 0.5).clip(0.0, 1.0)
    hole = hole * corners * (0.72 + 1.4 * opening).clip(0.0, 1.0)
    return (pixels + hole * (inside - pixels)).clip(0.0, 1.0)


def tiny_reference(visual: NDArray[np.float32], audio: NDArray[np.float32]) -> NDArray[np.float32]:
    """What the tiny demo model answers, computed with NumPy in float32.

    The roi (where it is not brighter in the masked planes, which never happens for well-made inputs) with a mouth drawn
    at a fixed place, opened by the loudness of the speech and widened by its brightness (`speech_weights`).

    Args:
        visual: float32 `[B, 6, S, S]`, roi and masked roi as BGR planes, 0 … 1.
        audio: float32 `[B, 32, 16, 16]`, the windows of speech features.

    Returns:
        float32 `[B, 3, S, S]`, BGR planes, 0 … 1; within 1e-5 of the float32 model in ONNX Runtime.
    """
    size = visual.shape[-1]
    area = patch(size)
    drive = (audio.mean(axis=(2, 3), dtype=np.float32) @ speech_weights()).clip(0.0, 1.0)[:, :, None, None]
    result: NDArray[np.float32] = np.maximum(visual[:, :3], visual[:, 3:])
    rows, columns = slice(area.top, area.bottom), slice(area.left, area.right)
    result[:, :, rows, columns] = draw_mouth(
        result[:, :, rows, columns], area.x, area.y, size, drive[:, :1], drive[:, 1:]
    )
    return result
