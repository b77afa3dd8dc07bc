"""The arithmetic of the comparison: frames against the reference, runs in turn, medians, quartiles, paired ratios."""

from __future__ import annotations

import statistics
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Pass = Callable[[], float | None]
Clock = Callable[[], float]


class Tolerance(NamedTuple):
    """How far a result may be from the reference: grey levels, and the share of pixels that may differ at all."""

    levels: int
    share: float


EXACT = Tolerance(0, 0.0)
ROUNDING = Tolerance(1, 1e-3)
"""For a way that runs the model itself: sums of floats in another order turn a truncation over now and then. A wrong
rounding rule would differ by one level too, but on every other pixel of the mouth."""


class Difference(NamedTuple):
    """How pixels compare with the reference.

    Attributes:
        pixels: compared; of bgr24 a pixel is three bytes, of nv12 one byte.
        differing: of them.
        largest: difference, grey levels.
    """

    pixels: int = 0
    differing: int = 0
    largest: int = 0

    def __add__(self, other: object) -> Difference:
        """Both comparisons taken together."""
        if not isinstance(other, Difference):
            return NotImplemented
        pixels, differing = self.pixels + other.pixels, self.differing + other.differing
        return Difference(pixels, differing, max(self.largest, other.largest))

    def within(self, tolerance: Tolerance) -> bool:
        """Whether the result is right."""
        return self.pixels > 0 and self.largest <= tolerance.levels and self.differing <= tolerance.share * self.pixels


def difference(got: NDArray[np.uint8], wanted: NDArray[np.uint8]) -> Difference:
    """Compare two frames: bgr24 `[H, W, 3]`, or nv12 `[H * 3 // 2, W]`. Another shape differs everywhere."""
    pixels = wanted.shape[0] * wanted.shape[1]
    if got.shape != wanted.shape:
        return Difference(pixels, pixels, 255)
    if np.array_equal(got, wanted):
        return Difference(pixels)
    apart = np.abs(got.astype(np.int16) - wanted)
    return Difference(pixels, int(np.count_nonzero(apart if apart.ndim == 2 else apart.any(axis=2))), int(apart.max()))


class Comparison:
    """Compares frames with the reference as they come, in order.

    Args:
        expected: the reference of each output frame.
        frame_count: how many there must be; further ones are ignored.
    """

    def __init__(self, expected: Callable[[int], NDArray[np.uint8]], frame_count: int) -> None:
        self._expected, self._frame_count = expected, frame_count
        self._seen = 0
        self._sum = Difference()

    def __call__(self, frame: NDArray[np.uint8]) -> None:
        """Compare the next frame."""
        if self._seen < self._frame_count:
            self._sum += difference(frame, self._expected(self._seen))
        self._seen += 1

    def result(self) -> Difference:
        """Over all frames; one that never came differs everywhere."""
        missing = Difference()
        for output in range(self._seen, self._frame_count):
            height, width = self._expected(output).shape[:2]
            missing += Difference(height * width, height * width, 255)
        return self._sum + missing


class Times(NamedTuple):
    """Seconds of each run of one way, in the order of the runs.

    Attributes:
        seconds: by the clock that counts: the GPU's where the way gives it, else the host's.
        wall: by the host's clock.
        cpu: of all cores together, spent by this process.
    """

    seconds: list[float]
    wall: list[float]
    cpu: list[float]


def in_turn(
    passes: Mapping[str, Pass],
    runs: int,
    *,
    warm_up: int = 1,
    clock: Clock = time.perf_counter,
    cpu_clock: Clock = time.process_time,
    progress: Callable[[str, int], None] | None = None,
) -> dict[str, Times]:
    """Time every way once, then every way again, and so on: A B C A B C, so that a slow minute slows them all.

    Args:
        passes: what to time, by name; a pass returns its own seconds, or None to be timed from outside.
        runs: timed passes of each.
        warm_up: passes of each that are not counted, first.
        clock: seconds of the host.
        cpu_clock: seconds of all its cores together.
        progress: told before each pass which one it is, and the run (negative while warming up).
    """
    times = {name: Times([], [], []) for name in passes}
    for run in range(-warm_up, runs):
        for name, one in passes.items():
            if progress is not None:
                progress(name, run)
            cpu, began = cpu_clock(), clock()
            own = one()
            wall, cpu = clock() - began, cpu_clock() - cpu
            if run >= 0:
                times[name].seconds.append(wall if own is None else own)
                times[name].wall.append(wall)
                times[name].cpu.append(cpu)
    return times


def spread(values: Sequence[float], digits: int = 4) -> dict[str, float]:
    """Median and quartiles (interpolated between the values, as NumPy does).

    >>> spread([4.0, 1.0, 3.0, 2.0])
    {'median': 2.5, 'q1': 1.75, 'q3': 3.25}
    """
    listed = list(values)
    q1, median, q3 = listed * 3 if len(listed) == 1 else statistics.quantiles(listed, n=4, method="inclusive")
    return {name: round(value, digits) for name, value in (("median", median), ("q1", q1), ("q3", q3))}


def timing(times: Times, frame_count: int) -> dict[str, Any]:
    """Times as JSON values: milliseconds a frame (median, quartiles, every run), FPS, and CPU milliseconds a frame."""
    per_frame = [second / frame_count * 1e3 for second in times.seconds]
    ms = spread(per_frame)
    return {
        "ms": {**ms, "runs": [round(value, 4) for value in per_frame]},
        "fps": round(1e3 / ms["median"], 2) if ms["median"] else None,
        "wall_ms": round(statistics.median(times.wall) / frame_count * 1e3, 4),
        "cpu_ms": round(statistics.median(times.cpu) / frame_count * 1e3, 4),
    }


def paired(base: Sequence[float], other: Sequence[float]) -> dict[str, float]:
    """How many times faster `other` is than `base`: ratios within each run, then their median and quartiles.

    >>> paired([2.0, 4.0, 3.0], [1.0, 2.0, 1.0])
    {'median': 2.0, 'q1': 2.0, 'q3': 2.5}
    """
    return spread([a / b for a, b in zip(base, other, strict=True)], 3)


def rank(rows: Mapping[str, Mapping[str, Any]]) -> dict[str, int]:
    """Places from 1, by median, among those of a class; a way whose result is wrong, or whose times say nothing, has
    none.

    Args:
        rows: of one stage, by way, with `ms`, `class`, `right` and `meaningless`.
    """
    ranked = [name for name, row in rows.items() if row["right"] and not row["meaningless"]]
    ranked.sort(key=lambda name: rows[name]["ms"]["median"])
    places: Counter[str] = Counter()
    found = {}
    for name in ranked:
        places[rows[name]["class"]] += 1
        found[name] = places[rows[name]["class"]]
    return found


def median_parts(parts: Iterable[Mapping[str, float]]) -> dict[str, float]:
    """The median of each part over the runs."""
    listed = list(parts)
    return {name: round(statistics.median(part[name] for part in listed), 4) for name in listed[0]}
