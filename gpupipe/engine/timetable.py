"""How long batches take, and when the device will be done with those under way. No clock: every time is told."""

from __future__ import annotations

from collections import Counter, deque

RECENT = 9
"""Batches from which the time of the next one is told."""
OUTLIERS = 1
"""Of these, the longest, which are not counted: the system was busy with something else."""
UNKNOWN_SECONDS = 0.1
"""What a batch is taken to need before one has been seen: rather too much, for a deadline to be kept."""


class Pace:
    """How long batches of one kind take on the device.

    Attributes:
        seconds: of a batch, which the last few have not exceeded, but for one.
        fill: frames in a batch, in the mean of the last few.
    """

    def __init__(self) -> None:
        self.seconds, self.fill = UNKNOWN_SECONDS, 1.0
        self._recent: deque[tuple[float, int]] = deque(maxlen=RECENT)

    def took(self, seconds: float, frames: int = 1) -> None:
        """A batch of so many frames has taken so long."""
        self._recent.append((seconds, frames))
        longest = sorted(seconds for seconds, _ in self._recent)
        self.seconds = longest[max(0, len(longest) - 1 - OUTLIERS)]
        self.fill = sum(frames for _, frames in self._recent) / len(self._recent)


class Timetable:
    """The batches under way, which the device does one after the other, in the order in which they leave.

    Attributes:
        departed: batches so far, by how many frames they had.
        places: that these batches had, filled or not.
    """

    def __init__(self) -> None:
        self.departed: Counter[int] = Counter()
        self.places = 0
        self._under_way: deque[tuple[Pace, float, int]] = deque()
        self._free_since = 0.0

    @property
    def frames(self) -> int:
        """Frames of the batches so far."""
        return sum(size * count for size, count in self.departed.copy().items())

    @property
    def under_way(self) -> int:
        """Batches that have left and are not done."""
        return len(self._under_way)

    @property
    def idle(self) -> bool:
        """Whether no batch is under way."""
        return not self._under_way

    def left(self, pace: Pace, now: float, frames: int = 1, places: int = 1) -> None:
        """A batch leaves, with so many frames of those that it has places for."""
        self._under_way.append((pace, now, frames))
        self.departed[frames] += 1
        self.places += places

    def landed(self, now: float, *, counts: bool = True) -> None:
        """The first of those under way is done; it tells how long the next take unless it failed."""
        pace, left, frames = self._under_way.popleft()
        if counts:
            pace.took(now - max(left, self._free_since), frames)
        self._free_since = now

    def busy(self, now: float) -> float:
        """Seconds until all that is under way will be done."""
        if not self._under_way:
            return 0.0
        (first, left, _), *others = self._under_way
        done = now - max(left, self._free_since)
        return max(0.0, first.seconds - done) + sum(pace.seconds for pace, *_ in others)
