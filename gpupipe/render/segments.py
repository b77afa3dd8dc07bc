"""The segments of a render: ranges of output frames, each encoded on its own, taken by whoever is free."""

from __future__ import annotations

import threading


class Segments:
    """Output frames 0 to `total` - 1 in segments of `frames`, each given once, in order. Used from any thread.

    Args:
        total: output frames.
        frames: of a segment; the last may have fewer.
    """

    def __init__(self, total: int, frames: int) -> None:
        self.total, self.frames = total, frames
        self._next = 0
        self._lock = threading.Lock()

    @property
    def count(self) -> int:
        """How many there are."""
        return -(-self.total // self.frames)

    def take(self) -> range | None:
        """The output frames of the next segment; None after the last."""
        with self._lock:
            first = self._next
            self._next = min(self.total, first + self.frames)
            return range(first, self._next) if first < self.total else None

    def of(self, output: int) -> int:
        """The segment of an output frame.

        >>> [Segments(10, 4).of(output) for output in (0, 3, 4, 9)]
        [0, 0, 1, 2]
        """
        return output // self.frames
