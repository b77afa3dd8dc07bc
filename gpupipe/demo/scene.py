"""What surrounds the demo's head: neck and shoulders in a pullover, and the room behind, out of focus.

Lengths are in points, as in `head`: the origin is the centre of the mouth when the head is at rest.
"""

from __future__ import annotations

import cv2
import numpy as np

from gpupipe.demo.paint import Picture, Plane, blur, curve, hill, light, mix, noise, over, points, premultiplied, step

LEFT, TOP, RIGHT, BOTTOM = -330.0, -20.0, 330.0, 480.0
"""What the torso's layer covers, in points."""

_SKIN = np.array([0.50, 0.60, 0.81], np.float32)
_WOOL = np.array([0.33, 0.25, 0.12], np.float32)
_WALL = np.array([0.60, 0.68, 0.72], np.float32)
_WOOD = np.array([0.20, 0.34, 0.52], np.float32)


def draw_torso(seed: int) -> Picture:
    """Neck, collar and shoulders.

    Args:
        seed: of the wool's texture.

    Returns:
        A layer that covers `LEFT` … `RIGHT` and `TOP` … `BOTTOM`.
    """
    random = np.random.default_rng(seed)
    x, y = points(LEFT, TOP, RIGHT, BOTTOM)
    side = np.abs(x)

    neck_half = curve(y, ((-20, 55), (30, 54), (70, 54), (100, 60), (125, 78), (150, 105)), 8)
    z = 52 * np.sqrt(np.clip(1 - (x / (neck_half + 4)) ** 2, 0, 1))
    for sign in (-1, 1):
        # The two muscles that run from behind the ears to the breastbone.
        z += 4.0 * np.exp(-(((sign * x - curve(y, ((0, 46), (60, 36), (120, 12)), 8)) / 9.0) ** 2)) * step(140 - y, 30)
    z -= 5.0 * hill(x, y, (0, 128), (9, 10))
    skin: Picture = np.broadcast_to(_SKIN, (*x.shape, 3)).astype(np.float32)
    skin = skin * (1 + 0.014 * noise(random, x.shape, 2.5) + 0.014 * noise(random, x.shape, 40.0))[..., None]
    neck = light(blur(z.astype(np.float32), 1.5), skin * 0.94, wrap=0.25, gloss=0.03)
    neck = premultiplied(neck, step(neck_half - side, 0.8))

    slope = curve(side, ((0, 84), (58, 88), (90, 112), (150, 136), (205, 158), (245, 190), (268, 240), (285, 330),
                         (300, 480)), 9)  # fmt: skip
    collar = 148 - 1.02e-2 * x * x - np.maximum(0, side - 52) * 1.2
    front = step(y - slope, 0.8) * step(y - collar, 0.8)
    depth = np.clip(y - slope, 0, 150)
    z = 95 * (1 - np.exp(-depth / 38)) + 30 * np.sqrt(np.clip(1 - (x / 330) ** 2, 0, 1))
    z += 7 * np.exp(-(((y - collar - 7) / 7.5) ** 2))  # the ribbed collar
    arm = side - curve(y, ((150, 262), (260, 212), (480, 196)), 12)
    z -= 9 * np.exp(-((arm / 9) ** 2)) * step(y - 235, 40)
    folds = noise(random, x.shape, (90.0, 260.0)) + 0.6 * noise(random, x.shape, (50.0, 120.0))
    z += 2.2 * folds * step(y - collar - 30, 30)
    # Knitting: rows of small stitches, seen as fine ribs.
    ribs = np.sin(x * 2.1 + 0.8 * folds) * (0.5 + 0.5 * np.sin(y * 2.4 + np.sin(x * 1.05) * 1.2))
    z = blur(z.astype(np.float32), 1.0) + 0.10 * ribs.astype(np.float32)
    wool: Picture = np.broadcast_to(_WOOL, (*x.shape, 3)) * (1 + 0.05 * noise(random, x.shape, 2.0))[..., None]
    wool = light(z.astype(np.float32), wool.astype(np.float32), wrap=0.1)
    wool = wool * (1 - 0.45 * np.exp(-(((y - collar - 17) / 3.0) ** 2)) * step(110 - side, 30))[..., None]
    cloth = premultiplied(wool, front)
    # The collar's shadow on the neck.
    near = np.exp(-np.clip(collar - y, 0, 60) / 5.0) * (1 - front) * neck[..., 3]
    neck[..., :3] *= (1 - 0.45 * near)[..., None]
    return over(cloth, neck)


def _box(room: Picture, area: tuple[float, float, float, float], colour: Plane, *, belly: bool = False) -> None:
    """A thing on a shelf, lit from the left: a box, or a vase with a belly; drawn in place.

    Args:
        room: at one pixel a point.
        area: left, top, right and bottom, in points.
        colour: `[3]`.
        belly: whether it is round.
    """
    left, top, right, bottom = area
    rows = slice(max(0, int(top) - 3), max(0, int(bottom) + 4))
    columns = slice(max(0, int(left) - 3), max(0, int(right) + 4))
    part = room[rows, columns]
    if not part.size:
        return
    y, x = (
        p + 0.5 for p in np.mgrid[rows.start : rows.start + len(part), columns.start : columns.start + part.shape[1]]
    )
    across = np.clip((x - left) / (right - left), 0, 1)
    inside = step(y - top, 0.7) * step(bottom - y, 0.7)
    if belly:
        half = (right - left) * (0.25 + 0.24 * np.sin((bottom - y) / (bottom - top) * 2.6 + 0.3))
        inside = inside * step(half - np.abs(x - (left + right) / 2), 1)
        shade = 1.1 - 2.0 * (across - 0.25) ** 2
    else:
        inside = inside * step(x - left, 0.7) * step(right - x, 0.7)
        shade = 1.12 - 0.5 * across**1.5
    part[...] = mix(part, colour * np.clip(shade, 0.3, 1.2)[..., None], inside)


def draw_room(width: float, height: float, seed: int) -> Picture:
    """A wall with light from a window, and shelves with books and vases, out of focus.

    Args:
        width, height: what it covers, in points, from the left and upper edge of the picture.
        seed: of the things on the shelves.

    Returns:
        float32 `[rows, columns, 3]` at one pixel a point.
    """
    random = np.random.default_rng(seed)
    columns, rows = round(width), round(height)
    x, y = (p.astype(np.float32) + 0.5 for p in np.meshgrid(np.arange(columns), np.arange(rows)))
    glow = hill(x, y, (width * 0.16, height * 0.25), (width * 0.42, height * 0.85))
    room: Picture = _WALL * (0.66 + 0.46 * glow)[..., None]
    room = mix(room, (0.50, 0.45, 0.40), 0.45 * np.clip((x / width - 0.45) / 0.7, 0, 1))
    room = room * (1 + 0.018 * noise(random, x.shape, (5.0, 40.0)) + 0.02 * noise(random, x.shape, 90.0))[..., None]
    # A window pane's light on the wall.
    slant = x + 0.35 * y
    for start in (0.12, 0.235):
        beam = step(slant - start * width, 6) * step((start + 0.10) * width - slant, 6)
        room = mix(room, room * 1.22, beam * step(y - 0.10 * height, 8) * step(0.56 * height - y, 8))

    for left, right, level in ((0.62, 0.98, 0.30), (0.68, 1.1, 0.60), (-0.1, 0.27, 0.66)):
        at = left * width + 12
        board = level * height
        while at < min(right * width - 30, width):
            wide = random.uniform(13, 30)
            if random.uniform() < 0.72:
                tall = random.uniform(58, 108)
                hue = random.uniform(0, 1)
                colour = np.array([0.22 + 0.4 * hue, 0.30 + 0.2 * random.uniform(), 0.66 - 0.42 * hue])
                colour = colour * random.uniform(0.55, 1.15)
                _box(room, (at, board - tall, at + wide, board), colour)
                _box(room, (at, board - tall * 0.8, at + wide, board - tall * 0.74), np.minimum(colour * 1.7, 0.9))
            else:
                wide = random.uniform(44, 64)
                tall = random.uniform(60, 92)
                _box(room, (at, board - tall, at + wide, board), np.array([0.42, 0.52, 0.56]), belly=True)
            at += wide + random.uniform(1, 9) + (40 if random.uniform() < 0.16 else 0)
        under = step(x - left * width, 2) * step(right * width - x, 2)
        room = room * (1 - 0.35 * np.exp(-np.clip(y - board - 10, 0, 200) / 26) * step(y - board, 1) * under)[..., None]
        grain = 1 + 0.10 * noise(random, x.shape, (60.0, 3.0))
        room = mix(room, _WOOD * grain[..., None], under * step(y - board, 0.7) * step(board + 13 - y, 0.7))

    room = cv2.GaussianBlur(room.astype(np.float32), (0, 0), 4.2)
    vignette = 1 - 0.30 * (((x / width - 0.5) / 0.72) ** 2 + ((y / height - 0.45) / 0.9) ** 2)
    grain = 1 + 0.011 * noise(random, x.shape, 1.6)
    return np.clip(room * (vignette * grain)[..., None], 0, 1).astype(np.float32)
