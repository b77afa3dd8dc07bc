"""Which frames make the next batch, and when it leaves. No threads, no clock, no device: everything is told.

Frames with deadlines come first, the earliest first. What room they leave goes to the sessions without deadlines, each
in its turn, so that all of them have been served alike. A batch that is not full waits for more frames as long as that
makes none late; one of frames without deadlines waits only while the device has other work.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar


class Lane(Protocol):
    """What frames must share to go in one batch."""

    @property
    def batch(self) -> int:
        """The most frames in a batch."""

    def __hash__(self) -> int:
        """By identity."""


LaneT = TypeVar("LaneT", bound=Lane)
LaneT_co = TypeVar("LaneT_co", bound=Lane, covariant=True)


class Source(Protocol[LaneT_co]):
    """What the scheduler sees of a session: frames in order, some of which can be drawn now."""

    @property
    def lane(self) -> LaneT_co:
        """Where its frames go."""

    @property
    def available(self) -> int:
        """Frames that could be drawn now."""

    @property
    def expects_more(self) -> bool:
        """Whether more than the available frames will come."""

    def deadline(self, ahead: int) -> float:
        """When the `ahead`-th available frame must be finished, seconds; infinity for no deadline."""


SourceT = TypeVar("SourceT", bound="Source[Any]")


@dataclass(frozen=True)
class Choice(Generic[LaneT, SourceT]):
    """A batch that leaves now.

    Attributes:
        lane: which.
        frames: the session of each frame; a session's frames keep their order.
    """

    lane: LaneT
    frames: tuple[SourceT, ...]


@dataclass(frozen=True)
class Wait:
    """Nothing leaves before `until`, unless something changes; infinity: until something changes."""

    until: float = math.inf


class Scheduler(Generic[LaneT, SourceT]):
    """Picks batches.

    Args:
        estimate: seconds after which a batch of that lane, started now, would be finished, with all that is under way
            before it. It decides when a batch that is not full has waited long enough.
    """

    def __init__(self, estimate: Callable[[LaneT], float]) -> None:
        self._estimate = estimate
        self._served: dict[SourceT, float] = {}

    @property
    def sources(self) -> Iterable[SourceT]:
        """The sessions."""
        return self._served.keys()

    def add(self, source: SourceT) -> None:
        """Take a session in. It is served like the others from now on, and makes up for nothing that went before."""
        self._served[source] = min(self._served.values(), default=0.0)

    def remove(self, source: SourceT) -> None:
        """Forget a session."""
        self._served.pop(source, None)

    def choose(self, now: float, *, free: Callable[[LaneT], bool], idle: bool) -> Choice[LaneT, SourceT] | Wait:
        """The next batch, or how long to wait for it. What is chosen counts as served.

        Args:
            now: seconds, on the clock of the deadlines.
            free: whether a lane has a slot for a batch.
            idle: whether no batch is under way.
        """
        lanes: dict[LaneT, list[SourceT]] = {}
        for source in self._served:
            if source.available:
                lanes.setdefault(source.lane, []).append(source)
        urgent = self._urgent(lanes)
        for number, (lane, latest) in enumerate(urgent):
            if not free(lane):
                continue
            picked, full = self._fill(lane, lanes[lane])
            if full or now >= latest or not self._more_may_come(lane):
                # A lane that can wait goes before one that cannot only if it makes it no later.
                if number and now + self._estimate(lane) > min(other for _, other in urgent[:number]):
                    continue
                return self._chosen(lane, picked)
        deadline = min((latest for _, latest in urgent), default=math.inf)
        others = [lane for lane in lanes if free(lane) and lane not in dict(urgent)]
        return self._patient({lane: lanes[lane] for lane in others}, now, deadline, idle)

    def _urgent(self, lanes: dict[LaneT, list[SourceT]]) -> list[tuple[LaneT, float]]:
        """Lanes with deadlines, the earliest first, and when each must start so that none of them is late."""
        earliest = {lane: min(source.deadline(0) for source in sources) for lane, sources in lanes.items()}
        ordered = sorted((lane for lane in lanes if earliest[lane] < math.inf), key=lambda lane: earliest[lane])
        found: list[tuple[LaneT, float]] = []
        following = math.inf
        for lane in reversed(ordered):
            following = min(earliest[lane], following) - self._estimate(lane)
            found.append((lane, following))
        return found[::-1]

    def _patient(
        self, lanes: dict[LaneT, list[SourceT]], now: float, deadline: float, idle: bool
    ) -> Choice[LaneT, SourceT] | Wait:
        """A batch of a lane without deadlines, if it makes no other late."""
        for lane in sorted(lanes, key=lambda lane: min(self._served[source] for source in lanes[lane])):
            if now + self._estimate(lane) > deadline:
                continue
            picked, full = self._fill(lane, lanes[lane])
            if full or idle or not any(source.expects_more for source in picked):
                return self._chosen(lane, picked)
        return Wait(deadline)

    def _fill(self, lane: LaneT, sources: list[SourceT]) -> tuple[list[SourceT], bool]:
        """The sessions whose next frames make a batch of a lane: earliest deadline, then least served, first."""
        heap = [(source.deadline(0), self._served[source], number, 0) for number, source in enumerate(sources)]
        heapq.heapify(heap)
        picked: list[SourceT] = []
        while heap and len(picked) < lane.batch:
            _, served, number, taken = heapq.heappop(heap)
            source = sources[number]
            picked.append(source)
            if taken + 1 < source.available:
                heapq.heappush(heap, (source.deadline(taken + 1), served + 1, number, taken + 1))
        return picked, len(picked) == lane.batch

    def _more_may_come(self, lane: LaneT) -> bool:
        return any(source.lane is lane and source.expects_more for source in self._served)

    def _chosen(self, lane: LaneT, picked: list[SourceT]) -> Choice[LaneT, SourceT]:
        for source in picked:
            self._served[source] += 1
        return Choice(lane, tuple(picked))
