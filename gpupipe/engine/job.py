"""One rendering job: everything opened and cached, and the stages that turn batches into finished frames."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gpupipe.character.folder import Character
from gpupipe.engine import pipeline
from gpupipe.engine.backend import BackendOptions, open_backend
from gpupipe.engine.pipeline import Item, Stage
from gpupipe.errors import InferenceError
from gpupipe.gpu.clock import GpuClock
from gpupipe.machine import cpu_count, release_free_memory
from gpupipe.model.model import Model, Signature
from gpupipe.render.plan import Batch, Plan
from gpupipe.trace import INFER, LOAD, PASTE, PREPARE, QUEUED, Trace
from gpupipe.trace import Stage as Step


class Job:
    """A job, ready to run. A context manager: leaving it releases models, threads and buffers.

    Args:
        plan: what to render.
        trace: where times go.

    Attributes:
        backend: what it runs on.
        workers: compositing threads.
        threads: CPU threads for the model.
    """

    def __init__(self, plan: Plan, trace: Trace) -> None:
        self.plan, self.trace = plan, trace
        options, character = plan.options, plan.character
        self.workers = min(options.workers or min(4, cpu_count()), options.batch)
        self.threads = options.inference_threads or cpu_count()
        with trace.span(LOAD, plan.spec.count):
            self.backend = open_backend(
                plan.spec,
                plan.speech.features,
                plan.readers,
                BackendOptions(
                    model=character.model_path if options.model is None else Path(options.model),
                    device=options.device,
                    provider=options.provider,
                    batch=options.batch,
                    workers=self.workers,
                    inference_threads=self.threads,
                    tf32=options.tf32,
                    fp16=options.fp16,
                    check_model=lambda model: check_model_size(model, character),
                ),
            )
        release_free_memory()
        self._compositor, self._model = self.backend.compositor, self.backend.model
        self._bindings = {id(s): self._model.bind(s.visual, s.audio, s.prediction) for s in self.backend.slots}
        self._clock: GpuClock | None = None
        if self.backend.gpu is not None:
            trace.marker = trace.marker or self.backend.gpu.marker
            self._clock = GpuClock(self.backend.gpu, trace, model_on_device=self.backend.provider != "cpu")
            for slot in self.backend.slots:
                self._clock.add(slot)

    def run(self, *more: Stage[Any, Batch]) -> Generator[Item[Any, Batch], None, None]:
        """Do the job; `more` stages follow the compositing of each batch, each in its own thread.

        Yields:
            Each batch in order, with its slot; `finish` gives the frames.

        Raises:
            InferenceError: the model failed.
        """
        stages = [Stage(PREPARE, self._prepare), Stage(INFER, self._infer), Stage(PASTE, self._paste)]
        if self.backend.gpu is not None:
            # On a GPU these only queue work: one thread keeps the stream in order.
            stages = [Stage("compute", self._compute)]
        yield from pipeline.run(self.plan.batches(self.backend.batch), self.backend.slots, [*stages, *more])

    def finish(self, slot: Any, batch: Batch) -> NDArray[np.uint8]:
        """Wait for the frames of a slot.

        Returns:
            uint8 `[n, *frame_shape]`, valid until the slot is used again.

        Raises:
            InferenceError: the model gave NaN.
        """
        has_nan = self._compositor.finish(slot)[: batch.frames]
        if self._clock is not None:
            self._clock.collect(slot, batch.frames)
        if has_nan.any():
            raise InferenceError(
                "the model gave NaN",
                file=self._model.path,
                field=f"output frame {batch.start + int(np.argmax(has_nan))}",
                remedy="check the model and the features; a float16 export may overflow",
            )
        frames: NDArray[np.uint8] = slot.frames[: batch.frames]
        return frames

    def close(self) -> None:
        """Release everything."""
        self._bindings.clear()
        self.backend.close()

    def __enter__(self) -> Job:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _prepare(self, slot: Any, batch: Batch) -> None:
        with self._step(PREPARE, slot, batch):
            self._compositor.prepare(slot, batch.source, batch.speech)

    def _infer(self, slot: Any, batch: Batch) -> None:
        self._compositor.ready(slot)
        with self._step(INFER, slot, batch):
            self._model.run(self._bindings[id(slot)])

    def _paste(self, slot: Any, batch: Batch) -> None:
        with self._step(PASTE, slot, batch):
            self._compositor.paste(slot)

    def _compute(self, slot: Any, batch: Batch) -> None:
        self._prepare(slot, batch)
        self._infer(slot, batch)
        self._paste(slot, batch)

    @contextmanager
    def _step(self, name: Step, slot: Any, batch: Batch) -> Iterator[None]:
        """Time a step: by the host's clock if the host does it, by the GPU's if it is only queued."""
        if self._clock is None or (name == INFER and self.backend.provider == "cpu"):
            with self.trace.span(name, batch.frames):
                yield
        else:
            self._clock.mark(slot, name, end=False)
            with self.trace.span(QUEUED[name]):
                yield
            self._clock.mark(slot, name, end=True)


def check_model_size(model: Model | Signature, character: Character) -> None:
    """Raise an InferenceError if the model does not fit the character's crops."""
    if model.size not in (None, character.layout.model_size):
        raise InferenceError(
            f"the model is for {model.size}x{model.size} images, the crops "
            f"({character.layout.crop_size}x{character.layout.crop_size}) hold {character.layout.model_size}",
            file=model.path,
            field="model",
            remedy="use the model that belongs to the character",
        )
