"""The bytes that a kernel must move, each once: what its time is compared with.

The heads of the files in `kernels/` derive them.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import DTypeLike

from gpupipe.colour import matrices
from gpupipe.compose.frames import FrameSpec
from gpupipe.compose.table import ROW
from gpupipe.geometry import SPEECH_ROWS, SPEECH_WIDTH
from gpupipe.model.nets import TensorSpec

_TAP_BYTES = 8
_REAL_BYTES = np.dtype(np.float32).itemsize


def least_bytes(kernel: str, spec: FrameSpec, dtype: DTypeLike, sources: Sequence[int]) -> float:
    """Bytes a frame, read and written together, that a batch must move.

    Args:
        kernel: its name, one of `kernels.NAMES`; for `gather` see `gathered_bytes`.
        spec: of the character.
        dtype: of the model's numbers, float32 or float16.
        sources: the cached frames of the batch; they show consecutive rows of one speech.
    """
    real, batch = np.dtype(dtype).itemsize, len(sources)
    size, crop = spec.layout.model_size, spec.layout.crop_size
    if kernel == "prepare":
        window = SPEECH_ROWS * SPEECH_WIDTH
        speech = (SPEECH_ROWS - 1 + batch) * SPEECH_WIDTH * _REAL_BYTES / batch
        read = (6 if spec.recorded else 3) * size**2
        return read + 6 * size**2 * real + speech + window * real + ROW.itemsize
    rects = [spec.rects[source] for source in sources]
    seen = [rect.within(spec.width, spec.height) for rect in rects]
    nv12 = kernel == "paste_nv12"
    pixel = 1.5 if nv12 else 3.0
    covered = sum(rect.width * rect.height for rect in seen) / batch
    taps = _TAP_BYTES * (sum({r.width for r in rects}) + sum({r.height for r in rects})) / batch
    matrix = matrices()[0].nbytes / batch if nv12 else 0
    frame = spec.width * spec.height * pixel
    return 2 * frame - covered * pixel + 3 * size**2 * real + 3 * (crop**2 - size**2) + taps + ROW.itemsize + matrix


def gathered_bytes(features: Sequence[TensorSpec]) -> int:
    """Bytes a frame, read and written together, that `gather` must move."""
    return 2 * sum(spec.frame_bytes for spec in features)
