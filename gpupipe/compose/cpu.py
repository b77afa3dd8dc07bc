"""The compositor on the host, with OpenCV and NumPy. It defines what a correct frame is.

Everything is kept in planes, so that the model's inputs and outputs need no transposition, and everything that is
written once a frame goes straight to where it is read next.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from gpupipe.colour import FRACTION_BITS
from gpupipe.compose.frames import HostFrames
from gpupipe.geometry import SPEECH_BEFORE, SPEECH_ROWS, SPEECH_SHAPE, SPEECH_WIDTH, Rect

Pixels = NDArray[np.uint8]
FULL = np.float32(255)
ONE_BITS = int(np.float32(1).view(np.uint32))


@dataclass
class CpuSlot:
    """The buffers of one batch, all NumPy arrays; see `compositor.Slot`."""

    visual: NDArray[Any]
    audio: NDArray[Any]
    prediction: NDArray[Any]
    frames: Pixels
    source: NDArray[np.int32]
    has_nan: NDArray[np.bool_]


class CpuCompositor:
    """Draws finished frames on the host; see `compositor.Compositor`.

    Args:
        frames: the character's frames.
        speech: speech features, float32 `[N, 512]`.
        batch: frames a batch, B.
        dtype: what the model reads and writes, float32 or float16.
        workers: threads that share the frames of a batch.
    """

    def __init__(
        self,
        frames: HostFrames,
        speech: NDArray[np.float32],
        *,
        batch: int,
        dtype: Any = np.float32,
        workers: int = 1,
    ) -> None:
        self.frames = frames
        self.spec = frames.spec
        self.batch = batch
        self.dtype = np.dtype(dtype)
        self._workers = min(workers, batch)
        self._pool = ThreadPoolExecutor(self._workers, "composite") if self._workers > 1 else None
        self._scratch = [_Scratch(frames, self.dtype) for _ in range(self._workers)]
        self._speech = speech

    def new_slot(self) -> CpuSlot:
        """Allocate the buffers of one batch."""
        size = self.spec.layout.model_size
        return CpuSlot(
            # The masked planes stay 0 wherever `prepare` does not write.
            visual=np.zeros((self.batch, 6, size, size), self.dtype),
            audio=np.zeros((self.batch, *SPEECH_SHAPE), self.dtype),
            prediction=np.zeros((self.batch, 3, size, size), self.dtype),
            frames=np.zeros((self.batch, *self.spec.format.shape), np.uint8),
            source=np.zeros(self.batch, np.int32),
            has_nan=np.zeros(self.batch, np.bool_),
        )

    def prepare(self, slot: CpuSlot, source: NDArray[np.int32], speech: NDArray[np.int32]) -> None:
        """Fill the model's inputs: `[roi, masked]` BGR planes divided by 255, and speech rows i - 8 … i + 7.

        The division is float32 and correctly rounded; a float16 input is that quotient, rounded once more. Rows of
        speech outside the features are zeros.
        """
        slot.source[:] = source

        def one(frame: int, _: _Scratch) -> None:
            self._visual(slot.visual[frame], int(source[frame]))
            self._window(slot.audio[frame].reshape(SPEECH_ROWS, SPEECH_WIDTH), int(speech[frame]) - SPEECH_BEFORE)

        self._each(one)

    def ready(self, slot: CpuSlot) -> None:
        """Nothing to wait for: `prepare` has done its work when it returns."""

    def paste(self, slot: CpuSlot) -> None:
        """Draw each prediction: `u8(trunc(clip(p, 0, 1)·255))` into the crop, resized with INTER_LINEAR to the
        rectangle, over the body. NaN is drawn as 0."""

        def one(frame: int, scratch: _Scratch) -> None:
            source = int(slot.source[frame])
            crop = scratch.crop
            slot.has_nan[frame] = self._place(slot.prediction[frame], source, scratch)
            rect = self.spec.rects[source]
            small = scratch.resized[: 3 * rect.width * rect.height].reshape(3, rect.height, rect.width)
            for plane in range(3):
                cv2.resize(crop[plane], (rect.width, rect.height), dst=small[plane], interpolation=cv2.INTER_LINEAR)
            out = slot.frames[frame]
            np.copyto(out, self.frames.body[source])
            seen = rect.within(self.spec.width, self.spec.height)
            inside = np.s_[seen.y1 - rect.y1 : seen.y2 - rect.y1, seen.x1 - rect.x1 : seen.x2 - rect.x1]
            if self.spec.pixel_format == "bgr24":
                out[seen.y1 : seen.y2, seen.x1 : seen.x2] = cv2.merge([plane[inside] for plane in small])
            else:
                self._paste_nv12(out, small, inside, seen, scratch)

        self._each(one)

    def finish(self, slot: CpuSlot) -> NDArray[np.bool_]:
        """Which predictions held a NaN; the frames are complete already."""
        return slot.has_nan

    def close(self) -> None:
        """Stop the threads."""
        if self._pool:
            self._pool.shutdown()

    def _each(self, work: Callable[[int, _Scratch], None]) -> None:
        def share(worker: int) -> None:
            for frame in range(worker, self.batch, self._workers):
                work(frame, self._scratch[worker])

        if self._pool is None:
            share(0)
        else:
            list(self._pool.map(share, range(self._workers)))

    def _visual(self, out: NDArray[Any], source: int) -> None:
        recorded = self.frames.recorded
        if recorded is not None:
            np.divide(recorded[source], FULL, out=out, dtype=np.float32, casting="same_kind")
            return
        roi, masked, inside = out[:3], out[3:], self.spec.layout.roi
        np.divide(self.frames.crops[source][:, inside, inside], FULL, out=roi, dtype=np.float32, casting="same_kind")
        mask = self.spec.layout.mask
        masked[:, : mask.y1] = roi[:, : mask.y1]
        masked[:, mask.y2 :] = roi[:, mask.y2 :]
        masked[:, mask.y1 : mask.y2, : mask.x1] = roi[:, mask.y1 : mask.y2, : mask.x1]
        masked[:, mask.y1 : mask.y2, mask.x2 :] = roi[:, mask.y1 : mask.y2, mask.x2 :]

    def _window(self, out: NDArray[Any], first: int) -> None:
        """Rows `first` and on of the speech features; zeros outside them."""
        begin, end = (min(max(row, 0), len(self._speech)) for row in (first, first + SPEECH_ROWS))
        out[: begin - first] = 0
        out[begin - first : end - first] = self._speech[begin:end]
        out[end - first :] = 0

    def _place(self, prediction: NDArray[Any], source: int, scratch: _Scratch) -> bool:
        """Put a prediction into `scratch.crop`, inside the border of the cached crop; whether it held a NaN."""
        if prediction.dtype != np.float32:
            np.copyto(scratch.prediction, prediction)
            prediction = scratch.prediction
        has_nan = False
        # The bits of 0 to 1, taken for integers, are the least: one pass finds what is below, above, or NaN.
        if prediction.view(np.uint32).max() > ONE_BITS:
            has_nan = bool(np.isnan(prediction).any())
            np.fmin(np.fmax(prediction, np.float32(0), out=scratch.prediction), np.float32(1), out=scratch.prediction)
            prediction = scratch.prediction
        crop, inside = scratch.crop, self.spec.layout.roi
        np.copyto(crop, self.frames.crops[source])  # as a whole: the border alone takes longer
        np.multiply(prediction, FULL, out=crop[:, inside, inside], dtype=np.float32, casting="unsafe")
        return has_nan

    def _paste_nv12(self, out: Pixels, small: Pixels, inside: Any, seen: Rect, scratch: _Scratch) -> None:
        """Convert the resized crop with the stream's matrix, write its luma, and its chroma 2×2 by 2×2.

        A 2×2 block takes the rounded mean of its pixels' chroma; pixels that the rectangle does not cover keep the
        body's.
        """
        luma, *chroma = (plane[inside] for plane in scratch.to_ycbcr(small))
        out[seen.y1 : seen.y2, seen.x1 : seen.x2] = luma
        left, top, right, bottom = seen.x1 // 2, seen.y1 // 2, (seen.x2 + 1) // 2, (seen.y2 + 1) // 2
        if right <= left or bottom <= top:
            return
        blocks = out[self.spec.height :].reshape(self.spec.height // 2, self.spec.width // 2, 2)
        blocks = blocks[top:bottom, left:right]
        if any(edge % 2 for edge in seen):
            for component, covered in enumerate(chroma):
                full = blocks[..., component].repeat(2, axis=0).repeat(2, axis=1)
                full[seen.y1 - 2 * top : seen.y2 - 2 * top, seen.x1 - 2 * left : seen.x2 - 2 * left] = covered
                chroma[component] = full
        # Halving with INTER_LINEAR is the rounded mean of four: (a + b + c + d + 2) >> 2.
        half = (right - left, bottom - top)
        np.copyto(blocks, cv2.merge([cv2.resize(full, half, interpolation=cv2.INTER_LINEAR) for full in chroma]))


class _Scratch:
    """What one thread needs while it draws a frame."""

    def __init__(self, frames: HostFrames, dtype: np.dtype[Any]) -> None:
        spec = frames.spec
        size = spec.layout.model_size
        largest = max(rect.width * rect.height for rect in spec.rects)
        self.crop = np.zeros(spec.crop_shape, np.uint8)
        self.prediction = np.zeros((3, size, size), np.float32)
        self.resized = np.zeros(3 * largest, np.uint8)
        if spec.pixel_format == "nv12":
            self._weights = spec.colour.from_bgr.astype(np.float32) / np.float32(1 << FRACTION_BITS)
            self._floats = np.ones((4, largest), np.float32)  # B, G, R, and 1 for the offset
            self._sums = np.zeros((3, largest), np.float32)
            self._may_exceed = spec.colour.full_range

    def to_ycbcr(self, bgr: Pixels) -> Pixels:
        """Planes B, G, R `[3, h, w]` as Y, Cb, Cr, in place: `min(255, (weights · (B, G, R) + offset) >> 14)`.

        Every weight is a multiple of 2^-14, and every sum below 2^10, so float32 holds each step exactly.
        """
        pixels = bgr.reshape(3, -1)
        count = pixels.shape[1]
        floats, sums = self._floats[:, :count], self._sums[:, :count]
        np.copyto(floats[:3], pixels)
        np.matmul(self._weights, floats, out=sums)
        if self._may_exceed:  # in limited range no sum reaches 256
            np.minimum(sums, FULL, out=sums)
        np.copyto(pixels, sums, casting="unsafe")
        return bgr
