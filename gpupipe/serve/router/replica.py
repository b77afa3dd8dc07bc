"""One server behind a router: where it is, what it tells of itself, and what is sent to it."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

import grpc

from gpupipe.log import Log
from gpupipe.serve.refusals import Gone
from gpupipe.serve.router.pick import State
from gpupipe.serve.router.upstream import Exchange, Headers, Unreachable

SILENT_SECONDS: Final = 5.0
"""After which a replica that does not answer is left out."""
STATUS_BYTES: Final = 1 << 24
"""Of what a replica tells of itself, at most."""
LAST_SECONDS: Final = 5.0
"""In which calls to a replica that has ended are to end, as they do when the system closes its connections."""
KEEPALIVE_MS: Final = 15_000
"""After which a gRPC connection that is silent is asked whether its other end is still there."""

MODEL: Final = "model/"
"""Before a character's name: as the Go server's service draws it, whose frames are others."""

_log = Log(__name__)


@dataclass(frozen=True)
class Place:
    """Where a replica listens.

    Attributes:
        host: of its HTTP.
        port: of its HTTP.
        grpc: its address for gRPC, host:port.
    """

    host: str
    port: int
    grpc: str

    @property
    def url(self) -> str:
        """Of its HTTP."""
        return f"http://[{self.host}]:{self.port}" if ":" in self.host else f"http://{self.host}:{self.port}"


class Replica:
    """A server that sessions are sent to.

    Args:
        number: its place in the list.
        place: where it listens; None: nowhere yet.

    Attributes:
        told: what it told last; None: it does not answer, and is left out.
        under_way: sessions that go through the router now.
        sent: sessions that it has taken so far.
    """

    def __init__(self, number: int, place: Place | None = None) -> None:
        self.number = number
        self.told: dict[str, Any] | None = None
        self.under_way = self.sent = 0
        self._place = place
        self._new: list[tuple[float, str]] = []  # since it was asked: when, and of whom
        self._channel: Any = None

    @property
    def place(self) -> Place:
        """Where it listens.

        Raises:
            Unreachable: nowhere.
        """
        if self._place is None:
            raise Unreachable("the replica is not there", remedy="ask again later")
        return self._place

    async def move(self, place: Place | None) -> None:
        """It listens elsewhere from now on, or nowhere."""
        self.leave_out("it has ended" if place is None else None)
        self._place = place
        await self.close(LAST_SECONDS)

    @property
    def channel(self) -> Any:
        """Its gRPC channel."""
        if self._channel is None:
            options = [
                ("grpc.max_receive_message_length", -1),
                ("grpc.max_send_message_length", -1),
                ("grpc.keepalive_time_ms", KEEPALIVE_MS),
                ("grpc.initial_reconnect_backoff_ms", 200),
                ("grpc.max_reconnect_backoff_ms", 1000),
            ]
            self._channel = grpc.aio.insecure_channel(self.place.grpc, options=options)
        return self._channel

    @property
    def state(self) -> State:
        """As far as is known; of one that lives. Talks that came since it was asked are taken to load it as much as the
        others do."""
        told = self.told or {}
        sessions, new = int(told["sessions"]), len(self._new)
        load = told["load"] * (1 + new / sessions) if sessions else told["load"]
        return State(
            self.number,
            float(load),
            max(sessions + new, self.under_way),
            bool(told["room"]),
            frozenset([*told["loaded"], *(MODEL + name for name in told["models"]), *(name for _, name in self._new)]),
        )

    @contextmanager
    def session(self, character: str) -> Iterator[Callable[[], None]]:
        """A session goes through the router while the with block lasts; what it gives is called once it is let in."""
        mark = time.monotonic(), character
        self._new.append(mark)
        self.under_way += 1
        taken = False

        def take() -> None:
            nonlocal taken
            self.sent += not taken
            taken = True

        try:
            yield take
        finally:
            self.under_way -= 1
            if not taken and mark in self._new:
                self._new.remove(mark)

    @contextmanager
    def unless_unreachable(self) -> Iterator[None]:
        """If it cannot be reached, it is left out, and the with block ends."""
        try:
            yield
        except Unreachable as error:
            self.leave_out(str(error))

    def exchange(self, method: str, target: bytes, headers: Headers, length: int | None = None) -> Exchange:
        """A request to it; see `Exchange`."""
        place = self.place
        return Exchange(place.host, place.port, method, target, headers, length)

    async def look(self, headers: Headers) -> None:
        """Ask it how it is; whoever does not answer is left out."""
        began = time.monotonic()
        try:
            async with asyncio.timeout(SILENT_SECONDS), self.exchange("GET", b"/v1/status", headers) as exchange:
                status = await exchange.begin()
                found = json.loads(await exchange.whole(STATUS_BYTES))
                if status != 200 or not _is_status(found):
                    raise Gone(f"it answers with status {status}" if status != 200 else "it is no server of gpupipe's")
        except (Gone, TimeoutError, ValueError) as error:
            self.leave_out(str(error) or f"it has not answered for {SILENT_SECONDS:.0f} s")
            return
        self._new = [mark for mark in self._new if mark[0] >= began]
        if self.told is None:
            _log.event("replica is there", replica=self.number, url=self.place.url)
        self.told = found

    def leave_out(self, why: str | None) -> None:
        """Send nothing more to it, until it answers."""
        if self.told is not None and why is not None:
            _log.event("replica is left out", logging.WARNING, replica=self.number, why=why)
        self.told = None

    async def close(self, grace: float | None = None) -> None:
        """Close its channel, on which calls have so many seconds to end."""
        channel, self._channel = self._channel, None
        if channel is not None:
            await channel.close(grace)


def name_of(replica: Replica, name: str) -> str:
    """What clients call a job or a talk of a replica."""
    return f"{replica.number}-{name}"


def _is_status(found: Any) -> bool:
    kinds: dict[str, Any] = {
        "load": (int, float),
        "sessions": int,
        "most_sessions": int,
        "room": bool,
        "closing": bool,
        "loaded": list,
        "models": list,
        "devices": list,
        "talks": list,
    }
    return isinstance(found, dict) and all(isinstance(found.get(name), kind) for name, kind in kinds.items())
