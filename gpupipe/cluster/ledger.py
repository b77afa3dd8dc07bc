"""A job as the board has it: which of its segments wait, who draws the others since when, and what was lost."""

from __future__ import annotations

from bisect import insort
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final, NamedTuple

SLOW: Final = 2.0
"""A segment is slow that is under way for so many times as long as is usual."""
LEAST_SECONDS: Final = 5.0
"""None is slow before: to begin it elsewhere takes a while, too."""


class Work(NamedTuple):
    """What an engine takes: to open a job (no segment), or to draw one of its segments; `second`: which another engine
    draws already, slowly."""

    job: int
    segment: int | None
    second: bool = False


@dataclass
class Ledger:
    """What is known of a job.

    Attributes:
        character: what tells it.
        waiting: the segments that nobody draws; None before it is opened.
        opening: who opens it.
        running: who draws each of the others, and since when, in seconds; two at most. Of a drawn one: who still does.
        drawn: the segments that are there.
        seconds: that each of them took, sorted.
        lost: how often each was lost, and on which engines.
        engines: who has drawn any.
        ended: whether it is finished, or has failed.
    """

    character: str
    waiting: list[int] | None = None
    opening: str | None = None
    running: dict[int, dict[str, float]] = field(default_factory=dict)
    drawn: set[int] = field(default_factory=set)
    seconds: list[float] = field(default_factory=list)
    lost: Counter[int | None] = field(default_factory=Counter)
    lost_on: dict[int | None, set[str]] = field(default_factory=dict)
    engines: set[str] = field(default_factory=set)
    ended: bool = False

    @property
    def is_fresh(self) -> bool:
        """Whether somebody has to open it."""
        return not self.ended and self.waiting is None and self.opening is None

    @property
    def undrawn(self) -> int:
        """How many segments are being drawn, that are not there yet."""
        return sum(segment not in self.drawn for segment in self.running)

    @property
    def is_complete(self) -> bool:
        """Whether it was opened, and every segment is there."""
        return self.waiting is not None and not self.waiting and not self.undrawn

    def begin(self, segment: int, engine: str, now: float) -> None:
        """An engine draws a segment."""
        if self.waiting is not None and segment in self.waiting:
            self.waiting.remove(segment)
        self.running.setdefault(segment, {})[engine] = now

    def leave(self, segment: int | None, engine: str) -> float | None:
        """An engine draws a segment, or opens the job, no more; since when it did."""
        if segment is None:
            self.opening = None
            return None
        drawing = self.running.get(segment, {})
        since = drawing.pop(engine, None)
        if not drawing:
            self.running.pop(segment, None)
        return since

    def keep(self, segment: int, seconds: float) -> None:
        """A segment is there, and took so long."""
        self.drawn.add(segment)
        insort(self.seconds, seconds)

    def blame(self, segment: int | None, engine: str) -> None:
        """An engine has not done what it took: others may, first."""
        self.lost_on.setdefault(segment, set()).add(engine)

    def goes_on(self, segment: int | None) -> bool:
        """Whether a segment is there, or is being drawn by somebody."""
        return segment is not None and (segment in self.drawn or segment in self.running)

    def put_back(self, segment: int | None) -> None:
        """A segment waits again."""
        if segment is not None and self.waiting is not None:
            insort(self.waiting, segment)

    def drawn_once(self) -> Iterator[tuple[int, str, float]]:
        """The segments that one engine alone draws, who, and since when."""
        for segment, drawing in self.running.items():
            if len(drawing) == 1 and segment not in self.drawn:
                [(engine, since)] = drawing.items()
                yield segment, engine, since


def too_long(seconds: Sequence[float], others: Sequence[float]) -> float | None:
    """After how many seconds a segment is slow; None: nobody can tell yet.

    Args:
        seconds: that finished segments of the same job took, sorted.
        others: that those of all jobs did, which count where there are none of the same.
    """
    usual = seconds or others
    return max(LEAST_SECONDS, SLOW * usual[len(usual) // 2]) if usual else None
