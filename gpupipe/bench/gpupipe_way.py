"""gpupipe itself as a way to render. The one room of the bench that touches gpupipe's engine and compositors.

The rest of the bench sees `GpupipeWay`; the benchmarks of single steps see `HostSteps`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from typing import Any, Literal

import numpy as np

from gpupipe.bench.scene import Scene
from gpupipe.bench.way import SWSCALE, Floats, Pixels, Save, Way
from gpupipe.character.folder import Character
from gpupipe.colour import PixelFormat
from gpupipe.compose.cpu import CpuCompositor, CpuSlot
from gpupipe.compose.frames import HostFrames
from gpupipe.compose.protocol import BatchKind, Drawing
from gpupipe.compose.surface import Surface
from gpupipe.engine.holdings import Parts
from gpupipe.engine.lane import LaneSlot
from gpupipe.geometry import SPEECH_WIDTH, speech_position
from gpupipe.options import ModelOptions, SpeechOptions
from gpupipe.render.engine import Engine
from gpupipe.render.plan import Plan, whole
from gpupipe.speech.rows import SpeechRows
from gpupipe.trace import SAVE, Trace


class GpupipeWay(Way):
    """gpupipe, on one device and in one pixel format."""

    def __init__(
        self, name: str, about: str, scene: Scene, device: Literal["cpu", "cuda"], pixel_format: PixelFormat
    ) -> None:
        super().__init__(name, about, scene)
        self.pixel_format, self.device, self.batch_size = pixel_format, device, scene.batch_size
        self.gpu_provider: str | None = None
        self._speech = SpeechRows(scene.features)
        self._held: ExitStack | None = None
        self._drawing_alone: tuple[CpuCompositor, CpuSlot] | None = None

    def open(self) -> None:
        """Open an engine, and have it load what a session needs: the character's frames, the model, slots."""
        scene = self.scene
        free = _free_bytes() if self.device == "cuda" else 0
        self._engine = engine = self.closing.enter_context(Engine(device=self.device, workers=scene.workers))
        self.closing.callback(self._let_go)
        self._order = Plan.make(
            scene.character,
            self.pixel_format,
            ModelOptions(model=scene.options.model, batch=self.batch_size, inference_threads=scene.threads),
            SpeechOptions(features=scene.features, frames=scene.frame_count),
            sound=False,
        ).order
        self._gpu: Any = engine.backend.gpu
        parts = self._hold()
        self.batch_size, self.cache_bytes = parts.lane.batch, self._order.spec.cache_bytes
        converted = (
            "no frame converted" if self.pixel_format == "nv12" else f"frames converted for the encoder by {SWSCALE}"
        )
        self.notes = (converted, *engine.notes, *parts.notes)
        if self._gpu is None:
            # One thread against one thread; `parallel` and the sweep show what more of them do.
            self.threads = {"compose": 1, "render": min(scene.workers, self.batch_size)}
        else:
            self.gpu_provider = parts.lane.model.provider
            self.device_bytes = free - self._gpu.free_bytes
            if "softcuda" in self._gpu.name:
                self.meaningless = f"{self._gpu.name} is a GPU in software, for tests of correctness"

    def compose(self, save: Save) -> float | None:
        """See `Way`; a GPU's seconds are from the first kernel of a batch to the end of its copy to the host."""
        gpu, parts = self._gpu, self._hold()
        compositor, slot = self._alone(parts) if gpu is None else (parts.lane.compositor, parts.lane.free[-1].buffers)
        begin, end = (None, None) if gpu is None else (gpu.event(timing=True), gpu.event(timing=True))
        if gpu is not None:
            self._fill_predictions(slot)
        seconds = 0.0
        for drawings in self._batches(parts):
            if gpu is None:
                self._place_predictions(slot, drawings)
            else:
                gpu.record(begin, gpu.compute_stream)
            compositor.prepare(slot, drawings)
            compositor.ready(slot)
            compositor.paste(slot)
            if gpu is not None:
                gpu.record(end, gpu.copy_stream)
            compositor.finish(slot)
            for drawing in drawings:
                save(_on_host(drawing.surface))
            if gpu is not None:
                gpu.wait(end)
                seconds += gpu.elapsed_seconds(begin, end)
        return None if gpu is None else seconds

    def infer(self) -> float | None:
        """See `Way`."""
        parts, gpu = self._hold(), self._gpu
        model, bindings = parts.lane.model, parts.lane.free[-1].bindings
        counts = [len(drawings) for drawings in self._batches(parts)]
        if self.gpu_provider in (None, "cpu"):
            for count in counts:
                model.run(bindings, count)
            return None
        begin, end = gpu.event(timing=True), gpu.event(timing=True)
        gpu.record(begin, gpu.compute_stream)
        for count in counts:
            model.run(bindings, count)
        gpu.record(end, gpu.compute_stream)
        gpu.wait(end)
        seconds: float = gpu.elapsed_seconds(begin, end)
        return seconds

    def predicted(self) -> Floats:
        """See `Way`."""
        parts, found, wanted = self._hold(), 0, len(self.scene.predictions)
        lane, slot, predictions = parts.lane, parts.lane.free[-1], []
        for drawings in self._batches(parts):
            lane.compositor.prepare(slot.buffers, drawings)
            lane.compositor.ready(slot.buffers)
            lane.model.run(slot.bindings, len(drawings))
            predictions.append(self._prediction(slot)[: len(drawings)])
            found += len(drawings)
            if found >= wanted:
                break
        return np.concatenate(predictions)[:wanted]

    def render(self, save: Save, trace: Trace, frame_count: int) -> None:
        """See `Way`: as `gpupipe render` does it, batches in flight, each frame saved while others are drawn."""
        self._let_go()  # the session takes the same, and finds it all open
        order = replace(self._order, total=frame_count)
        with self._engine.open_session(order, lambda _: self._speech, trace=trace) as session:
            for surface in session:
                with trace.span(SAVE, 1):
                    save(_on_host(surface))
                surface.release()

    def _hold(self) -> Parts:
        """What a session is given, for stages that are timed alone; nothing else is drawn meanwhile."""
        if self._held is None:
            self._held = held = ExitStack()
            self._parts = self._engine.holdings.open(self._order, lambda _: self._speech, held)
            self._parts.lane.compositor.admit(self._parts.frames)
        return self._parts

    def _let_go(self) -> None:
        self._drawing_alone = None
        if self._held is not None:
            self._held.close()
            self._held = None

    def _alone(self, parts: Parts) -> tuple[CpuCompositor, CpuSlot]:
        """A compositor with one thread, and a slot whose predictions are not the model's."""
        if self._drawing_alone is None:
            compositor = CpuCompositor(parts.lane.kind, workers=1)
            compositor.admit(parts.frames)
            self._drawing_alone = compositor, compositor.new_slot()
        return self._drawing_alone

    def _batches(self, parts: Parts) -> Iterator[list[Drawing[Any, Any]]]:
        """The frames of the scene, batch by batch, each batch on the same surfaces."""
        order, total = self._order, self.scene.frame_count
        for start in range(0, total, self.batch_size):
            outputs = range(start, min(start + self.batch_size, total))
            yield [
                Drawing(
                    parts.frames, order.source(output), parts.placed, *speech_position(output, order.fps),
                    Surface(order.spec.format, memory.host, memory.device, output),
                )
                for output, memory in zip(outputs, parts.memory, strict=False)
            ]  # fmt: skip

    def _prediction(self, slot: LaneSlot[Any]) -> Floats:
        """What the model has put into a slot, on the host."""
        prediction = slot.buffers.prediction
        if isinstance(prediction, np.ndarray):
            return np.asarray(prediction, np.float32).copy()
        host: np.ndarray[Any, Any] = self._gpu.pinned(prediction.shape, prediction.dtype)
        self._gpu.copy(host, prediction, self._gpu.compute_stream)
        self._gpu.synchronize()
        return host.astype(np.float32)

    def _place_predictions(self, slot: Any, drawings: list[Drawing[Any, Any]]) -> None:
        """Let a slot on the host have the predictions of a batch, without a copy where they lie together."""
        given, count = self.scene.predictions, len(drawings)
        first = drawings[0].surface.index % len(given)
        part = given[first : first + count]
        if len(part) < count:
            part = given[(first + np.arange(count)) % len(given)]
        slot.prediction = part.astype(slot.prediction.dtype, copy=False)

    def _fill_predictions(self, slot: Any) -> None:
        """Put the predictions of the first batch into a slot on the device: of every batch, as it is as large."""
        gpu, given, prediction = self._gpu, self.scene.predictions, slot.prediction
        if isinstance(prediction, np.ndarray):
            prediction[: len(given)] = given
            return
        host = gpu.pinned(prediction.shape, prediction.dtype)
        host[: len(given)] = given
        gpu.copy(prediction, host, gpu.compute_stream)
        gpu.synchronize()


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
        drawings = [
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


def _on_host(surface: Surface) -> Pixels:
    assert surface.host is not None
    return surface.host


def _free_bytes() -> int:
    from gpupipe.gpu.device import open_device

    return open_device().free_bytes
