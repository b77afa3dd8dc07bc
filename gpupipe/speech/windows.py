"""From speech samples to the lip-sync model's speech features: windows of mel columns, feature rows, frames of video.

Samples come in as chunks and leave as feature rows; an hour of speech is never held as samples, mel columns and
windows at once. No files and no decoding here (see `sound`), and no model: the encoder is a function that is passed in.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from fractions import Fraction
from os import PathLike

import numpy as np
from numpy.typing import NDArray

from gpupipe.errors import InferenceError, MediaError
from gpupipe.geometry import SPEECH_RATE, SPEECH_WIDTH
from gpupipe.speech.mel import MEL_BANDS, MEL_RATE, SAMPLE_RATE, MelStream, mel_spectrogram

__all__ = [
    "MEL_BANDS",
    "MEL_RATE",
    "SAMPLE_RATE",
    "WINDOW_COLUMNS",
    "MelStream",
    "feature_rows",
    "features_from_pcm",
    "frame_count",
    "iter_windows",
    "mel_spectrogram",
    "mel_windows",
    "resample_rows",
    "window_count",
    "window_starts",
]

WINDOW_COLUMNS = 16
"""Mel columns that the speech encoder sees at once, 0.2 s (Wav2Lip's `syncnet_mel_step_size`)."""

# Rows at a time, so that temporary copies stay near 8 MiB.
_RESAMPLE_BLOCK = 4096
_CAPACITY = 4096


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


def mel_windows(mel: NDArray[np.float32], *, file: str | PathLike[str] | None = None) -> NDArray[np.float32]:
    """All windows of a mel spectrogram, as the speech encoder takes them.

    Args:
        mel: float32 `[80, T]`.
        file: what an error calls the speech.

    Returns:
        float32 `[n, 1, 80, 16]`, contiguous; 5 KiB a window, so use `iter_windows` for long speech.

    Raises:
        MediaError: fewer than 16 mel columns.
    """
    return _gather(mel, window_starts(mel.shape[1], file=file))


def _start(window: int) -> int:
    return window * MEL_RATE // SPEECH_RATE


def _starts(first: int, end: int) -> NDArray[np.int64]:
    return np.arange(first, end, dtype=np.int64) * MEL_RATE // SPEECH_RATE


def _gather(mel: NDArray[np.float32], starts: NDArray[np.int64]) -> NDArray[np.float32]:
    windows = np.lib.stride_tricks.sliding_window_view(mel, WINDOW_COLUMNS, axis=1)
    return np.ascontiguousarray(windows[:, starts].swapaxes(0, 1)[:, None])


def iter_windows(
    mel_blocks: Iterable[NDArray[np.float32]], batch: int, *, file: str | PathLike[str] | None = None
) -> Iterator[NDArray[np.float32]]:
    """The windows of `mel_windows`, a batch at a time, of mel columns that arrive in blocks.

    Args:
        mel_blocks: float32 `[80, m]` each, of any m.
        batch: windows in a batch; the last batch may be smaller.
        file: what an error calls the speech.

    Yields:
        float32 `[batch, 1, 80, 16]`.

    Raises:
        MediaError: fewer than 16 mel columns in all.
    """
    mel, dropped, done = np.empty((MEL_BANDS, 0), np.float32), 0, 0
    for block in mel_blocks:
        mel = np.concatenate((mel, block), axis=1)
        # A window that ends within T columns is always one of T's windows, and not clamped, so it need not wait.
        while _start(done + batch - 1) + WINDOW_COLUMNS <= dropped + mel.shape[1]:
            yield _gather(mel, _starts(done, done + batch) - dropped)
            done += batch
            # The next window may yet be clamped, but never to before the one just given.
            keep = _start(done - 1)
            mel, dropped = mel[:, keep - dropped :], keep
    starts = window_starts(dropped + mel.shape[1], file=file) - dropped
    for at in range(done, len(starts), batch):
        yield _gather(mel, starts[at : at + batch])


def features_from_pcm(
    pcm_chunks: Iterable[NDArray[np.float32]],
    encode: Callable[[NDArray[np.float32]], NDArray[np.float32]],
    batch: int = 32,
    *,
    file: str | PathLike[str] | None = None,
) -> NDArray[np.float32]:
    """The feature rows of a speech: the encoder's row for each window, with the first and the last one doubled.

    Streams: beside the result, only about a second of sound and one batch of windows are held.

    Args:
        pcm_chunks: float32 `[n]` each, of any n: mono, 16 kHz, full scale ±1.
        encode: gives float32 `[batch, 512]` for float32 `[batch, 1, 80, 16]`. Always called with exactly `batch`
            windows (the last call repeats its last window), because a new shape can cost a GPU a new search.
        batch: windows a call.
        file: what an error calls the speech.

    Returns:
        float32 `[N, 512]`, 25 rows a second, N as `feature_rows` says.

    Raises:
        MediaError: the speech is shorter than one window (16 mel columns, 0.1875 s).
        InferenceError: `encode` gives another shape, or a value that is not finite.
    """
    if batch < 1:
        raise ValueError(f"batch must be at least 1 (got {batch})")
    # Grown in place, by at most an eighth, so that an hour's rows are not held twice.
    rows, used = np.empty((_CAPACITY, SPEECH_WIDTH), np.float32), 1
    for windows in iter_windows(_mel_blocks(pcm_chunks), batch, file=file):
        count = len(windows)
        if count < batch:
            windows = np.concatenate((windows, np.repeat(windows[-1:], batch - count, axis=0)))
        encoded = np.asarray(encode(windows))
        if encoded.shape != (batch, SPEECH_WIDTH) or not np.isfinite(encoded[:count]).all():
            found = list(encoded.shape) if encoded.shape != (batch, SPEECH_WIDTH) else "NaN or infinity"
            raise InferenceError(
                f"the speech encoder must give finite [{batch}, {SPEECH_WIDTH}]",
                value=found,
                remedy="use the audio encoder that the lip-sync model was trained with",
            )
        if used + count + 1 > len(rows):
            rows.resize(
                (max(used + count + 1, len(rows) + max(_CAPACITY, len(rows) // 8)), SPEECH_WIDTH), refcheck=False
            )
        rows[used : used + count] = encoded[:count]
        used += count
    rows[0], rows[used] = rows[1], rows[used - 1]
    rows.resize((used + 1, SPEECH_WIDTH), refcheck=False)
    return rows


def _mel_blocks(pcm_chunks: Iterable[NDArray[np.float32]]) -> Iterator[NDArray[np.float32]]:
    stream = MelStream()
    for chunk in pcm_chunks:
        yield stream.push(chunk)
    yield stream.finish()


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


def resample_rows(
    features: NDArray[np.float32],
    target_rate: float | Fraction,
    *,
    source_rate: float | Fraction = SPEECH_RATE,
) -> NDArray[np.float32]:
    """Feature rows at another rate, so that row i is the speech at the time of frame i.

    Row i lies at `i / target_rate` seconds, at position `p = i * source_rate / target_rate` among the source rows, and
    is `(1 - r) * features[floor(p)] + r * features[floor(p) + 1]` with `r = p - floor(p)`. Past the last source row
    that row is held. Rows are as many as frames cover the time of the source rows: `ceil(N * target / source)`.

    Args:
        features: float32 `[N, 512]` (any width), row j at `j / source_rate` seconds.
        target_rate: rows a second wanted: the video's fps, such as `Fraction(30000, 1001)`.
        source_rate: rows a second given.

    Returns:
        float32 `[M, 512]`: `features` itself, not a copy, when the rates are equal.
    """
    if not (0 < target_rate < math.inf and 0 < source_rate < math.inf):
        raise ValueError(f"rates must be above 0 (got {source_rate!r} and {target_rate!r})")
    step = _fraction(source_rate) / _fraction(target_rate)
    if step == 1 or not len(features):
        return features
    last = len(features) - 1
    result = np.empty((math.ceil(len(features) / step), *features.shape[1:]), np.float32)
    # Positions in whole numbers: in floats, a row that falls exactly on a source row would drift off it.
    for at in range(0, len(result), _RESAMPLE_BLOCK):
        scaled = np.arange(at, min(at + _RESAMPLE_BLOCK, len(result))) * step.numerator
        index = scaled // step.denominator
        rest = ((scaled - index * step.denominator) / step.denominator).astype(np.float32)[:, None]
        low, high = features[np.minimum(index, last)], features[np.minimum(index + 1, last)]
        result[at : at + len(index)] = (1 - rest) * low + rest * high
    return result
