"""The plain algorithm, written for reading, in NumPy and OpenCV: what every way that is timed must equal."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from gpupipe.colour import FRACTION_BITS, Colour
from gpupipe.geometry import SPEECH_BEFORE, SPEECH_ROWS, SPEECH_SHAPE, SPEECH_WIDTH, CropLayout, Rect

Pixels = NDArray[np.uint8]


def visual_input(crop: Pixels, layout: CropLayout) -> NDArray[np.float32]:
    """`[6, S, S]`: the roi and the masked roi of a bgr24 crop, divided by 255."""
    roi = crop[layout.roi, layout.roi]
    masked = roi.copy()
    masked[layout.mask.y1 : layout.mask.y2, layout.mask.x1 : layout.mask.x2] = 0
    both = np.concatenate([roi, masked], axis=2).transpose(2, 0, 1)
    return np.ascontiguousarray(both.astype(np.float32) / np.float32(255))


def speech_window(features: NDArray[np.float32], frame: int) -> NDArray[np.float32]:
    """`[32, 16, 16]`: rows frame - 8 … frame + 7, zeros outside."""
    first = frame - SPEECH_BEFORE
    window = np.zeros((SPEECH_ROWS, SPEECH_WIDTH), np.float32)
    for row in range(SPEECH_ROWS):
        if 0 <= first + row < len(features):
            window[row] = features[first + row]
    return window.reshape(SPEECH_SHAPE)


def composite_bgr24(prediction: NDArray[Any], crop: Pixels, body: Pixels, rect: Rect, layout: CropLayout) -> Pixels:
    """`[H, W, 3]`: copy crop, place `u8(trunc(clip(p, 0, 1)·255))`, resize, copy body, paste."""
    frame = body.copy()
    seen = rect.within(frame.shape[1], frame.shape[0])
    frame[seen.y1 : seen.y2, seen.x1 : seen.x2] = _patch(prediction, crop, rect, seen, layout)
    return frame


def composite_nv12(
    prediction: NDArray[Any], crop: Pixels, body: Pixels, rect: Rect, layout: CropLayout, colour: Colour
) -> Pixels:
    """The same over an nv12 body `[H * 3 // 2, W]`.

    The patch is converted pixel by pixel. A 2×2 block of chroma is the rounded mean of its four pixels: the patch's
    where it covers, the body's elsewhere.
    """
    frame = body.copy()
    height, width = body.shape[0] * 2 // 3, body.shape[1]
    seen = rect.within(width, height)
    weights = colour.from_bgr.astype(np.int64)
    bgr = _patch(prediction, crop, rect, seen, layout).astype(np.int64)
    patch = np.minimum((bgr @ weights[:, :3].T + weights[:, 3]) >> FRACTION_BITS, 255)
    frame[seen.y1 : seen.y2, seen.x1 : seen.x2] = patch[..., 0]
    left, top, right, bottom = seen.x1 // 2, seen.y1 // 2, (seen.x2 + 1) // 2, (seen.y2 + 1) // 2
    blocks = frame[height:].reshape(height // 2, width // 2, 2)[top:bottom, left:right]
    pixels = blocks.repeat(2, axis=0).repeat(2, axis=1).astype(np.int64)
    pixels[seen.y1 - 2 * top : seen.y2 - 2 * top, seen.x1 - 2 * left : seen.x2 - 2 * left] = patch[..., 1:]
    blocks[...] = (pixels.reshape(bottom - top, 2, right - left, 2, 2).sum(axis=(1, 3)) + 2) >> 2
    return frame


def _patch(prediction: NDArray[Any], crop: Pixels, rect: Rect, seen: Rect, layout: CropLayout) -> Pixels:
    """The part of the resized crop that lies in the frame, bgr24."""
    drawn = np.nan_to_num(prediction.astype(np.float32), nan=0.0, posinf=1.0, neginf=0.0)
    placed = crop.copy()
    placed[layout.roi, layout.roi] = np.trunc(np.clip(drawn, 0, 1) * np.float32(255)).transpose(1, 2, 0)
    resized = cv2.resize(placed, (rect.width, rect.height), interpolation=cv2.INTER_LINEAR)
    inside = np.s_[seen.y1 - rect.y1 : seen.y2 - rect.y1, seen.x1 - rect.x1 : seen.x2 - rect.x1]
    return np.asarray(resized[inside], np.uint8)
