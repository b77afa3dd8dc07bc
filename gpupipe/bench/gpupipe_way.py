"""gpupipe itself as a way to render. The one room of the comparison that touches gpupipe's engine and compositors."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from typing import Any, Literal

import numpy as np

from gpupipe.bench.predictions import fill_predictions, place_predictions, prediction_in
from gpupipe.bench.scene import Scene
from gpupipe.bench.way import SWSCALE, Floats, NoTrace, Pixels, Save, Way
from gpupipe.colour import PixelFormat
from gpupipe.compose.cpu import CpuCompositor, CpuSlot
from gpupipe.compose.protocol import Drawing
from gpupipe.compose.surface import Surface
from gpupipe.engine.holdings import Parts
from gpupipe.engine.lane import LaneSlot
from gpupipe.engine.session import Session
from gpupipe.errors import GpupipeError
from gpupipe.geometry import speech_position
from gpupipe.options import ModelOptions, Precision, SpeechOptions
from gpupipe.render.engine import Engine
from gpupipe.render.plan import Plan
from gpupipe.speech.rows import SpeechRows
from gpupipe.trace import SAVE, Trace

ALL = 1 << 62
"""Bytes of cached frames: what is timed is never decoding them."""


class GpupipeWay(Way):
    """gpupipe, on one device and in one pixel format.

    Args:
        precision: of the model.
        keeps_features: whether features stay with the cached frames, as the scene's `feature_cache` says. Then `open`
            raises a GpupipeError if none are, for it would be the same way once more.
    """

    def __init__(
        self,
        name: str,
        about: str,
        scene: Scene,
        device: Literal["cpu", "cuda"],
        pixel_format: PixelFormat,
        *,
        precision: Precision = "fp32",
        keeps_features: bool = False,
    ) -> None:
        super().__init__(name, about, scene)
        self.pixel_format, self.device, self.batch_size = pixel_format, device, scene.batch_size
        self.precision, self.keeps_features, self.optional = precision, keeps_features, keeps_features
        if keeps_features or precision != "fp32":
            self.stages = ("infer", "render")  # the others are as without
        self._speech = SpeechRows(scene.features)
        self._held: tuple[ExitStack, Parts] | None = None
        self._drawing_alone: tuple[CpuCompositor, CpuSlot] | None = None

    def open(self) -> None:
        """Open an engine, and have it load what a session needs: the character's frames, the model, slots."""
        self._open_engine()
        self._describe(self._hold())

    def start(self, save: Save) -> float:
        """See `Way`: on the CPU the frames are drawn while others are decoded."""
        began = time.perf_counter()
        self._open_engine()
        order = replace(self._order, total=min(self.batch_size, self.scene.frame_count))
        with self._engine.open_session(order, lambda _: self._speech, trace=NoTrace()) as session:
            self._drawn(session, save, NoTrace())
            if session.coming is not None:
                session.coming.wait()
            loading = time.perf_counter() - began
        self._describe(self._hold())
        return loading

    def _open_engine(self) -> None:
        scene = self.scene
        self._free_before = _free_bytes() if self.device == "cuda" else 0
        features = scene.options.feature_cache if self.keeps_features else "off"
        self._engine = engine = self.closing.enter_context(
            Engine(device=self.device, workers=scene.workers, feature_cache=features, cache=ALL)
        )
        self.closing.callback(self._let_go)
        plan = Plan.make(
            scene.character,
            self.pixel_format,
            ModelOptions(
                model=scene.options.model,
                batch=self.batch_size,
                inference_threads=scene.threads,
                precision=self.precision,
            ),
            SpeechOptions(features=scene.features, frames=scene.frame_count),
            sound=False,
        )
        self._order = plan.order
        self._gpu: Any = engine.backend.gpu
        self._said = (*engine.notes, *plan.notes)

    def _describe(self, parts: Parts) -> None:
        """Tell what is run, once it is open."""
        scene = self.scene
        self.batch_size, self.cache_bytes = parts.lane.batch, self._order.spec.cache_bytes
        converted = (
            "no frame converted" if self.pixel_format == "nv12" else f"frames converted for the encoder by {SWSCALE}"
        )
        self.dtype, self.frames_a_run = parts.lane.kind.dtype, parts.lane.model.chunk
        self.notes = (converted, *self._said, *parts.notes, *self._break_even(parts))
        if self._gpu is None:
            # One thread against one thread; `parallel` and the sweep show what more of them do.
            self.threads = {"compose": 1, "render": min(scene.workers, self.batch_size)}
        else:
            self.gpu_provider = parts.lane.model.provider
            self.device_bytes = self._free_before - self._gpu.free_bytes
            if "softcuda" in self._gpu.name:
                self.meaningless = f"{self._gpu.name} is a GPU in software, for tests of correctness"

    def compose(self, save: Save) -> float | None:
        """See `Way`; a GPU's seconds are from the first kernel of a batch to the end of its copy to the host."""
        gpu, parts = self._gpu, self._hold()
        compositor, slot = self._alone(parts) if gpu is None else (parts.lane.compositor, parts.lane.free[-1].buffers)
        begin, end = (None, None) if gpu is None else (gpu.event(timing=True), gpu.event(timing=True))
        if gpu is not None:
            fill_predictions(slot, self.scene.predictions, gpu)
        seconds = 0.0
        for drawings in self._batches(parts):
            if gpu is None:
                place_predictions(slot, self.scene.predictions, drawings)
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
        if parts.features is not None:
            return self._infer_with_features(parts)
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
            self._predict(parts, slot, drawings)
            predictions.append(prediction_in(slot, self._gpu)[: len(drawings)])
            found += len(drawings)
            if found >= wanted:
                break
        return np.concatenate(predictions)[:wanted]

    def render(self, save: Save, trace: Trace, frame_count: int) -> None:
        """See `Way`: as `gpupipe render` does it, batches in flight, each frame saved while others are drawn."""
        self._let_go()  # the session takes the same, and finds it all open
        order = replace(self._order, total=frame_count)
        with self._engine.open_session(order, lambda _: self._speech, trace=trace) as session:
            self._drawn(session, save, trace)

    def _drawn(self, session: Session, save: Save, trace: Trace) -> None:
        for surface in session:
            with trace.span(SAVE, 1):
                save(_on_host(surface))
            surface.release()

    def renew(self) -> None:
        """See `Way`: features are what is made."""
        features = self._hold().features
        if features is not None:
            features.forget()

    def _infer_with_features(self, parts: Parts) -> float:
        """As `infer`, on each frame's own inputs, since what is made of them is kept; preparing them is not counted."""
        compositor, slot, gpu = parts.lane.compositor, parts.lane.free[-1], self._gpu
        on_host = self.gpu_provider in (None, "cpu")
        seconds = 0.0
        for drawings in self._batches(parts):
            compositor.prepare(slot.buffers, drawings)
            compositor.ready(slot.buffers)
            if on_host:
                began = time.perf_counter()
                self._predict(parts, slot, drawings)
                seconds += time.perf_counter() - began
                continue
            begin, end = gpu.event(timing=True), gpu.event(timing=True)
            gpu.record(begin, gpu.compute_stream)
            self._predict(parts, slot, drawings)
            gpu.record(end, gpu.compute_stream)
            gpu.wait(end)
            seconds += gpu.elapsed_seconds(begin, end)
        return seconds

    def _predict(self, parts: Parts, slot: LaneSlot[Any], drawings: list[Drawing[Any, Any]]) -> None:
        """Run the model on a slot's inputs, as the engine does."""
        lane = parts.lane
        if lane.split is None:
            lane.model.run(slot.bindings, len(drawings))
            return
        frames = [(parts.features, drawing.source) for drawing in drawings]
        lane.split.start(slot.bindings, slot.rest, slot.buffers.visual, frames)()

    def _break_even(self, parts: Parts) -> tuple[str, ...]:
        """When features pay, and how often frames are shown here.

        Raises:
            GpupipeError: features were to be kept, and are not.
        """
        if not self.keeps_features:
            return ()
        if parts.features is None or parts.lane.split is None:
            raise GpupipeError("; ".join(parts.notes))
        least, shown = parts.lane.split.break_even, self._order.shown
        return (f"features pay from {least:.1f} showings of a frame on; here it is shown {shown:.1f} times",)

    def _hold(self) -> Parts:
        """What a session is given, for stages that are timed alone; nothing else is drawn meanwhile."""
        if self._held is None:
            with ExitStack() as held:
                parts = self._engine.holdings.open(self._order, lambda _: self._speech, held)
                if parts.coming is not None:
                    parts.coming.wait()
                parts.lane.compositor.admit(parts.frames)
                self._held = held.pop_all(), parts
        return self._held[1]

    def _let_go(self) -> None:
        self._drawing_alone = None
        if self._held is not None:
            self._held[0].close()
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


def _on_host(surface: Surface) -> Pixels:
    assert surface.host is not None
    return surface.host


def _free_bytes() -> int:
    from gpupipe.gpu.device import open_device

    return open_device().free_bytes
