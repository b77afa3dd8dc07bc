"""What is simulated: machines and their nodes, characters, those who come, and what fails."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gpupipe.options.serving import MOST_LOAD
from gpupipe.serve.order import DELAY_SECONDS
from gpupipe.serve.talk import GUARD_SECONDS

SEGMENT_FRAMES = 250
"""Of a job: what is lost with a node is the segment that it was drawing."""
HEARS_AHEAD_SECONDS = 0.4525
"""After a frame's own time all is there that it hears (`gpupipe.speech.stream.FeatureStream`)."""
SLACK_SECONDS = DELAY_SECONDS - HEARS_AHEAD_SECONDS - GUARD_SECONDS
"""From when a realtime frame can be drawn until the engine means to be done with it."""


@dataclass(frozen=True)
class Costs:
    """What work takes, as measured on one node.

    Attributes:
        batch: frames in a full batch.
        batch_seconds: of the GPU, for a batch, full or not; 0 where a CPU draws.
        talk_core_seconds: CPU time of a realtime frame: drawing on a CPU, and encoding.
        hear_core_seconds: of these, what makes features of the sound; it is spent for frames that are passed over, too.
        job_core_seconds: CPU time of a job's frame.
        job_open_core_seconds: CPU time of a job besides its frames: what opens and closes files, a codec, a model.
        engine_cores: that one engine keeps busy at most, however many there are: its process has one Python.
        job_fps: the most frames a second of one job, alone on its machine.
        job_open_seconds: before a job's first frame, and after its last, in which it draws nothing.
        load_core_seconds: CPU time of one cached frame of a character that is loaded.
        load_open_seconds: of a load, in which nothing is computed: files are fetched, a model is opened.
        load_threads: cores that one load keeps busy.
        load_blocks: whether nothing is drawn of a character before all of it is there; else its first frames are drawn
            while others are decoded.
    """

    batch: int = 8
    batch_seconds: float = 0.012
    talk_core_seconds: float = 0.012
    hear_core_seconds: float = 0.001
    job_core_seconds: float = 0.012
    job_open_core_seconds: float = 0.0
    engine_cores: float = math.inf
    job_fps: float = 500.0
    job_open_seconds: float = 1.0
    load_core_seconds: float = 0.0075
    load_open_seconds: float = 1.0
    load_threads: float = 2.0
    load_blocks: bool = False

    @property
    def job_open_frames(self) -> float:
        """Frames that take the CPU time of a job's opening and closing."""
        return self.job_open_core_seconds / self.job_core_seconds if self.job_core_seconds else 0.0

    def load_seconds(self, filmed: int) -> float:
        """What a load of so many cached frames takes that has its cores to itself."""
        return self.load_open_seconds + filmed * self.load_core_seconds / self.load_threads


@dataclass(frozen=True)
class Hardware:
    """Machines that are all alike.

    Attributes:
        nodes: engines in all.
        nodes_each: engines that share a machine's cores.
        cores: of a machine.
        core_speed: of each of them; less than 1 where others use the machine too. Admission does not know of it.
        memory_bytes: for the characters of one node, those in use too.
        unused_bytes: for those of a node that nobody uses; None: what the others leave.
        parallel: jobs under way on a node at a time.
    """

    nodes: int = 100
    nodes_each: int = 8
    cores: int = 96
    core_speed: float = 1.0
    memory_bytes: float = 60e9
    unused_bytes: float | None = None
    parallel: int = 2


@dataclass(frozen=True)
class Traffic:
    """Those who come.

    Attributes:
        characters: of the catalogue.
        zipf: exponent of their popularity.
        filmed: median of a character's cached frames; they are lognormal.
        filmed_spread: of the logarithm.
        frame_bytes: that a cached frame takes.
        own_models: whether each character has a model of its own, so that its frames make batches with no other's.
        talks: realtime talks that begin a second.
        talk_seconds: their mean length; exponential.
        jobs: that come a second.
        job_frames: their median length; lognormal.
        job_spread: of the logarithm.
        fps: frames a second of a talk.
    """

    characters: int = 10_000
    zipf: float = 1.0
    filmed: float = 500.0
    filmed_spread: float = 0.5
    frame_bytes: float = 1.7e6
    own_models: bool = False
    talks: float = 10.0
    talk_seconds: float = 90.0
    jobs: float = 0.5
    job_frames: float = 1500.0
    job_spread: float = 0.7
    fps: float = 25.0


@dataclass(frozen=True)
class Failures:
    """What fails.

    Attributes:
        mean_seconds: between failures of one node; 0: none fail by chance.
        killed: nodes that die at `killed_at`: the first ones, whole machines where there are enough.
        killed_at: seconds from the beginning.
        notice_seconds: until the router knows.
        repair_seconds: until a node is back, with no characters.
    """

    mean_seconds: float = 0.0
    killed: int = 0
    killed_at: float = 0.0
    notice_seconds: float = 2.0
    repair_seconds: float = 600.0


@dataclass(frozen=True)
class World:
    """All of it.

    Attributes:
        policy: see `routing.POLICIES`.
        most_load: of a node's device, and of a machine's cores, that realtime talks may take.
        warm_seconds: before anything is counted.
        seconds: in which it is counted.
        prefill: whether the nodes begin with the characters that earlier arrivals would have left them.
    """

    hardware: Hardware = field(default_factory=Hardware)
    costs: Costs = field(default_factory=Costs)
    traffic: Traffic = field(default_factory=Traffic)
    failures: Failures = field(default_factory=Failures)
    policy: str = "power of two"
    most_load: float = MOST_LOAD
    warm_seconds: float = 300.0
    seconds: float = 1200.0
    prefill: bool = True
    seed: int = 1


@dataclass(frozen=True)
class Arrivals:
    """Who comes when: one array for each of these, of equal length, in order of time.

    Attributes:
        times: seconds.
        characters: int.
        sizes: seconds of a talk, frames of a job.
        jobs: bool, whether it is a job.
    """

    times: NDArray[np.float64]
    characters: NDArray[np.int64]
    sizes: NDArray[np.float64]
    jobs: NDArray[np.bool_]

    def lists(self) -> tuple[list[float], list[int], list[float], list[bool]]:
        """The same as Python's own numbers."""
        return self.times.tolist(), self.characters.tolist(), self.sizes.tolist(), self.jobs.tolist()


@dataclass(frozen=True)
class Catalogue:
    """The characters.

    Attributes:
        filmed: cached frames of each, int.
        popular: the share of those who come that want it or a more popular one.
    """

    filmed: NDArray[np.int64]
    popular: NDArray[np.float64]

    @classmethod
    def of(cls, traffic: Traffic, rng: np.random.Generator) -> Catalogue:
        """Drawn anew; the first are the most popular."""
        filmed = traffic.filmed * np.exp(rng.normal(0, traffic.filmed_spread, traffic.characters))
        share = 1 / np.arange(1, traffic.characters + 1) ** traffic.zipf
        return cls(np.maximum(1, filmed).astype(np.int64), np.cumsum(share) / share.sum())

    def wanted(self, rng: np.random.Generator, count: int) -> NDArray[np.int64]:
        """Whom so many who come want."""
        return np.searchsorted(self.popular, rng.random(count), side="right").clip(max=len(self.popular) - 1)


def arrivals(traffic: Traffic, catalogue: Catalogue, seconds: float, rng: np.random.Generator) -> Arrivals:
    """Poisson arrivals of talks and of jobs.

    The talks that would be under way at the beginning come in its first second, as long as what would be left of them:
    an exponential length knows no age.
    """
    standing, talks, jobs = (
        int(rng.poisson(mean))
        for mean in (traffic.talks * traffic.talk_seconds, traffic.talks * seconds, traffic.jobs * seconds)
    )
    times = np.concatenate([rng.uniform(0, min(1.0, seconds), standing), rng.uniform(0, seconds, talks + jobs)])
    talks += standing
    frames = np.maximum(1, traffic.job_frames * np.exp(rng.normal(0, traffic.job_spread, jobs))).round()
    sizes: Any = np.concatenate([rng.exponential(traffic.talk_seconds, talks), frames])
    kinds = np.arange(talks + jobs) >= talks
    order = np.argsort(times, kind="stable")
    wanted = catalogue.wanted(rng, talks + jobs)
    return Arrivals(times[order], wanted[order], sizes[order], kinds[order])
