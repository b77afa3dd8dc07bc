"""Requests, counted for Prometheus beside what is read when it asks: of a server, and of a router."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from prometheus_client.registry import Collector


class Counted:
    """Metrics in a registry of their own, so that several servers may live in one process.

    Args:
        reader: of every metric but the requests.
    """

    def __init__(self, reader: Collector) -> None:
        self._registry = CollectorRegistry()
        self._registry.register(reader)
        self._requests = Counter(
            "gpupipe_requests",
            "Requests that were answered.",
            ("protocol", "method", "status"),
            registry=self._registry,
        )

    def requests(self, protocol: str, method: str, status: str) -> None:
        """Count a request that was answered.

        Args:
            protocol: "http", "grpc" or "webrtc".
            method: which of the server's own methods or routes, never what a client has written.
            status: as its protocol calls it: "200", "RESOURCE_EXHAUSTED".
        """
        self._requests.labels(protocol, method, status).inc()

    def text(self) -> tuple[bytes, str]:
        """All of them in Prometheus's text format, and its content type."""
        return generate_latest(self._registry), CONTENT_TYPE_LATEST
