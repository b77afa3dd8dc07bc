"""The questions that are put to the simulated fleet, each a scene of some worlds."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from fleet.routing import POLICIES
from fleet.simulate import Fleet
from fleet.world import Costs, Failures, Hardware, Traffic, World

TALK_LOAD, JOB_LOAD = 0.5, 0.2
"""Shares of the fleet's GPUs that realtime talks and jobs want, unless a scene says otherwise."""
JOB_MEAN = 1.28
"""Times its median that a job's mean is: exp(0.7² / 2)."""
LOADS = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 1.0)
FAILURE_LOADS = (0.5, 0.6)
CACHES = (15e9, 30e9, 60e9, 120e9, 240e9)
CACHE_POLICIES = ("power of two", "sticky", "any two")


@dataclass(frozen=True)
class Row:
    """What came out of one world.

    Attributes:
        scene: the question.
        case: what distinguishes the world from the scene's others.
        took: CPU seconds of the simulation.
        found: see `Counts.summary`.
    """

    scene: str
    case: dict[str, Any]
    took: float
    found: dict[str, Any]


def world(nodes: int, *, talks: float = TALK_LOAD, jobs: float = JOB_LOAD, seed: int = 1, **more: Any) -> World:
    """A fleet of so many GPUs, and as much traffic as wants these shares of them."""
    costs, traffic = Costs(), Traffic(own_models=more.pop("own_models", False))
    frame = costs.batch_seconds / costs.batch
    come = nodes * talks / (traffic.fps * frame * traffic.talk_seconds)
    jobs_come = nodes * jobs / (frame * traffic.job_frames * JOB_MEAN)
    hardware = replace(Hardware(nodes=nodes), **more.pop("hardware", {}))
    return World(hardware, costs, replace(traffic, talks=come, jobs=jobs_come), seed=seed, **more)


def run(scene: str, case: dict[str, Any], simulated: World) -> Row:
    """Simulate one world."""
    began = time.process_time()
    counts = Fleet(simulated).run()
    found = counts.summary(simulated.hardware.nodes, simulated.seconds)
    return Row(scene, case, time.process_time() - began, found)


def rows(sizes: tuple[int, ...], seconds: float) -> Iterator[Row]:
    """Every scene.

    Args:
        sizes: of the fleets, GPUs; the smallest is swept, the largest fails.
        seconds: that are counted, after half as many that are not.
    """
    timed: dict[str, Any] = {"warm_seconds": seconds / 2, "seconds": seconds}
    small, large = min(sizes), max(sizes)
    for nodes in sizes:
        for policy in POLICIES:
            yield run("policies", {"nodes": nodes, "policy": policy}, world(nodes, policy=policy, **timed))
    for cache in CACHES:
        for policy in CACHE_POLICIES:
            simulated = world(small, policy=policy, hardware={"memory_bytes": cache}, **timed)
            yield run("cache", {"nodes": small, "gb": cache / 1e9, "policy": policy}, simulated)
    for own_models in (False, True):
        for load in LOADS:
            simulated = world(small, talks=load, own_models=own_models, **timed)
            yield run("load", {"nodes": small, "load": load, "own_models": own_models}, simulated)
    for load in FAILURE_LOADS:
        for killed in (0, 1, 8, large // 10):
            failures = Failures(killed=killed, killed_at=seconds)
            simulated = world(large, talks=load, failures=failures, **timed)
            yield run("failure", {"nodes": large, "load": load, "killed": killed}, simulated)
