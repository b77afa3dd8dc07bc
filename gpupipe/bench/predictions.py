"""Predictions in a slot of gpupipe's: put there where compositing is timed alone, and read where they are compared."""

from __future__ import annotations

from typing import Any

import numpy as np

from gpupipe.bench.way import Floats
from gpupipe.compose.protocol import Drawing


def prediction_in(slot: Any, gpu: Any) -> Floats:
    """What the model has put into a slot, on the host, float32 `[B, 3, S, S]`; `gpu` is None on the CPU."""
    prediction = slot.buffers.prediction
    if isinstance(prediction, np.ndarray):
        return np.asarray(prediction, np.float32).copy()
    host: np.ndarray[Any, Any] = gpu.pinned(prediction.shape, prediction.dtype)
    gpu.copy(host, prediction, gpu.compute_stream)
    gpu.synchronize()
    return host.astype(np.float32)


def place_predictions(slot: Any, given: Floats, drawings: list[Drawing[Any, Any]]) -> None:
    """Let a slot on the host have the predictions of a batch, without a copy where they lie together.

    Args:
        slot: the compositor's.
        given: of the first frames, float32 `[N, 3, S, S]`; they are repeated.
        drawings: the batch.
    """
    first, count = drawings[0].surface.index % len(given), len(drawings)
    part = given[first : first + count]
    if len(part) < count:
        part = given[(first + np.arange(count)) % len(given)]
    slot.prediction = part.astype(slot.prediction.dtype, copy=False)


def fill_predictions(slot: Any, given: Floats, gpu: Any) -> None:
    """Put the predictions of the first batch into a slot on the device: of every batch, as it is as large."""
    prediction = slot.prediction
    if isinstance(prediction, np.ndarray):
        prediction[: len(given)] = given
        return
    host = gpu.pinned(prediction.shape, prediction.dtype)
    host[: len(given)] = given
    gpu.copy(prediction, host, gpu.compute_stream)
    gpu.synchronize()
