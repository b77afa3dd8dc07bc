"""Machines, their nodes, and the work on them: a fluid whose rates are constant from one event to the next.

Realtime talks come first, as in the engine's scheduler. What they leave of a GPU goes to the node's jobs, and what they
leave of the machine's cores to jobs and loads, in proportion to what each could use. Where talks want more than there
is, work queues up for as long as it can still be in time, and beyond that the share that is too much is late: the
engine passes frames over that would be late, and draws the others.
"""

from __future__ import annotations

import math
from collections import deque

from fleet.cache import Cache
from fleet.world import SLACK_SECONDS, Costs, Hardware
from gpupipe.engine.scheduler import MARGIN
from gpupipe.serve.admission import Demand, admits

EPSILON = 1e-9
LEAST_SHARE = 0.1
"""Of the cores: what loads and jobs get, however many talks there are, as the system gives every thread a turn."""


class Work:
    """A talk or a job.

    Attributes:
        left: frames of a job that are still to be drawn.
        opening: frames' worth of CPU time that go before them.
        ends: when a talk is over; before its character is there: how long it will be.
        came: when it first asked.
        ready: when its character was there.
        silent_since: when its last node failed; None while it has none behind it.
    """

    __slots__ = (
        "came",
        "character",
        "ends",
        "frames",
        "job",
        "left",
        "node",
        "number",
        "opening",
        "ready",
        "silent_since",
    )

    def __init__(self, number: int, character: int, size: float, came: float, *, job: bool) -> None:
        self.number, self.character, self.job, self.came = number, character, job, came
        self.frames = self.left = self.ends = size
        self.node: Node | None = None
        self.ready = math.nan
        self.opening = 0.0
        self.silent_since: float | None = None


class Load:
    """A character that is being loaded: first its files are fetched, then it is decoded."""

    __slots__ = ("character", "left", "node", "open_until", "waiting")

    def __init__(self, node: Node, character: int, open_until: float, core_seconds: float) -> None:
        self.node, self.character, self.open_until, self.left = node, character, open_until, core_seconds
        self.waiting: list[Work] = []


class Node:
    """An engine.

    Attributes:
        talks: that have a seat, those whose character is being loaded too.
        drawing: of these, those whose frames are due.
        jobs: under way.
        queue: jobs that wait.
        device: seconds of the GPU that talks take a second.
        backlog: seconds of realtime work that are queued.
        drawn, late, job_frames: frames so far, since they were last set to 0.
        busy: seconds of the GPU, likewise.
    """

    def __init__(self, number: int, machine: Machine, hardware: Hardware, costs: Costs, *, own_models: bool) -> None:
        self.number, self.machine, self.costs = number, machine, costs
        self._hardware, self._own = hardware, own_models
        self.clear()
        self.drawn = self.late = self.job_frames = self.busy = 0.0

    def clear(self) -> None:
        """Begin with nothing."""
        self.alive = True
        self.cache = Cache(self._hardware.memory_bytes, self._hardware.unused_bytes)
        self.talks: dict[Work, None] = {}
        self.jobs: dict[Work, float] = {}  # and until when each only opens, or closes, its files
        self.queue: deque[Work] = deque()
        self.loads: dict[int, Load] = {}
        self._lanes: dict[int, int] = {}
        self.device = self.backlog = self.queued_frames = 0.0
        self.drawing = 0
        self.job_rate = 0.0

    def demand(self, character: int, fps: float) -> Demand:
        """What one more talk takes."""
        lane = self._lanes.get(character if self._own else -1, 0)
        device = self._lane(lane + 1, fps) - self._lane(lane, fps)
        return Demand(device, fps * self.costs.talk_core_seconds)

    def admits(self, wanted: Demand, fps: float, most: float) -> bool:
        """`gpupipe.serve.admission` about one more talk."""
        cores = fps * self.costs.talk_core_seconds
        mine = Demand(self.device, cores * len(self.talks))
        others = Demand(0.0, cores * (self.machine.talks - len(self.talks)))
        return admits([mine], [others], wanted, self.machine.cores, most)

    def seat(self, talk: Work, fps: float) -> None:
        """Take a talk in."""
        lane = talk.character if self._own else -1
        self.device += self.demand(talk.character, fps).device
        self._lanes[lane] = self._lanes.get(lane, 0) + 1
        self.talks[talk] = None
        self.machine.talks += 1

    def leave(self, talk: Work, fps: float) -> None:
        """A talk is over."""
        lane = talk.character if self._own else -1
        self._lanes[lane] -= 1
        if not self._lanes[lane]:
            del self._lanes[lane]
        del self.talks[talk]
        self.machine.talks -= 1
        self.device = max(0.0, self.device - self.demand(talk.character, fps).device) if self.talks else 0.0

    def spare(self, fps: float) -> float:
        """Core seconds a second that talks and loads leave of what its process can use."""
        costs = self.costs
        used = fps * costs.talk_core_seconds * self.drawing + costs.load_threads * len(self.loads)
        return max(LEAST_SHARE * costs.engine_cores, costs.engine_cores - used)

    def begin(self, job: Work, now: float) -> None:
        """A job's character is there."""
        self.jobs[job], job.opening = now + self.costs.job_open_seconds, self.costs.job_open_frames

    def _lane(self, talks: int, fps: float) -> float:
        """Seconds of the GPU a second, of so many talks that share batches.

        A batch takes as long as a full one; one that is not full leaves when its first frame can wait no longer.
        """
        costs = self.costs
        rate = talks * fps
        window = max(SLACK_SECONDS - MARGIN * costs.batch_seconds, 1e-3)
        return costs.batch_seconds * max(rate / costs.batch, min(rate, 1 / window) if talks else 0.0)


class Machine:
    """Nodes that share cores.

    Attributes:
        power: core seconds that it gives a second.
        talks: of all its nodes.
        at: until when everything has been told.
        version: of its plan; what was planned before is void.
    """

    def __init__(
        self, number: int, hardware: Hardware, costs: Costs, first: int, count: int, fps: float, *, own_models: bool
    ) -> None:
        self.number, self.cores, self.costs, self._fps = number, hardware.cores, costs, fps
        self.power = hardware.cores * hardware.core_speed
        self.nodes = [Node(first + n, self, hardware, costs, own_models=own_models) for n in range(count)]
        self.talks = 0
        self.at = 0.0
        self.version = 0
        self._load_rate = 0.0

    def advance(self, now: float) -> None:
        """Let the time pass that has passed."""
        seconds, self.at = now - self.at, now
        if seconds <= 0:
            return
        crowded = self._fps * self.costs.talk_core_seconds * self.talks / self.power
        for node in self.nodes:
            if node.drawing:
                self._draw(node, crowded, seconds)
            for load in node.loads.values():
                if load.open_until <= now - seconds + EPSILON:
                    load.left -= self._load_rate * seconds
            drawn, busy = node.job_rate * seconds, min(1.0, node.device) * seconds
            for job, opens in node.jobs.items():
                if opens <= now - seconds + EPSILON and job.left > 0:
                    opening = min(job.opening, drawn)
                    job.opening -= opening
                    frames = drawn - opening
                    job.left -= frames
                    node.job_frames += frames
                    busy += frames * self.costs.batch_seconds / self.costs.batch
            node.busy += busy

    def _draw(self, node: Node, crowded: float, seconds: float) -> None:
        """Frames of talks, and those of them that are late.

        Of what is wanted, a share is spent for every frame, so that passing frames over saves only the rest of it.
        """
        wanted = max(node.device, crowded)
        frames = node.drawing * self._fps * seconds
        over = wanted - 1
        if over > 0:
            late_seconds = max(0.0, seconds - (SLACK_SECONDS - node.backlog) / over)
            node.late += frames * late_seconds / seconds * min(1.0, over / (wanted * self._saved(node, crowded)))
        node.backlog = min(SLACK_SECONDS, max(0.0, node.backlog + over * seconds))
        node.drawn += frames

    def _saved(self, node: Node, crowded: float) -> float:
        costs = self.costs
        return 1.0 if node.device >= crowded else 1 - costs.hear_core_seconds / costs.talk_core_seconds

    def plan(self) -> float:
        """Set the rates from now on; when the next thing happens on its own, seconds."""
        costs, now = self.costs, self.at
        spare = max(LEAST_SHARE * self.power, self.power - self._fps * costs.talk_core_seconds * self.talks)
        wanted = 0.0
        rates: list[tuple[Node, int, float]] = []
        following = math.inf
        for node in self.nodes:
            for load in node.loads.values():
                if load.open_until > now + EPSILON:
                    following = min(following, load.open_until)
                else:
                    wanted += costs.load_threads
            running = 0
            for job, opens in node.jobs.items():
                if opens > now + EPSILON:
                    following = min(following, opens)
                else:
                    running += job.left > 0
            node.job_rate = 0.0
            if running:
                rate = costs.job_fps * running
                if costs.batch_seconds:
                    rate = min(rate, max(0.0, 1 - node.device) * costs.batch / costs.batch_seconds)
                if costs.job_core_seconds:
                    rate = min(rate, node.spare(self._fps) / costs.job_core_seconds)
                rates.append((node, running, rate))
                wanted += rate * costs.job_core_seconds
        share = min(1.0, spare / wanted) if wanted else 1.0
        self._load_rate = share * costs.load_threads
        for node, running, rate in rates:
            node.job_rate = share * rate / running
            if node.job_rate > 0:
                first = min(
                    job.left + job.opening
                    for job, opens in node.jobs.items()
                    if opens <= now + EPSILON and job.left > 0
                )
                following = min(following, now + first / node.job_rate)
        if self._load_rate > 0:
            for node in self.nodes:
                for load in node.loads.values():
                    if load.open_until <= now + EPSILON:
                        following = min(following, now + max(0.0, load.left) / self._load_rate)
        return following


def machines(hardware: Hardware, costs: Costs, fps: float, *, own_models: bool) -> list[Machine]:
    """All of them; the last may have fewer nodes."""
    each = hardware.nodes_each
    return [
        Machine(number, hardware, costs, first, min(each, hardware.nodes - first), fps, own_models=own_models)
        for number, first in enumerate(range(0, hardware.nodes, each))
    ]
