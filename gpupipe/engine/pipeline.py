"""Stages, each in a thread of its own, that items go through in order, for as long as a process lives."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Sequence
from typing import Generic, NamedTuple, TypeVar

from gpupipe.threads import Worker

ItemT = TypeVar("ItemT")


class Stage(NamedTuple, Generic[ItemT]):
    """A named step; it runs in a thread of that name."""

    name: str
    work: Callable[[ItemT], None]


class Pipeline(Generic[ItemT]):
    """Takes items from a source as they come, and puts each through every stage.

    An item is handed on the moment a stage is done with it, whether or not another follows.

    Args:
        source: gives the next item, and waits for it; None ends the pipeline once all that is under way is done.
        stages: must not raise: what concerns one item is kept in it by the stage.
        failed: told what a stage or the source has raised all the same; the pipeline goes on to its end, dropping
            what is under way.
        dropped: given what is dropped, before it is let go of; must not raise.
    """

    def __init__(
        self,
        source: Callable[[], ItemT | None],
        stages: Sequence[Stage[ItemT]],
        failed: Callable[[BaseException], None],
        dropped: Callable[[ItemT], None] = lambda _: None,
    ) -> None:
        self._source, self._failed, self._dropped = source, failed, dropped
        self._queues: list[queue.SimpleQueue[ItemT | None]] = [queue.SimpleQueue() for _ in stages]
        self._broken = threading.Event()
        self._workers = [Worker(stage.name, self._serve, number, stage) for number, stage in enumerate(stages)]
        for worker in self._workers:
            worker.start()

    def join(self) -> None:
        """Wait until every thread has ended; the source must have given None, or give it soon."""
        for worker in self._workers:
            worker.wait()

    def _serve(self, number: int, stage: Stage[ItemT]) -> None:
        take = self._source if number == 0 else self._queues[number].get
        give = self._queues[number + 1].put if number + 1 < len(self._queues) else lambda item: None
        try:
            while (item := take()) is not None:
                if self._passes(item, stage):
                    give(item)
                else:
                    self._dropped(item)
        except BaseException as error:
            self._break(error)
        finally:
            give(None)

    def _passes(self, item: ItemT, stage: Stage[ItemT]) -> bool:
        """Do a stage's work, unless some stage has failed; whether the item goes on."""
        if not self._broken.is_set():
            try:
                stage.work(item)
                return True
            except BaseException as error:
                self._break(error)
        return False

    def _break(self, error: BaseException) -> None:
        self._broken.set()
        self._failed(error)
