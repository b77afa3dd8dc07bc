"""A model with its buffers on the GPU, as a lane's slot has them, for the checks to run by hand."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gpupipe.doctor.check import Subject
from gpupipe.doctor.scenes import on_host, put
from gpupipe.geometry import CropLayout
from gpupipe.gpu.driver import end_capture, opening_lock
from gpupipe.machine import cpu_count
from gpupipe.model.model import Model
from gpupipe.model.runtime import Provider, SessionOptions
from gpupipe.model.signature import model_shapes

BATCH = 8

Inputs = tuple[NDArray[Any], NDArray[Any]]


class OnDevice:
    """An opened model, bound to buffers on the GPU. Used by one thread; `close` must be called.

    Args:
        subject: whose GPU and model.
        provider: what runs it.
        options: of the session, other than usual.
        path: another model than the subject's.
    """

    def __init__(self, subject: Subject, provider: Provider, path: Path | None = None, **options: Any) -> None:
        gpu = self.gpu = subject.gpu
        settings = SessionOptions(
            provider, device_id=gpu.index, stream=int(gpu.compute_stream.ptr), engine_cache=subject.folder / "engines"
        )
        self.model = Model(path or subject.model, replace(settings, **options), batch=BATCH)
        self.layout = subject.character.layout
        shapes = model_shapes(self.layout, BATCH)
        self.visual, self.audio, self.prediction = (gpu.empty(shape, self.model.dtype) for shape in shapes)
        self._staging = [gpu.pinned(shape, self.model.dtype) for shape in shapes]
        for buffer in (self.visual, self.audio, self.prediction):
            gpu.clear(buffer, gpu.compute_stream)
        gpu.synchronize()
        self.bound = self.model.bind(self.visual, self.audio, self.prediction)

    def put(self, inputs: Inputs) -> None:
        """Queue new inputs on the compute stream; those before must have been read from the staging."""
        for target, staging, values in zip((self.visual, self.audio), self._staging, inputs, strict=False):
            staging[...] = values
            self.gpu.copy(target, staging, self.gpu.compute_stream)

    def run(self) -> None:
        """Queue a run."""
        self.model.run(self.bound, BATCH)

    def capture(self) -> bool:
        """Let runs be replayed as a CUDA graph from now on, if that is possible; it must have run twice."""
        self.gpu.synchronize()
        with opening_lock(self.gpu.index), self.gpu.capturing:
            done = self.model.capture(self.bound)
        if not done:
            end_capture(self.gpu.compute_stream)
        return done

    def queue_copy(self) -> NDArray[Any]:
        """Queue the copy of the prediction to the host, on the compute stream; where it will be."""
        self.gpu.copy(self._staging[2], self.prediction, self.gpu.compute_stream)
        return self._staging[2]

    def predict(self, inputs: Inputs) -> NDArray[Any]:
        """The prediction of inputs, with a wait after every step."""
        put(self.gpu, self.visual, inputs[0])
        put(self.gpu, self.audio, inputs[1])
        self.run()
        return on_host(self.gpu, self.prediction)

    def close(self) -> None:
        """Wait for what is queued, and release it all."""
        self.gpu.synchronize()
        self.model.close()
        vars(self).pop("bound", None)

    def __enter__(self) -> OnDevice:
        """Begin a with block."""
        return self

    def __exit__(self, *_: object) -> None:
        """Release it all."""
        self.close()


def random_inputs(model: Model, layout: CropLayout, rng: np.random.Generator) -> Inputs:
    """Inputs as a render has them: pictures 0 to 1, and features around 0."""
    visual, audio, _ = model_shapes(layout, BATCH)
    return rng.random(visual).astype(model.dtype), rng.standard_normal(audio).astype(model.dtype)


def cpu_prediction(subject: Subject, inputs: Inputs, path: Path | None = None) -> NDArray[Any]:
    """What the CPU's provider predicts."""
    model = Model(path or subject.model, SessionOptions("cpu", threads=cpu_count()), batch=BATCH)
    prediction = np.zeros(model_shapes(subject.character.layout, BATCH)[2], model.dtype)
    try:
        model.run(model.bind(*inputs, prediction), BATCH)
    finally:
        model.close()
    return prediction
