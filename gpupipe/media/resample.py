"""Sound that comes in pieces, at another rate: what `sound.read_pcm` does with a file's."""

from __future__ import annotations

import av
import numpy as np
from numpy.typing import NDArray


class Resampler:
    """Mono sound from one rate to another, by libswresample's default; the same samples however it is cut into pieces.

    Args:
        rate: samples a second that come.
        wanted: samples a second that are given.
    """

    def __init__(self, rate: int, wanted: int) -> None:
        self._rate = rate
        self._resampler = av.AudioResampler("fltp", "mono", wanted)
        self._at = 0

    def push(self, pcm: NDArray[np.float32]) -> NDArray[np.float32]:
        """The samples that the next ones complete, float32 `[n]`.

        Args:
            pcm: float32 `[n]`.
        """
        if not len(pcm):
            return np.empty(0, np.float32)
        frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(pcm[None], np.float32), "fltp", "mono")
        frame.sample_rate, frame.pts = self._rate, self._at
        self._at += len(pcm)
        return self._given(frame)

    def finish(self) -> NDArray[np.float32]:
        """The samples that are left."""
        return self._given(None) if self._at else np.empty(0, np.float32)

    def _given(self, frame: av.AudioFrame | None) -> NDArray[np.float32]:
        pieces = [piece.to_ndarray()[0] for piece in self._resampler.resample(frame)]
        return np.concatenate(pieces) if pieces else np.empty(0, np.float32)
