"""NCHW or NHWC: in which layout a GPU convolves a float16 model faster, timed once, and kept in the cache folder."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any, Final, NamedTuple

import numpy as np

from gpupipe.errors import GpupipeError, reason
from gpupipe.filelock import FileLock
from gpupipe.geometry import SPEECH_SHAPE
from gpupipe.gpu.device import Device
from gpupipe.gpu.timer import Timer
from gpupipe.model.engines import engine_folder
from gpupipe.model.graphs import why_not
from gpupipe.model.model import Model
from gpupipe.model.runtime import SessionOptions, runtime

ROUNDS: Final = 10
WARM_UP: Final = 3
WON_BY: Final = 0.03
"""By how much of NCHW's time NHWC must win: less may be chance, and another time or machine find otherwise."""
QUEUING_MS: Final = 20.0
"""For how long the GPU is kept busy while a run is queued that will be a graph's: longer than queuing takes."""


class Timed(NamedTuple):
    """Seconds of a batch in each layout."""

    nchw: float
    nhwc: float

    @property
    def faster(self) -> bool:
        """Whether NHWC is."""
        return self.nhwc < (1 - WON_BY) * self.nchw

    @property
    def note(self) -> str:
        """What to say of it."""
        chosen, left = ("NHWC", "NCHW") if self.faster else ("NCHW", "NHWC")
        ours, other = (self.nhwc, self.nchw) if self.faster else (self.nchw, self.nhwc)
        return f"float16 convolutions in {chosen}: {ours * 1e3:.2f} ms a batch, {other * 1e3:.2f} ms in {left}"


def open_model(gpu: Device, path: Path, options: SessionOptions, batch: int, root: Path) -> tuple[Model, str | None]:
    """Open a lip-sync model with the CUDA provider, a float16 one in the layout that this GPU convolves faster.

    The layouts round differently. What was timed first is therefore kept, for all later sessions of the same model,
    batch and version of ONNX Runtime; where it cannot be kept, the layout is NCHW.

    Args:
        gpu: that runs it.
        path: the ONNX file.
        options: how to run it, with the CUDA provider.
        batch: the most frames in a batch.
        root: the folder for what was timed on this kind of GPU.

    Returns:
        The model, and what to say of its layout, if anything.

    Raises:
        InferenceError, ProviderError, OptionError, DeviceMemoryError: as `Model`.
    """
    file = _file(root, path, batch) if path.is_file() else None
    kept = None if file is None else _kept(file)
    model = Model(path, replace(options, nhwc=kept is not None and kept.faster), batch=batch)
    if file is None or model.dtype != np.float16:
        return model, None
    if kept is not None:
        return model, kept.note
    if model.size is None:
        return model, "float16 convolutions in NCHW: the model leaves its image size open, NHWC was not timed"
    try:
        found = _keep(file, timed(gpu, path, options, batch, model.size))
    except (GpupipeError, OSError) as error:
        said = error.brief() if isinstance(error, GpupipeError) else reason(error)
        return model, f"float16 convolutions in NCHW: NHWC could not be timed and kept: {said}"
    if found.faster:
        model.close()
        model = Model(path, replace(options, nhwc=True), batch=batch)
    return model, found.note


def timed(gpu: Device, path: Path, options: SessionOptions, batch: int, size: int) -> Timed:
    """Time both layouts, in turn, on a stream of their own, in sessions that are closed again.

    Raises:
        InferenceError, DeviceMemoryError: it cannot be opened or run so.
    """
    stream = gpu.upload_stream
    shapes = ((batch, 6, size, size), (batch, *SPEECH_SHAPE), (batch, 3, size, size))
    buffers = [gpu.empty(shape, np.float16, "timing the model") for shape in shapes]
    for buffer in buffers:
        gpu.clear(buffer, stream)
    # A graph's run takes the GPU's time; node by node the host's launches may be what takes the time.
    cold = why_not(options) is None
    timer = Timer(gpu, runs=1, warm_up=0, busy_ms=QUEUING_MS, flush_bytes=1)
    seconds: dict[bool, list[float]] = {False: [], True: []}
    with _opened(path, replace(options, stream=int(stream.ptr)), batch) as models:
        bound = {nhwc: model.bind(*buffers) for nhwc, model in models.items()}
        try:
            for _ in range(WARM_UP + ROUNDS):
                for nhwc, model in models.items():

                    def run(model: Model = model, bindings: Any = bound[nhwc]) -> None:
                        model.run(bindings, batch)

                    seconds[nhwc] += timer.seconds(run, stream, cold=cold)
        finally:
            gpu.wait_for_queued(stream)
    return Timed(*(median(seconds[nhwc][WARM_UP:]) for nhwc in (False, True)))


@contextlib.contextmanager
def _opened(path: Path, options: SessionOptions, batch: int) -> Iterator[dict[bool, Model]]:
    with contextlib.ExitStack() as stack:
        models = {}
        for nhwc in (False, True):
            models[nhwc] = Model(path, replace(options, nhwc=nhwc), batch=batch, graphs=False)
            stack.callback(models[nhwc].close)
        yield models


def _file(root: Path, path: Path, batch: int) -> Path:
    name = engine_folder(root, path, {"batch": (batch,)}).name  # which tells the model and the batch
    return root / f"{name}-onnxruntime-{runtime().__version__}.json"


def _kept(file: Path) -> Timed | None:
    """What was timed before; None if nothing was, or not whole."""
    try:
        told = json.loads(file.read_text("utf-8"))
        return Timed(float(told["nchw_seconds"]), float(told["nhwc_seconds"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _keep(file: Path, found: Timed) -> Timed:
    """Keep what was timed, unless another process was quicker: what is kept then."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(file.parent / "lock"):
        kept = _kept(file)
        if kept is None:
            part = file.with_suffix(".partial")
            part.write_text(json.dumps({"nchw_seconds": found.nchw, "nhwc_seconds": found.nhwc}), "utf-8")
            part.replace(file)
    return kept or found
