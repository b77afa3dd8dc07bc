"""How much of characters is kept (`--cache`), and how many frames of one that is."""

from __future__ import annotations

import sys
from dataclasses import replace
from math import isqrt
from typing import NamedTuple

from gpupipe.compose.frames import FrameSpec
from gpupipe.engine.backend import Backend
from gpupipe.options import All

AHEAD = 2
"""Frames decoded ahead, of a character that is too large, for each that its session may have under way or finished."""


BEGINNING = 7
"""Frames that could be decoded in the time that beginning at another keyframe takes: the file is opened again, and
threads have decoded beyond the last frame that was wanted."""


class CacheBound(NamedTuple):
    """How much of characters is kept.

    Attributes:
        unused: bytes of those that nobody uses; None: as much as there is room for.
        each: bytes of each that is used; None: all of it, where that fits.
    """

    unused: int | None
    each: int | None = None

    @classmethod
    def of(cls, said: int | All | None, backend: Backend) -> CacheBound:
        """What `--cache` says; of unused characters, half of what is free if it gives no number."""
        if isinstance(said, int):
            return cls(said, said)
        return cls(backend.cache_bytes(), None if said is None else sys.maxsize)


class Slots(NamedTuple):
    """How many slots a session has for what is decoded ahead, unless all frames fit.

    Attributes:
        least: which it has whatever the bound is.
        most: beyond which none helps.
    """

    least: int
    most: int


class Divided(NamedTuple):
    """How room for cached frames is used.

    Attributes:
        kept: all frames, or the first, which stay.
        slots: for the others; 0 if there are none.
    """

    kept: FrameSpec
    slots: int


def slots_ahead(spec: FrameSpec, depth: int, group: int, room: int) -> Slots:
    """How many slots a session has.

    To begin at a keyframe costs as much as `BEGINNING` frames, so it is better done seldom, with more slots; but then
    less stays. Of N frames that do not all stay, with room for R, S slots cost the least on the way back where
    (N - R + S) (1 + BEGINNING / S) is least.

    Args:
        spec: of all frames.
        depth: the session's surfaces.
        group: frames of the largest group that is shown backwards; 0: none is. It is decoded as a whole where there is
            room for it, beside what is under way.
        room: for how many frames.
    """
    least = min(spec.count, AHEAD * depth)
    if not group:
        return Slots(least, least)
    best = min(isqrt(BEGINNING * max(0, spec.count - room)), room // 2)
    return Slots(least, max(least, min(spec.count, max(group, best) + depth)))


def divided(spec: FrameSpec, room: int, slots: Slots) -> Divided:
    """Slots, as many as help, and as many of the first frames as fit beside them; all frames, if they fit.

    Args:
        spec: of all.
        room: for how many frames.
        slots: how many there may be.
    """
    if spec.count <= room:
        return Divided(spec, 0)
    count = max(slots.least, min(slots.most, room))
    return Divided(replace(spec, rects=spec.rects[: max(0, room - count)]), count)
