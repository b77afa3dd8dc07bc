"""A model in two nets: what it makes of a cached frame alone, made once and kept with the frame, and the rest."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any, Final

import numpy as np

from gpupipe.engine.kept_features import KeptFeatures, Shown
from gpupipe.gpu import launch
from gpupipe.gpu.device import Device
from gpupipe.gpu.kernels import GATHER_TENSORS
from gpupipe.gpu.timer import Timer
from gpupipe.model.features import FeatureRow, ResidentFeatures
from gpupipe.model.model import Bindings, Model
from gpupipe.model.nets import TensorSpec
from gpupipe.model.runner import Wait, started
from gpupipe.model.split import NotSplit
from gpupipe.model.split_file import split_files
from gpupipe.model.split_model import RestBinding, RestNet, SourceNet

MEASURED_RUNS: Final = 3


def copy_kept(gpu: Device, rows: Sequence[FeatureRow | None], room: ResidentFeatures, *, back: bool = False) -> None:
    """Queue the copy of each row's features to the row of its place in others, or back; the `Gather` of a GPU."""
    kept = [each and launch.Kept(each.features.address, each.features.frames, each.row) for each in rows]
    arrays: Any = room.arrays
    with gpu.use():
        launch.gather(kept, arrays, back=back, stream=gpu.compute_stream)


def _empty(gpu: Device | None, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Any:
    return np.empty(shape, dtype) if gpu is None else gpu.empty(shape, dtype, "features")


class SplitModel:
    """A model opened in two nets, beside the whole.

    A run is one of the two ways: the rest, where all of its frames' features are kept or have room; else the whole. On
    the CPU a run is a frame, on a GPU a batch.

    Args:
        model: the whole, opened.
        source: the source net's file.
        rest: the rest's.
        gpu: where the model runs; None: on the CPU.

    Attributes:
        on_device: whether the model runs on a GPU, where features are kept too.
        nodes: how many nodes of both nets each provider runs, as `Model.nodes`.
        whole_runs, source_runs: runs so far of the whole and of the source net; of the rest see `RestNet`.

    Raises:
        DeviceMemoryError: the GPU's memory does not suffice.
    """

    def __init__(self, model: Model, source: Path, rest: Path, gpu: Device | None = None) -> None:
        options, batch = model.options, model.runs * model.chunk
        self.model, self._gpu, self.on_device = model, gpu, gpu is not None
        self._break_even: float | None = None
        self._warm = gpu is None
        self._pool = ThreadPoolExecutor(model.runs, "model") if gpu is None else None
        self.whole_runs = self.source_runs = 0
        self.source = SourceNet(source, options, batch=batch, runs=model.runs)
        try:
            gather = None if gpu is None else partial(copy_kept, gpu)
            self.rest = RestNet(
                rest, self.source, options, batch=batch, runs=model.runs, gather=gather, empty=partial(_empty, gpu)
            )
        except BaseException:
            self.source.close()
            raise
        self.nodes = Counter(self.source.nodes) + Counter(self.rest.nodes)

    @classmethod
    def open(cls, model: Model, gpu: Device | None) -> SplitModel | NotSplit:
        """Cut a model, unless that was done before, and open it.

        Args:
            model: the whole, opened.
            gpu: the engine's GPU, if it has one.

        Raises:
            GpupipeError: it cannot be cut or opened.
        """
        on_cpu = model.provider == "cpu"
        if on_cpu and model.chunk != 1:
            return NotSplit("it takes fixed batches")
        if on_cpu and model.dtype != np.float32:
            return NotSplit("only float32 models draw the same in two nets on the CPU")
        found = split_files(model.path, on_cpu=on_cpu)
        if isinstance(found, NotSplit):
            return found
        opened = cls(model, *found, gpu=None if on_cpu else gpu)
        if opened.on_device and len(opened.source.features) > GATHER_TENSORS:
            opened.close()
            return NotSplit(f"it would keep more than {GATHER_TENSORS} tensors of a frame")
        return opened

    @property
    def frame_bytes(self) -> int:
        """Bytes that are kept for a frame."""
        return sum(spec.frame_bytes for spec in self.source.features)

    def keep(self, frames: int) -> KeptFeatures:
        """Room for the features of so many frames, where the model runs.

        Raises:
            DeviceMemoryError: the GPU's memory does not suffice.
        """
        features = ResidentFeatures.allocate(self.source.features, frames, partial(_empty, self._gpu))
        return KeptFeatures(features, on_device=self.on_device)

    def bind(self, audio: Any, prediction: Any, visual: Any) -> list[RestBinding]:
        """Bind a slot's buffers for the rest."""
        return self.rest.bind(audio, prediction, visual if self.rest.needs_visual else None)

    def place_order(self, shown: Shown) -> tuple[int, int]:
        """What the places of a batch are sorted by, so that frames which lie one behind the other are bound as they
        lie, on the way back of the ping-pong too."""
        return id(shown[0]), shown[1]

    def start(self, bindings: Bindings, rest: Sequence[RestBinding], visual: Any, frames: Sequence[Shown]) -> Wait:
        """Predict the frames in a slot's first places: on the CPU as threads become free, on a GPU by queueing it.

        Args:
            bindings: the slot's, of the whole.
            rest: the slot's, of the rest.
            visual: the slot's, `[B, 6, S, S]`.
            frames: of each place.

        Returns:
            What waits for their end, and raises an InferenceError if a net failed; on a GPU it does nothing.
        """
        chunk = self.model.chunk
        works = [
            partial(self._predict, bindings[number], rest[number], visual[start : start + chunk], shown)
            for number, start in enumerate(range(0, len(frames), chunk))
            if (shown := frames[start : start + chunk])
        ]
        if self._pool is not None:
            return started(self._pool, works)
        for work in works:
            work()
        return lambda: None

    def _predict(self, whole: Any, rest: RestBinding, visual: Any, shown: Sequence[Shown]) -> None:
        """A run, one of the two ways."""
        rows = [FeatureRow(each.features, frame) for each, frame in shown if each and each.has_room(frame)]
        if len(rows) < len(shown):
            self.whole_runs += 1
            self.model.run([whole], len(shown))
            return
        (kept, frame), *_ = shown
        # On the CPU, where a run is a frame, who wants the same frame's meanwhile waits for them.
        with nullcontext() if kept is None or kept.on_device else kept.making[frame]:
            self._make_missing(visual, shown, rows)
        self.rest.run([rest], rows)

    def _make_missing(self, visual: Any, shown: Sequence[Shown], rows: Sequence[FeatureRow]) -> None:
        """Make the features of a run's frames that have none. On a GPU all places' are made, for another number of
        frames would cost another search, in the rest's room, and those that are missing are copied from there."""
        missing = {
            row: place
            for place, (row, (kept, frame)) in enumerate(zip(rows, shown, strict=True))
            if kept is not None and kept.missing(frame)
        }
        if not missing:
            return
        self.source_runs += 1
        room = self.rest.room
        if self._gpu is None or room is None:
            self.source.run(visual, rows[0].features.rows(rows[0].row, 1))
        else:
            self.source.run(visual, room.arrays)
            # Of a frame that two places show, one is copied.
            new = [row if missing.get(row) == place else None for place, row in enumerate(rows)]
            copy_kept(self._gpu, new, room, back=True)
        for kept, frame in shown:
            if kept is not None:
                kept.made(frame)

    def warm_up(self) -> None:
        """Run both nets twice, once for all, where the model runs on a GPU: see `GpuBackend.warm_up`.

        Raises:
            DeviceMemoryError: the GPU's memory does not suffice.
            InferenceError: a net failed.
        """
        if self._warm or self._gpu is None:
            return
        trial = Trial(self, self._gpu)
        try:
            for _ in range(2):
                trial.source()
                trial.rest()
            if self.rest.room is not None:  # loads the kernel, and copies nothing
                copy_kept(self._gpu, [None], self.rest.room)
        finally:
            self._gpu.synchronize()
        self._warm = True

    @property
    def break_even(self) -> float:
        """How often a frame must be shown for its features to be worth making, measured on this machine, once; on the
        thread that runs the model.

        With w, r and s the times of whole, rest and source net: s / (w - r); infinity if the rest is no faster.
        """
        if self._break_even is None:
            self._break_even = self._measured()
        return self._break_even

    def _measured(self) -> float:
        trial = Trial(self, self._gpu)
        works = (trial.whole, trial.source, trial.rest)
        times: list[list[float]] = [[], [], []]
        for run in range(MEASURED_RUNS + 1):  # in turn; the first warms up
            for work, found in zip(works, times, strict=True):
                seconds = self._seconds(work)
                if run:
                    found.append(seconds)
        w, s, r = map(median, times)
        return s / (w - r) if w > r else float("inf")

    def _seconds(self, work: Callable[[], None]) -> float:
        """What a run takes: by the GPU's clock where it is only queued."""
        if self._gpu is not None:
            return Timer(self._gpu, runs=1, warm_up=0).seconds(work, self._gpu.compute_stream)[0]
        began = time.perf_counter()
        work()
        return time.perf_counter() - began

    def close(self) -> None:
        """Close both nets."""
        if self._pool is not None:
            self._pool.shutdown()
        self.source.close()
        self.rest.close()


class Trial:
    """A run of each net, and of the whole, on zeros; features lie one behind the other.

    Args:
        split: the model.
        gpu: where it runs; None: on the CPU.
    """

    def __init__(self, split: SplitModel, gpu: Device | None) -> None:
        def zeros(spec: TensorSpec) -> Any:
            array = _empty(gpu, (split.model.chunk, *spec.frame_shape), spec.dtype)
            if gpu is None:
                array.fill(0)
            else:
                gpu.clear(array, gpu.compute_stream)
            return array

        source, rest = split.source, split.rest
        self._split, self._frames = split, split.model.chunk
        self._buffers = visual, audio, prediction = zeros(source.visual), zeros(rest.audio), zeros(rest.prediction)
        self._features = rest.room or ResidentFeatures.allocate(source.features, self._frames)
        self._whole = split.model.bind(visual, audio, prediction)
        self._rest = split.bind(audio, prediction, visual)

    def whole(self) -> None:
        """Run the whole model."""
        self._split.model.run(self._whole, self._frames)

    def source(self) -> None:
        """Run the source net."""
        self._split.source.run(self._buffers[0], self._features.arrays)

    def rest(self) -> None:
        """Run the rest."""
        rows = [FeatureRow(self._features, row) for row in range(self._frames)]
        self._split.rest.run(self._rest, rows)
