"""pipeline: order, handing on, errors, and that nothing is left running."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Sequence

import pytest

from gpupipe.engine.pipeline import Pipeline, Stage

SECONDS = 20
"""How long a test waits for what must come at once."""


class Items:
    """A source that is fed; and what has failed."""

    def __init__(self) -> None:
        self.queue: queue.SimpleQueue[int | None] = queue.SimpleQueue()
        self.errors: list[BaseException] = []

    def put(self, *items: int | None) -> None:
        for item in items:
            self.queue.put(item)


@pytest.fixture
def items() -> Items:
    return Items()


def pipeline(items: Items, stages: Sequence[tuple[str, Callable[[int], None]]]) -> Pipeline[int]:
    return Pipeline(items.queue.get, [Stage(*stage) for stage in stages], items.errors.append)


def joined(made: Pipeline[int]) -> None:
    """Wait for a pipeline, for a while only."""
    waiter = threading.Thread(target=made.join, daemon=True)
    waiter.start()
    waiter.join(SECONDS)
    assert not waiter.is_alive(), "the pipeline does not end"


def threads(*names: str) -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name in names]


def test_every_item_passes_every_stage_in_order(items: Items) -> None:
    log: list[tuple[str, int]] = []

    def logged(name: str) -> Callable[[int], None]:
        return lambda item: log.append((name, item))

    made = pipeline(items, [(name, logged(name)) for name in "abc"])
    items.put(*range(1, 51), None)
    joined(made)
    for name in "abc":
        assert [item for stage, item in log if stage == name] == list(range(1, 51))
    for item in range(1, 51):
        assert [stage for stage, number in log if number == item] == ["a", "b", "c"]
    assert items.errors == []


def test_an_item_is_handed_on_at_once_whether_or_not_another_follows(items: Items) -> None:
    done: queue.SimpleQueue[int] = queue.SimpleQueue()
    made = pipeline(items, [("first", lambda _: None), ("second", lambda _: None), ("third", done.put)])
    for item in range(1, 6):
        items.put(item)
        assert done.get(timeout=SECONDS) == item  # the next one is not there yet
    items.put(None)
    joined(made)


def test_stages_overlap(items: Items) -> None:
    """Two stages that each wait for the other's next item can only pass if they run at the same time."""
    meet = threading.Barrier(2, timeout=SECONDS)

    def first(item: int) -> None:
        if item > 1:
            meet.wait()

    def second(item: int) -> None:
        if item < 10:
            meet.wait()

    made = pipeline(items, [("first", first), ("second", second)])
    items.put(*range(1, 11), None)
    joined(made)
    assert items.errors == []


def test_each_stage_has_a_thread_of_its_name_which_ends_with_the_source(items: Items) -> None:
    seen: list[str] = []
    made = pipeline(items, [(name, lambda _: seen.append(threading.current_thread().name)) for name in ("one", "two")])
    assert sorted(threads("one", "two")) == ["one", "two"]
    items.put(1, None)
    joined(made)
    assert seen == ["one", "two"]
    assert threads("one", "two") == []


def test_what_is_under_way_is_done_when_the_source_ends(items: Items) -> None:
    done: list[int] = []

    def slow(item: int) -> None:
        time.sleep(0.002)
        done.append(item)

    made = pipeline(items, [("fast", lambda _: None), ("slow", slow)])
    items.put(*range(1, 21), None)
    joined(made)
    assert done == list(range(1, 21))


@pytest.mark.parametrize("failing", [0, 1, 2])
def test_a_stage_that_raises_is_told_of_and_what_comes_after_is_dropped(items: Items, failing: int) -> None:
    done: list[int] = []

    def stage(number: int) -> Callable[[int], None]:
        def work(item: int) -> None:
            if number == failing and item == 5:
                raise ValueError(f"stage {number} item {item}")
            if number == 2:
                done.append(item)

        return work

    stages = [Stage(f"work {number}", stage(number)) for number in range(3)]
    dropped: list[int] = []
    made = Pipeline(items.queue.get, stages, items.errors.append, dropped.append)
    items.put(*range(1, 1001), None)
    joined(made)
    assert [str(error) for error in items.errors] == [f"stage {failing} item 5"]
    assert done == list(range(1, len(done) + 1))
    assert len(done) < 5
    assert sorted(done + dropped) == list(range(1, 1001)), "each is done or dropped, once"
    assert threads("work 0", "work 1", "work 2") == []


def test_a_source_that_raises_is_told_of(items: Items) -> None:
    def source() -> int:
        raise KeyError("no more")

    made: Pipeline[int] = Pipeline(
        source, [Stage("work", lambda _: None), Stage("rest", lambda _: None)], items.errors.append
    )
    joined(made)
    assert [type(error) for error in items.errors] == [KeyError]
    assert threads("work", "rest") == []


def test_no_items_at_all(items: Items) -> None:
    made = pipeline(items, [("idle", lambda _: None)])
    items.put(None)
    joined(made)
    assert items.errors == []
