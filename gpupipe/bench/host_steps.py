"""gpupipe's compositor on the host, step by step: for the benchmarks of single steps."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from gpupipe.bench.way import Pixels
from gpupipe.character.folder import Character
from gpupipe.colour import PixelFormat
from gpupipe.compose.cpu import CpuCompositor, HostDrawing
from gpupipe.compose.frames import HostFrames
from gpupipe.compose.protocol import BatchKind, Drawing
from gpupipe.compose.surface import Surface
from gpupipe.geometry import SPEECH_WIDTH
from gpupipe.options import ModelOptions
from gpupipe.render.plan import whole
from gpupipe.speech.rows import SpeechRows


class HostSteps:
    """gpupipe's compositor on the host, alone and in one thread, on random predictions.

    Args:
        character: whose first frames.
        pixel_format: of bodies and finished frames.
        frame_count: frames to go over, a multiple of the batch.
        batch_size: frames in a batch.

    Attributes:
        finished: the frames of the batch that was pasted last, uint8 `[H * 3 // 2, W]` or `[H, W, 3]`.
    """

    def __init__(self, character: Character, pixel_format: PixelFormat, frame_count: int, batch_size: int) -> None:
        order = whole(character, pixel_format, ModelOptions())
        order = replace(order, spec=replace(order.spec, rects=order.spec.rects[:frame_count]))
        spec, speech = order.spec, SpeechRows(np.zeros((frame_count, SPEECH_WIDTH), np.float32))
        frames = HostFrames.load(spec, *order.readers())
        kind = BatchKind(spec.layout, pixel_format, np.dtype(np.float32), batch_size)
        self._compositor = CpuCompositor(kind)
        self._compositor.admit(frames)
        self._slot = self._compositor.new_slot()
        self._slot.prediction[:] = np.random.default_rng(0).random(self._slot.prediction.shape, np.float32)
        self.finished: list[Pixels] = [np.zeros(spec.format.shape, np.uint8) for _ in range(batch_size)]
        drawings: list[HostDrawing] = [
            Drawing(frames, number, speech, number, 0, Surface(spec.format, self.finished[number % batch_size]))
            for number in range(frame_count)
        ]
        self._batches = [drawings[start : start + batch_size] for start in range(0, frame_count, batch_size)]

    def prepare(self, number: int) -> None:
        """Make the model's inputs of a batch, the first being 0."""
        self._compositor.prepare(self._slot, self._batches[number])

    def paste(self, number: int) -> None:
        """Draw the frames of a batch."""
        self._slot.frames = self._batches[number]
        self._compositor.paste(self._slot)

    def each_batch(self, *steps: Callable[[int], None]) -> None:
        """Take every batch through the steps."""
        for number in range(len(self._batches)):
            for step in steps:
                step(number)
