"""The engine: one device, what lives on it, and the threads that draw the frames of all its sessions."""

from __future__ import annotations

import itertools
import logging
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import ExitStack, contextmanager, suppress
from types import TracebackType
from typing import Any, TypeVar

from gpupipe.compose.protocol import Coming
from gpupipe.engine.ahead import FramesAhead
from gpupipe.engine.backend import Backend
from gpupipe.engine.cache_bound import CacheBound
from gpupipe.engine.filmed import Filmed, OpenFilmed
from gpupipe.engine.flight import Flight, Steps, seated
from gpupipe.engine.holdings import Holdings
from gpupipe.engine.kept_features import FeatureBudget
from gpupipe.engine.lane import Lane
from gpupipe.engine.order import SessionOrder
from gpupipe.engine.pipeline import Pipeline
from gpupipe.engine.scheduler import Choice, Scheduler
from gpupipe.engine.session import Session
from gpupipe.engine.timetable import Timetable
from gpupipe.errors import DeviceError, DeviceMemoryError, EngineClosed, GpupipeError
from gpupipe.log import Log
from gpupipe.speech.rows import SpeechRows
from gpupipe.speech.speech import OpenEncoder
from gpupipe.trace import LOAD, Trace

T = TypeVar("T")

_log = Log(__name__)


class EngineCore:
    """A device, and what lives on it; sessions are opened on it. See `render.engine.Engine` for renders.

    Args:
        backend: the device, opened; closed with the engine.
        cache: how much of characters is kept; None: as much as there is room for.
        features: how much is kept of the model's work on cached frames; None: nothing.

    Attributes:
        trace: times of every stage, of all sessions.
        timetable: the batches under way, and how many there were.
    """

    def __init__(
        self, backend: Backend, *, cache: CacheBound | None = None, features: FeatureBudget | None = None
    ) -> None:
        self.backend = backend
        self.trace = Trace(None if backend.gpu is None else backend.gpu.marker)
        self.holdings = Holdings(backend, cache, self._on_compute_thread, features)
        self._condition = threading.Condition()
        self._scheduler: Scheduler[Lane, Session] = Scheduler(lambda lane: lane.pace.seconds)
        self.timetable = Timetable()
        self._errands: deque[tuple[Callable[[], Any], Future[Any]]] = deque()
        self._handling: Counter[int] = Counter()  # by thread
        self._error: GpupipeError | None = None
        self._closing = False
        self._sessions: dict[Session, ExitStack] = {}
        self._filmed = OpenFilmed(backend, self.holdings.residents)
        self._numbers = itertools.count(1)
        self._steps = Steps(self.trace)
        stages = backend.stages(self._steps, self._landed)
        self._pipeline = Pipeline(self._next_flight, stages, self._fail, self._steps.drop)

    def open_session(
        self,
        order: SessionOrder,
        speech: Callable[[OpenEncoder], SpeechRows],
        *,
        trace: Trace | None = None,
        due: Callable[[int], float] | None = None,
        drop_late: bool = False,
    ) -> Session:
        """Open what a session needs, unless it is open already, and take it in.

        Args:
            order: what it draws.
            speech: gives what it says, whole or still growing; it is given what opens an audio encoder here.
            trace: where its share of the times goes.
            due: when an output frame must be finished, seconds of `time.monotonic`; None: no deadlines.
            drop_late: pass over frames that would be late whatever is done.

        Raises:
            GpupipeError: something cannot be opened, or does not fit in memory; nothing is left of the session then.
        """
        trace, number = trace or Trace(), next(self._numbers)
        opening = _log.timed("session opened", session=number, character=order.character.path, device=self.backend.name)
        with self._while_open(), opening as told, ExitStack() as held, trace.span(LOAD, order.spec.count):
            parts = self.holdings.open(order, speech, held)
            first = parts.frames.spec.first
            session = Session(
                lane=parts.lane,
                frames=parts.frames,
                speech=parts.speech,
                placed=parts.placed,
                source=lambda output: order.source(output) - first,
                fps=order.fps,
                outputs=order.outputs(),
                format=order.spec.format,
                trace=trace,
                memory=parts.memory,
                notes=parts.notes,
                features=parts.features if order.visual is None else None,
                visual=order.visual or (lambda _: None),
                coming=parts.coming,
                changed=self._changed,
                ended=self._ended,
                due=due,
                drop_late=drop_late,
                number=number,
            )
            told["notes"] = session.notes
            parts.speech.listen(lambda: self._changed(session))
            held.callback(parts.coming.listen(lambda: self._frames_came(session, parts.coming)))
            if isinstance(parts.coming, FramesAhead):
                parts.coming.begin(session.upcoming, session.lock)
            with self._condition:
                self._raise_if_closed()
                parts.lane.compositor.admit(parts.frames)
                self._sessions[session] = held.pop_all()
                self._scheduler.add(session)
                self._condition.notify_all()
        return session

    def hold(self, order: SessionOrder) -> None:
        """Open what a session needs, ahead of it, and keep it for as long as there is room.

        Raises:
            GpupipeError: something cannot be opened, or does not fit in memory.
        """
        with self._while_open():
            self.holdings.load(order)

    def filmed(self, order: SessionOrder) -> Filmed:
        """A character's body frames, held until they, or the engine, are closed.

        Raises:
            GpupipeError: the character cannot be read.
        """
        with self._while_open():
            return self._filmed.open(order)

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
        with self._condition:
            # Not for itself: an interrupt may have ended what this thread did before it could say so.
            self._condition.wait_for(lambda: not self._handling.keys() - {threading.get_ident()})
            held = list(self._sessions.values())  # of sessions whose frames somebody has not released
            self._sessions.clear()
        for each in held:
            each.close()
        self._filmed.close()
        self.holdings.close()
        with suppress(DeviceError):  # one that has failed has told it to its sessions
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
        now = time.monotonic()
        choice = self._scheduler.choose(
            now, free=lambda lane: bool(lane.free), idle=self.timetable.idle, busy=self.timetable.busy(now)
        )
        if not isinstance(choice, Choice):
            self._condition.wait(None if choice.until == float("inf") else max(0.0, choice.until - now))
            return None
        tasks = [task for session in choice.frames if (task := session.start()) is not None]
        if not tasks:  # closed since they were chosen
            return None
        self.timetable.left(choice.lane.pace, now, len(tasks), choice.lane.batch)
        return Flight(choice.lane, choice.lane.free.pop(), seated(choice.lane, tasks))

    def _landed(self, flight: Flight) -> None:
        """A batch has gone through every step but the last."""
        self._steps.finish(flight)
        self._fail_with_device(flight.error)
        with self._condition:
            flight.lane.free.append(flight.slot)
            self.timetable.landed(time.monotonic(), counts=flight.error is None and not flight.alone)
            self._condition.notify_all()

    def _frames_came(self, session: Session, coming: Coming) -> None:
        """More of a session's cached frames are there, or no more come, in the thread that has decoded them."""
        self._fail_with_device(coming.error)
        session.frames_came()

    def _fail_with_device(self, error: BaseException | None) -> None:
        """If this is what a device has failed with, nobody is served any more."""
        if isinstance(error, DeviceError) and not isinstance(error, DeviceMemoryError):
            self._fail(error)

    def _on_compute_thread(self, errand: Callable[[], T]) -> T:
        """Run something in the thread that computes, between two batches, and wait for it."""
        result: Future[T] = Future()
        with self._condition:
            self._raise_if_closed()
            self._errands.append((errand, result))
            self._condition.notify_all()
        return result.result()

    def _changed(self, session: Session) -> None:
        """More or fewer frames of a session can be drawn."""
        with self._condition:
            self._scheduler.changed(session)
            self._condition.notify_all()

    def _ended(self, session: Session) -> None:
        """A session is closed, and nothing of it is under way."""
        with self._condition:
            self._scheduler.remove(session)
            held = self._sessions.pop(session, None)
            self._handling[threading.get_ident()] += 1
            self._condition.notify_all()
        with self._handled():
            _log.event("session ended", session=session.number, frames=session.finished)
            if held is not None:  # else the engine was closed before the last frame was released
                held.close()

    def _fail(self, error: BaseException) -> None:
        """The device, or the engine itself, has failed: nobody is served any more."""
        _log.event("engine stopped", logging.ERROR, device=self.backend.name, error=str(error))
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

    @contextmanager
    def _while_open(self) -> Iterator[None]:
        """Raise if the engine is closed; else it is not closed completely before the with block has ended."""
        with self._condition:
            self._raise_if_closed()
            self._handling[threading.get_ident()] += 1
        with self._handled():
            yield

    @contextmanager
    def _handled(self) -> Iterator[None]:
        """Tell, at the end of the with block, that what is opened or given back is so."""
        try:
            yield
        finally:
            with self._condition:
                self._handling -= Counter([threading.get_ident()])  # those at 0 are left out
                self._condition.notify_all()

    def _raise_if_closed(self) -> None:
        if self._error is not None:
            raise self._error
        if self._closing:
            raise EngineClosed("the engine was closed")
