"""Clients at a time, and what became of them together."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Final

import numpy as np

from gpupipe.serve.load.talker import Heard, Open, Said, talk

COMING_SECONDS: Final = 1.0
"""In which the clients of a crowd come, evenly."""

SPREAD_FRAMES: Final = 13
"""By which each client's start frame is further on than the one before's."""

LATE_SHARE: Final = 0.01
"""Of the frames, which may be late where a crowd is served in time."""


@dataclass(frozen=True)
class Together:
    """What became of a crowd.

    Attributes:
        clients: that came.
        refused: of these, who were not let in.
        refused_seconds: the longest that one of them waited for that.
        failed: of these, whose talk ended by an error.
        errors: some of these.
        frames: that were given to all.
        late_share: of these, those that came late, or stand for one that would have.
        latency_ms: from a frame's own time to its coming: the median, 95 and 99 of a hundred.
        batch_fill: share of the places in batches that were filled; None: not known.
        cores: that the server's process kept busy; None: not known.
    """

    clients: int
    refused: int
    refused_seconds: float
    failed: int
    errors: tuple[str, ...]
    frames: int
    late_share: float
    latency_ms: tuple[float, float, float]
    batch_fill: float | None = None
    cores: float | None = None

    @property
    def in_time(self) -> bool:
        """Whether all were let in, and served in time."""
        return not self.refused and not self.failed and self.frames > 0 and self.late_share < LATE_SHARE

    def measured(self, *, batch_fill: float | None, cores: float | None) -> Together:
        """With what the server tells of itself."""
        return replace(self, batch_fill=batch_fill, cores=cores)

    def as_dict(self) -> dict[str, Any]:
        """As JSON."""
        return asdict(self)


def together(heard: Sequence[Heard]) -> Together:
    """What became of clients."""
    latencies = np.array([each for client in heard for each in client.latencies] or [0.0])
    frames = sum(client.frames for client in heard)
    failed = [client.error for client in heard if client.error is not None]
    p50, p95, p99 = (round(float(each) * 1e3, 1) for each in np.percentile(latencies, [50, 95, 99]))
    return Together(
        clients=len(heard),
        refused=sum(client.refused is not None for client in heard),
        refused_seconds=max((client.refused for client in heard if client.refused is not None), default=0.0),
        failed=len(failed),
        errors=tuple(failed[:3]),
        frames=frames,
        late_share=sum(client.late for client in heard) / frames if frames else 0.0,
        latency_ms=(p50, p95, p99),
    )


async def crowd(said: Said, opened: Open, clients: int) -> Together:
    """Have clients talk at a time."""
    begin = time.monotonic() + 0.1
    return together(
        await asyncio.gather(
            *(
                talk(
                    replace(said, start_frame=number * SPREAD_FRAMES),
                    opened,
                    begin + COMING_SECONDS * number / clients,
                )
                for number in range(clients)
            )
        )
    )
