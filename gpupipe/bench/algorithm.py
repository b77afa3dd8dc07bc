"""The plain algorithm for one frame, in NumPy and OpenCV: what the plain ways run, and what every way must equal.

The models of these families end in a sigmoid, so that the plain ways have nothing to clip, and do not; `in_range` clips
what a frame is to be compared with.
"""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from gpupipe.colour import FRACTION_BITS, Colour
from gpupipe.geometry import SPEECH_BEFORE, SPEECH_ROWS, SPEECH_SHAPE, SPEECH_STEPS, SPEECH_WIDTH, CropLayout, Rect

Pixels = NDArray[np.uint8]
Floats = NDArray[np.float32]


def visual_input(crop: Pixels, layout: CropLayout) -> Floats:
    """`[6, S, S]` of a bgr24 crop `[C, C, 3]`: copy the roi, mask a copy of it, put both together, divide by 255."""
    roi = crop[layout.roi, layout.roi].copy()
    masked = roi.copy()
    mask = layout.mask
    if not mask.empty:
        cv2.rectangle(masked, (mask.x1, mask.y1, mask.width, mask.height), (0, 0, 0), -1)
    both = np.concatenate([roi, masked], axis=2).transpose(2, 0, 1)
    return np.ascontiguousarray(both.astype(np.float32) / np.float32(255))


def speech_window(features: Floats, row: int, fraction: int) -> Floats:
    """`[32, 16, 16]` of features `[N, 512]` at a position that `geometry.speech_position` gives.

    Rows row - 8 … row + 7, zeros outside; where `fraction` is not 0, so many 65536ths of the way to the rows after
    them.
    """
    rows = np.zeros((SPEECH_ROWS + 1, SPEECH_WIDTH), np.float32)
    for place in range(SPEECH_ROWS + 1):
        if 0 <= row - SPEECH_BEFORE + place < len(features):
            rows[place] = features[row - SPEECH_BEFORE + place]
    window = rows[:-1]
    if fraction:
        later = np.float32(fraction / SPEECH_STEPS)
        window = (np.float32(1) - later) * window + later * rows[1:]
    return window.reshape(SPEECH_SHAPE)


def in_range(prediction: NDArray[Any]) -> Floats:
    """A prediction as it is drawn: float32, 0 to 1, 0 for NaN."""
    return np.clip(np.nan_to_num(prediction.astype(np.float32), nan=0.0, posinf=1.0, neginf=0.0), 0, 1)


def composite_bgr24(prediction: Floats, crop: Pixels, body: Pixels, rect: Rect, layout: CropLayout) -> Pixels:
    """`[H, W, 3]` of a prediction `[3, S, S]` from 0 to 1: copy crop, place, resize, copy body, paste."""
    frame = body.copy()
    patch, seen = resized(_placed(prediction, crop, layout), rect, body.shape[1], body.shape[0])
    frame[seen.y1 : seen.y2, seen.x1 : seen.x2] = patch
    return frame


def composite_nv12(
    prediction: Floats, crop: Pixels, body: Pixels, rect: Rect, layout: CropLayout, colour: Colour
) -> Pixels:
    """The same over an nv12 body `[H * 3 // 2, W]`.

    The patch is converted pixel by pixel. A 2×2 block of chroma is the rounded mean of its four pixels: the patch's
    where it covers, the body's elsewhere.
    """
    frame = body.copy()
    height, width = body.shape[0] * 2 // 3, body.shape[1]
    bgr, seen = resized(_placed(prediction, crop, layout), rect, width, height)
    weights = colour.from_bgr.astype(np.int64)
    patch = np.minimum((bgr.astype(np.int64) @ weights[:, :3].T + weights[:, 3]) >> FRACTION_BITS, 255)
    frame[seen.y1 : seen.y2, seen.x1 : seen.x2] = patch[..., 0]
    left, top, right, bottom = seen.x1 // 2, seen.y1 // 2, (seen.x2 + 1) // 2, (seen.y2 + 1) // 2
    blocks = frame[height:].reshape(height // 2, width // 2, 2)[top:bottom, left:right]
    pixels = blocks.repeat(2, axis=0).repeat(2, axis=1).astype(np.int64)
    pixels[seen.y1 - 2 * top : seen.y2 - 2 * top, seen.x1 - 2 * left : seen.x2 - 2 * left] = patch[..., 1:]
    blocks[...] = (pixels.reshape(bottom - top, 2, right - left, 2, 2).sum(axis=(1, 3)) + 2) >> 2
    return frame


def resized(placed: Pixels, rect: Rect, width: int, height: int) -> tuple[Pixels, Rect]:
    """A crop in the rectangle's size, cut to a frame of `width` × `height`, and the part of the frame it covers."""
    seen = rect.within(width, height)
    patch = cv2.resize(placed, (rect.width, rect.height), interpolation=cv2.INTER_LINEAR)
    inside = np.s_[seen.y1 - rect.y1 : seen.y2 - rect.y1, seen.x1 - rect.x1 : seen.x2 - rect.x1]
    return np.asarray(patch[inside], np.uint8), seen


def _placed(prediction: Floats, crop: Pixels, layout: CropLayout) -> Pixels:
    """The crop with the prediction in it, bgr24."""
    placed = crop.copy()
    placed[layout.roi, layout.roi] = (prediction.transpose(1, 2, 0) * np.float32(255)).astype(np.uint8)
    return placed
