"""Standard health checking, `grpc.health.v1`: serving, until the server is being shut down."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable
from typing import Any, Final

from grpc_health.v1 import health_pb2

from gpupipe.serve.grpc.handlers import only
from gpupipe.serve.refusals import NotFound, Refused

DESCRIPTOR: Final = health_pb2.DESCRIPTOR.services_by_name["Health"]

WATCH_SECONDS: Final = 1.0
"""Between two looks of one who watches."""

ASKING: Final = 32
"""Requests that are read at a time: who needs no token to ask must not keep others out, nor memory."""
READ_SECONDS: Final = 2.0
"""In which a request must have come."""

WATCHING: Final = 64
"""Who may watch at a time."""


class HealthService:
    """Its methods, as `handlers.handler_of` takes them.

    Args:
        services: those that there are, by their full names.
        closing: whether the server is being shut down.
    """

    def __init__(self, services: Iterable[str], closing: Callable[[], bool]) -> None:
        self._services, self._closing = {"", *services}, closing
        self._asking = self._watching = 0

    async def Check(self, requests: AsyncIterator[Any]) -> Any:
        """The status of a service, or with no name of the server."""
        request = await self._only(requests)
        if request.service not in self._services:
            raise NotFound("no such service", field="service", value=request.service)
        return health_pb2.HealthCheckResponse(status=self._status(request.service))

    async def List(self, requests: AsyncIterator[Any]) -> Any:
        """The status of every service."""
        await self._only(requests)
        statuses = {name: health_pb2.HealthCheckResponse(status=self._status(name)) for name in self._services}
        return health_pb2.HealthListResponse(statuses=statuses)

    async def Watch(self, requests: AsyncIterator[Any]) -> AsyncIterator[Any]:
        """The status of a service, and whenever it changes."""
        service, before = (await self._only(requests)).service, None
        if self._watching >= WATCHING:
            raise Refused(f"{WATCHING} watch already", remedy="use Check")
        self._watching += 1
        try:
            while True:
                if (status := self._status(service)) != before:
                    yield health_pb2.HealthCheckResponse(status=status)
                before = status
                await asyncio.sleep(WATCH_SECONDS)
        finally:
            self._watching -= 1

    async def _only(self, requests: AsyncIterator[Any]) -> Any:
        """The request, if there is room to read it."""
        if self._asking >= ASKING:
            raise Refused(f"{ASKING} ask at a time already", retry_after=1)
        self._asking += 1
        try:
            return await only(requests, READ_SECONDS)
        finally:
            self._asking -= 1

    def _status(self, service: str) -> Any:
        known = health_pb2.HealthCheckResponse
        if service not in self._services:
            return known.SERVICE_UNKNOWN
        return known.NOT_SERVING if self._closing() else known.SERVING
