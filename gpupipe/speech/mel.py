"""The mel spectrogram that the speech encoder was trained on, of a whole speech or of one that arrives in chunks."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

SAMPLE_RATE = 16_000
"""Samples a second that the published speech encoder was trained on (Wav2Lip's `hparams.sample_rate`)."""
PREEMPHASIS = 0.97
"""Share of the previous sample taken off each sample (Wav2Lip's `hparams.preemphasis`)."""
FFT_SIZE = 800
"""Samples in one analysis frame, 50 ms (Wav2Lip's `hparams.n_fft`)."""
HOP = 200
"""Samples between mel columns, 12.5 ms (Wav2Lip's `hparams.hop_size`)."""
MEL_BANDS = 80
"""Mel bands in a column (Wav2Lip's `hparams.num_mels`)."""
MEL_LOW_HZ, MEL_HIGH_HZ = 55.0, 7600.0
"""Lower edge of the first and upper edge of the last mel band (Wav2Lip's `hparams.fmin`, `hparams.fmax`)."""
MEL_RATE = SAMPLE_RATE // HOP
"""Mel columns a second: 80."""

# The level floor, reference and range of Wav2Lip's `min_level_db`, `ref_level_db` and `max_abs_value`.
_LEVEL_FLOOR = 1e-5
_REFERENCE_DB = 20.0
_RANGE_DB = 100.0
_MEL_LIMIT = 4.0
# Columns computed at a time: the float64 copies of a whole file pushed at once stay near 5 MiB.
_BLOCK_COLUMNS = 256


def mel_filters() -> NDArray[np.float64]:
    """The 80 triangular mel filters, on the Slaney scale and with unit area ("slaney" normalisation).

    Source: Slaney's Auditory Toolbox (1998), as `librosa.filters.mel(htk=False, norm="slaney")` builds them: linear
    below 1000 Hz (3 mels per 200 Hz), logarithmic above (27 mels for a factor of 6.4).

    Returns:
        float64 `[80, 401]`: weight of each FFT bin in each band.
    """
    mel_low, mel_high = MEL_LOW_HZ * 3 / 200, 15 + 27 * np.log(MEL_HIGH_HZ / 1000) / np.log(6.4)
    mels = np.linspace(mel_low, mel_high, MEL_BANDS + 2)
    edges = np.where(mels < 15, mels * 200 / 3, 1000 * np.exp((mels - 15) * np.log(6.4) / 27))
    bins = np.fft.rfftfreq(FFT_SIZE, 1 / SAMPLE_RATE)
    rising = (bins - edges[:-2, None]) / np.diff(edges)[:-1, None]
    falling = (edges[2:, None] - bins) / np.diff(edges)[1:, None]
    triangles = np.maximum(0, np.minimum(rising, falling))
    filters: NDArray[np.float64] = triangles * (2 / (edges[2:] - edges[:-2]))[:, None]
    return filters


class MelStream:
    """A mel spectrogram of samples that arrive in chunks: the same numbers, bit for bit, whatever the chunks.

    Each column is the magnitude of a centred 800-sample frame (periodic Hann window, zeros before the first sample and
    after the last), in 80 mel bands, as `clip(8 (S + 100) / 100 - 4, -4, 4)` with
    `S = 20 log10(max(1e-5, mel)) - 20`. n samples give `1 + n // 200` columns. Computed in float64: in float32 the
    rounding noise of a loud tone exceeds the floor of the quiet bands.

    Column c is there once `200 c + 400` samples are: 25 ms after its centre.
    """

    def __init__(self) -> None:
        self._window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(FFT_SIZE) / FFT_SIZE)
        # A band is a weighted sum of 3 to 27 neighbouring bins, added up column by column. A matrix product would add
        # them in an order that depends on the number of columns, on BLAS's threads and on the processor.
        filters = mel_filters()
        bands, self._bins = np.nonzero(filters)
        self._weights = filters[bands, self._bins]
        self._first = np.searchsorted(bands, np.arange(MEL_BANDS))
        self._last = np.zeros(1)
        # Pre-emphasised samples that later columns need; zeros centre the first frame on the first sample.
        self._pending = np.zeros(FFT_SIZE // 2)
        self._samples = 0
        self._finished = False

    @property
    def samples(self) -> int:
        """Samples pushed so far."""
        return self._samples

    def push(self, pcm: NDArray[np.float32]) -> NDArray[np.float32]:
        """Take the next samples and give the columns that are complete.

        Args:
            pcm: float32 `[n]`, mono, 16 kHz, full scale ±1; n may be 0.

        Returns:
            float32 `[80, m]`; m may be 0.

        Raises:
            ValueError: `pcm` has another shape or type, or `finish` was called before.
        """
        self.check(pcm)
        blocks = [np.empty((MEL_BANDS, 0), np.float32)]
        step = _BLOCK_COLUMNS * HOP
        for at in range(0, len(pcm), step):
            samples = np.concatenate((self._last, pcm[at : at + step]), dtype=np.float64)
            self._last = samples[-1:].copy()
            self._samples += len(samples) - 1
            blocks.append(self._columns(samples[1:] - PREEMPHASIS * samples[:-1]))
        return np.concatenate(blocks, axis=1)

    def check(self, pcm: NDArray[np.float32]) -> None:
        """Raise what `push` raises."""
        self._check_open()
        if pcm.ndim != 1 or pcm.dtype != np.float32:
            raise ValueError(f"pcm must be float32 [n] (got {pcm.dtype} {list(pcm.shape)})")

    def finish(self) -> NDArray[np.float32]:
        """End the speech and give the columns that remain.

        Returns:
            float32 `[80, m]`: two columns, or one of less than 200 samples.

        Raises:
            ValueError: `finish` was called before.
        """
        self._check_open()
        self._finished = True
        return self._columns(np.zeros(FFT_SIZE // 2))

    def _check_open(self) -> None:
        if self._finished:
            raise ValueError("the mel stream is finished: start a new one")

    def _columns(self, samples: NDArray[np.float64]) -> NDArray[np.float32]:
        """The columns that these pre-emphasised samples complete."""
        pending = np.concatenate((self._pending, samples))
        count = max(0, (len(pending) - FFT_SIZE) // HOP + 1)
        self._pending = pending[count * HOP :].copy()
        if not count:
            return np.empty((MEL_BANDS, 0), np.float32)
        frames = np.lib.stride_tricks.sliding_window_view(pending, FFT_SIZE)[::HOP] * self._window
        magnitude = np.abs(np.fft.rfft(frames, axis=1))
        mel = np.add.reduceat(magnitude[:, self._bins] * self._weights, self._first, axis=1)
        level = 20 * np.log10(np.maximum(_LEVEL_FLOOR, mel)) - _REFERENCE_DB
        scaled = 2 * _MEL_LIMIT * (level + _RANGE_DB) / _RANGE_DB - _MEL_LIMIT
        return np.clip(scaled, -_MEL_LIMIT, _MEL_LIMIT).T.astype(np.float32)


def mel_spectrogram(pcm: NDArray[np.float32]) -> NDArray[np.float32]:
    """The normalised mel spectrogram of a whole speech (see `MelStream` for the formula).

    Args:
        pcm: float32 `[n]`, mono, 16 kHz, full scale ±1.

    Returns:
        float32 `[80, 1 + n // 200]`, from -4 to 4, 80 columns a second.

    >>> mel_spectrogram(np.zeros(334_720, np.float32)).shape
    (80, 1674)
    """
    stream = MelStream()
    return np.concatenate((stream.push(pcm), stream.finish()), axis=1)
