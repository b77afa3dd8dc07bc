"""From speech samples to feature rows, as the samples arrive: the one way, for live speech and for whole files."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from os import PathLike
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from gpupipe.errors import InferenceError, MediaError
from gpupipe.geometry import SPEECH_WIDTH
from gpupipe.speech.mel import HOP, MEL_BANDS, MelStream
from gpupipe.speech.windows import WINDOW_COLUMNS, WindowStream, samples_of_row

LIVE_BATCH = 4
"""Windows that the encoder gets at a time from live speech: 0.16 s of sound, more than arrives at once."""

Encode = Callable[[NDArray[np.float32]], NDArray[np.float32]]
"""Gives feature rows, float32 `[B, 512]`, for windows, float32 `[B, 1, 80, 16]`."""

# Samples looked at in one go, so that an hour pushed at once is never held as mel columns or windows.
_STEP = 256 * HOP
_CAPACITY = 4096


class RowSink(Protocol):
    """What takes the rows: `SpeechRows`, for a session that reads while they come."""

    def append(self, rows: NDArray[np.float32]) -> None:
        """Take the next rows, float32 `[n, 512]`."""

    def finish(self) -> None:
        """Learn that no more rows will come."""


class FeatureStream:
    """Sound in, feature rows out, each as soon as its mel columns exist: the rows of `features_from_pcm`.

    Rows are the encoder's for each window, with the first and the last one doubled. Row k, the speech at k / 25 s, is
    appended by the `push` that completes `windows.samples_of_row(k)` samples, `int(3.2 max(0, k - 1)) / 80 + 0.2125` s:
    a window starts one row back, its last column is 187.5 ms on, and looks 25 ms ahead. So a row comes at most 172.5 ms
    after its own time (the first one 212.5 ms), and all that a frame hears, which reaches 7 rows on (8 where the rate
    is not 25), at most 452.5 ms (492.5 ms) after the frame's time.

    Mel columns and windows are the same bits whatever the chunks. So are the rows if the encoder's answer for a window
    does not depend on those beside it: ONNX Runtime's CPU provider gives the same bits for every batch size and number
    of threads (tested with 1 to 64 windows); the libraries of a GPU promise that for one batch size only.

    One thread pushes. After an error the stream is of no more use, and its rows stay unfinished.

    Args:
        encode: the encoder. It always gets exactly `batch` windows, the last one repeated where there are fewer,
            because a new shape can cost a GPU a new search.
        rows: what takes the rows.
        batch: windows a call.
        full_batches: wait for full batches: fewer calls, for speech that is there as a whole.
        file: what an error calls the speech.

    Raises:
        ValueError: `batch` is less than 1.
    """

    def __init__(
        self,
        encode: Encode,
        rows: RowSink,
        *,
        batch: int = LIVE_BATCH,
        full_batches: bool = False,
        file: str | PathLike[str] | None = None,
    ) -> None:
        if batch < 1:
            raise ValueError(f"batch must be at least 1 (got {batch})")
        self._encode, self._rows, self._batch, self._file = encode, rows, batch, file
        self._least = batch if full_batches else 1
        self._mel, self._windows = MelStream(), WindowStream()
        self._held: list[NDArray[np.float32]] = []  # less than completes a row
        self._samples = self._count = 0
        self._waiting = np.empty((0, 1, MEL_BANDS, WINDOW_COLUMNS), np.float32)
        self._last: NDArray[np.float32] | None = None

    @property
    def missing(self) -> int:
        """Samples that complete the next row: fewer are only held."""
        return max(0, samples_of_row(self._count) - self._samples)

    def push(self, pcm: NDArray[np.float32]) -> None:
        """Take the next samples, and append the rows that they complete.

        Args:
            pcm: float32 `[n]`, mono, 16 kHz, full scale ±1; n may be 0.

        Raises:
            ValueError: `pcm` has another shape or type, or `finish` was called before.
            MediaError: `pcm` holds NaN or infinity.
            InferenceError: the encoder fails, or gives another shape, or a value that is not finite.
        """
        for at in range(0, max(1, len(pcm)), _STEP):
            samples = pcm[at : at + _STEP]
            if not np.isfinite(samples).all():
                raise MediaError("the sound holds NaN or infinity", file=self._file, remedy="send finite samples")
            self._mel.check(samples)
            self._samples += len(samples)
            self._held.append(samples.copy() if len(samples) < _STEP else samples)
            if not self.missing:
                self._hear()

    def finish(self) -> None:
        """End the speech: append the rows that remain, and finish them.

        Raises:
            ValueError: `finish` was called before.
            MediaError: the speech is shorter than one window (16 mel columns, 0.1875 s).
            InferenceError: as `push`.
        """
        self._hear()
        self._take(self._windows.push(self._mel.finish()), self._least)
        self._take(self._windows.finish(file=self._file), 1)
        assert self._last is not None
        self._rows.append(self._last)
        self._rows.finish()

    def _hear(self) -> None:
        """Go through what is held: once for each row, as many small pieces cost far more than one."""
        held, self._held = self._held, []
        pcm = held[0] if len(held) == 1 else np.concatenate(held or [np.empty(0, np.float32)])
        self._take(self._windows.push(self._mel.push(pcm)), self._least)

    def _take(self, windows: NDArray[np.float32], least: int) -> None:
        """Encode windows in order while at least `least` of them are waiting."""
        waiting = np.concatenate((self._waiting, windows))
        while len(waiting) >= least and len(waiting):
            encoded = self._encoded(waiting[: self._batch])
            waiting = waiting[self._batch :]
            if self._last is None:
                self._rows.append(encoded[:1])
                self._count += 1
            self._count += len(encoded)
            self._rows.append(encoded)
            self._last = encoded[-1:].copy()
        self._waiting = waiting

    def _encoded(self, windows: NDArray[np.float32]) -> NDArray[np.float32]:
        count, wanted = len(windows), (self._batch, SPEECH_WIDTH)
        if count < self._batch:
            windows = np.concatenate((windows, np.repeat(windows[-1:], self._batch - count, axis=0)))
        encoded = np.asarray(self._encode(windows))
        if encoded.shape != wanted or not np.isfinite(encoded[:count]).all():
            raise InferenceError(
                f"the speech encoder must give finite {list(wanted)}",
                value=list(encoded.shape) if encoded.shape != wanted else "NaN or infinity",
                remedy="use the audio encoder that the lip-sync model was trained with",
            )
        return encoded[:count]


def features_from_pcm(
    pcm_chunks: Iterable[NDArray[np.float32]],
    encode: Encode,
    batch: int = 32,
    *,
    file: str | PathLike[str] | None = None,
) -> NDArray[np.float32]:
    """The feature rows of a whole speech: those of a `FeatureStream`.

    Beside the result, only about a second of sound and a batch of windows are held.

    Args:
        pcm_chunks: float32 `[n]` each, of any n: mono, 16 kHz, full scale ±1.
        encode: the encoder, called with exactly `batch` windows.
        batch: windows a call.
        file: what an error calls the speech.

    Returns:
        float32 `[N, 512]`, 25 rows a second, N as `feature_rows` says.

    Raises:
        ValueError, MediaError, InferenceError: as `FeatureStream`.
    """
    rows = _WholeRows()
    stream = FeatureStream(encode, rows, batch=batch, full_batches=True, file=file)
    for chunk in pcm_chunks:
        stream.push(chunk)
    stream.finish()
    return rows.array


class _WholeRows:
    """Rows that nobody reads before the last has come: one array, grown in place, so that it is never held twice."""

    def __init__(self) -> None:
        self.array = np.empty((_CAPACITY, SPEECH_WIDTH), np.float32)
        self._count = 0

    def append(self, rows: NDArray[np.float32]) -> None:
        end = self._count + len(rows)
        if end > len(self.array):
            self._resize(max(end, len(self.array) + max(_CAPACITY, len(self.array) // 8)))
        self.array[self._count : end] = rows
        self._count = end

    def finish(self) -> None:
        self._resize(self._count)

    def _resize(self, rows: int) -> None:
        self.array.resize((rows, SPEECH_WIDTH), refcheck=False)
