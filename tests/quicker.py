"""What takes a run of many tests long and shows none of them anything: done once, or not at all."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache

import pytest

FAMILIES = 3
"""Of models whose heads are kept: 30 MB each."""


@contextmanager
def drawn_once() -> Iterator[None]:
    """The person of the demo, the same in each of its characters, is drawn once for each size of model: two seconds."""
    from gpupipe.demo import head, scene  # not before this process is the one that runs the tests

    with pytest.MonkeyPatch.context() as patch:
        for room, name, kept in ((head, "draw_head", FAMILIES), (scene, "draw_torso", 1)):
            draw = getattr(room, name)
            patch.setattr(room, name, lru_cache(kept)(getattr(draw, "__wrapped__", draw)))
        yield


@contextmanager
def without_waiting_for_the_disk() -> Iterator[None]:
    """`os.fsync` returns at once, in this process: what would be lost with the power, no test can see.

    A render syncs some twenty times, for a millisecond each, or ten on a disk that is busy.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", _synced)
        yield


def _synced(file: int) -> None:
    os.fstat(file)  # an error, if it is not open
