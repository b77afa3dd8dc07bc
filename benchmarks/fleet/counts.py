"""What a simulated fleet, or a real one, is asked about."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from fleet.node import Node, Work


@dataclass
class Counts:
    """Sums and lists.

    Attributes:
        talks, jobs: that came.
        refused: talks that found no room, when they came.
        cut_off: talks that found none after their node had failed.
        loads: of characters.
        starts: seconds from asking until a talk's character was there.
        turnarounds: seconds from asking until a job was done, and its frames.
        interrupted: talks on nodes that failed.
        lost_frames: of talks, from when a node failed until another drew for them.
        redrawn_frames: of jobs, in the segments that were under way.
        drawn, late: realtime frames that were due, and those of them that were late.
        job_frames: drawn.
        busy: node seconds of GPUs.
    """

    talks: int = 0
    jobs: int = 0
    refused: int = 0
    cut_off: int = 0
    loads: int = 0
    failures: int = 0
    interrupted: int = 0
    lost_frames: float = 0.0
    redrawn_frames: float = 0.0
    starts: list[float] = field(default_factory=list)
    turnarounds: list[tuple[float, float]] = field(default_factory=list)
    drawn: float = 0.0
    late: float = 0.0
    job_frames: float = 0.0
    busy: float = 0.0

    def came(self, work: Work) -> None:
        """Somebody asks."""
        if work.job:
            self.jobs += 1
        else:
            self.talks += 1

    def refuse(self, work: Work) -> None:
        """There is no room."""
        if work.silent_since is None:
            self.refused += 1
        else:
            self.cut_off += 1

    def finished(self, job: Work, now: float) -> None:
        """A job is done."""
        self.turnarounds.append((now - job.came, job.frames))

    def add_up(self, nodes: list[Node]) -> None:
        """Take what the nodes have counted."""
        for node in nodes:
            self.drawn += node.drawn
            self.late += node.late
            self.job_frames += node.job_frames
            self.busy += node.busy

    def summary(self, nodes: int, seconds: float) -> dict[str, Any]:
        """The numbers of a report; shares of 1, seconds, and frames a second."""
        due = self.drawn + self.lost_frames
        begun = self.talks + self.jobs
        return {
            "talk_fps": self.drawn / seconds,
            "job_fps": self.job_frames / seconds,
            "busy": self.busy / (nodes * seconds),
            "late": (self.late + self.lost_frames) / due if due else 0.0,
            "refused": self.refused / self.talks if self.talks else 0.0,
            "cut_off": self.cut_off,
            "interrupted": self.interrupted,
            "lost_frames": self.lost_frames,
            "redrawn_frames": self.redrawn_frames,
            "failures": self.failures,
            "loads": self.loads,
            "loads_share": self.loads / begun if begun else 0.0,
            "start_median": _quantile(self.starts, 0.5),
            "start_p99": _quantile(self.starts, 0.99),
            "turnaround_median": _quantile([took for took, _ in self.turnarounds], 0.5),
            "turnaround_p99": _quantile([took for took, _ in self.turnarounds], 0.99),
            "jobs_done": len(self.turnarounds),
        }


def _quantile(values: list[float], share: float) -> float:
    return float(np.quantile(values, share)) if values else math.nan
