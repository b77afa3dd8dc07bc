"""Windows of mel columns, which the speech encoder sees, and what there are of them: rows, samples, frames of video.

No files, no decoding and no network here.
"""

from __future__ import annotations

import math
from fractions import Fraction
from os import PathLike

import numpy as np
from numpy.typing import NDArray

from gpupipe.errors import MediaError
from gpupipe.geometry import SPEECH_RATE
from gpupipe.speech.mel import FFT_SIZE, HOP, MEL_BANDS, MEL_RATE

WINDOW_COLUMNS = 16
"""Mel columns that the speech encoder sees at once, 0.2 s (Wav2Lip's `syncnet_mel_step_size`)."""


def window_count(mel_columns: int, *, file: str | PathLike[str] | None = None) -> int:
    """How many windows the encoder sees: `int((T - 16) / 80 * 25) + 2` for T mel columns.

    Args:
        mel_columns: T.
        file: what an error calls the speech.

    Raises:
        MediaError: T is less than 16, one window.
    """
    if mel_columns < WINDOW_COLUMNS:
        least = (WINDOW_COLUMNS - 1) / MEL_RATE
        raise MediaError(
            f"the speech is shorter than one window of {WINDOW_COLUMNS} mel columns",
            file=file,
            value=f"{mel_columns} columns, {max(0, mel_columns - 1) / MEL_RATE:.3f} s",
            remedy=f"give at least {least} s of sound",
        )
    # In float64 and in this order, as the published tools count: where the exact result is a whole number, rounding
    # can take one window off (T = 384 gives 116, not 117), and feature files have that length.
    return int((mel_columns - WINDOW_COLUMNS) / MEL_RATE * SPEECH_RATE) + 2


def feature_rows(mel_columns: int, *, file: str | PathLike[str] | None = None) -> int:
    """How many feature rows a speech has: its windows, with the first and the last one doubled.

    Raises:
        MediaError: fewer than 16 mel columns.

    >>> feature_rows(1674)
    522
    """
    return window_count(mel_columns, file=file) + 2


def window_starts(mel_columns: int, *, file: str | PathLike[str] | None = None) -> NDArray[np.int64]:
    """The first mel column of each window: `int(80 k / 25)`, clamped so that no window passes the end.

    Returns:
        int64 `[n]`, n as `window_count` says.

    Raises:
        MediaError: fewer than 16 mel columns.

    >>> window_starts(22)
    array([0, 3, 6])
    """
    starts = _starts(0, window_count(mel_columns, file=file))
    return np.minimum(starts, mel_columns - WINDOW_COLUMNS)


def samples_of_row(row: int) -> int:
    """Samples of speech that must be there for a feature row of a speech that goes on: its window, and half a frame.

    Row k is window `max(0, k - 1)`, as the first row is doubled, so it takes `200 (int(3.2 max(0, k - 1)) + 15) + 400`
    samples.

    >>> [samples_of_row(row) / 16_000 for row in (0, 1, 2, 7)]
    [0.2125, 0.2125, 0.25, 0.45]
    """
    return (_start(max(0, row - 1)) + WINDOW_COLUMNS - 1) * HOP + FFT_SIZE // 2


class WindowStream:
    """The windows of mel columns that arrive in pieces: each as soon as its 16 columns exist.

    A window that ends within T columns is one of T's windows, and not clamped, so it need not wait for what follows.
    """

    def __init__(self) -> None:
        self._mel = np.empty((MEL_BANDS, 0), np.float32)
        self._dropped = 0
        self._given = 0

    def push(self, mel: NDArray[np.float32]) -> NDArray[np.float32]:
        """Take the next columns, float32 `[80, m]`, and give the windows that are complete.

        Returns:
            float32 `[k, 1, 80, 16]`, contiguous; k may be 0.
        """
        self._mel = np.concatenate((self._mel, mel), axis=1)
        # The windows k with int(3.2 k) + 16 <= T: those with 80 k < 25 (T - 15).
        end = max(0, (SPEECH_RATE * (self._columns - WINDOW_COLUMNS + 1) - 1) // MEL_RATE + 1)
        windows = self._take(_starts(self._given, end))
        if self._given:
            # The next window may yet be clamped, but never to before the one given last.
            keep = _start(self._given - 1)
            self._mel, self._dropped = self._mel[:, keep - self._dropped :], keep
        return windows

    def finish(self, *, file: str | PathLike[str] | None = None) -> NDArray[np.float32]:
        """The windows that remain when no more columns will come, float32 `[k, 1, 80, 16]`.

        Raises:
            MediaError: fewer than 16 mel columns in all.
        """
        return self._take(window_starts(self._columns, file=file)[self._given :])

    @property
    def _columns(self) -> int:
        return self._dropped + self._mel.shape[1]

    def _take(self, starts: NDArray[np.int64]) -> NDArray[np.float32]:
        self._given += len(starts)
        columns = (starts - self._dropped)[:, None] + np.arange(WINDOW_COLUMNS)
        return np.ascontiguousarray(self._mel[:, columns].swapaxes(0, 1)[:, None])


def _start(window: int) -> int:
    return window * MEL_RATE // SPEECH_RATE


def _starts(first: int, end: int) -> NDArray[np.int64]:
    return np.arange(first, end, dtype=np.int64) * MEL_RATE // SPEECH_RATE


def frame_count(duration_seconds: float | Fraction, fps: float | Fraction) -> int:
    """The fewest frames that last as long as the sound: `ceil(duration * fps)`, short of a hundredth of a frame.

    No sound is cut, and the video is longer by less than one frame. The hundredth (0.4 ms at 25 fps) keeps a sound made
    to fit n frames, and rounded to whole samples, from taking one more. Both arguments are taken as the nearest
    fraction with a denominator of at most a million, so that the float's last bit does not matter.

    >>> frame_count(20.92, 25), frame_count(20.921, 25), frame_count(1, Fraction(30000, 1001))
    (523, 524, 30)
    """
    if not (0 <= duration_seconds < math.inf and 0 < fps < math.inf):
        raise ValueError(f"need a duration of at least 0 and fps above 0 (got {duration_seconds!r}, {fps!r})")
    return math.ceil(_fraction(duration_seconds) * _fraction(fps) - Fraction(1, 100))


def _fraction(value: float | Fraction) -> Fraction:
    return Fraction(value).limit_denominator(1_000_000)


def frames_of_rows(rows: int, fps: Fraction) -> int:
    """Frames of video that cover the time of feature rows: `ceil(rows * fps / 25)`.

    >>> frames_of_rows(522, Fraction(25)), frames_of_rows(51, Fraction(30000, 1001))
    (522, 62)
    """
    return math.ceil(rows * fps / SPEECH_RATE)
