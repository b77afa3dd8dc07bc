"""What Prometheus is told of a router."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from gpupipe import __version__
from gpupipe.machine import rss_bytes
from gpupipe.serve.counted import Counted
from gpupipe.serve.router.board import Board


class RouterMetrics(Counted):
    """The metrics of a router.

    Args:
        board: of the router.
    """

    def __init__(self, board: Board) -> None:
        super().__init__(_Reader(board))


class _Reader(Collector):
    """Reads a board when Prometheus asks."""

    def __init__(self, board: Board) -> None:
        self._board = board

    def describe(self) -> list[Metric]:
        """Nothing, so that registering reads nothing."""
        return []

    def collect(self) -> Iterator[Metric]:
        """Every metric but the requests."""
        info = GaugeMetricFamily("gpupipe_info", "Which version runs: always 1.", labels=["version"])
        info.add_metric([__version__], 1)
        yield info
        yield GaugeMetricFamily("gpupipe_resident_bytes", "Memory that the process holds.", value=rss_bytes())
        up = GaugeMetricFamily("gpupipe_replica_up", "Whether a replica answers.", labels=["replica"])
        load = GaugeMetricFamily("gpupipe_replica_load", "A replica's load, as it told it last.", labels=["replica"])
        through = GaugeMetricFamily("gpupipe_replica_sessions", "Sessions through the router.", labels=["replica"])
        sent = CounterMetricFamily("gpupipe_replica_sent", "Sessions that a replica has taken.", labels=["replica"])
        for each in self._board.replicas:
            name = [str(each.number)]
            up.add_metric(name, each.told is not None)
            if each.told is not None:
                load.add_metric(name, each.told["load"])
            through.add_metric(name, each.under_way)
            sent.add_metric(name, each.sent)
        yield from (up, load, through, sent)
        refused = CounterMetricFamily("gpupipe_refusals", "Sessions that were refused.", labels=["reason"])
        for reason in ("room", "gone", "closing"):
            refused.add_metric([reason], self._board.refused[reason])
        yield refused
