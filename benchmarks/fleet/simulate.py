"""Runs a fleet: arrivals, loads, ends and failures in order of time. The same seed gives the same numbers."""

from __future__ import annotations

import heapq
import itertools
import math
import random
from collections.abc import Callable
from typing import Any

import numpy as np

from fleet.counts import Counts
from fleet.node import EPSILON, Load, Machine, Node, Work, machines
from fleet.routing import POLICIES, Board
from fleet.world import SEGMENT_FRAMES, Arrivals, Catalogue, World, arrivals

DONE = 1e-6
"""Frames, or core seconds, that count as none."""
PREFILL = 3
"""Arrivals for each place in a cache, before anything begins."""
JOB_TARGETS = 4
"""Nodes between which a job is decided: where it would begin first."""


class Fleet:
    """All machines, the router, and the events that are to come.

    Args:
        world: what is simulated.
        coming: who comes; None: drawn from the world's traffic.
        catalogue: the characters, likewise.
    """

    def __init__(self, world: World, coming: Arrivals | None = None, catalogue: Catalogue | None = None) -> None:
        self.world, self._fps = world, world.traffic.fps
        rng = np.random.default_rng(world.seed)
        self.catalogue = catalogue or Catalogue.of(world.traffic, rng)
        self.until = world.warm_seconds + world.seconds
        self._coming = coming or arrivals(world.traffic, self.catalogue, self.until, rng)
        self._machines = machines(world.hardware, world.costs, self._fps, own_models=world.traffic.own_models)
        self.nodes = [node for machine in self._machines for node in machine.nodes]
        self._board, self._policy = Board(self.nodes), POLICIES[world.policy]
        self._random = random.Random(world.seed)
        self._nbytes: list[float] = (self.catalogue.filmed * world.traffic.frame_bytes).tolist()
        self._filmed: list[int] = self.catalogue.filmed.tolist()
        self._events: list[tuple[float, int, Callable[..., None], tuple[Any, ...]]] = []
        self._order = itertools.count()
        self._numbers = itertools.count()
        self.counts = Counts()
        self.now = 0.0
        if world.prefill:
            self._prefill(rng)

    def run(self) -> Counts:
        """From the beginning to the end of the world's time, or until all who came are served if that is infinite."""
        failures = self.world.failures
        for node in self.nodes[: failures.killed]:
            self._at(failures.killed_at, self._fail, node)
        if failures.mean_seconds:
            for node in self.nodes:
                self._at(self._random.expovariate(1 / failures.mean_seconds), self._fail, node)
        self._at(self.world.warm_seconds, self._begin)
        self._arrays = self._coming.lists()
        for first in self._arrays[0][:1]:
            self._at(first, self._comes, 0)
        while self._events and self._events[0][0] <= self.until:
            self.now, _, happens, what = heapq.heappop(self._events)
            happens(*what)
        if self.until < math.inf:
            self.now = self.until
        for machine in self._machines:
            machine.advance(self.now)
        self.counts.add_up(self.nodes)
        return self.counts

    def _at(self, time: float, happens: Callable[..., None], *what: Any) -> None:
        heapq.heappush(self._events, (time, next(self._order), happens, what))

    def _begin(self) -> None:
        """Count from now on."""
        for machine in self._machines:
            machine.advance(self.now)
        for node in self.nodes:
            node.drawn = node.late = node.job_frames = node.busy = 0.0
        self.counts = Counts()

    def _prefill(self, rng: np.random.Generator) -> None:
        """Leave each node the characters that its share of earlier arrivals would have left there."""
        bound = min(self.world.hardware.memory_bytes, self.world.hardware.unused_bytes or math.inf)
        places = bound * len(self.nodes) / float(np.mean(self._nbytes))
        for character in self.catalogue.wanted(rng, round(places * PREFILL)).tolist():
            node = next(self._policy(self._board, character, self._board.load, self._random.randrange))
            self._acquire(node, character)
            self._left_cache(node, node.cache.give_back(character))
            # As if it were busy for a while: those who come at the same time go elsewhere.
            self._board.load[node.number] += 1.0
        self._board.load[:] = 0.0

    def _acquire(self, node: Node, character: int) -> bool:
        """A user more of a character on a node; whether it was there already."""
        there = character in node.cache
        if not there:
            self._board.holds(node, character)
        self._left_cache(node, node.cache.acquire(character, self._nbytes[character]))
        return there

    def _left_cache(self, node: Node, characters: list[int]) -> None:
        for character in characters:
            self._board.forgets(node, character)

    def _comes(self, place: int) -> None:
        times, wanted, sizes, jobs = self._arrays
        if place + 1 < len(times):
            self._at(times[place + 1], self._comes, place + 1)
        work = Work(next(self._numbers), wanted[place], sizes[place], self.now, job=jobs[place])
        self.counts.came(work)
        self._route(work)

    def _route(self, work: Work) -> None:
        if not self._board.alive:
            self.counts.refuse(work)
        elif work.job:
            self._route_job(work)
        else:
            self._route_talk(work)

    def _route_talk(self, talk: Work) -> None:
        most, board = self.world.most_load, self._board
        nbytes = self._nbytes[talk.character]
        named = self._policy(board, talk.character, board.load, self._random.randrange)
        for node in itertools.chain(named, (board.nodes[int(board.load.argmin())],)):
            if node.cache.fits(talk.character, nbytes) and node.admits(
                node.demand(talk.character, self._fps), self._fps, most
            ):
                node.machine.advance(self.now)
                node.seat(talk, self._fps)
                talk.node = node
                self._wait_for_character(node, talk)
                self._changed(node.machine)
                return
        self.counts.refuse(talk)

    def _route_job(self, job: Work) -> None:
        board = self._board
        named = self._policy(board, job.character, board.waiting, self._random.randrange)
        tried = list(itertools.islice(named, JOB_TARGETS))

        def begins(node: Node) -> float:
            held = job.character in node.cache
            wait = float(board.waiting[node.number])
            return wait if held else wait + self.world.costs.load_seconds(self._filmed[job.character])

        # A sticky router sends it to its place, however many wait there; the others to where it would begin first.
        node = tried[0] if self.world.policy == "sticky" else min(tried, key=begins)
        node.machine.advance(self.now)
        job.node = node
        node.queue.append(job)
        node.queued_frames += job.left
        self._start_jobs(node)
        self._changed(node.machine)

    def _start_jobs(self, node: Node) -> None:
        while node.queue and len(node.jobs) < self.world.hardware.parallel:
            job = node.queue[0]
            if not node.cache.fits(job.character, self._nbytes[job.character]):
                return  # until a talk leaves
            node.queue.popleft()
            node.jobs[job] = math.inf
            self._wait_for_character(node, job)

    def _wait_for_character(self, node: Node, work: Work) -> None:
        there = self._acquire(node, work.character)
        load = node.loads.get(work.character)
        if there and load is None:
            self._ready(node, work)
            return
        if load is None:
            costs = self.world.costs
            seconds = self._filmed[work.character] * costs.load_core_seconds
            load = node.loads[work.character] = Load(node, work.character, self.now + costs.load_open_seconds, seconds)
            self.counts.loads += 1
        if self.world.costs.load_blocks or load.open_until > self.now + EPSILON:
            load.waiting.append(work)
        else:
            self._ready(node, work)

    def _ready(self, node: Node, work: Work) -> None:
        work.ready = self.now
        if work.job:
            node.begin(work, self.now)
            return
        if work.silent_since is None:
            work.ends = self.now + work.frames
            self.counts.starts.append(self.now - work.came)
        else:
            self.counts.lost_frames += self._fps * (min(self.now, work.ends) - work.silent_since)
            work.silent_since = None
        node.drawing += 1
        self._at(work.ends, self._ends, work, node)

    def _ends(self, talk: Work, node: Node) -> None:
        if talk.node is not node or talk not in node.talks:
            return  # its node has failed
        node.machine.advance(self.now)
        node.drawing -= 1
        node.leave(talk, self._fps)
        talk.node = None
        self._left_cache(node, node.cache.give_back(talk.character))
        self._start_jobs(node)
        self._changed(node.machine)

    def _job_over(self, node: Node, job: Work) -> None:
        del node.jobs[job]
        node.queued_frames -= job.frames
        job.node = None
        self.counts.finished(job, self.now)
        self._left_cache(node, node.cache.give_back(job.character))

    def _happens(self, machine: Machine, version: int) -> None:
        """What a machine's plan has foreseen: loads and jobs that are done."""
        if machine.version != version:
            return
        machine.advance(self.now)
        for node in machine.nodes:
            for load in list(node.loads.values()):
                if load.left <= DONE:
                    del node.loads[load.character]
                elif self.world.costs.load_blocks or load.open_until > self.now + EPSILON:
                    continue
                for work in load.waiting:
                    self._ready(node, work)
                load.waiting.clear()
            for job in [job for job, opens in node.jobs.items() if job.left <= DONE and opens <= self.now + EPSILON]:
                self._job_over(node, job)
            self._start_jobs(node)
        self._changed(machine)

    def _changed(self, machine: Machine) -> None:
        """Plan anew, and tell the router."""
        machine.version += 1
        following = machine.plan()
        if following < math.inf:
            self._at(max(self.now, following), self._happens, machine, machine.version)
        self._tell_router(machine)

    def _tell_router(self, machine: Machine) -> None:
        costs = self.world.costs
        crowded = self._fps * costs.talk_core_seconds * machine.talks / machine.power
        cores = max(1e-3, 1 - crowded) * machine.power / len(machine.nodes)
        for node in machine.nodes:
            if node.alive:
                self._board.load[node.number] = max(node.device, crowded) + 1e-6 * len(node.loads)
                rate = cores / costs.job_core_seconds if costs.job_core_seconds else math.inf
                if costs.batch_seconds:
                    rate = min(rate, max(1e-3, 1 - node.device) * costs.batch / costs.batch_seconds)
                self._board.waiting[node.number] = node.queued_frames / rate

    def _fail(self, node: Node) -> None:
        failures = self.world.failures
        if not node.alive:
            return
        machine = node.machine
        machine.advance(self.now)
        self._board.dies(node)
        talks, jobs = list(node.talks), [*node.jobs, *node.queue]
        for talk in talks:
            node.leave(talk, self._fps)
            talk.node = None
            if talk.silent_since is None and not math.isnan(talk.ready):
                talk.silent_since = self.now
                self.counts.interrupted += 1
        for job in jobs:
            drawn = job.frames - job.left
            lost = min(drawn, drawn % SEGMENT_FRAMES)
            job.node = None
            job.left = job.frames = job.left + lost
            self.counts.redrawn_frames += lost
        node.clear()
        node.alive = False
        self._changed(machine)
        self.counts.failures += 1
        self._at(self.now + failures.notice_seconds, self._again, [*talks, *jobs])
        self._at(self.now + failures.repair_seconds, self._repaired, node)

    def _again(self, work: list[Work]) -> None:
        for each in work:
            if not each.job and each.silent_since is not None and each.ends <= self.now:
                self.counts.lost_frames += self._fps * (each.ends - each.silent_since)
                continue
            self._route(each)

    def _repaired(self, node: Node) -> None:
        node.machine.advance(self.now)
        node.alive = True
        self._board.lives(node)
        self._changed(node.machine)
        if self.world.failures.mean_seconds:
            self._at(self.now + self._random.expovariate(1 / self.world.failures.mean_seconds), self._fail, node)
