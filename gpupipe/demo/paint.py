"""Brushes for the demo's picture: soft shapes, noise, light on a height field, and laying one layer over another."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

Plane = NDArray[Any]
"""Floats `[height, width]`."""
Picture = NDArray[Any]
"""Floats `[height, width, 3 or 4]`, 0 … 1: blue, green, red and, in a layer, alpha; a layer's colours are multiplied
with its alpha already."""

SCALE = 2.0
"""Layer pixels a point (a pixel of a 720 line picture): layers are drawn larger than they are shown, which smooths
edges and keeps moved layers sharp."""

_KEY = np.array([-0.52, -0.50, 0.69], np.float32)
_KEY_COLOUR = np.array([0.74, 0.83, 0.92], np.float32)
_FILL = np.array([0.82, -0.05, 0.57], np.float32)
_FILL_COLOUR = np.array([0.30, 0.24, 0.19], np.float32)
_AMBIENT = np.array([0.29, 0.26, 0.25], np.float32)


def points(left: float, top: float, right: float, bottom: float) -> tuple[Plane, Plane]:
    """The x and y, in points, of the pixels of a layer that covers a rectangle given in points."""
    width, height = round((right - left) * SCALE), round((bottom - top) * SCALE)
    x = (np.arange(width, dtype=np.float32) + 0.5) / SCALE + left
    y = (np.arange(height, dtype=np.float32) + 0.5) / SCALE + top
    return np.broadcast_to(x, (height, width)), np.broadcast_to(y[:, None], (height, width))


def hill(x: Plane, y: Plane, at: tuple[float, float], spread: tuple[float, float]) -> Plane:
    """A Gaussian hill of height 1."""
    result: Plane = np.exp(-(((x - at[0]) / spread[0]) ** 2 + ((y - at[1]) / spread[1]) ** 2))
    return result


def step(value: Plane, soft: float) -> Plane:
    """0 where `value` is negative, 1 where it is positive, with a smooth change over ± `soft`."""
    t = np.clip(value / (2 * soft) + 0.5, 0, 1)
    return np.asarray(t * t * (3 - 2 * t))


def ellipse(x: Plane, y: Plane, at: tuple[float, float], radii: tuple[float, float], soft: float = 0.6) -> Plane:
    """A filled ellipse with an edge of about ± `soft` points."""
    radius = np.sqrt(((x - at[0]) / radii[0]) ** 2 + ((y - at[1]) / radii[1]) ** 2)
    return step((1 - radius) * min(radii), soft)


def curve(at: Plane, knots: Sequence[tuple[float, float]], smooth: float = 6.0) -> Plane:
    """A smooth function through (nearly) the given knots, evaluated at `at`."""
    places, values = zip(*knots, strict=True)
    fine = np.arange(places[0] - 4 * smooth, places[-1] + 4 * smooth, 0.5)
    line: Plane = np.interp(fine, places, values).astype(np.float32)[None]
    line = cv2.GaussianBlur(line, (0, 0), smooth / 0.5, borderType=cv2.BORDER_REPLICATE)[0]
    return np.interp(at, fine, line).astype(np.float32)


def noise(random: np.random.Generator, shape: tuple[int, int], size: float | tuple[float, float]) -> Plane:
    """Soft noise of standard deviation 1 whose grains are about `size` (or x and y sizes) pixels wide."""
    sizes = size if isinstance(size, tuple) else (size, size)
    shrunk = tuple(max(4, round(n / max(1.0, s / 2))) for n, s in zip(shape[::-1], sizes, strict=True))
    grains: Plane = random.standard_normal(shrunk[::-1], np.float32)
    grains = cv2.GaussianBlur(grains, (0, 0), min(2.0, max(sizes) / 2))
    plane = cv2.resize(grains, shape[::-1], interpolation=cv2.INTER_CUBIC)
    return plane / max(float(plane.std()), 1e-6)


def blur(plane: Plane, sigma: float) -> Plane:
    """Gaussian blur, `sigma` in points."""
    return np.asarray(cv2.GaussianBlur(plane.astype(np.float32), (0, 0), sigma * SCALE))


def mix(base: Picture, colour: Picture | Sequence[float], amount: Plane) -> Picture:
    """`base` with `amount` (0 … 1) of `colour` over it."""
    return base + amount[..., None] * (np.asarray(colour, np.float32) - base)


def light(height: Plane, albedo: Picture, *, wrap: float = 0.25, gloss: float = 0.0) -> Picture:
    """A height field (in points) lit by a warm lamp at the upper left, a cool one at the right, and the room.

    Args:
        height: towards the viewer.
        albedo: colour of the surface.
        wrap: how far light creeps round an edge, as it does in skin.
        gloss: strength of the highlights.
    """
    dx = cv2.Sobel(height, cv2.CV_32F, 1, 0, scale=SCALE / 8)
    dy = cv2.Sobel(height, cv2.CV_32F, 0, 1, scale=SCALE / 8)
    normal: Picture = np.stack([-dx, -dy, np.ones_like(dx)], -1)
    normal /= np.linalg.norm(normal, axis=-1, keepdims=True)
    key = np.maximum((normal @ _KEY + wrap) / (1 + wrap), 0)
    fill = np.maximum(normal @ _FILL, 0)
    half = _KEY + np.array([0, 0, 1], np.float32)
    shine = np.maximum(normal @ (half / np.linalg.norm(half)), 0) ** 22
    sky = 0.75 + 0.25 * np.clip(-normal[..., 1], -1, 1)
    lit: Picture = albedo * (key[..., None] * _KEY_COLOUR + fill[..., None] * _FILL_COLOUR + sky[..., None] * _AMBIENT)
    return np.asarray(lit + (gloss * shine)[..., None] * _KEY_COLOUR)


def strokes(
    canvas: Picture,
    random: np.random.Generator,
    lines: Sequence[Plane],
    colour: Plane,
    *,
    thickness: int = 1,
    contrast: float = 0.35,
) -> None:
    """Draw smooth lines over the canvas, each in its own shade of a colour.

    Args:
        canvas: BGR; drawn on in place.
        random: gives the shades.
        lines: float32 `[n, 2]` each, in layer pixels.
        colour: of the middle shade.
        thickness: in layer pixels.
        contrast: how far shades differ.
    """
    # cv2 smooths lines on 8-bit pictures only.
    small = (np.clip(canvas, 0, 1) * 255).astype(np.uint8)
    for line in lines:
        shade = np.clip(colour * np.exp(random.normal(0, contrast)) * 255, 0, 255)
        fixed = np.round(line * 8).astype(np.int32)[:, None]
        cv2.polylines(small, [fixed], False, tuple(map(float, shade)), thickness, cv2.LINE_AA, 3)
    canvas[...] = small.astype(np.float32) / 255


def premultiplied(colour: Picture, alpha: Plane) -> Picture:
    """A layer of a colour and how much of it covers what is behind."""
    alpha = np.clip(alpha, 0, 1)[..., None]
    return np.concatenate([np.clip(colour, 0, 1) * alpha, alpha], axis=2).astype(np.float32)


def over(front: Picture, back: Picture) -> Picture:
    """One layer over another."""
    return np.asarray(front + back * (1 - front[..., 3:]))
