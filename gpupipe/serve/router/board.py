"""What a router knows of its replicas: it asks each every second, and leaves out those that do not answer."""

from __future__ import annotations

import asyncio
import random
import re
from collections import Counter
from collections.abc import Sequence
from typing import Final

from gpupipe.serve.refusals import Gone, NotFound, Refused
from gpupipe.serve.router.pick import turns
from gpupipe.serve.router.replica import Replica
from gpupipe.serve.router.upstream import Headers

LOOK_SECONDS: Final = 1.0
"""Between two looks at a replica."""
ANSWER_SECONDS: Final = 60.0
"""For which a replica is waited for that is asked what it has."""
_NAMED: Final = re.compile(r"(\d{1,4})-([A-Za-z0-9_-]{1,128})", re.ASCII)


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
