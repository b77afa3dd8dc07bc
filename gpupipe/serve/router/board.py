"""What a router knows of its replicas: it asks each every second, and leaves out those that do not answer."""

from __future__ import annotations

import asyncio
import json
import logging
import random
import re
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

import grpc

from gpupipe.log import Log
from gpupipe.serve.refusals import Gone, NotFound, Refused
from gpupipe.serve.router.pick import State, turns
from gpupipe.serve.router.upstream import Exchange, Headers, Unreachable

LOOK_SECONDS: Final = 1.0
"""Between two looks at a replica."""
SILENT_SECONDS: Final = 5.0
"""After which a replica that does not answer is left out."""
ANSWER_SECONDS: Final = 60.0
"""For which a replica is waited for that is asked what it has."""
STATUS_BYTES: Final = 1 << 24
"""Of what a replica tells of itself, at most."""
KEEPALIVE_MS: Final = 15_000
"""After which a gRPC connection that is silent is asked whether its other end is still there."""

_NAMED: Final = re.compile(r"(\d{1,4})-([A-Za-z0-9_-]{1,128})", re.ASCII)

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
            Gone: nowhere.
        """
        if self._place is None:
            raise Gone("the replica is not there", remedy="ask again later")
        return self._place

    async def move(self, place: Place | None) -> None:
        """It listens elsewhere from now on, or nowhere."""
        self.leave_out("it has ended" if place is None else None)
        self._place = place
        await self.close()

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
            frozenset(told["loaded"]) | frozenset(character for _, character in self._new),
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

    async def close(self) -> None:
        """Close its channel."""
        channel, self._channel = self._channel, None
        if channel is not None:
            await channel.close()


class Board:
    """The replicas of a router.

    Args:
        replicas: all of them.
        token: one that they take; None: they want none.

    Attributes:
        closing: whether the router is being shut down.
        refused: sessions that were refused so far, by the reason: "room", "gone" or "closing".
        headers: what the router shows replicas where it asks for itself.
        metadata: the same, for gRPC.
    """

    def __init__(self, replicas: Sequence[Replica], token: str | None = None) -> None:
        self.replicas = tuple(replicas)
        self.closing = False
        self.refused: Counter[str] = Counter()
        self.headers: Headers = [] if token is None else [(b"authorization", f"Bearer {token}".encode())]
        self.metadata = [(name.decode(), value.decode()) for name, value in self.headers]
        self._random = random.Random()

    @property
    def up(self) -> list[Replica]:
        """Those that answer."""
        return [each for each in self.replicas if each.told is not None]

    @property
    def ready(self) -> bool:
        """Whether talks are taken."""
        return not self.closing and any(not (each.told or {})["closing"] for each in self.up)

    @property
    def under_way(self) -> int:
        """Sessions that go through the router."""
        return sum(each.under_way for each in self.replicas)

    async def watch(self) -> None:
        """Look at every replica, each at its own pace, for ever."""
        await asyncio.gather(*(self._watch(each) for each in self.replicas))

    async def look(self) -> None:
        """Look at every replica once."""
        await asyncio.gather(*(each.look(self.headers) for each in self.replicas))

    def turns(self, character: str) -> list[Replica]:
        """In which turn replicas are tried for a session.

        Raises:
            Refused: the router is being shut down, or no replica answers.
        """
        if self.closing:
            self.refused["closing"] += 1
            raise Refused("the server is being shut down", closing=True, remedy="ask another server")
        up = self.up
        if not up:
            self.refused["gone"] += 1
            raise Gone("none of the replicas answers", remedy="ask again later")
        return [self.replicas[number] for number in turns([each.state for each in up], character, self._dice)]

    def full(self, retry_after: int = 5) -> Refused:
        """What is told where no replica has room."""
        self.refused["room"] += 1
        return Refused("no replica has room for one more talk", retry_after=retry_after, remedy="ask again later")

    def named(self, name: str, what: str) -> tuple[Replica, str]:
        """The replica of something that a client calls by name, and what it calls it itself; see `name_of`.

        Raises:
            NotFound: no replica can have such a name.
        """
        found = _NAMED.fullmatch(name)
        if found is None or int(found[1]) >= len(self.replicas):
            raise NotFound(f"no such {what}", field=what, value=name[:80])
        return self.replicas[int(found[1])], found[2]

    def _dice(self, below: int) -> int:
        return self._random.randrange(below)

    async def _watch(self, replica: Replica) -> None:
        while True:
            await replica.look(self.headers)
            await asyncio.sleep(LOOK_SECONDS)

    async def close(self) -> None:
        """Close all channels."""
        for each in self.replicas:
            await each.close()


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
        "devices": list,
        "talks": list,
    }
    return isinstance(found, dict) and all(isinstance(found.get(name), kind) for name, kind in kinds.items())
