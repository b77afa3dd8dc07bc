"""Resident features: what the model makes of a cached frame alone, made once, and kept with the frame."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from gpupipe.model.features import FeatureRow, ResidentFeatures
from gpupipe.model.model import Bindings, Model
from gpupipe.model.runner import Wait, started
from gpupipe.model.split import NotSplit
from gpupipe.model.split_file import split_files
from gpupipe.model.split_model import RestBinding, RestNet, SourceNet

MEASURED_RUNS: Final = 3


class FeatureBudget(NamedTuple):
    """How much of the model's work on cached frames is kept.

    Attributes:
        nbytes: for all characters together.
        always: for every frame that there is room for; else only where a frame is shown often enough for it to win.
        tuned: only of sessions that are tuned to it; see `SessionOrder.features`.
    """

    nbytes: int
    always: bool
    tuned: bool = False


class KeptFeatures:
    """The features of the first frames of a character, made as they are first shown.

    Args:
        source: makes them.
        frames: how many frames there is room for.
    """

    def __init__(self, source: SourceNet, frames: int) -> None:
        self.features = ResidentFeatures.allocate(source.features, frames)
        self._made: NDArray[np.bool_] = np.zeros(frames, np.bool_)
        self._making = [threading.Lock() for _ in range(frames)]

    @property
    def nbytes(self) -> int:
        """Bytes when all are made."""
        return self.features.nbytes

    def has_room(self, frame: int) -> bool:
        """Whether a cached frame is one of those whose features are kept."""
        return frame < self.features.frames

    def make(self, source: SourceNet, visual: NDArray[Any], frame: int) -> None:
        """Make a frame's, unless they are there; who wants the same meanwhile waits.

        Raises:
            InferenceError: the net failed; the next who wants them tries again.
        """
        with self._making[frame]:
            if not self._made[frame]:
                source.run(visual, self.features.rows(frame, 1))
                self._made[frame] = True


class SplitModel:
    """A model opened in two nets, beside the whole, on the CPU.

    Args:
        model: the whole, opened.
        source: the source net's file.
        rest: the rest's.
    """

    def __init__(self, model: Model, source: Path, rest: Path) -> None:
        options, batch = model.options, model.runs
        self.model = model
        self._break_even: float | None = None
        self.source = SourceNet(source, options, batch=batch, runs=model.runs)
        self.rest = RestNet(rest, self.source, options, batch=batch, runs=model.runs)
        self._pool = ThreadPoolExecutor(model.runs, "model")

    @classmethod
    def open(cls, model: Model) -> SplitModel | NotSplit:
        """Cut a model, unless that was done before, and open it.

        Raises:
            GpupipeError: it cannot be cut or opened.
        """
        if model.provider != "cpu":
            return NotSplit("features are kept on the CPU only")
        if model.chunk != 1:
            return NotSplit("it takes fixed batches")
        if model.dtype != np.float32:
            return NotSplit("only float32 models draw the same in two nets")
        found = split_files(model.path)
        return found if isinstance(found, NotSplit) else cls(model, *found)

    @property
    def frame_bytes(self) -> int:
        """Bytes that are kept for a frame."""
        return sum(spec.frame_bytes for spec in self.source.features)

    def bind(self, audio: Any, prediction: Any, visual: Any) -> list[RestBinding]:
        """Bind a slot's buffers for the rest."""
        return self.rest.bind(audio, prediction, visual if self.rest.needs_visual else None)

    def start(
        self,
        bindings: Bindings,
        rest: Sequence[RestBinding],
        visual: NDArray[Any],
        frames: Sequence[tuple[KeptFeatures | None, int]],
    ) -> Wait:
        """Predict the frames in a slot's first places, as threads become free: by the rest where features are kept,
        else by the whole.

        Args:
            bindings: the slot's, of the whole.
            rest: the slot's, of the rest.
            visual: the slot's, `[B, 6, S, S]`.
            frames: of each place, where its character's features are kept, if they are, and which cached frame it is.

        Returns:
            What waits for their end, and raises an InferenceError if a net failed.
        """

        def predict(place: int, kept: KeptFeatures | None, frame: int) -> None:
            if kept is None or not kept.has_room(frame):
                self.model.run(bindings[place : place + 1], 1)
                return
            kept.make(self.source, visual[place : place + 1], frame)
            self.rest.run(rest[place : place + 1], [FeatureRow(kept.features, frame)])

        return started(self._pool, [partial(predict, place, *frame) for place, frame in enumerate(frames)])

    @property
    def break_even(self) -> float:
        """How often a frame must be shown for its features to be worth making, measured on this machine.

        With w, r and s the times of whole, rest and source net: s / (w - r); infinity if the rest is no faster.
        """
        if self._break_even is None:
            self._break_even = self._measured()
        return self._break_even

    def _measured(self) -> float:
        size = self.source.visual.frame_shape[-1]
        visual, audio = (
            np.zeros((1, 6, size, size), np.float32),
            np.zeros((1, *self.rest.audio.frame_shape), np.float32),
        )
        prediction = np.zeros((1, *self.rest.prediction.frame_shape), np.float32)
        kept = ResidentFeatures.allocate(self.source.features, 1)
        whole, rest = self.model.bind(visual, audio, prediction), self.bind(audio, prediction, visual)
        times: dict[str, list[float]] = {"whole": [], "source": [], "rest": []}
        works: dict[str, Callable[[], None]] = {
            "whole": lambda: self.model.run(whole, 1),
            "source": lambda: self.source.run(visual, kept.rows(0, 1)),
            "rest": lambda: self.rest.run(rest, [FeatureRow(kept, 0)]),
        }
        for run in range(MEASURED_RUNS + 1):  # in turn; the first warms up
            for name, work in works.items():
                began = time.perf_counter()
                work()
                if run:
                    times[name].append(time.perf_counter() - began)
        w, r, s = (median(times[name]) for name in ("whole", "rest", "source"))
        return s / (w - r) if w > r else float("inf")

    def close(self) -> None:
        """Close both nets."""
        self._pool.shutdown()
        self.source.close()
        self.rest.close()
