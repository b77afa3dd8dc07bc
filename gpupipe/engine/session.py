"""One speech of one character on an engine: which frames are due, and the finished ones on their way to the sink."""

from __future__ import annotations

import math
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

from gpupipe.compose.protocol import Coming, Drawing
from gpupipe.compose.surface import Surface, SurfaceFormat
from gpupipe.engine.frame_task import FrameTask
from gpupipe.engine.kept_features import KeptFeatures
from gpupipe.engine.lane import Lane
from gpupipe.engine.outputs import Outputs
from gpupipe.engine.surfaces import Memory
from gpupipe.errors import Cancelled
from gpupipe.geometry import speech_position
from gpupipe.speech.rows import SpeechRows
from gpupipe.speech.windows import frames_of_rows
from gpupipe.threads import POLL_SECONDS
from gpupipe.trace import Trace


@dataclass(eq=False)
class Session:
    """One speech of one character. Iterating over it gives the finished frames in order, as surfaces.

    Made by `EngineCore.open_session`. The scheduler starts a frame when its cached frame and its speech are there and
    one of the session's surfaces is free, so that a taker who is slow holds back nobody else.

    Attributes:
        lane: where its frames go.
        frames: the character's cached frames.
        speech, placed: what it says, on the host, and where the compositor reads it.
        source: which of the cached frames, counted from the first of them, an output frame shows.
        fps: output frames a second.
        outputs: which output frames it draws.
        total: where the output ends that a speech which still comes is drawn for; None: not known yet, or `outputs`
            ends by itself.
        format: of its surfaces.
        trace: where its share of the times goes.
        memory: its surfaces that are free.
        changed: told, in any thread, that more or fewer of its frames may be available.
        ended: told once, when it is closed and nothing of it is under way any more.
        notes: what was picked on its own, and why.
        features: what is kept of the model's work on the cached frames.
        visual: what the model sees for an output frame instead of the cached crop, if anything; see `SessionOrder`.
        coming: which of the cached frames are there; None: all.
        due: when an output frame must be finished, seconds of `time.monotonic`; None: no deadlines.
        drop_late: whether frames that would be late whatever is done are passed over instead of drawn.
        started, finished, dropped: output frames so far; those that were passed over count as all three.
        number: by which the log calls it, of its engine's from 1.
    """

    lane: Lane
    frames: Any
    speech: SpeechRows
    placed: Any
    source: Callable[[int], int]
    fps: Fraction
    outputs: Outputs
    format: SurfaceFormat
    trace: Trace
    memory: list[Memory]
    changed: Callable[[Session], None]
    ended: Callable[[Session], None]
    notes: tuple[str, ...] = ()
    features: KeptFeatures | None = None
    visual: Callable[[int], Any] = lambda _: None
    coming: Coming | None = None
    due: Callable[[int], float] | None = None
    drop_late: bool = False
    total: int | None = None
    started: int = 0
    finished: int = 0
    dropped: int = 0
    number: int = 0
    _ready: deque[Surface] = field(default_factory=deque)
    _lent: int = 0
    _error: BaseException | None = None
    _closed: bool = False
    _settled: bool = False
    _condition: threading.Condition = field(default_factory=threading.Condition)

    @property
    def lock(self) -> threading.Condition:
        """What guards which frames come next; told when they change."""
        return self._condition

    # What the scheduler sees.

    @property
    def available(self) -> int:
        """Frames that can be drawn now: their cached frames and speech are there, and so is a surface for each."""
        with self._condition:
            if self._closed or self._error is not None:
                return 0
            count = self._decoded(self.outputs.left(len(self.memory)))
            count = self.speech.heard(count, self.outputs.peek, self.fps)
            # Asked last: once the speech is finished, every window is ready, those past its end too.
            end = self._end()
            return count if end is None else max(0, min(count, end - self.started))

    @property
    def expects_more(self) -> bool:
        """Whether more than the available frames will come, before any of these is drawn."""
        available = self.available
        waits = not self._lent and 0 < len(self.memory) == available  # every surface, for a frame
        if waits or self._closed or self._error is not None or self._failure() is not None:
            return False
        end = self._end()
        if end is not None:
            return self.started + available < end
        with self._condition:
            return self.outputs.left(available + 1) > available

    @property
    def stock(self) -> int:
        """Finished frames that wait to be taken."""
        return len(self._ready)

    def deadline(self, ahead: int) -> float:
        """When the `ahead`-th frame from now must be finished; infinity for no deadline."""
        if self.due is None:
            return math.inf
        try:
            with self._condition:
                output = self.outputs.peek(ahead)
            return math.inf if output is None else self.due(output)
        except Exception as error:  # the session's own fault, which the engine must outlive
            self.fail(error)
            return math.inf

    def _decoded(self, count: int) -> int:
        """How many of the next `count` frames have their cached frames there, up to the first that has not."""
        coming = self.coming
        if coming is None or coming.whole:
            return count
        sources = (self.source(self.outputs.peek(ahead) or 0) for ahead in range(count))
        return next((ahead for ahead, source in enumerate(sources) if not coming.ready(source)), count)

    def _end(self) -> int | None:
        """Output frames of a speech that still comes, once that is known: as long as its rows, unless told."""
        if not self.outputs.endless:
            return None
        if self.total is not None:
            return self.total
        return frames_of_rows(self.speech.count, self.fps) if self.speech.finished else None

    # What the engine does with it.

    def start(self) -> FrameTask[Session] | None:
        """The next frame's task, with a surface to draw it on; None if the session has ended meanwhile."""
        with self._condition:
            if self._closed or self._error is not None or not self.memory:
                return None
            if self.drop_late:
                self._pass_over_late()
            if not (self.available if self.drop_late else self.outputs.left(1)):
                return None
            index, memory = self.outputs.pop(), self.memory.pop()
            source = self.source(index)
            if self.coming is not None:
                self.coming.begun(source)
            self.started, self._lent = self.started + 1, self._lent + 1
        surface = Surface(self.format, memory.host, memory.device, index, lambda surface: self._given_back(memory))
        place = speech_position(index, self.fps)
        drawing = Drawing(self.frames, source, self.placed, *place, surface, self.visual(index))
        return FrameTask(self, index, drawing)

    def _pass_over_late(self) -> None:
        """Pass over frames that could be drawn, but not in time; never the first: others are shown as it."""
        soonest = time.monotonic() + self.lane.pace.seconds
        while self.started and self.available and self.deadline(0) < soonest:
            self.outputs.pop()
            self.started, self.finished, self.dropped = self.started + 1, self.finished + 1, self.dropped + 1
        self._condition.notify_all()

    def deliver(self, task: FrameTask[Session], error: BaseException | None = None) -> None:
        """A frame of this session is finished, or has failed: what comes after it is dropped then."""
        with self._condition:
            if self.coming is not None:
                self.coming.drawn(task.drawing.source)
            if self.outputs.endless:
                self.speech.drawn(task.drawing.row)
            dropped = self._closed or self._error is not None
            if error is not None and not dropped:
                self._error = error
            elif not dropped:
                self._ready.append(task.drawing.surface)
                self.finished += 1
            self._condition.notify_all()
        if dropped or error is not None:
            task.drawing.surface.release()  # which tells that the session has changed

    def fail(self, error: BaseException) -> None:
        """End the session; the frames finished before are still given out."""
        with self._condition:
            if not self._closed and self._error is None:
                self._error = error
            self._condition.notify_all()
        self.changed(self)

    def frames_came(self) -> None:
        """More of the cached frames are there, or no more will be."""
        with self._condition:
            self._condition.notify_all()
        self.changed(self)

    # What the taker does.

    def __iter__(self) -> Iterator[Surface]:
        """Finished frames in order. Each must be released; the next ones are drawn meanwhile.

        Raises:
            GpupipeError: what ended the session, after the frames that were finished before.
        """
        while (surface := self.next()) is not None:
            yield surface

    def next(self) -> Surface | None:
        """The next finished frame; None after the last."""
        with self._condition:
            while not self._ready:
                if self._error is not None:
                    raise self._error
                if self._closed:
                    raise Cancelled("the session was closed")
                if self._ended():
                    return None
                if (error := self._never()) is not None:
                    self._error = error
                    raise error
                self._condition.wait(POLL_SECONDS)
            taken = self._ready.popleft()
            few = len(self._ready) == self.lane.batch - 1  # a batch that is not full may leave now
        if few:
            self.changed(self)
        return taken

    def _never(self) -> BaseException | None:
        """What keeps the next frame from ever being drawn, once those before it are finished."""
        return None if self.finished < self.started else self._failure()

    def _failure(self) -> BaseException | None:
        if self.coming is None or self.coming.whole:
            return None
        with self._condition:
            output = self.outputs.peek(0)
        return None if output is None else self.coming.failure(self.source(output))

    def upcoming(self, count: int) -> list[int]:
        """Which cached frames are shown next, as many as are known of `count`. Under the session's lock."""
        if self._closed or self._error is not None:
            return []
        self.outputs.left(len(self.memory))  # of ranges that are shared, no more than it may draw now
        return [self.source(output) for output in self.outputs.known(count)]

    def _ended(self) -> bool:
        end = self._end()
        return self.finished == (self.started if end is None else end) and (end is not None or not self.outputs.left(1))

    def close(self) -> None:
        """End the session, whatever is still to be drawn, and give everything back. More than once is allowed."""
        with self._condition:
            self._closed = True
            waiting, self._ready = self._ready, deque()
            self._condition.notify_all()
        for surface in waiting:
            surface.release()
        self._settle()

    def __enter__(self) -> Session:
        """Begin a with block, which ends the session."""
        return self

    def __exit__(self, *_: object) -> None:
        """End the session."""
        self.close()

    def _given_back(self, memory: Memory) -> None:
        with self._condition:
            self._lent -= 1
            self.memory.append(memory)
            self._condition.notify_all()  # more frames may be known now
        self._settle()

    def _settle(self) -> None:
        with self._condition:
            ending = self._closed and not self._lent and not self._settled
            self._settled |= ending
        if ending:
            self.ended(self)
        else:
            self.changed(self)
