"""The engine: one device, what lives on it, and the threads that draw the frames of all its sessions."""

from __future__ import annotations

import threading
import time
from collections import Counter, deque
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import ExitStack
from types import TracebackType
from typing import Any, TypeVar

from gpupipe.engine.backend import Backend
from gpupipe.engine.flight import Flight, Steps
from gpupipe.engine.holdings import Holdings
from gpupipe.engine.lane import Lane
from gpupipe.engine.order import SessionOrder
from gpupipe.engine.pipeline import Pipeline
from gpupipe.engine.scheduler import Choice, Scheduler
from gpupipe.engine.session import Session
from gpupipe.errors import DeviceError, DeviceMemoryError, EngineClosed, GpupipeError
from gpupipe.speech.rows import SpeechRows
from gpupipe.speech.speech import OpenEncoder
from gpupipe.trace import Trace

T = TypeVar("T")

MARGIN = 1.1
"""Times a batch's measured latency after which it is taken to be finished, when deadlines are weighed."""


class EngineCore:
    """A device, and what lives on it; sessions are opened on it. See `render.engine.Engine` for renders.

    Args:
        backend: the device, opened; closed with the engine.
        cache: bytes of characters that are kept; None: as much as there is room for.

    Attributes:
        trace: times of every stage, of all sessions.
    """

    def __init__(self, backend: Backend, *, cache: int | None = None) -> None:
        self.backend = backend
        self.trace = Trace()
        self.holdings = Holdings(backend, cache, self._on_compute_thread)
        self._condition = threading.Condition()
        self._scheduler: Scheduler[Lane, Session] = Scheduler(lambda lane: MARGIN * lane.latency)
        self._errands: deque[tuple[Callable[[], Any], Future[Any]]] = deque()
        self._under_way = 0
        self._error: GpupipeError | None = None
        self._closing = False
        self._sessions: dict[Session, ExitStack] = {}
        self._lanes: Counter[Lane] = Counter()
        self._steps = Steps(self.trace)
        self._pipeline = Pipeline(self._next_flight, backend.stages(self._steps, self._landed), self._fail)

    def open_session(
        self,
        order: SessionOrder,
        speech: Callable[[OpenEncoder], SpeechRows],
        *,
        trace: Trace | None = None,
        due: Callable[[int], float] | None = None,
    ) -> Session:
        """Open what a session needs, unless it is open already, and take it in.

        Args:
            order: what it draws.
            speech: gives what it says, whole or still growing; it is given what opens an audio encoder here.
            trace: where its share of the times goes.
            due: when an output frame must be finished, seconds of `time.monotonic`; None: no deadlines.

        Raises:
            GpupipeError: something cannot be opened, or does not fit in memory; nothing is left of the session then.
        """
        trace = trace or Trace()
        with ExitStack() as held, trace.span("load", order.spec.count):
            self._raise_if_closed()
            parts = self.holdings.open(order, speech, held)
            session = Session(
                lane=parts.lane,
                frames=parts.frames,
                speech=parts.speech,
                placed=parts.placed,
                source=order.source,
                fps=order.fps,
                total=order.total,
                format=order.spec.format,
                trace=trace,
                memory=parts.memory,
                notes=parts.notes,
                changed=self._wake,
                ended=self._ended,
                due=due,
            )
            parts.speech.listen(self._wake)
            with self._condition:
                self._raise_if_closed()
                parts.lane.compositor.admit(parts.frames)
                self._sessions[session] = held.pop_all()
                self._lanes[session.lane] += 1
                self._scheduler.add(session)
                self._condition.notify_all()
        return session

    def close(self) -> None:
        """End every session, and release everything. More than once is allowed."""
        with self._condition:
            first, self._closing = not self._closing, True
            sessions = list(self._sessions)
            self._condition.notify_all()
        for session in sessions:
            session.fail(EngineClosed("the engine was closed"))
        if not first:
            return
        self._pipeline.join()
        for session in sessions:
            session.close()
        self.holdings.close()
        self.backend.close()

    def __enter__(self) -> EngineCore:
        """Begin a with block, which closes the engine."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the engine."""
        self.close()

    def _next_flight(self) -> Flight | None:
        """The next batch, in the thread that computes; errands are run in between. None when the engine closes."""
        while True:
            with self._condition:
                while not self._errands:
                    if self._closing:
                        return None
                    if (flight := self._depart()) is not None:
                        return flight
                errand, result = self._errands.popleft()
            try:
                result.set_result(errand())
            except BaseException as error:
                result.set_exception(error)

    def _depart(self) -> Flight | None:
        """A batch that leaves now; or None, after waiting until something may have changed."""
        if not any(lane.free for lane in self._lanes):  # whatever else has changed, nothing can leave
            self._condition.wait()
            return None
        now = time.monotonic()
        choice = self._scheduler.choose(now, free=lambda lane: bool(lane.free), idle=not self._under_way)
        if not isinstance(choice, Choice):
            self._condition.wait(None if choice.until == float("inf") else max(0.0, choice.until - now))
            return None
        tasks = [task for session in choice.frames if (task := session.start()) is not None]
        if not tasks:  # closed since they were chosen
            return None
        self._under_way += 1
        return Flight(choice.lane, choice.lane.free.pop(), tasks, now)

    def _landed(self, flight: Flight) -> None:
        """A batch has gone through every step but the last."""
        self._steps.finish(flight)
        if isinstance(flight.error, DeviceError) and not isinstance(flight.error, DeviceMemoryError):
            self._fail(flight.error)
        with self._condition:
            flight.lane.free.append(flight.slot)
            self._under_way -= 1
            self._condition.notify_all()

    def _on_compute_thread(self, errand: Callable[[], T]) -> T:
        """Run something in the thread that computes, between two batches, and wait for it."""
        result: Future[T] = Future()
        with self._condition:
            self._raise_if_closed()
            self._errands.append((errand, result))
            self._condition.notify_all()
        return result.result()

    def _wake(self) -> None:
        with self._condition:
            self._condition.notify_all()

    def _ended(self, session: Session) -> None:
        """A session is closed, and nothing of it is under way."""
        with self._condition:
            self._scheduler.remove(session)
            held = self._sessions.pop(session)
            self._lanes[session.lane] -= 1
            self._lanes += Counter()  # drops lanes without sessions
            self._condition.notify_all()
        held.close()

    def _fail(self, error: BaseException) -> None:
        """The device, or the engine itself, has failed: nobody is served any more."""
        with self._condition:
            if self._error is None:
                self._error = EngineClosed(f"the engine has stopped: {error}", remedy="start it again")
            sessions, errands = list(self._sessions), list(self._errands)
            self._errands.clear()
            self._condition.notify_all()
        for _, result in errands:
            result.set_exception(self._error)
        for session in sessions:
            session.fail(error)

    def _raise_if_closed(self) -> None:
        if self._error is not None:
            raise self._error
        if self._closing:
            raise EngineClosed("the engine was closed")
