"""ahead, without videos: with any keyframes, turns and slots each frame is there in time, and decoded when it must."""

from __future__ import annotations

import random
import threading
from collections import Counter, deque
from types import SimpleNamespace
from typing import Any

import pytest

from gpupipe.engine.ahead import FramesAhead
from gpupipe.errors import MediaError
from gpupipe.geometry import frame_at
from gpupipe.media.index import FrameIndex

DEPTH = 4
"""Frames under way at a time."""


class Film:
    """A video that counts what is decoded of it; a `RandomReader`.

    Args:
        starts: numbers of the keyframes.
        damaged: the frame that cannot be decoded.
        spoils: whether those behind it in its group cannot be decoded either.
    """

    seeks = True

    def __init__(self, starts: list[int], damaged: int | None = None, *, spoils: bool = False) -> None:
        self._index = FrameIndex(keyframes=tuple((start, start) for start in starts))
        self._damaged, self._spoils, self._next = damaged, spoils, -1
        self.decoded: Counter[int] = Counter()

    def keyframe(self, number: int) -> int:
        return self._index.keyframe(number)

    def read(self, number: int) -> int:
        if not self.keyframe(number) <= self._next <= number:
            self._next = self.keyframe(number)
        while self._next <= number:
            self.decoded[self._next] += 1
            self._next += 1
        if number == self._damaged or (self._spoils and self.keyframe(number) <= (self._damaged or 0) <= number):
            raise MediaError("is damaged", file="film.mp4", field=f"frame {number}", remedy="write it again")
        return number

    def close(self) -> None:
        self._next = -1


class Slots:
    """What lies where; a `Ring`."""

    def __init__(self, slots: int, count: int) -> None:
        self.slots, self.spec = slots, SimpleNamespace(first=0, count=count, cache_bytes=count)
        self._written = [-1] * slots
        self._slot: dict[int, int] = {}

    def write(self, slot: int, source: int, decoded: Any) -> None:
        assert slot not in self._slot.values()
        assert set(decoded) == {source}
        self._written[slot], self._slot[source] = source, slot

    def at(self, source: int) -> int:
        return self._written[self._slot[source]]

    def forget(self, source: int) -> None:
        del self._slot[source]

    def close(self) -> None:
        pass


def shown(films: list[Film], count: int, slots: int, sources: list[int], kept: int, most: int) -> list[int]:
    """Show cached frames as a session does, some of them under way at a time; gives those that were shown."""
    waiting, under_way, found = deque(sources), deque[int](), list[int]()
    lock = threading.Condition()
    stays: Any = SimpleNamespace(
        ready=lambda _: True, failure=lambda _: None, error=None, listen=lambda _: lambda: None, wait=lambda: None
    )
    order: Any = SimpleNamespace(random_readers=lambda: films, largest_group=0, backwards=False)
    ring = Slots(slots, count)
    ahead = FramesAhead(order, stays, kept, ring, DEPTH)  # type: ignore[arg-type]

    def changed() -> None:
        with lock:
            lock.notify_all()

    ahead.listen(changed)
    ahead.begin(lambda wanted: [waiting[place] for place in range(min(wanted, len(waiting)))], lock)
    chance = random.Random(0)
    with lock:
        while (waiting and len(found) < most) or under_way:
            may = bool(waiting) and ahead.ready(waiting[0]) and len(under_way) < DEPTH and len(found) < most
            if may and (not under_way or chance.random() < 0.7):
                ahead.begun(waiting[0])
                under_way.append(waiting[0])
                found.append(waiting.popleft())
            elif under_way:
                source = under_way.popleft()
                assert source < kept or ring.at(source) == source
                ahead.drawn(source)
                lock.wait(0)  # let the decoder come in
            elif ahead.failure(waiting[0]) is not None:
                break
            else:
                assert lock.wait(10), f"frame {waiting[0]} never comes"
    ahead.close()
    return found


def starts_of(groups: list[int], count: int) -> list[int]:
    """Keyframes of a film whose groups have so many frames, again and again."""
    starts = [0]
    while starts[-1] < count:
        starts.append(starts[-1] + groups[len(starts) % len(groups)])
    return starts[:-1]


@pytest.mark.parametrize("groups", [[1], [7], [30], [12, 1, 30, 3, 3, 25], [200]])
def test_every_frame_is_there_in_time(groups: list[int]) -> None:
    """From anywhere, over both turns, or closed early; with slots for less than a group, for one, and for more."""
    count, seeds = 90, random.Random(str(groups))
    for slots in (8, 29, 34, 50, 89):
        start, kept = seeds.randrange(2 * count), seeds.choice((0, 5, 40))
        sources = [frame_at(start + output, count) for output in range(250)]
        films = [Film(starts_of(groups, count)), Film(starts_of([9], count))]
        assert shown(films, count, slots, sources, kept, most=250) == sources
        early = seeds.randrange(100)
        assert shown(films, count, slots, sources, kept, most=early) == sources[:early]


@pytest.mark.parametrize("groups", [[1], [7], [30], [12, 1, 30, 3, 3, 25]])
def test_backwards_a_group_that_fits_is_decoded_once(groups: list[int]) -> None:
    count, largest = 300, max(groups)
    films = [Film(starts_of(groups, count)) for _ in range(2)]
    sources = list(range(count))[::-1]
    assert shown(films, count, max(2 * DEPTH, largest + DEPTH), sources, 0, most=count) == sources
    for film in films:
        assert film.decoded == Counter(range(count))


def test_backwards_two_videos_with_other_groups() -> None:
    """Runs begin where the larger group does: of the smaller ones, what lies before in one is decoded twice."""
    count = 300
    for groups in ([30, 9], [9, 30]):
        films = [Film(starts_of([group], count)) for group in groups]
        sources = list(range(count))[::-1]
        assert shown(films, count, 30 + DEPTH, sources, 0, most=count) == sources
        for film, group in zip(films, groups, strict=True):
            assert film.decoded.total() <= (count if group == 30 else count + 8 * count // 30)


@pytest.mark.parametrize("slots", [12, 24, 48])
def test_backwards_a_larger_group_is_decoded_in_pieces(slots: int) -> None:
    """As large as there are slots besides those under way."""
    count, piece = 200, slots - min(DEPTH, slots // 4)
    film = Film([0, 100])
    sources = list(range(count))[::-1]
    assert shown([film], count, slots, sources, 0, most=count) == sources
    assert film.decoded.total() == 2 * sum(range(100, 0, -piece))


def test_both_turns_decode_nothing_again_that_is_there() -> None:
    count = 120
    film = Film(starts_of([30], count))
    sources = [frame_at(output, count) for output in range(3 * count)]
    assert shown([film], count, 30 + DEPTH, sources, 0, most=3 * count) == sources
    # There, back and there again; the group at a turn is shown twice.
    assert film.decoded.total() <= 3 * count - 2 * 28


@pytest.mark.parametrize("spoils", [False, True])
@pytest.mark.parametrize("damaged", [95, 80, 60, 33])
@pytest.mark.parametrize("slots", [8, 34, 90])
def test_what_is_shown_before_a_damaged_frame_is_given_out(damaged: int, slots: int, spoils: bool) -> None:
    count, group = 100, 10
    sources = list(range(count))[::-1]
    films = [Film(starts_of([group], count), damaged, spoils=spoils), Film(starts_of([9], count))]
    last = damaged // group * group + group - 1 if spoils else damaged
    assert shown(films, count, slots, sources, 0, most=count) == sources[: count - 1 - last]
    assert shown(films, count, slots, sources[::-1], 0, most=count) == list(range(damaged))
