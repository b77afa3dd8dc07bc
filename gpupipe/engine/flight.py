"""Batches under way: their steps, one after the other, and what happens when one fails."""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from gpupipe.engine.frame_task import FrameTask
from gpupipe.engine.lane import Lane, LaneSlot
from gpupipe.engine.session import Session
from gpupipe.errors import InferenceError
from gpupipe.log import Log
from gpupipe.model.runner import Wait
from gpupipe.trace import INFER, PASTE, PREPARE, QUEUED, Span, Stage, Trace

_log = Log(__name__)


@dataclass(eq=False)
class Flight:
    """A batch under way.

    Attributes:
        lane: which.
        slot: its buffers.
        tasks: its frames, in the places of the slot, which need not be the order of output.
        predicted: waits for the model, once it has been started.
        begun: when that was, seconds of `time.perf_counter`.
        error: what has stopped it: of all its frames.
        alone: whether the model has failed for the batch: each frame is drawn alone then, to find whose the fault is.
        finished: the errors of frames that were drawn alone, or None.
    """

    lane: Lane
    slot: LaneSlot[Any]
    tasks: list[FrameTask[Session]]
    predicted: Wait | None = None
    begun: float = 0.0
    error: BaseException | None = None
    alone: bool = False
    finished: dict[int, BaseException | None] = field(default_factory=dict)

    @property
    def shares(self) -> list[tuple[Trace, int]]:
        """The traces of the sessions whose frames it has, and how many."""
        return [(session.trace, count) for session, count in Counter(task.session for task in self.tasks).items()]

    @property
    def in_order(self) -> list[tuple[int, FrameTask[Session]]]:
        """Places and their frames, each session's in the order of output."""
        return sorted(enumerate(self.tasks), key=lambda seat: seat[1].index)


def seated(lane: Lane, tasks: list[FrameTask[Session]]) -> list[FrameTask[Session]]:
    """Frames in the order of their places: as they come, or as a model in two nets wants them on a GPU."""
    split = lane.split
    if split is None or not split.on_device:
        return tasks
    return sorted(tasks, key=lambda task: split.place_order((task.session.features, task.drawing.source)))


class Steps:
    """What is done with a batch, step by step; an error is kept in the batch, and ends the sessions it concerns.

    Args:
        trace: the engine's; each session's own gets its share.
    """

    def __init__(self, trace: Trace) -> None:
        self._trace = trace
        self._inferred = 0.0

    def begin(self, flight: Flight) -> None:
        """Fill the model's inputs, and start it. If it fails for a batch, `paste` draws each frame alone."""
        self._step(PREPARE, flight, lambda: self._prepare(flight, flight.tasks))
        if flight.error is not None:
            return
        lane = flight.lane
        try:
            lane.compositor.ready(flight.slot.buffers)
            flight.begun = time.perf_counter()
            with nullcontext() if _on_host(lane) else self._timed(INFER, flight):
                flight.predicted = self._started(flight)
        except InferenceError as error:
            _one_by_one_from_here(flight, error)
        except BaseException as error:
            flight.error = error

    def infer(self, flight: Flight) -> None:
        """Wait for the model, where it runs on the host."""
        if flight.predicted is None:
            return
        try:
            flight.predicted()
        except InferenceError as error:
            _one_by_one_from_here(flight, error)
        except BaseException as error:
            flight.error = error
        if _on_host(flight.lane):
            # Batches overlap: what the model takes is the time from one's end to the next one's.
            begun, self._inferred = max(flight.begun, self._inferred), time.perf_counter()
            span = Span(INFER, threading.current_thread().name, begun, self._inferred, len(flight.tasks))
            self._trace.add(span, flight.shares)

    def _started(self, flight: Flight) -> Wait:
        lane, slot = flight.lane, flight.slot
        if lane.split is None:
            return lane.model.start(slot.bindings, len(flight.tasks))
        frames = [(task.session.features, task.drawing.source) for task in flight.tasks]
        return lane.split.start(slot.bindings, slot.rest, slot.buffers.visual, frames)

    def paste(self, flight: Flight) -> None:
        """Draw the predictions."""
        if flight.alone:
            self._one_by_one(flight)
        else:
            self._step(PASTE, flight, lambda: flight.lane.compositor.paste(flight.slot.buffers))

    def compute(self, flight: Flight) -> None:
        """All three, where they are only queued: one thread keeps a GPU's stream in order."""
        self.begin(flight)
        self.infer(flight)
        self.paste(flight)

    def drop(self, flight: Flight) -> None:
        """Wait for the model, where a batch goes no further: its runs use the slot, which goes with the batch."""
        if flight.predicted is not None:
            with suppress(BaseException):  # nobody is served any more, and was told why
                flight.predicted()

    def finish(self, flight: Flight) -> None:
        """Wait until the frames are complete, and hand each to its session."""
        has_nan = np.zeros(len(flight.tasks), np.bool_)
        if flight.error is None and not flight.alone:
            try:
                has_nan = flight.lane.compositor.finish(flight.slot.buffers)
                self._collect(flight)
            except BaseException as error:
                flight.error = error
        if flight.error is not None:
            _log.event("batch failed", logging.WARNING, **_who(flight), error=str(flight.error))
        for place, task in flight.in_order:
            wrong = flight.error or flight.finished.get(place)
            if wrong is None and has_nan[place]:
                wrong = nan_error(task)
            if wrong is not None and wrong is not flight.error:
                _log.event(
                    "frame failed", logging.WARNING, session=task.session.number, frame=task.index, error=str(wrong)
                )
            task.drawing.surface.finished = time.monotonic()
            task.session.deliver(task, wrong)

    def _prepare(self, flight: Flight, tasks: list[FrameTask[Session]]) -> None:
        flight.lane.compositor.prepare(flight.slot.buffers, [task.drawing for task in tasks])

    def _one_by_one(self, flight: Flight) -> None:
        if flight.error is not None:
            return
        failed: dict[Session, BaseException] = {}
        try:
            flight.lane.compositor.clear(flight.slot.buffers)
            for place, task in flight.in_order:
                if task.session not in failed:
                    flight.finished[place] = wrong = self._alone(flight, task)
                    if wrong is not None:
                        failed[task.session] = wrong
                else:
                    flight.finished[place] = failed[task.session]
        except BaseException as error:
            flight.error = error

    def _alone(self, flight: Flight, task: FrameTask[Session]) -> BaseException | None:
        """Draw one frame; what is wrong with it."""
        lane, slot = flight.lane, flight.slot
        try:
            self._prepare(flight, [task])
            lane.compositor.ready(slot.buffers)
            lane.model.run(slot.bindings, 1)
            lane.compositor.paste(slot.buffers)
            _log.event("frame drawn alone", session=task.session.number, frame=task.index)
            return nan_error(task) if lane.compositor.finish(slot.buffers)[0] else None
        except InferenceError as error:
            return error.about(f"output frame {task.index}")

    def _step(self, step: Stage, flight: Flight, work: Callable[[], None]) -> None:
        if flight.error is not None:
            return
        try:
            with self._timed(step, flight):
                work()
        except BaseException as error:
            flight.error = error

    @contextmanager
    def _timed(self, step: Stage, flight: Flight) -> Iterator[None]:
        """Time a step: by the host's clock if the host does it, by the GPU's if it is only queued."""
        marks = flight.slot.buffers.marks
        if marks is None:
            with self._trace.span(step, len(flight.tasks), flight.shares):
                yield
            return
        with self._trace.span(QUEUED[step]):
            if step == INFER:  # the compositor marks its own steps
                marks.begin(INFER)
            yield
            if step == INFER:
                marks.end(INFER)

    def _collect(self, flight: Flight) -> None:
        marks = flight.slot.buffers.marks
        for step, start, end in marks.collect() if marks is not None else ():
            self._trace.add(Span(step, "gpu", start, end, len(flight.tasks)), flight.shares)


def _one_by_one_from_here(flight: Flight, error: InferenceError) -> None:
    """The model has failed for a batch: let each of its frames be drawn alone."""
    flight.alone = True
    _log.event("batch failed, its frames are drawn alone", logging.WARNING, **_who(flight), error=str(error))


def _who(flight: Flight) -> dict[str, list[int]]:
    tasks = [task for _, task in flight.in_order]
    return {"sessions": [task.session.number for task in tasks], "frames": [task.index for task in tasks]}


def _on_host(lane: Lane) -> bool:
    """Whether the model runs there."""
    return lane.model.provider == "cpu"


def nan_error(task: FrameTask[Session]) -> InferenceError:
    """The error of a frame whose prediction held a NaN."""
    return InferenceError(
        "the model gave NaN",
        file=task.session.lane.model.path,
        field=f"output frame {task.index}",
        remedy="check the model and the features; a float16 export may overflow",
    )
