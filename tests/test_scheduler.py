"""scheduler and timetable: who is drawn when, with simulated sessions, a simulated device and a simulated clock."""

from __future__ import annotations

import heapq
import math
from collections import deque
from dataclasses import dataclass, field
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpupipe.engine.scheduler import MARGIN, Choice, Scheduler, Wait
from gpupipe.engine.timetable import OUTLIERS, RECENT, UNKNOWN_SECONDS, Pace, Timetable

SLOTS = 3


@dataclass(eq=False)
class Lane:
    batch: int = 4
    seconds: float = 1.0
    under_way: int = 0


@dataclass(eq=False)
class Source:
    """A session; `due` are the deadlines of its frames, `arrived` how many of them can be drawn or have been."""

    lane: Lane
    arrived: int = 0
    due: list[float] | None = None
    more: bool = True
    stock: int = 0
    started: int = 0
    drawn: list[int] = field(default_factory=list)
    finished: list[float] = field(default_factory=list)

    @property
    def available(self) -> int:
        return self.arrived - self.started

    @property
    def expects_more(self) -> bool:
        return self.more

    def deadline(self, ahead: int) -> float:
        if self.due is None or self.started + ahead >= len(self.due):
            return math.inf
        return self.due[self.started + ahead]


def scheduler(*sources: Source) -> Scheduler[Lane, Source]:
    made: Scheduler[Lane, Source] = Scheduler(lambda lane: lane.seconds)
    for source in sources:
        made.add(source)
    return made


def choose(
    made: Scheduler[Lane, Source], now: float = 0, *, idle: bool = True, busy: float = 0.0, full: tuple[Lane, ...] = ()
) -> tuple[Lane, list[Source]] | float:
    """The batch that leaves, its frames taken from their sessions; or until when to wait."""
    chosen = made.choose(now, free=lambda lane: lane not in full, idle=idle, busy=busy)
    if isinstance(chosen, Wait):
        return chosen.until
    for source in chosen.frames:
        source.started += 1
    return chosen.lane, list(chosen.frames)


def test_nobody_is_there_and_nobody_has_frames() -> None:
    assert choose(scheduler()) == math.inf
    assert choose(scheduler(Source(Lane()), Source(Lane(), due=[1.0]))) == math.inf


def test_only_what_is_told_is_looked_at() -> None:
    lane = Lane()
    source = Source(lane)
    made = scheduler(source)
    assert choose(made) == math.inf
    source.arrived = 4
    assert choose(made) == math.inf
    made.changed(source)
    assert choose(made) == (lane, [source] * 4)
    made.remove(source)
    made.remove(source)
    made.changed(source)
    source.arrived = 8
    assert choose(made) == math.inf


@settings(deadline=None)
@given(due=st.lists(st.lists(st.floats(10, 20), min_size=1, max_size=6), min_size=1, max_size=6))
def test_the_earliest_deadline_goes_first_and_a_sessions_frames_keep_their_order(due: list[list[float]]) -> None:
    lane = Lane(batch=5)
    sources = [Source(lane, len(each), sorted(each), more=False) for each in due]
    made = scheduler(*sources)
    gone: list[float] = []
    while isinstance(batch := choose(made, idle=False), tuple):
        before = dict.fromkeys(batch[1], 0)
        for source in batch[1]:
            assert source.due is not None
            gone.append(source.due[source.started - batch[1].count(source) + before[source]])
            before[source] += 1
    assert gone == sorted(each for deadlines in due for each in deadlines)


def test_a_batch_that_is_not_full_leaves_when_waiting_longer_would_miss_its_deadline_and_not_before() -> None:
    lane = Lane(batch=4, seconds=2.0)
    source = Source(lane, 3, [10.0, 11.0, 12.0, 13.0])
    made = scheduler(source)
    latest = 10.0 - MARGIN * 2.0
    assert choose(made, 0) == pytest.approx(latest)
    assert choose(made, latest - 0.01) == pytest.approx(latest)
    assert choose(made, latest) == (lane, [source] * 3)


def test_a_batch_that_is_not_full_waits_while_its_taker_has_another_batch_of_finished_frames() -> None:
    lane = Lane(batch=4)
    one, two = Source(lane, 3, stock=4), Source(lane, 0, stock=4)
    made = scheduler(one, two)
    assert choose(made) == math.inf
    one.stock = 3
    assert choose(made) == (lane, [one] * 3)
    one.arrived, one.stock, two.arrived = 5, 4, 2
    for source in (one, two):
        made.changed(source)
    assert choose(made) == (lane, [two, two, one, one])  # together they fill one, the least served first
    two.arrived, two.more = 4, False
    made.changed(two)
    assert choose(made) == (lane, [two] * 2)  # the last ones wait for nobody


def test_what_is_under_way_counts_too() -> None:
    lane = Lane(batch=4, seconds=2.0)
    source = Source(lane, 3, [10.0, 11.0, 12.0, 13.0])
    made = scheduler(source)
    assert choose(made, 0, idle=False, busy=7.0) == pytest.approx(10.0 - MARGIN * 2.0)
    assert choose(made, 0, idle=False, busy=8.0) == (lane, [source] * 3)


def test_a_full_batch_leaves_at_once_and_so_does_one_for_which_nothing_more_comes() -> None:
    lane = Lane(batch=4)
    source = Source(lane, 4, [1000.0] * 9)
    made = scheduler(source)
    assert choose(made) == (lane, [source] * 4)
    source.arrived += 1
    made.changed(source)
    assert choose(made) == pytest.approx(1000 - MARGIN)
    source.more = False
    made.changed(source)
    assert choose(made) == (lane, [source])


def test_several_lanes_start_so_early_that_the_later_ones_are_in_time_too() -> None:
    first, second = Lane(seconds=1.0), Lane(seconds=3.0)
    one, two = Source(first, 1, [10.0, 99]), Source(second, 1, [11.0, 99])
    made = scheduler(two, one)
    latest = 11.0 - MARGIN * 3.0 - MARGIN * 1.0
    assert choose(made) == pytest.approx(latest)
    assert choose(made, latest) == (first, [one])
    assert choose(made, latest, idle=False, busy=1.0) == pytest.approx(11.0 - MARGIN * 3.0)


def test_a_full_batch_of_a_later_lane_goes_first_where_it_makes_nobody_late() -> None:
    waiting, ready = Lane(seconds=1.0), Lane(seconds=5.0)
    one, two = Source(waiting, 1, [20.0, 99]), Source(ready, 4, [30.0] * 9)
    assert choose(scheduler(one, two)) == (ready, [two] * 4)


def test_a_batch_that_waits_keeps_nobody_from_the_device() -> None:
    waiting, ready = Lane(seconds=1.0), Lane(seconds=5.0)
    one, two = Source(waiting, 1, [6.0, 99]), Source(ready, 4, [30.0] * 9)
    made = scheduler(one, two)
    assert choose(made) == (waiting, [one])
    assert choose(made, idle=False, busy=1.0) == (ready, [two] * 4)
    patient = Source(ready, 4)
    one.started = 0
    made = scheduler(one, patient)
    assert choose(made) == (waiting, [one])
    assert choose(made, idle=False, busy=1.0) == (ready, [patient] * 4)


def test_frames_without_deadlines_fill_the_room_behind_those_that_have_one() -> None:
    lane = Lane(batch=4)
    live, offline = Source(lane, 2, [50.0, 60.0, 99.0]), Source(lane, 10)
    made = scheduler(offline, live)
    assert choose(made) == (lane, [live, live, offline, offline])
    # The rest of them make no batch that anybody would have to wait for longer than for one.
    assert choose(made, idle=False, busy=1.0) == (lane, [offline] * 4)
    assert choose(made, idle=False, busy=1.1) == math.inf
    made.remove(live)
    assert choose(made, idle=False, busy=1.1) == (lane, [offline] * 4)


def test_frames_that_are_late_in_any_case_come_after_those_that_can_be_in_time() -> None:
    lane = Lane(batch=2, seconds=2.0)
    late, early, offline = Source(lane, 2, [1.0, 1.5, 99]), Source(lane, 3, [4.0, 5.0, 6.0, 99]), Source(lane, 4)
    made = scheduler(late, early, offline)
    assert choose(made, 0) == (lane, [early, early])
    assert choose(made, 0, idle=False, busy=2.0) == (lane, [early, late])
    assert choose(made, 0, idle=False, busy=2.0) == (lane, [late, offline])


def test_a_frame_that_is_late_in_any_case_waits_for_no_others() -> None:
    lane = Lane(batch=4, seconds=2.0)
    late, early = Source(lane, 1, [1.0, 99]), Source(lane, 1, [40.0, 99])
    assert choose(scheduler(early, late)) == (lane, [early, late])


def test_a_late_lane_comes_after_one_that_can_be_in_time() -> None:
    late, fine = Lane(seconds=2.0), Lane(seconds=2.0)
    one, two = Source(late, 1, [1.0, 99]), Source(fine, 1, [3.0, 99])
    made = scheduler(one, two)
    assert choose(made) == (fine, [two])
    assert choose(made, idle=False, busy=2.0) == (late, [one])


def test_frames_without_deadlines_wait_only_while_the_device_is_busy() -> None:
    lane = Lane(batch=4)
    source = Source(lane, 3)
    made = scheduler(source)
    assert choose(made, idle=False, busy=1.0) == math.inf
    assert choose(made, idle=True) == (lane, [source] * 3)
    source.arrived, source.more = 5, False
    made.changed(source)
    assert choose(made, idle=False, busy=1.0) == (lane, [source] * 2)


def test_a_batch_without_deadlines_is_not_started_where_a_frame_to_come_could_be_late_for_it() -> None:
    live, offline = Lane(seconds=1.0), Lane(seconds=4.0)
    soon, patient = Source(live, 0, [5.0]), Source(offline, 4)
    made = scheduler(soon, patient)
    # The frame must start by 5 - 1.1; a batch of the others would end at 4.4.
    assert choose(made, 0.0) == pytest.approx(5.0 - MARGIN)
    # It has not come in time; it holds back nobody any more.
    assert choose(made, 5.0 - MARGIN) == (offline, [patient] * 4)
    soon.more = False
    patient.arrived = 8
    made.changed(soon)
    made.changed(patient)
    assert choose(made, 0.0) == (offline, [patient] * 4)


def test_a_lane_without_a_free_slot_is_passed_over() -> None:
    taken, other = Lane(), Lane()
    one, two = Source(taken, 4), Source(other, 4)
    made = scheduler(one, two)
    assert choose(made, full=(taken,)) == (other, [two] * 4)
    assert choose(made, full=(taken, other)) == math.inf
    # But not by frames without deadlines, if it has some: the device is behind with those.
    one.due, two.arrived = [3.0] * 9, 8
    made.changed(one)
    made.changed(two)
    assert choose(made, full=(taken,)) == math.inf


def drawn_alone(made: Scheduler[Lane, Source], frames: int) -> None:
    """Let frames of sessions that always have some be drawn, one batch at a time."""
    done = 0
    while done < frames:
        batch = choose(made, idle=True)
        assert isinstance(batch, tuple)
        for source in batch[1]:
            source.arrived += 1
            made.changed(source)
        done += len(batch[1])


@settings(max_examples=50, deadline=None)
@given(
    lanes=st.lists(st.integers(1, 9), min_size=1, max_size=4),
    joins=st.lists(st.tuples(st.integers(0, 3), st.integers(0, 60), st.integers(0, 12)), min_size=2, max_size=7),
)
def test_sessions_without_deadlines_are_served_alike_from_when_they_come(
    lanes: list[int], joins: list[tuple[int, int, int]]
) -> None:
    """Whatever their lanes, when they join, and how many frames more than a batch they have ready."""
    opened = [Lane(batch) for batch in lanes]
    made = scheduler()
    there: list[Source] = []
    for number, wait, more in joins:
        lane = opened[number % len(opened)]
        source = Source(lane, lane.batch + more)
        made.add(source)
        there.append(source)
        drawn_alone(made, wait)
    before = [source.started for source in there]
    drawn_alone(made, 40 * len(there))
    shares = [source.started - begun for source, begun in zip(there, before, strict=True)]
    assert max(shares) - min(shares) <= 2 * max(lanes) + 1


def test_a_session_that_comes_late_or_comes_back_does_not_make_up_for_what_it_missed() -> None:
    lane = Lane(batch=4)
    old, new = Source(lane, 4), Source(lane, 4)
    made = scheduler(old)
    drawn_alone(made, 1000)
    made.add(new)
    drawn_alone(made, 80)
    assert new.started in range(36, 45)
    new.arrived = new.started  # its taker has stopped
    made.changed(new)
    drawn_alone(made, 1000)
    shares = (old.started, new.started)
    new.arrived += 4
    made.changed(new)
    drawn_alone(made, 80)
    assert new.started - shares[1] in range(36, 45)
    assert old.started - shares[0] in range(36, 45)


def test_those_with_deadlines_do_not_change_the_shares_of_the_others() -> None:
    """Nor what one that joins is given: the level is that of those without deadlines."""
    lane = Lane(batch=4)
    live, old, new = Source(lane, 1, [1e9] * 9999), Source(lane, 4), Source(lane, 4)
    made = scheduler(live, old)
    for _ in range(250):
        drawn_alone(made, 4)
    assert (live.started, old.started) == (250, 750)
    made.add(new)
    drawn_alone(made, 80)
    assert new.started in range(26, 35)


def test_nobody_is_passed_over_for_ever() -> None:
    """A lane that keeps the device busy with whole batches, and one whose frames make no whole batch."""
    big, small = Lane(batch=4), Lane(batch=4)
    many, few = Source(big, 8), Source(small, 1)
    made = scheduler(many, few)
    done: list[Lane] = []
    for _ in range(12):
        batch = choose(made, idle=False, busy=1.0)
        assert isinstance(batch, tuple)
        done.append(batch[0])
        for source in batch[1]:
            source.arrived += 1
            made.changed(source)
    # It goes once the other is a whole batch ahead of it.
    assert done.count(small) >= 5
    assert max(len(run) for run in "".join("bs"[lane is small] for lane in done).split("s")) <= 5


class World:
    """A device that does one batch after the other, sessions whose frames arrive, and a clock that goes on to what
    happens next."""

    def __init__(self, lanes: list[Lane], seconds: list[float]) -> None:
        self.lanes, self.seconds = lanes, seconds
        self.now = 0.0
        self.events: list[tuple[float, int, Source]] = []
        self.landing: deque[tuple[float, Lane, list[Source]]] = deque()
        self.free_at = 0.0
        self.made = scheduler()
        self.batches = 0

    def session(self, lane: Lane, arrivals: list[float], due: list[float] | None) -> Source:
        source = Source(lane, due=due, more=bool(arrivals))
        for time in sorted(arrivals):
            heapq.heappush(self.events, (time, len(self.events), source))
        self.made.add(source)
        return source

    def run(self) -> None:
        left: dict[Source, int] = {}
        for _, _, source in self.events:
            left[source] = left.get(source, 0) + 1
        until = 0.0
        while self.events or self.landing or until < math.inf:
            upcoming = [until, *(event[0] for event in self.events[:1]), *(each[0] for each in list(self.landing)[:1])]
            self.now = max(self.now, min(upcoming))
            while self.events and self.events[0][0] <= self.now:
                _, _, source = heapq.heappop(self.events)
                source.arrived += 1
                left[source] -= 1
                source.more = left[source] > 0
                self.made.changed(source)
            while self.landing and self.landing[0][0] <= self.now:
                _, lane, batch = self.landing.popleft()
                lane.under_way -= 1
                for source in batch:
                    source.finished.append(self.now)
                    self.made.changed(source)
            until = self.depart()

    def depart(self) -> float:
        while True:
            chosen = self.made.choose(
                self.now,
                free=lambda lane: lane.under_way < SLOTS,
                idle=not self.landing,
                busy=max(0.0, self.free_at - self.now),
            )
            if isinstance(chosen, Wait):
                assert chosen.until > self.now, "waiting for what is past would be waiting without rest"
                return chosen.until
            self.check(chosen)
            chosen.lane.under_way += 1
            for source in chosen.frames:
                source.drawn.append(source.started)
                source.started += 1
            seconds = chosen.lane.seconds * self.seconds[self.batches % len(self.seconds)]
            self.batches += 1
            self.free_at = max(self.free_at, self.now) + seconds
            self.landing.append((self.free_at, chosen.lane, list(chosen.frames)))

    def check(self, chosen: Choice[Lane, Source]) -> None:
        assert 1 <= len(chosen.frames) <= chosen.lane.batch
        assert chosen.lane.under_way < SLOTS
        assert all(source.lane is chosen.lane for source in chosen.frames)
        assert all(chosen.frames.count(source) <= source.available for source in chosen.frames)


times = st.lists(st.floats(0, 20), max_size=12)
sessions = st.lists(st.tuples(st.integers(0, 2), times, st.none() | st.floats(0.1, 30)), min_size=1, max_size=6)


@settings(max_examples=80, deadline=None)
@given(
    batches=st.lists(st.tuples(st.integers(1, 5), st.floats(0.1, 3)), min_size=1, max_size=3),
    chosen=sessions,
    jitter=st.lists(st.floats(0.5, 1.5), min_size=1, max_size=5),
)
def test_whatever_comes_everything_is_drawn_once_and_in_order(
    batches: list[tuple[int, float]],
    chosen: list[tuple[int, list[float], float | None]],
    jitter: list[float],
) -> None:
    lanes = [Lane(batch, seconds) for batch, seconds in batches]
    world = World(lanes, jitter)
    made = []
    for number, arrivals, delay in chosen:
        due = None if delay is None else [time + delay for time in sorted(arrivals)]
        made.append((world.session(lanes[number % len(lanes)], arrivals, due), len(arrivals)))
    world.run()
    for source, count in made:
        assert source.drawn == list(range(count))
        assert len(source.finished) == count


@settings(max_examples=80, deadline=None)
@given(
    batch=st.integers(1, 4),
    arrivals=st.lists(st.tuples(st.integers(0, 1), st.floats(0, 60)), min_size=1, max_size=20),
    offline=st.lists(st.integers(0, 1), max_size=3),
)
def test_frames_without_deadlines_never_make_one_late_that_would_be_in_time_without_them(
    batch: int, arrivals: list[tuple[int, float]], offline: list[int]
) -> None:
    """With as much time as two batches take before each frame, for what was begun cannot be taken back."""

    def late(others: list[int]) -> list[bool]:
        lanes = [Lane(batch, 1.0), Lane(batch, 2.0)]
        world = World(lanes, [1.0])
        found = []
        for number, lane in enumerate(lanes):
            mine = sorted(time for which, time in arrivals if which == number)
            found.append(world.session(lane, mine, [time + 20 for time in mine]))
        for which in others:
            world.session(lanes[which], [number / 10 for number in range(600)], None)
        world.run()
        return [
            finished > deadline
            for source in found
            for finished, deadline in zip(source.finished, source.due or (), strict=True)
        ]

    alone = late([])
    if not any(alone):
        assert not any(late(offline))


def test_everybody_is_in_time_where_that_can_be() -> None:
    """40 sessions at 25 frames a second that need 96 % of a device, whose frames are due 0.2 s after they come."""
    lane = Lane(batch=8, seconds=0.00768)
    world = World([lane], [1.0])
    found = [world.session(lane, [(number / 40 + frame) / 25 for frame in range(25)], None) for number in range(40)]
    for number, source in enumerate(found):
        source.due = [(number / 40 + frame) / 25 + 0.2 for frame in range(25)]
    for _ in range(2):
        world.session(lane, [0.0] * 100, None)
    world.run()
    for source in found:
        assert source.due is not None
        assert all(done <= due for done, due in zip(source.finished, source.due, strict=True))


def test_shares_of_too_much_work_go_to_a_few_that_can_be_in_time() -> None:
    """What needs 125 % of the device leaves four of five sessions in time, and not all of them late."""
    lane = Lane(batch=4, seconds=0.01)
    world = World([lane], [1.0])
    found = [world.session(lane, [number / 500 + frame / 25 for frame in range(50)], None) for number in range(20)]
    for source in found:
        arrivals = sorted(time for time, _, owner in world.events if owner is source)
        source.due = [time + 0.1 for time in arrivals]
    world.run()
    late = [done > due for source in found for done, due in zip(source.finished, source.due or (), strict=True)]
    assert sum(late) / len(late) < 0.3


def test_a_pace_is_what_the_last_batches_have_not_exceeded_but_for_one() -> None:
    pace = Pace()
    assert pace.seconds == UNKNOWN_SECONDS
    assert OUTLIERS == 1
    for taken, wanted in ((3.0, 3.0), (1.0, 1.0), (2.0, 2.0), (9.0, 3.0)):
        pace.took(taken)
        assert pace.seconds == wanted
    for _ in range(RECENT - 1):
        pace.took(1.0)
    assert pace.seconds == 1.0


def test_a_timetable_tells_waiting_from_working() -> None:
    table, fast, slow = Timetable(), Pace(), Pace()
    fast.took(1.0)
    slow.took(4.0)
    assert (table.idle, table.busy(5.0)) == (True, 0.0)
    table.left(fast, 10.0)
    table.left(slow, 10.5)
    table.left(fast, 10.5)
    assert not table.idle
    assert table.busy(10.25) == pytest.approx(0.75 + 4 + 1)
    assert table.busy(12.0) == pytest.approx(4 + 1)  # longer than usual; it may be done at any moment
    table.landed(12.0)
    assert fast.seconds == 1.0  # the longest but one of 1 and 2
    assert table.busy(13.0) == pytest.approx(3 + 1)
    table.landed(15.0)
    assert slow.seconds == pytest.approx(3.0)  # from when the one before was done, not from when it left
    table.landed(16.5, counts=False)
    assert table.idle
    table.left(fast, 20.0)
    assert table.busy(20.0) == pytest.approx(1.0)


def test_gaps_between_batches_are_no_part_of_them() -> None:
    table, pace = Timetable(), Pace()
    for start in (0.0, 10.0, 20.0):
        table.left(pace, start)
        table.landed(start + 0.5)
    assert pace.seconds == 0.5
    assert all(later > earlier for earlier, later in pairwise((0.0, pace.seconds)))
