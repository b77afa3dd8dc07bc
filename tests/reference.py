"""The plain algorithm, written for reading: what every compositor must equal."""

from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from gpupipe.colour import Colour
from gpupipe.geometry import CropLayout, Rect

Pixels = NDArray[np.uint8]


def visual_input(crop: Pixels, layout: CropLayout) -> NDArray[np.float32]:
    """`[6, S, S]`: the roi and the masked roi of a bgr24 crop, divided by 255."""
    roi = crop[layout.roi, layout.roi].copy()
    masked = roi.copy()
    size = layout.model_size
    if size > 15:
        cv2.rectangle(masked, (5, 5, size - 10, size - 15), (0, 0, 0), -1)
    both = np.concatenate([roi, masked], axis=2)
    return np.ascontiguousarray((both.astype(np.float32) / np.float32(255)).transpose(2, 0, 1))


def speech_window(features: NDArray[np.float32], frame: int, fraction: int = 0) -> NDArray[np.float32]:
    """`[32, 16, 16]`: rows frame - 8 … frame + 7, zeros outside; `fraction` / 65536 of the way to those one later."""

    def row(number: int) -> NDArray[np.float32]:
        return features[number] if 0 <= number < len(features) else np.zeros(512, np.float32)

    rows = []
    for number in range(frame - 8, frame + 8):
        later = np.float32(fraction / 65536)
        rows.append((np.float32(1) - later) * row(number) + later * row(number + 1) if fraction else row(number))
    return np.stack(rows).reshape(32, 16, 16)


def placed_crop(prediction: NDArray[Any], crop: Pixels, layout: CropLayout) -> Pixels:
    """The crop with the prediction `[3, S, S]` in it, bgr24."""
    p = np.nan_to_num(prediction.astype(np.float32), nan=0.0, posinf=2.0, neginf=-1.0)
    pixels = np.trunc(np.clip(p, 0, 1) * np.float32(255)).astype(np.uint8)
    placed = crop.copy()
    placed[layout.roi, layout.roi] = pixels.transpose(1, 2, 0)
    return placed


def composite_bgr24(prediction: NDArray[Any], crop: Pixels, body: Pixels, rect: Rect, layout: CropLayout) -> Pixels:
    """Copy crop, place, resize, copy body, paste."""
    patch = resized(prediction, crop, rect, layout)
    frame = body.copy()
    seen = rect.within(frame.shape[1], frame.shape[0])
    frame[seen.y1 : seen.y2, seen.x1 : seen.x2] = inside(patch, rect, seen)
    return frame


def resized(prediction: NDArray[Any], crop: Pixels, rect: Rect, layout: CropLayout) -> Pixels:
    """The placed crop in the rectangle's size."""
    return np.asarray(
        cv2.resize(placed_crop(prediction, crop, layout), (rect.width, rect.height), interpolation=cv2.INTER_LINEAR),
        np.uint8,
    ).reshape(rect.height, rect.width, 3)


def inside(patch: Pixels, rect: Rect, seen: Rect) -> Pixels:
    """The part of a patch that lies in the frame."""
    part: Pixels = patch[seen.y1 - rect.y1 : seen.y2 - rect.y1, seen.x1 - rect.x1 : seen.x2 - rect.x1]
    return part


def ycbcr(bgr: Pixels, colour: Colour) -> Pixels:
    """bgr24 as Y'CbCr 4:4:4, in integers with 14 fractional bits."""
    weights = colour.from_bgr.astype(np.int64)
    sums: NDArray[np.int64] = bgr.astype(np.int64) @ weights[:, :3].T + weights[:, 3]
    return np.asarray(np.minimum(sums >> 14, 255), np.uint8)


def composite_nv12(
    prediction: NDArray[Any], crop: Pixels, body: Pixels, rect: Rect, layout: CropLayout, colour: Colour
) -> Pixels:
    """The same over an nv12 body `[H * 3 // 2, W]`, one 2×2 block after the other."""
    frame = body.copy()
    height, width = body.shape[0] * 2 // 3, body.shape[1]
    seen = rect.within(width, height)
    if seen.empty:
        return frame
    patch = ycbcr(inside(resized(prediction, crop, rect, layout), rect, seen), colour)
    frame[seen.y1 : seen.y2, seen.x1 : seen.x2] = patch[..., 0]
    # Every pixel's chroma: the body's by its block, the patch's where it covers.
    full = body[height:].reshape(height // 2, width // 2, 2).repeat(2, axis=0).repeat(2, axis=1).astype(np.int64)
    full[seen.y1 : seen.y2, seen.x1 : seen.x2] = patch[..., 1:]
    means = (full.reshape(height // 2, 2, width // 2, 2, 2).sum(axis=(1, 3)) + 2) >> 2
    touched = np.zeros((height, width), bool)
    touched[seen.y1 : seen.y2, seen.x1 : seen.x2] = True
    partly = touched.reshape(height // 2, 2, width // 2, 2).max(axis=(1, 3))
    blocks = frame[height:].reshape(height // 2, width // 2, 2)
    blocks[partly] = means[partly].astype(np.uint8)
    return frame
