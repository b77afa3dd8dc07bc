"""gpupipe itself as a way to render. The one room of the bench that touches gpupipe's engine and compositors.

The rest of the bench sees `GpupipeWay`; the benchmarks of single steps see `HostSteps`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import closing
from typing import Any, Literal

import numpy as np

from gpupipe.bench.scene import Scene
from gpupipe.bench.way import SWSCALE, Floats, Pixels, Save, Way
from gpupipe.character.folder import Character
from gpupipe.colour import PixelFormat
from gpupipe.compose.cpu import CpuCompositor
from gpupipe.compose.frames import FrameSpec, HostFrames
from gpupipe.engine.job import Job
from gpupipe.engine.pipeline import Stage
from gpupipe.media.video import read_frames
from gpupipe.render.plan import Batch, JobOptions, Plan
from gpupipe.trace import SAVE, Span, Trace


class GpupipeWay(Way):
    """gpupipe, on one device and in one pixel format."""

    def __init__(
        self, name: str, about: str, scene: Scene, device: Literal["cpu", "cuda"], pixel_format: PixelFormat
    ) -> None:
        super().__init__(name, about, scene)
        self.pixel_format, self.device, self.batch_size = pixel_format, device, scene.batch_size
        self._trace = _Relay()
        self._opened: Job | None = None
        self._compositor: Any = None
        self._slot: Any = None

    @property
    def gpu_provider(self) -> str | None:
        """What runs the model of a way that composites on a GPU; None for one that composites on the host."""
        return None if self._job.backend.gpu is None else self._job.backend.provider

    @property
    def _job(self) -> Job:
        assert self._opened is not None
        return self._opened

    def open(self) -> None:
        """Open a job: decode, cache, open the model."""
        options = JobOptions(
            features=self.scene.features,
            sound=False,
            model=self.scene.options.model,
            device=self.device,
            batch=self.batch_size,
            workers=self.scene.workers,
            frames=self.scene.frame_count,
            inference_threads=self.scene.threads,
        )
        free = _free_bytes() if self.device == "cuda" else 0
        self._opened = job = Job(Plan.make(self.scene.character, self.pixel_format, options), self._trace)
        self.closing.callback(job.close)
        backend, self.cache_bytes = job.backend, job.plan.spec.cache_bytes
        converted = (
            "no frame converted" if self.pixel_format == "nv12" else f"frames converted for the encoder by {SWSCALE}"
        )
        self.notes = (converted, *backend.notes)
        self.batch_size = backend.batch
        self._compositor, self._slot = backend.compositor, backend.slots[0]
        if backend.gpu is not None:
            self.device_bytes = free - backend.gpu.free_bytes
            if "softcuda" in backend.gpu.name:
                self.meaningless = f"{backend.gpu.name} is a GPU in software, for tests of correctness"
        else:
            # One thread against one thread; `parallel` and the sweep show what more of them do.
            self.threads = {"compose": 1, "render": min(self.scene.workers, backend.batch)}
            frames, dtype = backend.compositor.frames, backend.model.dtype
            self._compositor = CpuCompositor(frames, self.scene.features, batch=backend.batch, dtype=dtype, workers=1)
            # A slot of its own: the job's model writes where its slots' predictions are.
            self._slot = self._compositor.new_slot()

    def compose(self, save: Save) -> float | None:
        """See `Way`; a GPU's seconds are from the first kernel of a batch to the end of its copy to the host."""
        job, gpu, slot, compositor = self._job, self._job.backend.gpu, self._slot, self._compositor
        events = None if gpu is None else (gpu.event(timing=True), gpu.event(timing=True))
        if gpu is not None:
            self._fill_predictions()
        seconds = 0.0
        for batch in job.plan.batches(self.batch_size):
            if gpu is None:
                self._place_predictions(batch)
            elif events is not None:
                gpu.record(events[0], gpu.compute_stream)
            compositor.prepare(slot, batch.source, batch.speech)
            compositor.ready(slot)
            compositor.paste(slot)
            if gpu is not None and events is not None:
                gpu.record(events[1], gpu.copy_stream)
            compositor.finish(slot)
            for frame in slot.frames[: batch.frames]:
                save(frame)
            if gpu is not None and events is not None:
                gpu.wait(events[1])
                seconds += gpu.elapsed_seconds(*events)
        return None if gpu is None else seconds

    def infer(self) -> float | None:
        """See `Way`."""
        backend = self._job.backend
        slot, model, gpu = backend.slots[0], backend.model, backend.gpu
        bindings = model.bind(slot.visual, slot.audio, slot.prediction)
        batch_count = -(-self.scene.frame_count // self.batch_size)
        if gpu is None or backend.provider == "cpu":
            for _ in range(batch_count):
                model.run(bindings)
            return None
        begin, end = gpu.event(timing=True), gpu.event(timing=True)
        gpu.record(begin, gpu.compute_stream)
        for _ in range(batch_count):
            model.run(bindings)
        gpu.record(end, gpu.compute_stream)
        gpu.wait(end)
        return gpu.elapsed_seconds(begin, end)

    def predicted(self) -> Floats:
        """See `Way`."""
        backend, found = self._job.backend, []
        slot, wanted = backend.slots[0], len(self.scene.predictions)
        bindings = backend.model.bind(slot.visual, slot.audio, slot.prediction)
        for batch in self._job.plan.batches(self.batch_size):
            backend.compositor.prepare(slot, batch.source, batch.speech)
            backend.compositor.ready(slot)
            backend.model.run(bindings)
            found.append(self._prediction(slot)[: batch.frames])
            if batch.start + batch.frames >= wanted:
                break
        return np.concatenate(found)[:wanted]

    def render(self, save: Save, trace: Trace, frame_count: int) -> None:
        """See `Way`: as `gpupipe render` does it, every stage in its own thread, batches in flight."""

        def write(slot: Any, batch: Batch) -> None:
            ready = self._job.finish(slot, batch)
            with trace.span(SAVE, batch.frames):
                for frame in ready:
                    save(frame)

        self._trace.to = trace
        with closing(self._job.run(Stage(SAVE, write))) as batches:
            for _, batch in batches:
                if batch.start + batch.frames >= frame_count:
                    return

    def _prediction(self, slot: Any) -> Floats:
        """What the model has put into a slot, on the host."""
        if isinstance(slot.prediction, np.ndarray):
            return slot.prediction.astype(np.float32)
        gpu = self._job.backend.gpu
        assert gpu is not None
        host = gpu.pinned(slot.prediction.shape, slot.prediction.dtype)
        gpu.copy(host, slot.prediction, gpu.compute_stream)
        gpu.synchronize()
        return host.astype(np.float32)

    def _place_predictions(self, batch: Batch) -> None:
        """Let the slot on the host have the predictions of a batch, without a copy where they lie together."""
        given = self.scene.predictions
        first = batch.start % len(given)
        part = given[first : first + self.batch_size]
        if len(part) < self.batch_size:
            part = given[(first + np.arange(self.batch_size)) % len(given)]
        self._slot.prediction = part.astype(self._slot.prediction.dtype, copy=False)

    def _fill_predictions(self) -> None:
        """Put the predictions of the first batch into the slot on the device: of every batch, as it is as large."""
        slot, gpu, given = self._slot, self._job.backend.gpu, self.scene.predictions
        if isinstance(slot.prediction, np.ndarray):
            slot.prediction[: len(given)] = given
            return
        assert gpu is not None
        host = gpu.pinned(slot.prediction.shape, slot.prediction.dtype)
        host[: len(given)] = given
        gpu.copy(slot.prediction, host, gpu.compute_stream)
        gpu.synchronize()


class _Relay(Trace):
    """The trace that a job is opened with: it hands each span on to the trace of the render under way."""

    to: Trace | None = None

    def add(self, span: Span, shares: Sequence[tuple[Trace, int]] = ()) -> None:
        if self.to is not None:
            self.to.add(span, shares)


class HostSteps:
    """gpupipe's compositor on the host, alone and in one thread, on random predictions.

    Args:
        character: whose first frames.
        pixel_format: of bodies and finished frames.
        frame_count: frames to go over, a multiple of the batch.
        batch_size: frames in a batch.

    Attributes:
        finished: the frames of the batch that was pasted last, uint8 `[B, H * 3 // 2, W]` or `[B, H, W, 3]`.
    """

    def __init__(self, character: Character, pixel_format: PixelFormat, frame_count: int, batch_size: int) -> None:
        body, rects = character.body, character.rects[:frame_count]
        spec = FrameSpec(character.layout, pixel_format, body.width, body.height, rects, body.colour)
        frames = HostFrames.load(
            spec,
            read_frames(body.path, pixel_format, frame_count),
            read_frames(character.crops.path, "bgr24", frame_count),
        )
        features = np.zeros((frame_count, 512), np.float32)
        self._compositor = CpuCompositor(frames, features, batch=batch_size)
        self._slot = self._compositor.new_slot()
        self._slot.prediction[:] = np.random.default_rng(0).random(self._slot.prediction.shape, np.float32)
        numbers = np.arange(frame_count, dtype=np.int32)
        self._batches = [numbers[start : start + batch_size] for start in range(0, frame_count, batch_size)]
        self.finished: Pixels = self._slot.frames

    def prepare(self, number: int) -> None:
        """Make the model's inputs of a batch, the first being 0."""
        self._compositor.prepare(self._slot, self._batches[number], self._batches[number])

    def paste(self, number: int) -> None:
        """Draw the frames of a batch."""
        self._slot.source[:] = self._batches[number]
        self._compositor.paste(self._slot)

    def each_batch(self, *steps: Callable[[int], None]) -> None:
        """Take every batch through the steps."""
        for number in range(len(self._batches)):
            for step in steps:
                step(number)


def _free_bytes() -> int:
    from gpupipe.gpu.device import open_device

    return open_device().free_bytes
