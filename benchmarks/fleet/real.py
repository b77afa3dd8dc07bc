"""A fleet whose nodes are real workers: the same router and the same arrivals as `simulate`, on the wall's clock."""

from __future__ import annotations

import time
from multiprocessing.connection import Connection, wait

from fleet.counts import Counts
from fleet.node import Machine, Node, Work
from fleet.simulate import Fleet
from fleet.workers import Told, Worker
from fleet.world import Arrivals, Catalogue, World


class RealFleet(Fleet):
    """Sends work to workers, one for each node, and hears from them when it is done."""

    def __init__(self, world: World, coming: Arrivals, catalogue: Catalogue, workers: list[Worker]) -> None:
        super().__init__(world, coming, catalogue)
        self._workers = workers
        self._under_way: dict[int, Work] = {}

    def run(self) -> Counts:
        """Until all who came are served."""
        arrivals = self._coming
        self._arrays = arrivals.lists()
        before = [worker.spent() for worker in self._workers]
        began = time.monotonic()
        if len(arrivals.times):
            self._at(float(arrivals.times[0]), self._comes, 0)
        pipes = [worker.pipe for worker in self._workers]
        while self._events or self._under_way:
            self.now = time.monotonic() - began
            if self._events and self._events[0][0] <= self.now:
                _, _, happens, what = self._events.pop(0)
                happens(*what)
                continue
            for pipe in wait(pipes, self._events[0][0] - self.now if self._events else None):
                assert isinstance(pipe, Connection)
                told = pipe.recv()
                self.now = time.monotonic() - began
                assert isinstance(told, Told), told
                self._hears(told)
        self.now = time.monotonic() - began
        after = [worker.spent() for worker in self._workers]
        self.counts.loads = sum(b.loads - a.loads for a, b in zip(before, after, strict=True))
        self.cpu_seconds = sum(b.cpu_seconds - a.cpu_seconds for a, b in zip(before, after, strict=True))
        return self.counts

    def _wait_for_character(self, node: Node, work: Work) -> None:
        self._acquire(node, work.character)
        self._under_way[work.number] = work
        worker = self._workers[node.number]
        if work.job:
            worker.tell("job", work.number, work.character, round(work.frames))
        else:
            worker.tell("talk", work.number, work.character, work.frames)

    def _hears(self, told: Told) -> None:
        assert told.error is None, told.error
        work = self._under_way.pop(told.number)
        node = work.node
        assert node is not None
        if work.job:
            self._job_over(node, work)
            self.counts.job_frames += told.frames
        else:
            node.leave(work, self._fps)
            work.node = None
            self._left_cache(node, node.cache.give_back(work.character))
            self.counts.starts.append(told.ready_seconds)
            self.counts.drawn += told.frames
            self.counts.late += told.late
        self._start_jobs(node)
        self._changed(node.machine)

    def _changed(self, machine: Machine) -> None:
        """Tell the router; what happens next is for the workers to say."""
        self._tell_router(machine)
