"""The demo's head: a face as a lit height field, with eyes, hair and closed lips drawn over it.

Lengths are in points, the origin is the centre of the mouth, x goes right and y down.
"""

from __future__ import annotations

import numpy as np

from gpupipe.demo.mouth import MOUTH_X, MOUTH_Y, draw_mouth
from gpupipe.demo.paint import (
    SCALE,
    Picture,
    Plane,
    blur,
    curve,
    ellipse,
    hill,
    light,
    mix,
    noise,
    over,
    points,
    premultiplied,
    step,
    strokes,
)

LEFT, TOP, RIGHT, BOTTOM = -140.0, -215.0, 140.0, 150.0
"""What the head's layer covers, in points."""
EYE_STATES = 4
"""Drawings of the head, from eyes open to eyes shut."""

_SKIN = np.array([0.54, 0.64, 0.85], np.float32)
_FLUSH = np.array([0.40, 0.45, 0.83], np.float32)
_HAIR = np.array([0.085, 0.12, 0.18], np.float32)
_IRIS = np.array([0.20, 0.29, 0.34], np.float32)

_EYE_X, _EYE_Y = 32.0, -67.0


def _half_width(y: Plane) -> Plane:
    """Half the width of the face at each height: an ellipse above the eyes, a jaw that narrows below them."""
    above = np.clip(1 - ((y + 70) / 108) ** 2, 0, 1) ** 0.5
    below = np.clip(1 - np.clip((y + 70) / 134, 0, 1) ** 2.6, 0, 1) ** 0.60
    return np.asarray(82 * np.where(y < -70, above, below) - 1, np.float32)


def _face_height(x: Plane, y: Plane) -> Plane:
    """The face, as points towards the viewer."""
    side = np.abs(x)
    half = np.maximum(_half_width(y), 1)
    round_head = np.sqrt(np.clip(1 - (x / half) ** 2, 0, 1))
    long_head = np.sqrt(np.clip(1 - ((y + 62) / 140) ** 2, 0.02, 1))
    z = 74 * round_head * long_head
    z += 6.0 * hill(side, y, (46, -38), (22, 18))  # cheekbones
    z += 5.5 * hill(x, y, (0, 0), (36, 24))  # the teeth behind the lips
    z += 7.0 * hill(x, y, (0, 43), (19, 13)) - 4.5 * hill(x, y, (0, 23), (17, 6))  # chin and the dent above it
    z += 5.0 * hill(side, y, (30, -86), (22, 8)) - 8.5 * hill(side, y, (31, -68), (18, 11))  # brow, socket
    z += 2.2 * hill(side, y, (_EYE_X, _EYE_Y), (11, 7))  # eyeball
    ridge = curve(y, ((-108, 0), (-88, 2), (-72, 5), (-50, 12), (-38, 18), (-33, 19), (-27, 8), (-22, 0)), 2.5)
    z += ridge * np.exp(-((x / curve(y, ((-90, 12), (-60, 9.5), (-36, 12.5), (-25, 11)))) ** 2))
    z += 7.0 * hill(side, y, (12.5, -33), (5.5, 6))  # nostrils' wings
    fold = side - curve(y, ((-36, 17), (-20, 25), (0, 35), (16, 38)), 4)
    z -= 0.7 * np.exp(-((fold / 3.6) ** 2)) * step(y + 32, 8) * step(10 - y, 12)
    z -= 1.3 * np.exp(-((x / 3.2) ** 2)) * hill(x, y, (0, -18), (40, 6))  # philtrum
    return blur(z, 1.2)


def _eyes(face: Picture, x: Plane, y: Plane, shut: float) -> Picture:
    """Eyes in their sockets, lids down by `shut` (0 … 1)."""
    for sign in (-1, 1):
        u, v = (x - sign * _EYE_X) * sign, y - _EYE_Y
        arch = np.clip(1 - (u / 15.5) ** 2, 0, 1)
        tilt = -0.06 * u
        upper = tilt - 6.4 * arch * (1 - shut) + (3.4 * arch * shut)
        lower = tilt + 4.6 * arch
        lid = hill(u, v, (0, -8.5), (17, 4.5))
        face = mix(face, face * 0.72, 0.55 * lid)
        opening = step(v - upper, 0.5) * step(lower - v, 0.5) * step(15.2 - np.abs(u), 0.6)
        ball = np.array([0.80, 0.83, 0.86], np.float32) * (1 - 0.25 * (u / 15) ** 2)[..., None]
        ball = mix(ball, (0.45, 0.45, 0.68), hill(u, v, (-14.5, 1), (4, 4)) * 0.7)
        radius = np.sqrt((u + 0.8 * sign) ** 2 + (v + 1.0) ** 2)
        iris = _IRIS * (0.75 + 0.6 * np.clip((v + 3) / 8, 0, 1))[..., None]
        iris = mix(iris, (0.05, 0.05, 0.05), step(radius - 6.0, 0.9))
        ball = mix(ball, iris, step(7.0 - radius, 0.6))
        ball = mix(ball, (0.02, 0.02, 0.03), step(3.1 - radius, 0.5))
        ball = ball * (1 - 0.5 * np.exp(-np.clip(v - upper, 0, 20) / 3.0))[..., None]
        ball = mix(ball, (1.0, 1.0, 1.0), ellipse(x - sign * _EYE_X, v, (-2.6, -3.4), (1.5, 1.4), 0.5) * 0.9)
        face = mix(face, ball, opening)
        reach = step(16.5 - np.abs(u), 1.5)
        face = mix(face, (0.04, 0.05, 0.08), np.exp(-(((v - upper) / 1.35) ** 2)) * reach * (0.5 + 0.5 * arch) * 0.92)
        face = mix(face, (0.22, 0.28, 0.48), np.exp(-(((v - lower) / 0.9) ** 2)) * reach * 0.5)
        crease = tilt - 11.5 * np.clip(1 - (u / 18) ** 2, 0, 1) + 1.5
        face = mix(face, face * 0.62, np.exp(-(((v - crease) / 1.2) ** 2)) * step(15 - np.abs(u), 3) * (1 - shut) * 0.8)
    return face


def _brows(face: Picture, random: np.random.Generator) -> None:
    """Brows, hair by hair."""
    lines = []
    for sign in (-1, 1):
        for _ in range(230):
            along = random.uniform(0, 1)
            thick = 3.0 * (1 - along**2.5) * min(1, 0.5 + 3 * along)
            x = 13 + 40 * along
            y = -88.5 - 5.0 * np.sin(2.2 * along) + 3.0 * along + random.uniform(-1, 1) * thick
            dx, dy = 5.5, -2.0 + 4.0 * along
            line = np.array([[x, y], [x + dx / 2, y + dy / 2 - 0.4], [x + dx, y + dy]])
            lines.append(_pixels(line * (sign, 1)))
    strokes(face, random, lines, _HAIR * 0.8, contrast=0.25)


def _pixels(line: np.ndarray[tuple[int, ...], np.dtype[np.float64]]) -> Plane:
    """Points to pixels of the head's layer."""
    return ((line - (LEFT, TOP)) * SCALE - 0.5).astype(np.float32)


def _hair(x: Plane, y: Plane, random: np.random.Generator) -> Picture:
    """Short hair, combed from a parting on one side."""
    ragged = 0.9 * noise(random, x.shape, 5.0) + 1.1 * noise(random, x.shape, 24.0)
    top = np.sqrt((x / 90) ** 2 + (np.minimum(y + 96, 0) / 104) ** 2)
    outer = (1 - top) * 95 - np.maximum(y + 80, 0) * 0.16 + ragged
    hairline = curve(
        x, ((-92, -34), (-80, -48), (-77, -92), (-66, -116), (-40, -135), (0, -139), (36, -131), (62, -112),
            (76, -92), (80, -48), (92, -34)), 7.0,
    )  # fmt: skip
    inner = hairline - y + 1.6 * noise(random, x.shape, 6.0)
    alpha = step(outer, 1.6) * step(inner, 3.0)
    z = 60 * np.sqrt(np.clip(1 - (x / 96) ** 2 - ((y + 92) / 112) ** 2, 0.0, 1))
    z += 2.2 * noise(random, x.shape, (14.0, 60.0))
    colour = np.broadcast_to(_HAIR * 0.8, (*x.shape, 3)).astype(np.float32).copy()
    lines = []
    for _ in range(7000):
        px, py = random.uniform(-94, 94), random.uniform(-202, -40)
        if random.uniform() < 0.12:
            px = random.normal(-34, 6)
        # Strands leave the parting at x = -34 sideways and fall with the curve of the head.
        away = (px + 34) / 110
        length = random.uniform(18, 46)
        angle = np.arctan2(0.35 + 1.0 * abs(away) + 0.012 * (py + 190) * abs(away), np.sign(away) * (1.15 - abs(away)))
        bend = np.linspace(0, 1, 6)[:, None]
        sway = np.sign(away) * 0.5 * bend + angle
        path = np.concatenate([np.cos(sway), np.sin(sway)], axis=1) * length / 6
        lines.append(_pixels(np.array([px, py]) + np.cumsum(path, axis=0)))
    strokes(colour, random, lines, _HAIR * 1.05, contrast=0.36)
    lit = light(blur(z.astype(np.float32), 1.0), colour * 1.5, wrap=0.35, gloss=0.09)
    return premultiplied(lit, alpha)


def _ears(x: Plane, y: Plane) -> Picture:
    side = np.abs(x)
    v = y + 58
    lean = side - 0.12 * (-v)
    shape = ellipse(lean, v, (83, 0), (10.5, 23), 0.7)
    z = 9 * np.sqrt(np.clip(1 - ((lean - 83) / 11) ** 2 - (v / 24) ** 2, 0, 1)) - 7 * hill(lean, v, (82, -2), (5, 13))
    albedo = np.broadcast_to(_SKIN * 0.55 + _FLUSH * 0.42, (*x.shape, 3)).astype(np.float32)
    return premultiplied(light(blur(z.astype(np.float32), 0.8), albedo * 0.9), shape)


def draw_head(roi_points: float, seed: int) -> list[Picture]:
    """The head with eyes open, half open, nearly shut, and shut.

    Args:
        roi_points: side of the model's roi in points: the closed lips are the model's own drawing at that size.
        seed: of the skin's texture and the hair.

    Returns:
        `EYE_STATES` layers that cover `LEFT` … `RIGHT` and `TOP` … `BOTTOM`.
    """
    random = np.random.default_rng(seed)
    x, y = points(LEFT, TOP, RIGHT, BOTTOM)
    side = np.abs(x)
    outline = _half_width(y) - side
    alpha = blur(step(outline, 0.8), 0.4)

    albedo: Picture = np.broadcast_to(_SKIN, (*x.shape, 3)).astype(np.float32)
    flush = 0.75 * hill(side, y, (46, -30), (24, 18)) + 0.6 * hill(x, y, (0, -36), (14, 9))
    flush += 0.45 * hill(x, y, (0, 46), (24, 14)) + 0.25 * hill(side, y, (_EYE_X, -58), (16, 9))
    albedo = mix(albedo, _FLUSH, np.clip(flush * 0.5, 0, 1))
    blotches = 0.012 * noise(random, x.shape, 30.0) + 0.012 * noise(random, x.shape, 2.2)
    shadow_of_beard = hill(x, y, (0, 34), (62, 34)) * 0.06
    albedo = albedo * (1 + blotches - shadow_of_beard)[..., None]
    height = _face_height(x, y) + 0.02 * noise(random, x.shape, 3.0)
    face = light(height, albedo * 1.04, wrap=0.3, gloss=0.075)

    # Where less of the room's light arrives: sockets, beside and under the nose, and below the hair.
    dim = 0.26 * hill(side, y, (20, -70), (11, 12)) + 0.20 * hill(x, y, (2, -20), (14, 4.5))
    dim += 0.14 * hill(side, y, (18, -38), (4, 9)) + 0.25 * step(side - 68, 14) * step(-y - 20, 60)
    dim += 0.30 * step(-118 - y, 22)
    face = face * (1 - np.clip(dim, 0, 0.8))[..., None]
    nostril = ellipse(side, y + 0.25 * side, (7.2, -22.6), (4.6, 2.5), 1.2)
    face = mix(face, (0.10, 0.11, 0.24), nostril * 0.85)
    _brows(face, random)
    face = np.clip(face, 0, 1)

    size = round(roi_points * SCALE)
    mouth_x = (x / roi_points).astype(np.float32)
    mouth_y = (y / roi_points).astype(np.float32)
    shut_lips = np.zeros((1, 1, 1, 1), np.float32), np.full((1, 1, 1, 1), 0.3, np.float32)
    near = np.ix_(*(np.flatnonzero(np.abs(p) < 0.2) for p in (mouth_y[:, 0], mouth_x[0])))
    closed = draw_mouth(face[near].transpose(2, 0, 1)[None], mouth_x[near], mouth_y[near], size, *shut_lips)
    face[near] = closed[0].transpose(1, 2, 0)

    hair, ears = _hair(x, y, random), _ears(x, y)
    # The head's shadow on the neck moves with the head, so it belongs to this layer.
    shade = np.clip(blur(np.roll(alpha, round(16 * SCALE), axis=0) * step(y - 8, 20), 7.0), 0, 1)
    shade = shade * step(50 - side, 12) * 0.55
    below = premultiplied(np.broadcast_to(np.array([0.10, 0.12, 0.24], np.float32), (*x.shape, 3)), shade)
    states = []
    for state in range(EYE_STATES):
        eyed = _eyes(face, x, y, state / (EYE_STATES - 1))
        states.append(over(hair, over(premultiplied(eyed, alpha), over(ears, below))))
    return states


def crop_corner(roi_points: float, crop_points: float) -> tuple[float, float]:
    """Left and top of the crop's rectangle, in points, that put the mouth where the model draws it."""
    border = (crop_points - roi_points) / 2
    return -border - MOUTH_X * roi_points, -border - MOUTH_Y * roi_points
