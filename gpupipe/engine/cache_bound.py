"""How much of characters is kept (`--cache`), and how many frames of one that is."""

from __future__ import annotations

import sys
from dataclasses import replace
from typing import NamedTuple

from gpupipe.compose.frames import FrameSpec
from gpupipe.engine.backend import Backend
from gpupipe.options import All

AHEAD = 2
"""Frames decoded ahead, of a character that is too large, for each that its session may have under way or finished."""


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


def slots_ahead(spec: FrameSpec, depth: int) -> int:
    """How many slots a session has for what is decoded ahead, unless all frames fit.

    Args:
        spec: of all.
        depth: the session's surfaces.
    """
    return min(spec.count, AHEAD * depth)


def first_within(spec: FrameSpec, bound: int, slots: int, each: int) -> FrameSpec:
    """All frames, or as many of the first as fit in so many bytes beside slots for others.

    Args:
        spec: of all.
        bound: bytes.
        slots: frames that are decoded ahead unless all fit.
        each: bytes of a frame, where it is kept.
    """
    if spec.count * each <= bound:
        return spec
    return replace(spec, rects=spec.rects[: max(0, bound // each - slots)])
