"""The feature rows of one speech: whole from the start, or growing while they are used."""

from __future__ import annotations

import threading
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gpupipe.geometry import SPEECH_BEFORE, SPEECH_ROWS, SPEECH_STEPS, SPEECH_WIDTH, speech_position

_CAPACITY = 256

KEPT = 100
"""Rows, 4 seconds, that stay behind the latest finished frame; its window begins 8 rows back."""


class SpeechRows:
    """Rows of speech features, 25 a second, float32 `[n, 512]`.

    One thread may append while others read: rows that are there do not change. Those that `drawn` has let go of are
    dropped when room is needed, so that a speech without end takes no more memory than what is still to be drawn of it.

    Args:
        rows: the whole speech, kept as it is (not copied); None for one that grows from nothing.
    """

    def __init__(self, rows: NDArray[np.float32] | None = None) -> None:
        # The first row that is kept, and the rows from there: replaced together, for those who read meanwhile.
        self._kept = 0, np.empty((_CAPACITY, SPEECH_WIDTH), np.float32) if rows is None else rows
        self._forgotten = 0
        self._count = 0 if rows is None else len(rows)
        self._finished = rows is not None
        self._lock = threading.Lock()
        self._listeners: list[Callable[[], None]] = []

    @property
    def count(self) -> int:
        """Rows that are there."""
        return self._count

    @property
    def finished(self) -> bool:
        """Whether no more rows will come: beyond the last, the speech is zeros."""
        return self._finished

    def append(self, rows: NDArray[np.float32]) -> None:
        """Add the next rows, float32 `[n, 512]`.

        Raises:
            ValueError: the speech is finished, or the rows have another shape or type.
        """
        if self._finished:
            raise ValueError("the speech is finished: begin a new one")
        if rows.dtype != np.float32 or rows.ndim != 2 or rows.shape[1] != SPEECH_WIDTH:
            raise ValueError(f"rows must be float32 [n, {SPEECH_WIDTH}] (got {rows.dtype} {list(rows.shape)})")
        with self._lock:
            (first, kept), end = self._kept, self._count + len(rows)
            if end - first > len(kept):
                left = kept[self._forgotten - first : self._count - first]
                wanted = len(left) + len(rows)
                grown = np.empty((max(_CAPACITY, wanted * 3 // 2), SPEECH_WIDTH), np.float32)
                grown[: len(left)] = left
                self._kept = first, kept = self._forgotten, grown
            kept[self._count - first : end - first] = rows
            self._count = end
        self._tell()

    def finish(self) -> None:
        """Say that no more rows will come."""
        self._finished = True
        self._tell()

    def drawn(self, row: int) -> None:
        """The frame at a row's time is finished, and so are those before it: rows `KEPT` before it are let go of."""
        with self._lock:
            self._forgotten = max(self._forgotten, min(row - KEPT, self._count))

    def listen(self, changed: Callable[[], None]) -> None:
        """Have `changed` called, in the appending thread, after each `append` and `finish`."""
        self._listeners.append(changed)

    def ready(self, row: int, fraction: int) -> bool:
        """Whether a window (see `window`) can be had: all its rows are there, or no more will come."""
        return self._finished or row - SPEECH_BEFORE + SPEECH_ROWS + (fraction > 0) <= self._count

    def heard(self, count: int, frame: Callable[[int], int | None], fps: Fraction) -> int:
        """How many of the next frames have all that they hear there, up to the first that has not.

        Args:
            count: frames that are asked for.
            frame: which output frame is the n-th from now.
            fps: output frames a second.
        """

        def ready(ahead: int) -> bool:
            return self.ready(*speech_position(frame(ahead) or 0, fps))

        if not count or self._finished or ready(count - 1):
            return count
        return next(ahead for ahead in range(count) if not ready(ahead))

    def view(self, begin: int, end: int) -> NDArray[np.float32]:
        """Rows `begin` to `end` - 1, which must be there; not a copy."""
        first, kept = self._kept
        return kept[begin - first : end - first]

    def window(self, row: int, fraction: int, out: NDArray[Any]) -> None:
        """The window of a frame: what the model hears. This defines it; the GPU computes the same numbers.

        With `r = fraction / 65536`, row k is `(1 - r) * rows[row - 8 + k] + r * rows[row - 7 + k]` in float32, each
        operation rounded on its own, or `rows[row - 8 + k]` where fraction is 0. Rows that are not there are zeros.

        Args:
            row: the row at the frame's time, rounded down (`geometry.speech_position`).
            fraction: the rest, in 1/65536 of a row.
            out: `[16, 512]`, float32 or float16 (the float32 number, rounded once more), written.
        """
        first = row - SPEECH_BEFORE
        if not fraction:
            self._gather(first, out)
            return
        rest = np.float32(fraction / SPEECH_STEPS)
        rows = np.empty((SPEECH_ROWS + 1, SPEECH_WIDTH), np.float32)
        self._gather(first, rows)
        out[...] = (np.float32(1) - rest) * rows[:-1] + rest * rows[1:]

    def _gather(self, first: int, out: NDArray[Any]) -> None:
        begin, end = (min(max(row, 0), self._count) for row in (first, first + len(out)))
        out[: begin - first] = 0
        out[begin - first : end - first] = self.view(begin, end)
        out[end - first :] = 0

    def _tell(self) -> None:
        for changed in self._listeners:
            changed()
