"""The compositor on the host, with OpenCV and NumPy. It defines what a correct frame is.

Everything is kept in planes, so that the model's inputs and outputs need no transposition, and everything that is
written once a frame goes straight to where it is read next.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from math import prod
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from gpupipe.compose.frames import FrameSpec
from gpupipe.compose.protocol import BatchKind, CachedFrames, Drawing
from gpupipe.geometry import SPEECH_ROWS, SPEECH_WIDTH, Rect
from gpupipe.gpu.clock import Marks
from gpupipe.model.signature import model_shapes
from gpupipe.speech.rows import SpeechRows

Pixels = NDArray[np.uint8]
HostDrawing = Drawing[CachedFrames, SpeechRows]
FULL = np.float32(255)
ONE_BITS = int(np.float32(1).view(np.uint32))


@dataclass
class CpuSlot:
    """The buffers of one batch, all NumPy arrays; see `protocol.Slot`.

    Attributes:
        visual, audio, prediction: what the model reads and writes.
        frames: what is drawn in it now.
        has_nan: bool `[B]`.
        marks: none: every step is done when it returns.
        masked: bool `[B]`: whether the masked planes of `visual` are 0 under the mask.
    """

    visual: NDArray[Any]
    audio: NDArray[Any]
    prediction: NDArray[Any]
    has_nan: NDArray[np.bool_]
    masked: NDArray[np.bool_]
    frames: Sequence[HostDrawing] = ()
    marks: Marks | None = None


class CpuCompositor:
    """Draws finished frames on the host; see `protocol.Compositor`.

    Args:
        kind: of the batches.
        workers: threads that share the frames of a batch.
    """

    def __init__(self, kind: BatchKind, *, workers: int = 1) -> None:
        self.kind = kind
        self._workers = min(workers, kind.batch)
        self._pool = ThreadPoolExecutor(self._workers, "composite") if self._workers > 1 else None
        self._scratch = [_Scratch(kind) for _ in range(self._workers)]
        self._pasting = threading.Lock()

    @staticmethod
    def slot_bytes(kind: BatchKind) -> int:
        """Host memory that `new_slot` takes."""
        return sum(prod(shape) for shape in model_shapes(kind.layout, kind.batch)) * kind.dtype.itemsize

    @staticmethod
    def scratch_bytes(spec: FrameSpec, *, workers: int) -> int:
        """Host memory that `admit` takes at most for a character: for each worker a resized crop and its conversion."""
        return workers * spec.largest_rect * (3 + (28 if spec.pixel_format == "nv12" else 0))

    def admit(self, frames: CachedFrames) -> None:
        """Make room for the largest rectangle of a character."""
        for scratch in self._scratch:
            scratch.reserve(frames.spec.largest_rect)

    def new_slot(self) -> CpuSlot:
        """Allocate the buffers of one batch."""
        visual, audio, prediction = model_shapes(self.kind.layout, self.kind.batch)
        return CpuSlot(
            visual=np.zeros(visual, self.kind.dtype),
            audio=np.zeros(audio, self.kind.dtype),
            prediction=np.zeros(prediction, self.kind.dtype),
            has_nan=np.zeros(self.kind.batch, np.bool_),
            masked=np.ones(self.kind.batch, np.bool_),
        )

    def prepare(self, slot: CpuSlot, frames: Sequence[HostDrawing]) -> None:
        """Fill the model's inputs: `[roi, masked]` BGR planes divided by 255, and the windows of speech.

        The division is float32 and correctly rounded; a float16 input is that quotient, rounded once more. See
        `SpeechRows.window` for the speech.
        """
        slot.frames = frames

        def one(place: int, _: _Scratch) -> None:
            drawing = frames[place]
            self._visual(slot, place, drawing)
            drawing.speech.window(drawing.row, drawing.fraction, slot.audio[place].reshape(SPEECH_ROWS, SPEECH_WIDTH))

        self._each(len(frames), one)

    def clear(self, slot: CpuSlot) -> None:
        """Zeros are masked already."""
        slot.visual.fill(0)
        slot.audio.fill(0)
        slot.masked.fill(True)

    def ready(self, slot: CpuSlot) -> None:
        """Nothing to wait for: `prepare` has done its work when it returns."""

    def paste(self, slot: CpuSlot) -> None:
        """Draw each prediction: `u8(trunc(clip(p, 0, 1)·255))` into the crop, resized with INTER_LINEAR to the
        rectangle, over the body. NaN is drawn as 0."""

        def one(place: int, scratch: _Scratch) -> None:
            drawing = slot.frames[place]
            cached, source, spec = drawing.frames, drawing.source, drawing.frames.spec
            held, row = cached.at(source)
            slot.has_nan[place] = self._place(slot.prediction[place], held.crops[row], scratch)
            rect, crop = spec.rects[source], scratch.crop
            small = scratch.resized[: 3 * rect.width * rect.height].reshape(3, rect.height, rect.width)
            for plane in range(3):
                cv2.resize(crop[plane], (rect.width, rect.height), dst=small[plane], interpolation=cv2.INTER_LINEAR)
            out = drawing.surface.host
            assert out is not None, "a surface of this device is on the host"
            np.copyto(out, held.body[row])
            seen = rect.within(spec.width, spec.height)
            inside = np.s_[seen.y1 - rect.y1 : seen.y2 - rect.y1, seen.x1 - rect.x1 : seen.x2 - rect.x1]
            if spec.pixel_format == "bgr24":
                out[seen.y1 : seen.y2, seen.x1 : seen.x2] = cv2.merge([plane[inside] for plane in small])
            else:
                self._paste_nv12(out, scratch.to_ycbcr(small, cached), inside, seen, spec.width, spec.height)

        with self._pasting:  # one slot at a time: the scratch is of a worker, not of a slot
            self._each(len(slot.frames), one)

    def finish(self, slot: CpuSlot) -> NDArray[np.bool_]:
        """Which predictions held a NaN; the surfaces are complete already."""
        return slot.has_nan[: len(slot.frames)]

    def close(self) -> None:
        """Stop the threads."""
        if self._pool:
            self._pool.shutdown()

    def _each(self, count: int, work: Callable[[int, _Scratch], None]) -> None:
        def share(worker: int) -> None:
            for place in range(worker, count, self._workers):
                work(place, self._scratch[worker])

        if self._pool is None or count == 1:
            for place in range(count):
                work(place, self._scratch[0])
        else:
            list(self._pool.map(share, range(self._workers)))

    def _visual(self, slot: CpuSlot, place: int, drawing: HostDrawing) -> None:
        out = slot.visual[place]
        if drawing.visual is not None:
            np.copyto(out, drawing.visual, casting="same_kind")
            slot.masked[place] = False
            return
        held, row = drawing.frames.at(drawing.source)
        if held.recorded is not None:
            np.divide(held.recorded[row], FULL, out=out, dtype=np.float32, casting="same_kind")
            slot.masked[place] = False
            return
        roi, masked, inside = out[:3], out[3:], self.kind.layout.roi
        np.divide(held.crops[row][:, inside, inside], FULL, out=roi, dtype=np.float32, casting="same_kind")
        mask = self.kind.layout.mask
        masked[:, : mask.y1] = roi[:, : mask.y1]
        masked[:, mask.y2 :] = roi[:, mask.y2 :]
        masked[:, mask.y1 : mask.y2, : mask.x1] = roi[:, mask.y1 : mask.y2, : mask.x1]
        masked[:, mask.y1 : mask.y2, mask.x2 :] = roi[:, mask.y1 : mask.y2, mask.x2 :]
        if not slot.masked[place]:
            masked[:, mask.y1 : mask.y2, mask.x1 : mask.x2] = 0
            slot.masked[place] = True

    def _place(self, prediction: NDArray[Any], cached_crop: Pixels, scratch: _Scratch) -> bool:
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
        crop, inside = scratch.crop, self.kind.layout.roi
        np.copyto(crop, cached_crop)  # as a whole: the border alone takes longer
        np.multiply(prediction, FULL, out=crop[:, inside, inside], dtype=np.float32, casting="unsafe")
        return has_nan

    @staticmethod
    def _paste_nv12(out: Pixels, small: Pixels, inside: Any, seen: Rect, width: int, height: int) -> None:
        """Write the luma of a resized and converted crop, and its chroma 2×2 by 2×2.

        A 2×2 block takes the rounded mean of its pixels' chroma; pixels that the rectangle does not cover keep the
        body's.
        """
        luma, *chroma = (plane[inside] for plane in small)
        out[seen.y1 : seen.y2, seen.x1 : seen.x2] = luma
        left, top, right, bottom = seen.x1 // 2, seen.y1 // 2, (seen.x2 + 1) // 2, (seen.y2 + 1) // 2
        if right <= left or bottom <= top:
            return
        blocks = out[height:].reshape(height // 2, width // 2, 2)
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

    def __init__(self, kind: BatchKind) -> None:
        size, crop = kind.layout.model_size, kind.layout.crop_size
        self.crop = np.zeros((3, crop, crop), np.uint8)
        self.prediction = np.zeros((3, size, size), np.float32)
        self._nv12 = kind.pixel_format == "nv12"
        self._pixels = 0
        self.reserve(1)

    def reserve(self, pixels: int) -> None:
        """Make room for a rectangle of so many pixels."""
        if pixels <= self._pixels:
            return
        self._pixels = pixels
        self.resized = np.zeros(3 * pixels, np.uint8)
        if self._nv12:
            self._floats = np.ones((4, pixels), np.float32)  # B, G, R, and 1 for the offset
            self._sums = np.zeros((3, pixels), np.float32)

    def to_ycbcr(self, bgr: Pixels, cached: CachedFrames) -> Pixels:
        """Planes B, G, R `[3, h, w]` as Y, Cb, Cr, in place: `min(255, (weights · (B, G, R) + offset) >> 14)`.

        Every weight is a multiple of 2^-14, and every sum below 2^10, so float32 holds each step exactly.
        """
        pixels = bgr.reshape(3, -1)
        count = pixels.shape[1]
        floats, sums = self._floats[:, :count], self._sums[:, :count]
        np.copyto(floats[:3], pixels)
        np.matmul(cached.ycbcr_weights, floats, out=sums)
        if cached.spec.colour.full_range:  # in limited range no sum reaches 256
            np.minimum(sums, FULL, out=sums)
        np.copyto(pixels, sums, casting="unsafe")
        return bgr
