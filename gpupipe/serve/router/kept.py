"""Replicas that the router has: started with it, again when they end, and ended with it."""

from __future__ import annotations

import asyncio
import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Final

from gpupipe.errors import GpupipeError
from gpupipe.log import Log
from gpupipe.serve.router.replica import Place, Replica
from gpupipe.serve.tokens import Tokens

STARTING_SECONDS: Final = 600.0
"""In which a replica is to listen."""
AGAIN_SECONDS: Final = (1.0, 30.0)
"""After which a replica that has ended is started again, at first and at most: each time twice as long."""
LAST_SECONDS: Final = 10.0
"""Which a replica has beyond the time that talks have to end in."""
KILLED_SECONDS: Final = 10.0
"""In which one that was killed is to be seen to have ended."""

_log = Log(__name__)


class KeptReplica(ABC):
    """A server that is started and kept, wherever it is. Its methods belong to one event loop.

    Args:
        replica: that it stands for.

    Attributes:
        replica: likewise.
    """

    def __init__(self, replica: Replica) -> None:
        self.replica = replica
        self._ending = False

    async def start(self) -> None:
        """Start it, and wait until it listens.

        Raises:
            GpupipeError: it does not start.
        """
        place = await self._begin()
        await self.replica.move(place)
        if self._ending:  # it was told while it started
            self._close()

    async def keep(self) -> None:
        """Start it again whenever it ends, until it is to."""
        pause, most = AGAIN_SECONDS
        while not self._ending:
            began = asyncio.get_running_loop().time()
            how = await self._ended()
            if self._ending:
                return
            await self.replica.move(None)
            if asyncio.get_running_loop().time() - began > most:  # it had lived: it does not end at its start
                pause = AGAIN_SECONDS[0]
            _log.event("replica has ended", logging.WARNING, replica=self.replica.number, code=how, again=pause)
            await asyncio.sleep(pause)
            if not self._ending:
                try:
                    await self.start()
                except GpupipeError as error:  # it is tried again, unless that was why
                    if not self._ending:
                        self._tell(error)
            pause = min(2 * pause, most)

    def end(self) -> None:
        """Tell it to end, with its talks."""
        self._ending = True
        self._close()

    def kill(self) -> None:
        """End it at once."""
        self._ending = True
        self._kill()

    async def wait(self, seconds: float) -> None:
        """Wait for its end; after so many seconds it is killed."""
        for last in (seconds, KILLED_SECONDS):
            try:
                async with asyncio.timeout(last):
                    await self._ended()
                return
            except TimeoutError:
                self.kill()

    @abstractmethod
    async def _begin(self) -> Place:
        """Start it, and wait until it listens: where. Raises GpupipeError."""

    @abstractmethod
    async def _ended(self) -> int | str:
        """Wait until it has ended, unless it was never there: with which status, or how."""

    @abstractmethod
    def _close(self) -> None:
        """Tell it to end, if it is there."""

    @abstractmethod
    def _kill(self) -> None:
        """End it at once, if it is there."""

    @abstractmethod
    def _tell(self, error: GpupipeError) -> None:
        """Let people know that it was not started again."""


Launch = Callable[[Tokens], Sequence[KeptReplica]]
"""Makes the replicas of a router, which want its tokens; they are not started yet."""
