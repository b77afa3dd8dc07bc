"""Which settings to compare, and who wins: one step after the other, each from the best so far."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from statistics import median
from typing import Final, NamedTuple, Protocol

from gpupipe.errors import GpupipeError
from gpupipe.render.tuning import Settings

TURNS: Final = 3
"""Times that settings are measured at least before one wins."""
MOST_TURNS: Final = 7
"""Times that they are measured at most, where there is time."""

WIN: Final = 1.02
"""The speedup beyond which settings replace the ones that they are compared with: what is less is noise."""
HOPELESS: Final = 0.9
"""The speedup in each of the first two turns below which settings are not measured again."""

Told = Callable[[str], None]
Rivals = Callable[[Settings], Sequence[Settings]]
"""What settings are to be compared with."""


class Rig(Protocol):
    """Renders with settings, and takes the time."""

    def keep(self, settings: Sequence[Settings]) -> None:
        """Close what is open for any others."""

    def prepare(self, settings: Settings) -> None:
        """Open what a render with them needs, and warm it up.

        Raises:
            GpupipeError: they cannot be had here.
        """

    def measure(self, settings: Settings) -> float:
        """Seconds a frame of one render.

        Raises:
            GpupipeError: it failed.
        """


class Step(NamedTuple):
    """Settings that are looked for together.

    Attributes:
        rivals: of the best so far.
        share: of the time, in proportion to the other steps'.
    """

    rivals: Rivals
    share: int = 1


@dataclass(frozen=True)
class Row:
    """Settings compared with others, in turn.

    Attributes:
        settings: these.
        against: the others.
        seconds: a frame, of each turn.
        speedups: the others' seconds over these, of each turn.
    """

    settings: Settings
    against: Settings
    seconds: list[float] = field(default_factory=list)
    speedups: list[float] = field(default_factory=list)

    @property
    def speedup(self) -> float:
        """The median of the turns."""
        return median(self.speedups)

    @property
    def hopeless(self) -> bool:
        """Whether it is too slow to be measured again."""
        return len(self.speedups) >= 2 and max(self.speedups[:2]) < HOPELESS

    @property
    def decided(self) -> bool:
        """Whether it was measured often enough."""
        return self.hopeless or len(self.speedups) >= TURNS

    @property
    def wins(self) -> bool:
        """Whether it is faster by more than the noise."""
        return self.decided and self.speedup > WIN

    def __str__(self) -> str:
        verdict = "" if self.decided else " (undecided)"
        return f"  {self.settings}: {median(self.seconds) * 1e3:.2f} ms a frame, speedup {self.speedup:.3f}{verdict}"


class Search:
    """Looks for the fastest settings within a time.

    Args:
        rig: measures.
        ends: when it should be done, by the clock.
        clock: seconds.
        told: given a line for every comparison.

    Attributes:
        rows: every comparison, in order.
        late: whether some were left out, or undecided, for want of time.
    """

    def __init__(self, rig: Rig, ends: float, clock: Callable[[], float], told: Told) -> None:
        self._rig, self._ends, self._clock, self._told = rig, ends, clock, told
        self.rows: list[Row] = []
        self.late = False

    def fastest(self, start: Settings, steps: Sequence[Step]) -> tuple[Settings, float]:
        """The fastest settings, and how much faster than `start` they are: 1.0 if nothing is.

        What the steps find is compared with `start` once more: the best of many measured is often a lucky one.

        Raises:
            GpupipeError: `start` fails, or the time did not suffice for anything.
        """
        best = start
        for number, step in enumerate(steps):
            left = sum(each.share for each in steps[number:]) + 1
            until = self._clock() + (self._ends - self._clock()) * step.share / left
            best = self._climbed(best, step.rivals, until)
        if self.late and not any(row.decided for row in self.rows):
            raise GpupipeError("there was no time to compare anything often enough", remedy="give more --seconds")
        if best == start:
            return start, 1.0
        rows = self._compared(start, [best], self._ends, latest=math.inf)
        if rows and rows[0].wins:
            return best, rows[0].speedup
        self._told(f"{best}: not confirmed against {start}, which stays")
        return start, 1.0

    def _climbed(self, best: Settings, rivals: Rivals, until: float) -> Settings:
        """The best that is found by going from winner to winner."""
        tried = {best}
        while new := [each for each in rivals(best) if each not in tried]:
            tried.update(new)
            winners = [row for row in self._compared(best, new, until, latest=self._ends) if row.wins]
            if not winners:
                break
            best = max(winners, key=lambda row: row.speedup).settings
        return best

    def _compared(self, base: Settings, rivals: Sequence[Settings], until: float, *, latest: float) -> list[Row]:
        """Settings measured in turn with others, forth and back, so that whatever drifts drifts for all.

        As often as is needed to decide, if that ends by `latest`; more often by `until` only.
        """
        if self._clock() >= latest:
            self._told(f"no time to compare {base} with {len(rivals)} others")
            self.late = True
            return []
        self._told(f"compared with {base}:")
        self._rig.keep([base, *rivals])
        self._rig.prepare(base)
        rows = []
        for settings in rivals:
            if self._clock() >= latest:
                self._told(f"  {settings}: left out: no time")
                self.late = True
                continue
            try:
                self._rig.prepare(settings)
            except GpupipeError as error:
                self._told(f"  {settings}: left out: {error.on_command_line()}")
            else:
                rows.append(Row(settings, base))
        longest = 0.0
        alive = rows
        for turn in range(MOST_TURNS):
            began = self._clock()
            if not alive or began + longest > (latest if turn < TURNS else until):
                break
            alive = self._turn(base, alive, backwards=turn % 2 == 1)
            longest = max(longest, self._clock() - began)
        self.late |= any(not row.decided for row in alive)
        measured = [row for row in rows if row.speedups]
        for row in measured:
            self._told(str(row))
        self.rows += measured
        return measured

    def _turn(self, base: Settings, rows: Sequence[Row], *, backwards: bool) -> list[Row]:
        """Measure everybody once; returns who is to be measured again."""
        seconds: dict[Settings, float] = {}
        for settings in [base, *(row.settings for row in rows)][:: -1 if backwards else 1]:
            try:
                seconds[settings] = self._rig.measure(settings)
            except GpupipeError as error:
                if settings == base:
                    raise
                self._told(f"  {settings}: left out: {error.on_command_line()}")
        for row in rows:
            if row.settings in seconds:
                row.seconds.append(seconds[row.settings])
                row.speedups.append(seconds[base] / seconds[row.settings])
        return [row for row in rows if row.settings in seconds and not row.hopeless]


def grid(axes: Mapping[str, Sequence[int]]) -> Rivals:
    """All neighbours of settings, where each of the axes has one value less, the same or one more.

    >>> grid({"runs": (1, 2, 4), "encoders": (1, 2)})(Settings(runs=1, encoders=1))[1:]
    [Settings(batch=None, runs=2, encoders=1, workers=None, feature_cache=None), \
Settings(batch=None, runs=2, encoders=2, workers=None, feature_cache=None)]
    """

    def rivals(best: Settings) -> Sequence[Settings]:
        near = []
        for name, values in axes.items():
            at = values.index(getattr(best, name))
            near.append(values[max(0, at - 1) : at + 2])
        points = (Settings(**best._asdict() | dict(zip(axes, point, strict=True))) for point in product(*near))
        return [point for point in points if point != best]

    return rivals


def powers(most: int) -> list[int]:
    """Powers of two up to a number, and that number.

    >>> powers(1), powers(4), powers(12)
    ([1], [1, 2, 4], [1, 2, 4, 8, 12])
    """
    return sorted({most, *(1 << bit for bit in range(most.bit_length()))})
