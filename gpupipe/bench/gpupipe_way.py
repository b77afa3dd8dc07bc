"""gpupipe itself as an entrant of the comparison."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np

from gpupipe.bench.entrants import SWSCALE, Entrant
from gpupipe.bench.scene import Scene
from gpupipe.bench.ways import Floats, Save, gpupipe_composite, gpupipe_render
from gpupipe.colour import PixelFormat
from gpupipe.compose.cpu import CpuCompositor
from gpupipe.engine.job import Job
from gpupipe.render.plan import Batch, JobOptions, Plan
from gpupipe.trace import Trace


class GpupipeEntrant(Entrant):
    """gpupipe, on one device and in one pixel format."""

    def __init__(
        self, name: str, about: str, scene: Scene, device: Literal["cpu", "cuda"], pixel_format: PixelFormat
    ) -> None:
        super().__init__(name, about, scene)
        self.pixel_format, self.device, self.batch = pixel_format, device, scene.batch
        # One thread against one thread; `parallel` and the sweep show what more of them do.
        self.threads = {"compose": 1, "render": scene.workers if device == "cpu" else 1}
        self.trace = Trace()
        self._job: Job | None = None
        self._compositor: Any = None
        self._slot: Any = None

    @property
    def job(self) -> Job:
        """The opened job."""
        assert self._job is not None
        return self._job

    def open(self) -> None:
        """Open a job: decode, cache, open the model."""
        options = JobOptions(
            features=self.scene.features,
            sound=False,
            model=self.scene.options.model,
            device=self.device,
            batch=self.batch,
            workers=self.scene.workers,
            frames=self.scene.frames,
            inference_threads=self.scene.threads,
        )
        free = _free_bytes() if self.device == "cuda" else 0
        self._job = Job(Plan.make(self.scene.character, self.pixel_format, options), self.trace)
        self.closing.callback(self._job.close)
        self.cache_bytes = self._job.plan.spec.cache_bytes
        backend = self._job.backend
        converted = (
            "no frame converted" if self.pixel_format == "nv12" else f"frames converted for the encoder by {SWSCALE}"
        )
        self.notes = (converted, *backend.notes)
        self._compositor = backend.compositor
        if backend.gpu is not None:
            self.device_bytes = free - backend.gpu.free_bytes
            if "softcuda" in backend.gpu.name:
                self.meaningless = f"{backend.gpu.name} is a GPU in software, for tests of correctness"
        else:
            frames = backend.compositor.frames
            dtype = backend.model.dtype
            self._compositor = CpuCompositor(frames, self.scene.features, batch=backend.batch, dtype=dtype, workers=1)
            self._slot = self._compositor.new_slot()
        self.batch = backend.batch

    def compose(self, save: Save) -> float | None:
        """See `Entrant`; a GPU's seconds are from the first kernel of a batch to the end of its copy to the host."""
        if self.job.backend.gpu is None:
            # A slot of its own: the job's model writes where its slots' predictions are.
            return gpupipe_composite(self.job, self._compositor, self._slot, self._predict, save)
        self._fill_predictions()
        return gpupipe_composite(self.job, self._compositor, self.job.backend.slots[0], lambda *_: None, save)

    def infer(self) -> float | None:
        """See `Entrant`."""
        job = self.job
        slot, model, gpu = job.backend.slots[0], job.backend.model, job.backend.gpu
        bindings = model.bind(slot.visual, slot.audio, slot.prediction)
        if gpu is None or job.backend.provider == "cpu":
            for _ in job.plan.batches(self.batch):
                model.run(bindings)
            return None
        begin, end = gpu.event(timing=True), gpu.event(timing=True)
        gpu.record(begin, gpu.compute_stream)
        for _ in job.plan.batches(self.batch):
            model.run(bindings)
        gpu.record(end, gpu.compute_stream)
        gpu.wait(end)
        return gpu.elapsed_seconds(begin, end)

    def predicted(self) -> Floats:
        """See `Entrant`."""
        job = self.job
        slot, count, found = job.backend.slots[0], len(self.scene.predictions), []
        for batch in job.plan.batches(self.batch):
            job.backend.compositor.prepare(slot, batch.source, batch.speech)
            job.backend.compositor.ready(slot)
            job.backend.model.run(job.backend.model.bind(slot.visual, slot.audio, slot.prediction))
            found.append(self._prediction(slot)[: batch.frames])
            if batch.start + batch.frames >= count:
                break
        return np.concatenate(found)[:count]

    def _prediction(self, slot: Any) -> Floats:
        """What the model has put into a slot, on the host."""
        if isinstance(slot.prediction, np.ndarray):
            return slot.prediction.astype(np.float32)
        gpu = self.job.backend.gpu
        assert gpu is not None
        host = gpu.pinned(slot.prediction.shape, slot.prediction.dtype)
        gpu.copy(host, slot.prediction, gpu.compute_stream)
        gpu.synchronize()
        return host.astype(np.float32)

    def render(self, save: Save, trace: Trace, frames: int) -> None:
        """See `Entrant`."""
        first = len(self.trace.spans)
        gpupipe_render(self.job, save, self.trace, frames)
        trace.spans += self.trace.spans[first:]

    def _predict(self, slot: Any, batch: Batch) -> None:
        """Let a slot on the host have the predictions of a batch, without a copy where they lie together."""
        given = self.scene.predictions
        first = batch.start % len(given)
        part = given[first : first + self.batch]
        if len(part) < self.batch:
            part = given[(first + np.arange(self.batch)) % len(given)]
        slot.prediction = part.astype(slot.prediction.dtype, copy=False)

    def _fill_predictions(self) -> None:
        slot, gpu, given = self.job.backend.slots[0], self.job.backend.gpu, self.scene.predictions
        if isinstance(slot.prediction, np.ndarray):
            slot.prediction[: len(given)] = given
            return
        assert gpu is not None
        host = gpu.pinned(slot.prediction.shape, slot.prediction.dtype)
        host[: len(given)] = given
        gpu.copy(slot.prediction, host, gpu.compute_stream)
        gpu.synchronize()


def _free_bytes() -> int:
    from gpupipe.gpu.device import open_device

    return open_device().free_bytes
