"""Simulated sessions, and who goes next: the engine's scheduler, and first come, first served; for `deadlines.py`."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from gpupipe.engine.lane import SLOTS
from gpupipe.engine.scheduler import Choice, Scheduler
from gpupipe.engine.timetable import Pace, Timetable
from gpupipe.geometry import SPEECH_BEFORE, SPEECH_RATE, SPEECH_ROWS

FPS = 25
CHUNK_SECONDS = 0.02
CHUNK_JITTER_SECONDS = 0.01


@dataclass(eq=False)
class SimulatedLane:
    batch: int
    pace: Pace = field(default_factory=Pace)


@dataclass(eq=False)
class SimulatedSession:
    """A source for the scheduler: live with arrival times and deadlines, or offline.

    Attributes:
        arrivals: when each frame can be drawn, seconds; None for an offline session.
        due: when each must be finished.
    """

    lane: SimulatedLane
    arrivals: Any = None
    due: Any = None
    arrived: int = 0
    started: int = 0
    under_way: int = 0
    finished: list[float] = field(default_factory=list)

    @property
    def room(self) -> int:
        """Surfaces that are free: the engine gives a session those of one batch more than it has slots."""
        return (SLOTS + 1) * self.lane.batch - self.under_way

    @property
    def available(self) -> int:
        return self.room if self.arrivals is None else min(self.room, self.arrived - self.started)

    @property
    def expects_more(self) -> bool:
        return self.arrivals is None or self.started + self.available < len(self.arrivals)

    @property
    def stock(self) -> int:
        return 0  # frames are taken as they are finished

    def deadline(self, ahead: int) -> float:
        if self.due is None:
            return math.inf
        return float(self.due[self.started + ahead]) if self.started + ahead < len(self.due) else math.inf


def live_session(lane: SimulatedLane, rng: np.random.Generator, delay: float, seconds: float) -> SimulatedSession:
    """A session whose speech begins at a random time within the first frame's 40 ms."""
    frames = np.arange(round(seconds * FPS))
    begin = rng.uniform(0, 1 / FPS)
    # Frame i hears rows up to i + 7, the last of which is there when 1/25 s more has been said.
    needed = (frames + SPEECH_ROWS - SPEECH_BEFORE) / SPEECH_RATE
    chunk = np.ceil(needed / CHUNK_SECONDS - 1e-9).astype(int)
    jitter = rng.uniform(0, CHUNK_JITTER_SECONDS, chunk.max() + 1)
    arrives = np.maximum.accumulate(np.arange(chunk.max() + 1) * CHUNK_SECONDS + jitter)
    return SimulatedSession(lane, begin + arrives[chunk], begin + frames / FPS + delay)


class Gpupipe:
    """The engine's own scheduler."""

    slots = SLOTS

    def __init__(self, lane: SimulatedLane, sessions: list[SimulatedSession]) -> None:
        self.lane = lane
        self.timetable = Timetable()
        self.scheduler: Scheduler[SimulatedLane, SimulatedSession] = Scheduler(lambda lane: lane.pace.seconds)
        for session in sessions:
            self.scheduler.add(session)

    def changed(self, session: SimulatedSession) -> None:
        self.scheduler.changed(session)

    def landed(self, now: float) -> None:
        self.timetable.landed(now)

    def choose(self, now: float, under_way: int, last: bool) -> tuple[list[SimulatedSession], float]:
        """Who is in the next batch, or until when to wait."""
        choice = self.scheduler.choose(
            now, free=lambda _: under_way < self.slots, idle=not under_way, busy=self.timetable.busy(now)
        )
        if not isinstance(choice, Choice):
            return [], choice.until
        self.timetable.left(choice.lane.pace, now)
        return list(choice.frames), now


class FirstCome:
    """First come, first served.

    Args:
        full: only whole batches leave.
        live_first: offline frames wait for live ones.
    """

    slots = 1

    def __init__(
        self, lane: SimulatedLane, sessions: list[SimulatedSession], *, full: bool = False, live_first: bool = False
    ) -> None:
        self.lane, self.full, self.live_first = lane, full, live_first
        self.queue: deque[SimulatedSession] = deque()
        self.offline: deque[SimulatedSession] = deque() if live_first else self.queue
        self.queued = dict.fromkeys(sessions, 0)
        for session in sessions:
            self.changed(session)

    def changed(self, session: SimulatedSession) -> None:
        """Queue what has become available."""
        queue = self.offline if session.arrivals is None else self.queue
        for _ in range(session.available - self.queued[session]):
            queue.append(session)
            self.queued[session] += 1

    def landed(self, now: float) -> None:
        """Nothing is learned of it."""

    def choose(self, now: float, under_way: int, last: bool) -> tuple[list[SimulatedSession], float]:
        """Who is in the next batch, or until when to wait."""
        least = self.lane.batch if self.full and not last else 1
        picked: list[SimulatedSession] = []
        if under_way < self.slots and len(self.queue) + len(self.offline) * self.live_first >= least:
            for queue in (self.queue, self.offline):
                while queue and len(picked) < self.lane.batch:
                    picked.append(queue.popleft())
        for session in picked:
            self.queued[session] -= 1
        return picked, math.inf


Policy = Gpupipe | FirstCome

POLICIES: dict[str, Callable[[SimulatedLane, list[SimulatedSession]], Policy]] = {
    "gpupipe": Gpupipe,
    "fcfs": FirstCome,
    "fcfs, full": lambda lane, sessions: FirstCome(lane, sessions, full=True),
    "fcfs, live first": lambda lane, sessions: FirstCome(lane, sessions, live_first=True),
}
