"""A bounded pipeline: one thread a stage, a fixed number of slots going round, order kept, the first error wins."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Generator, Iterable, Sequence
from typing import Generic, NamedTuple, TypeVar

SlotT = TypeVar("SlotT")
JobT = TypeVar("JobT")

POLL_SECONDS = 0.2
"""How often a waiting consumer wakes, so that Ctrl-C is seen where a blocking wait cannot be interrupted (Windows)."""


class Item(NamedTuple, Generic[SlotT, JobT]):
    """A job, and the slot it is done in."""

    slot: SlotT
    job: JobT


class Stage(NamedTuple, Generic[SlotT, JobT]):
    """A named step; it runs in a thread of that name."""

    name: str
    work: Callable[[SlotT, JobT], None]


def run(
    jobs: Iterable[JobT], slots: Sequence[SlotT], stages: Sequence[Stage[SlotT, JobT]]
) -> Generator[Item[SlotT, JobT], None, None]:
    """Put every job through every stage, each stage in its own thread, with at most `len(slots)` jobs under way.

    Yields:
        Each job in order, with the slot it was done in. The slot is used again when the next item is asked for.

    Raises:
        BaseException: the first that any stage raised; nothing is started after it. Closing the generator stops the
            stages likewise. Either way every thread has ended when it returns.
    """
    queues: list[queue.SimpleQueue[Item[SlotT, JobT] | None]] = [queue.SimpleQueue() for _ in range(len(stages) + 1)]
    stop = threading.Event()
    errors: list[BaseException] = []

    def serve(number: int, stage: Stage[SlotT, JobT]) -> None:
        try:
            while (item := queues[number].get()) is not None and not stop.is_set():
                stage.work(item.slot, item.job)
                queues[number + 1].put(item)
        except BaseException as error:
            # Appending is atomic, and only the first entry is raised.
            errors.append(error)
            stop.set()
        finally:
            queues[number + 1].put(None)

    threads = [
        threading.Thread(target=serve, args=(number, stage), name=stage.name, daemon=True)
        for number, stage in enumerate(stages)
    ]
    waiting = iter(jobs)

    def feed(slot: SlotT) -> None:
        for job in waiting:
            queues[0].put(Item(slot, job))
            return
        queues[0].put(None)

    for thread in threads:
        thread.start()
    try:
        for slot in slots:
            feed(slot)
        while (item := _take(queues[-1])) is not None:
            yield item
            feed(item.slot)
    finally:
        stop.set()
        queues[0].put(None)
        for thread in threads:
            thread.join()
    if errors:
        raise errors[0]


def _take(source: queue.SimpleQueue[Item[SlotT, JobT] | None]) -> Item[SlotT, JobT] | None:
    while True:
        try:
            return source.get(timeout=POLL_SECONDS)
        except queue.Empty:
            continue
