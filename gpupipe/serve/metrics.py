"""What Prometheus is told of a server.

Everything is read from the hub when it is asked for, but requests, which the protocols count here.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

from prometheus_client.metrics_core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from gpupipe import __version__
from gpupipe.machine import rss_bytes
from gpupipe.serve.counted import Counted
from gpupipe.serve.hub import Hub

STAGE_SECONDS: Final = (0.00025, 0.0005, 0.001, 0.002, 0.004, 0.008, 0.016, 0.032, 0.064, 0.125, 0.25, 0.5, 1.0)
"""Bounds of the histograms of a stage's seconds a frame."""

BATCH_FRAMES: Final = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
"""Bounds of the histogram of frames in a batch."""


class Metrics(Counted):
    """The metrics of a server.

    Args:
        hub: of the server.
    """

    def __init__(self, hub: Hub) -> None:
        super().__init__(_Reader(hub))


class _Reader(Collector):
    """Reads a hub when Prometheus asks."""

    def __init__(self, hub: Hub) -> None:
        self._hub = hub

    def describe(self) -> list[Metric]:
        """Nothing, so that registering reads nothing."""
        return []

    def collect(self) -> Iterator[Metric]:
        """Every metric but the requests."""
        hub = self._hub
        info = GaugeMetricFamily("gpupipe_info", "Which version runs: always 1.", labels=["version"])
        info.add_metric([__version__], 1)
        yield info
        yield from self._talks()
        yield from self._engines()
        yield _gauge("gpupipe_load", "Share of the scarcest resource that realtime talks take.", hub.load_share())
        yield _gauge("gpupipe_late_share", "Pictures of the last seconds that were late.", hub.seats.late_share)
        yield _gauge("gpupipe_resident_bytes", "Memory that the process holds.", rss_bytes())
        waiting = GaugeMetricFamily("gpupipe_waiting", "What waits, of each kind.", labels=["queue"])
        for queue, length in hub.waiting().items():
            waiting.add_metric([queue], length)
        yield waiting
        refused = CounterMetricFamily("gpupipe_refusals", "Talks that were refused.", labels=["reason"])
        for reason in ("sessions", "load", "closing"):
            refused.add_metric([reason], hub.seats.refused[reason])
        yield refused
        encoding = CounterMetricFamily("gpupipe_encoder_cpu_seconds", "CPU time of encoders.", labels=["output"])
        for output, seconds in hub.costs.encoding_seconds().items():
            encoding.add_metric([output], seconds)
        yield encoding

    def _talks(self) -> Iterator[Metric]:
        sessions = GaugeMetricFamily("gpupipe_sessions", "Talks under way.", labels=["character", "output"])
        under_way: dict[tuple[str, str], int] = {}
        for talk in self._hub.talks:
            kind = talk.order.character, talk.order.output
            under_way[kind] = under_way.get(kind, 0) + 1
        counts = self._hub.seats.counts()
        kinds = {
            "talks": CounterMetricFamily("gpupipe_talks", "Talks that were opened.", labels=["character"]),
            "pictures": CounterMetricFamily("gpupipe_frames", "Frames given out.", labels=["character"]),
            "late": CounterMetricFamily(
                "gpupipe_frames_late", "Frames finished after they were due.", labels=["character"]
            ),
            "repeated": CounterMetricFamily(
                "gpupipe_frames_repeated", "Frames repeated for one that would have been late.", labels=["character"]
            ),
        }
        for pair, number in sorted(under_way.items()):
            sessions.add_metric(pair, number)
        for name, found in sorted(counts.items()):
            for each, family in kinds.items():
                family.add_metric([name], getattr(found, each))
        yield sessions
        yield from kinds.values()

    def _engines(self) -> Iterator[Metric]:
        labels = ["device"]
        frames = HistogramMetricFamily("gpupipe_batch_frames", "Frames in a batch.", labels=labels)
        places = CounterMetricFamily("gpupipe_batch_places", "Places of batches, filled or not.", labels=labels)
        cache = GaugeMetricFamily("gpupipe_cache_bytes", "Cached frames of characters.", labels=labels)
        free = GaugeMetricFamily("gpupipe_device_free_bytes", "Free memory of a GPU.", labels=labels)
        total = GaugeMetricFamily("gpupipe_device_total_bytes", "Memory of a GPU.", labels=labels)
        stages = HistogramMetricFamily(
            "gpupipe_stage_seconds", "Seconds a frame of a stage.", labels=["device", "stage"]
        )
        for place, engine in enumerate(self._hub.engines):
            gpu = engine.backend.gpu
            name = "cpu" if gpu is None else f"cuda:{gpu.index}"
            if name == "cpu" and place:
                name = f"cpu:{place}"
            departed = dict(engine.timetable.departed)
            below = [sum(number for size, number in departed.items() if size <= most) for most in BATCH_FRAMES]
            frames.add_metric(
                [name],
                _buckets(BATCH_FRAMES, below, sum(departed.values())),
                sum(size * number for size, number in departed.items()),
            )
            places.add_metric([name], engine.timetable.places)
            cache.add_metric([name], engine.holdings.residents.nbytes)
            if gpu is not None:
                free.add_metric([name], gpu.free_bytes)
                total.add_metric([name], gpu.total_bytes)
            for stage, (below, count, sum_ms) in engine.trace.below([each * 1e3 for each in STAGE_SECONDS]).items():
                stages.add_metric([name, stage], _buckets(STAGE_SECONDS, below, count), sum_ms / 1e3)
        yield from (frames, places, cache, free, total, stages)


def _gauge(name: str, meaning: str, value: float) -> Metric:
    return GaugeMetricFamily(name, meaning, value=value)


def _buckets(bounds: Sequence[float], below: Sequence[int], count: int) -> list[tuple[str, float]]:
    pairs = [(repr(float(bound)), float(found)) for bound, found in zip(bounds, below, strict=True)]
    return [*pairs, ("+Inf", float(count))]
