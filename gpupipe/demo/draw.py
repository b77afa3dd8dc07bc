"""The demo's film: a drawn person who sways, nods and blinks before a room, mouth shut, and where the face is."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from gpupipe.demo import head as head_art
from gpupipe.demo import scene
from gpupipe.demo.paint import SCALE, Picture
from gpupipe.geometry import CropLayout, Rect

_CROP_POINTS = 181.0
_LINES = 720
# Where the mouth is at rest, as a share of the picture's width and in points from its upper edge.
_REST_X, _REST_Y = 0.49, 296.0
# The head turns about the nape, below the mouth.
_NAPE = 110.0
_BLINK_SECONDS = 0.30


class _Layer(NamedTuple):
    """Something drawn once: float32 `[rows, columns, 4]`, 0 … 255 with alpha 0 … 1, and its pixels as points."""

    pixels: Picture
    place: NDArray[Any]


class TalkingHead:
    """Draws the frames of the demo's body video.

    What does not change is drawn once; a frame costs two warped layers laid over the room.

    Args:
        width: pixels.
        height: pixels; the person is scaled to it (or to a narrow picture's width).
        layout: how the crop is laid out: the mouth must be where the model expects it.
        seed: of all textures and of the blinks.
    """

    def __init__(self, width: int, height: int, layout: CropLayout, seed: int = 0) -> None:
        self.width, self.height = width, height
        self._pixels_per_point = min(height / _LINES, width / (_LINES * 0.9))
        roi_points = _CROP_POINTS * layout.model_size / layout.crop_size
        self._roi_points = roi_points
        self._heads = [
            self._layer(head, (head_art.LEFT, head_art.TOP)) for head in head_art.draw_head(roi_points, seed + 1)
        ]
        self._torso = self._layer(scene.draw_torso(seed + 2), (scene.LEFT, scene.TOP))
        points_wide, points_high = width / self._pixels_per_point, height / self._pixels_per_point
        room = scene.draw_room(points_wide, points_high, seed + 3)
        self._room = np.clip(cv2.resize(room, (width, height), interpolation=cv2.INTER_AREA), 0, 1) * 255
        self._rest = points_wide * _REST_X, _REST_Y + max(0.0, points_high - _LINES) / 2
        random = np.random.default_rng(seed + 4)
        self._blinks = np.cumsum(random.uniform(1.4, 4.2, 4096)) - 0.6

    def frame(self, seconds: float) -> tuple[NDArray[np.uint8], Rect]:
        """The picture at a time, and the rectangle of its crop.

        Args:
            seconds: from the start.

        Returns:
            uint8 `[height, width, 3]`, BGR, and the rectangle in its pixels.
        """
        x, y, turn, zoom = self._pose(seconds)
        canvas = self._room.copy()
        lean = self._matrix(0.35 * x, 0.22 * y, 0.12 * turn, 1 + 0.4 * (zoom - 1))
        _lay(canvas, self._torso, lean)
        head = self._matrix(x, y, turn, zoom)
        _lay(canvas, self._heads[self._eyes(seconds)], head)

        mouth = head @ np.array([0, 0, 1])
        scale = zoom * self._pixels_per_point
        left, top = (scale * offset for offset in head_art.crop_corner(self._roi_points, _CROP_POINTS))
        crop = scale * _CROP_POINTS
        x1, y1 = mouth[0] + left, mouth[1] + top
        rect = Rect(round(x1), round(y1), round(x1 + crop), round(y1 + crop))
        return np.rint(canvas).astype(np.uint8), rect

    def _pose(self, t: float) -> tuple[float, float, float, float]:
        """Where the head is: moved right and down in points, turned in radians, nearer by a factor."""
        x = 13 * math.sin(0.9 * t) + 5 * math.sin(2.3 * t + 1)
        y = 5 * math.sin(1.7 * t + 0.5) + 3.5 * math.sin(3.9 * t)
        turn = math.radians(2.4 * math.sin(1.1 * t + 0.4) + 1.1 * math.sin(2.9 * t))
        return x, y, turn, 1 + 0.034 * math.sin(1.3 * t) + 0.012 * math.sin(3.1 * t + 2)

    def _eyes(self, t: float) -> int:
        """Which drawing of the head: 0 with open eyes, the last with shut ones."""
        since = t - self._blinks[max(0, int(np.searchsorted(self._blinks, t, side="right")) - 1)]
        if not 0 <= since < _BLINK_SECONDS:
            return 0
        return round(math.sin(math.pi * since / _BLINK_SECONDS) * (head_art.EYE_STATES - 1))

    def _matrix(self, x: float, y: float, turn: float, zoom: float) -> NDArray[Any]:
        """Points of a layer to pixels of the picture: `[2, 3]`."""
        c, s = math.cos(turn) * zoom, math.sin(turn) * zoom
        moved = np.array([self._rest[0] + x + s * _NAPE, self._rest[1] + y + _NAPE - c * _NAPE])
        turned = np.array([[c, -s], [s, c]])
        return np.concatenate([turned, moved[:, None]], axis=1) * self._pixels_per_point

    def _layer(self, picture: Picture, corner: tuple[float, float]) -> _Layer:
        """A drawing at no more than about twice the size it is shown at."""
        rows, columns = picture.shape[:2]
        factor = min(1.0, self._pixels_per_point)
        size = max(1, round(columns * factor)), max(1, round(rows * factor))
        small = cv2.resize(picture, size, interpolation=cv2.INTER_AREA) if factor < 1 else picture
        small = small.astype(np.float32)
        small[..., :3] *= 255
        across, down = columns / SCALE / size[0], rows / SCALE / size[1]
        place = [[across, 0, corner[0] + across / 2], [0, down, corner[1] + down / 2], [0, 0, 1]]
        return _Layer(small, np.array(place))


def _lay(canvas: Picture, layer: _Layer, matrix: NDArray[Any]) -> None:
    """Lay a layer over the canvas, in place; `matrix` takes points to pixels of the canvas."""
    to_canvas = matrix @ layer.place
    # cv2 counts from the centres of pixels.
    to_canvas[:, 2] -= 0.5
    rows, columns = layer.pixels.shape[:2]
    corners = to_canvas @ np.array([[0, columns, 0, columns], [0, 0, rows, rows], [1, 1, 1, 1]])
    low = np.maximum(np.floor(corners.min(axis=1)).astype(int) - 1, 0)
    high = np.minimum(np.ceil(corners.max(axis=1)).astype(int) + 2, canvas.shape[1::-1])
    if (high <= low).any():
        return
    to_canvas[:, 2] -= low
    front = cv2.warpAffine(layer.pixels, to_canvas, tuple(map(int, high - low)), flags=cv2.INTER_LINEAR)
    part = canvas[low[1] : high[1], low[0] : high[0]]
    part *= 1 - front[..., 3:]
    part += front[..., :3]
