"""The segments of a render: ranges of output frames, each encoded on its own, taken by whoever is free."""

from __future__ import annotations

import threading
from collections.abc import Collection

from gpupipe.errors import OptionError


class Segments:
    """Output frames 0 to `total` - 1 in segments of `frames`, each given once, in order. Used from any thread.

    Args:
        total: output frames.
        frames: of a segment; the last may have fewer.
        chosen: the segments that are rendered, `3-7` or `3`; None: all.

    Raises:
        OptionError: there are no such segments.
    """

    def __init__(self, total: int, frames: int, chosen: str | None = None) -> None:
        self.total, self.frames = total, frames
        self.all = range(-(-total // frames))
        self.chosen = self.all if chosen is None else _read(chosen, len(self.all))
        self._left = list(self.chosen)
        self._lock = threading.Lock()

    @property
    def left(self) -> tuple[int, ...]:
        """The numbers of those that nobody has taken."""
        with self._lock:
            return tuple(self._left)

    def skip(self, finished: Collection[int]) -> None:
        """Leave out those that are finished already."""
        with self._lock:
            self._left = [number for number in self._left if number not in finished]

    def take(self) -> range | None:
        """The output frames of the next segment; None after the last."""
        with self._lock:
            return self.outputs(self._left.pop(0)) if self._left else None

    def of(self, output: int) -> int:
        """The segment of an output frame.

        >>> [Segments(10, 4).of(output) for output in (0, 3, 4, 9)]
        [0, 0, 1, 2]
        """
        return output // self.frames

    def outputs(self, segment: int) -> range:
        """The output frames of a segment.

        >>> Segments(10, 4).outputs(2)
        range(8, 10)
        """
        return range(segment * self.frames, min(self.total, (segment + 1) * self.frames))

    def count_outputs(self, segments: Collection[int]) -> int:
        """How many output frames some segments have."""
        return sum(len(self.outputs(segment)) for segment in segments)


def _read(chosen: str, count: int) -> range:
    """Segments as they are written: `3-7`, which has the seventh too, or `3`."""
    first, dash, last = chosen.partition("-")
    try:
        found = range(int(first), int(last if dash else first) + 1)
    except ValueError as error:
        raise OptionError(
            "not segments", field="--segments", value=chosen, remedy="give them as 3-7, or as 3"
        ) from error
    if not found or found[0] < 0 or found[-1] >= count:
        raise OptionError(
            "there are no such segments", field="--segments", value=chosen, remedy=f"give some of 0-{count - 1}"
        )
    return found
