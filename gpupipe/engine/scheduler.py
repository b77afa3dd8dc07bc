"""Which frames make the next batch, and when it leaves. No threads, no clock, no device: everything is told.

Frames with deadlines come first, the earliest first; those that will be late whatever is done come after those that can
still be on time, so that too much work makes a few sessions late and not all. What room they leave goes to the sessions
without deadlines, each in its turn, so that all of them are served alike. A batch that is not full waits for more
frames as long as that makes none late, and keeps nobody else from the device. One of frames without deadlines waits
while the device has other work, and while whoever takes its frames has a batch of finished ones left: a GPU takes as
long for one frame as for a whole batch, so frames that are drawn one by one, as an encoder gives surfaces back, would
cost it a batch's time each.
"""

from __future__ import annotations

import heapq
import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from gpupipe.engine.source import LaneT, Source

MARGIN = 1.1
"""Times a batch's usual time that is allowed for it where a deadline is to be kept."""

ON_TIME, LATE, PATIENT = range(3)
"""Frames whose deadlines can still be kept, those whose deadlines cannot, and those that have none: in this order."""


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


@dataclass
class _Seen:
    """A session as it was when it was last looked at.

    `served` counts its frames that had no deadline. It is lifted when the session has been without frames, so that
    nobody makes up for turns that he could not take (start-time fair queueing: Goyal, Vin and Cheng, 1996).
    """

    served: float
    available: int = 0
    expects_more: bool = True
    deadline: float = math.inf


class Scheduler(Generic[LaneT, SourceT]):
    """Picks batches.

    Args:
        service: seconds that a batch of that lane takes on the device. They decide when a batch that is not full has
            waited long enough.
    """

    def __init__(self, service: Callable[[LaneT], float]) -> None:
        self._service = service
        self._seen: dict[SourceT, _Seen] = {}
        self._members: Counter[LaneT] = Counter()
        self._ready: dict[LaneT, dict[SourceT, None]] = {}
        self._changed: dict[SourceT, None] = {}
        self._level = 0.0

    def add(self, source: SourceT) -> None:
        """Take a session in. It is served like the others from now on, and makes up for nothing that went before."""
        self._seen[source] = _Seen(self._level)
        self._members[source.lane] += 1
        self.changed(source)

    def remove(self, source: SourceT) -> None:
        """Forget a session."""
        if self._seen.pop(source, None) is None:
            return
        self._changed.pop(source, None)
        self._ready.get(source.lane, {}).pop(source, None)
        self._members[source.lane] -= 1
        if not self._members[source.lane]:
            del self._members[source.lane]
            self._ready.pop(source.lane, None)

    def changed(self, source: SourceT) -> None:
        """Look at a session again. Nobody is looked at unasked but those that were chosen, and the stock of those that
        may be."""
        if source in self._seen:
            self._changed[source] = None

    def choose(
        self, now: float, *, free: Callable[[LaneT], bool], idle: bool, busy: float = 0.0
    ) -> Choice[LaneT, SourceT] | Wait:
        """The next batch, or how long to wait for it. What is chosen counts as served.

        Args:
            now: seconds, on the clock of the deadlines.
            free: whether a lane has a slot for a batch.
            idle: whether no batch is under way.
            busy: seconds until what is under way will be done.
        """
        if not any(map(free, self._members)):  # whatever has changed, nothing can leave
            return Wait()
        self._look()
        lanes = {lane: list(ready) for lane, ready in self._ready.items() if ready and free(lane)}
        if not lanes:
            return Wait()
        start = now + busy
        urgent = self._urgent(lanes, start)
        for number, (lane, latest) in enumerate(urgent):
            picked, full = self._fill(lane, lanes[lane], start)
            if start < latest and not self._may_go_early(lane, picked, busy):
                continue
            if full or start >= latest or not self._more_may_come(lane):
                # It may go before an earlier one that still waits only if it makes that no later; else that one goes.
                if number and start + self._allowed(lane) > urgent[0][1]:
                    lane, _ = urgent[0]
                    picked, _ = self._fill(lane, lanes[lane], start)
                return self._chosen(lane, picked)
        if any(self._earliest(ready) < math.inf for lane, ready in self._ready.items() if ready and lane not in lanes):
            return Wait(urgent[0][1] if urgent else math.inf)  # the device is behind as it is
        return self._patient(lanes, urgent, start, busy, idle)

    def _look(self) -> None:
        """Look at what has changed."""
        for source in self._changed:
            seen = self._seen[source]
            seen.available = source.available
            seen.expects_more = source.expects_more
            seen.deadline = source.deadline(0) if seen.available or seen.expects_more else math.inf
            ready = self._ready.setdefault(source.lane, {})
            if not seen.available:
                ready.pop(source, None)
            elif source not in ready:
                ready[source] = None
                seen.served = max(seen.served, self._level)
        self._changed.clear()

    def _earliest(self, sources: Iterable[SourceT]) -> float:
        return min(self._seen[source].deadline for source in sources)

    def _least(self, sources: Iterable[SourceT]) -> float:
        return min(self._seen[source].served for source in sources)

    def _allowed(self, lane: LaneT) -> float:
        return MARGIN * self._service(lane)

    def _urgent(self, lanes: dict[LaneT, list[SourceT]], start: float) -> list[tuple[LaneT, float]]:
        """Lanes with deadlines, the earliest first, and when each must start so that none of them is late.

        One with a frame that is late in any case waits for nothing; if it has no other, it comes last.
        """
        found: list[tuple[LaneT, float]] = []
        earliest: dict[LaneT, float] = {}
        hurried: set[LaneT] = set()
        for lane, sources in lanes.items():
            ranks = [_rank(self._seen[source].deadline, start + self._service(lane)) for source in sources]
            kept = [deadline for rank, deadline in ranks if rank == ON_TIME]
            if any(rank == LATE for rank, _ in ranks):
                hurried.add(lane)
            if kept or lane in hurried:
                earliest[lane] = min(kept, default=math.inf)
        following = math.inf
        for lane in sorted(earliest, key=lambda lane: earliest[lane], reverse=True):
            following = min(earliest[lane], following) - self._allowed(lane)
            found.append((lane, -math.inf if lane in hurried else following))
        return found[::-1]

    def _patient(
        self,
        lanes: dict[LaneT, list[SourceT]],
        urgent: Sequence[tuple[LaneT, float]],
        start: float,
        busy: float,
        idle: bool,
    ) -> Choice[LaneT, SourceT] | Wait:
        """A batch of a lane without deadlines, if it makes no other late."""
        until = waiting = urgent[0][1] if urgent else math.inf
        others = [lane for lane in lanes if lane not in dict(urgent)]
        others.sort(key=lambda lane: self._least(lanes[lane]))
        for lane, following in zip(others, [*others[1:], None], strict=False):
            picked, full = self._fill(lane, lanes[lane], start)
            # One that the others have gone past by a whole batch need not be full any more.
            behind = following is not None and self._least(lanes[following]) - self._least(picked) >= lane.batch
            needed = idle and any(source.stock < lane.batch for source in picked)
            if not (full or needed or behind or not any(self._seen[source].expects_more for source in picked)):
                continue
            if not self._may_go_early(lane, picked, busy):
                continue
            done = start + self._allowed(lane)
            if done > waiting:
                lane, _ = urgent[0]
                return self._chosen(lane, self._fill(lane, lanes[lane], start)[0])
            if (coming := self._coming(start)) < done:
                until = min(until, coming)
                continue
            return self._chosen(lane, picked)
        return Wait(until)

    def _may_go_early(self, lane: LaneT, picked: Sequence[SourceT], busy: float) -> bool:
        """Whether a batch may leave before it must.

        While there are sessions with deadlines, one that has other frames too waits for all but one before it: whoever
        comes next has to wait for both.
        """
        return (
            busy <= self._service(lane)
            or not any(self._seen[source].deadline == math.inf for source in picked)
            or not any(seen.deadline < math.inf for seen in self._seen.values())
        )

    def _coming(self, start: float) -> float:
        """When the device must be free for frames that are not there yet, the first that can still be on time."""
        latest = (
            seen.deadline - self._allowed(source.lane)
            for source, seen in self._seen.items()
            if seen.deadline < math.inf and not seen.available and seen.expects_more
        )
        return min((each for each in latest if each > start), default=math.inf)

    def _fill(self, lane: LaneT, sources: list[SourceT], start: float) -> tuple[list[SourceT], bool]:
        """The sessions whose next frames make a batch of a lane, and whether they fill it.

        Earliest deadline first, then what is late in any case, then least served.
        """
        soonest = start + self._service(lane)
        seen = [self._seen[source] for source in sources]
        heap = [(_rank(each.deadline, soonest), each.served, number, 0) for number, each in enumerate(seen)]
        heapq.heapify(heap)
        picked: list[SourceT] = []
        while heap and len(picked) < lane.batch:
            _, served, number, taken = heapq.heappop(heap)
            picked.append(sources[number])
            if taken + 1 < seen[number].available:
                rank = _rank(sources[number].deadline(taken + 1), soonest)
                heapq.heappush(heap, (rank, served + 1, number, taken + 1))
        return picked, len(picked) == lane.batch

    def _more_may_come(self, lane: LaneT) -> bool:
        return any(seen.expects_more and source.lane is lane for source, seen in self._seen.items())

    def _chosen(self, lane: LaneT, picked: list[SourceT]) -> Choice[LaneT, SourceT]:
        patient = [source for source in picked if self._seen[source].deadline == math.inf]
        if patient:
            self._level = max(self._level, self._least(patient))
        for source in patient:
            self._seen[source].served += 1
        for source in picked:
            self.changed(source)
        return Choice(lane, tuple(picked))


def _rank(deadline: float, soonest: float) -> tuple[int, float]:
    """Where a frame stands that will be finished at `soonest` or later; what comes first is least."""
    return (PATIENT if deadline == math.inf else LATE if deadline < soonest else ON_TIME, deadline)
