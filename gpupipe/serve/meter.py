"""Where the process's CPU time goes, window by window: encoders and hearing tell theirs, drawing takes what is left.

So what nobody counts by itself is counted too: the event loop, the protocols, the threads between them.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Final

from gpupipe.serve.costs import Costs

LEAST_CPU_SECONDS: Final = 0.25
"""Of a window: shorter ones tell little, and what is counted at its ends is off by a frame or so."""

MOST_OTHERS: Final = 0.05
"""Of the frames of a window that are no talk's, such as a job's, whose encoder is not told apart."""

MOST_CHANGE: Final = 2.0
"""By which one window changes a cost, up or down."""

WEIGHT: Final = 4
"""Of a window, in the mean."""


@dataclass(frozen=True)
class Spent:
    """What was done so far.

    Attributes:
        cpu: seconds of the process.
        encoding: of these, the encoders'.
        hearing: of these, for sound that became features.
        heard: seconds of that sound.
        frames: drawn of talks, by their characters.
        others: drawn of anything else.
        busy: whether something is going on that takes CPU time of its own, as a character's loading.
    """

    cpu: float = 0.0
    encoding: float = 0.0
    hearing: float = 0.0
    heard: float = 0.0
    frames: Mapping[str, int] = field(default_factory=dict)
    others: int = 0
    busy: bool = False

    def since(self, before: Spent) -> Spent:
        """What was done after another."""
        frames = {name: count - before.frames.get(name, 0) for name, count in self.frames.items()}
        return Spent(
            self.cpu - before.cpu,
            self.encoding - before.encoding,
            self.hearing - before.hearing,
            self.heard - before.heard,
            {name: count for name, count in frames.items() if count > 0},
            self.others - before.others,
            self.busy or before.busy,
        )

    @property
    def drawing(self) -> float:
        """CPU seconds of all but encoding and hearing."""
        return max(0.0, self.cpu - self.encoding - self.hearing)


class Meter:
    """Keeps the costs as they are.

    Args:
        costs: that are kept.
        spent: tells what was done so far.
    """

    def __init__(self, costs: Costs, spent: Callable[[], Spent]) -> None:
        self._costs, self._spent = costs, spent
        self._before = spent()
        self._lock = threading.Lock()

    def look(self) -> None:
        """Count what was done since the last window, once that is enough."""
        with self._lock:
            now = self._spent()
            done = now.since(self._before)
            if done.cpu < LEAST_CPU_SECONDS:
                return
            self._before = now
        if done.heard > 0:
            self._costs.heard(done.hearing, done.heard)
        total = sum(done.frames.values())
        expected = self.expected(done.frames)
        if done.busy or not total or not expected or done.others > MOST_OTHERS * total:
            return
        ratio = min(max(done.drawing / expected, 1 / MOST_CHANGE), MOST_CHANGE)
        for name, frames in done.frames.items():
            known = self._costs.cores(name)
            if known is not None:
                weight = max(1, round(WEIGHT * frames / total))
                self._costs.drawn(name, None, known * ratio, weight)

    def expected(self, frames: Mapping[str, int]) -> float:
        """CPU seconds that drawing frames takes, as far as it is known."""
        return sum(count * (self._costs.cores(name) or 0.0) for name, count in frames.items())
