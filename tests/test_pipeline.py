"""pipeline: order, bounds, errors and cancelling."""

import threading
import time
from collections.abc import Iterator

import pytest

from gpupipe.engine.pipeline import Stage, run


def names() -> set[str]:
    return {thread.name for thread in threading.enumerate()}


def test_order_is_kept_and_every_job_passes_every_stage() -> None:
    log: list[tuple[str, int]] = []
    stages = [Stage(name, lambda slot, job, name=name: log.append((name, job))) for name in "abc"]  # type: ignore[misc]
    assert [item.job for item in run(range(50), [object(), object(), object()], stages)] == list(range(50))
    for name in "abc":
        assert [job for stage, job in log if stage == name] == list(range(50))
    for job in range(50):
        assert [stage for stage, number in log if number == job] == ["a", "b", "c"]


def test_no_more_jobs_are_under_way_than_slots() -> None:
    under_way: set[int] = set()
    most = 0

    def begin(_: int, job: int) -> None:
        nonlocal most
        under_way.add(job)
        most = max(most, len(under_way))

    for item in run(range(40), [0, 1], [Stage("begin", begin), Stage("rest", lambda *_: time.sleep(0.001))]):
        under_way.discard(item.job)
    assert most == 2


def test_a_slot_is_not_used_while_its_item_is_held() -> None:
    holder: dict[int, int] = {}

    def take(slot: list[int], job: int) -> None:
        assert id(slot) not in holder, "the slot is still held"
        holder[id(slot)] = job

    for item in run(range(30), [[0], [1], [2]], [Stage("take", take)]):
        time.sleep(0.0005)
        assert holder.pop(id(item.slot)) == item.job


def test_stages_overlap() -> None:
    """Two stages that each wait for the other's next job can only pass if they run at the same time."""
    meet = threading.Barrier(2, timeout=10)

    def first(_: int, job: int) -> None:
        if job:
            meet.wait()

    def second(_: int, job: int) -> None:
        if job < 9:
            meet.wait()

    assert len(list(run(range(10), [0, 1], [Stage("first", first), Stage("second", second)]))) == 10


@pytest.mark.parametrize("failing", [0, 1, 2])
def test_the_first_error_stops_all_and_is_the_one_raised(failing: int) -> None:
    done: list[int] = []

    def work(number: int) -> Stage[int, int]:
        def step(_: int, job: int) -> None:
            if number == failing and job == 5:
                raise ValueError(f"stage {number} job {job}")

        return Stage(f"work {number}", step)

    items = run(range(1000), [0, 1, 2], [work(0), work(1), work(2)])
    with pytest.raises(ValueError, match=f"stage {failing} job 5"):
        done.extend(item.job for item in items)
    assert done == list(range(len(done)))
    assert len(done) <= 5
    assert not {name for name in names() if name.startswith("work")}


def test_an_error_in_the_jobs_is_raised() -> None:
    def jobs() -> Iterator[int]:
        yield 1
        raise KeyError("no more")

    with pytest.raises(KeyError, match="no more"):
        list(run(jobs(), [0], [Stage("work", lambda *_: None)]))
    assert "work" not in names()


def test_closing_stops_the_threads() -> None:
    items = run(range(10**9), [0, 1], [Stage("endless", lambda *_: None)])
    next(items)
    assert "endless" in names()
    items.close()
    assert "endless" not in names()


def test_no_jobs_at_all() -> None:
    jobs: list[int] = []
    assert list(run(jobs, [0, 1], [Stage("idle", lambda *_: None)])) == []
