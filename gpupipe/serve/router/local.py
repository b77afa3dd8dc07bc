"""Replicas that are processes of this machine: started with the router, again when they end, and ended with it."""

from __future__ import annotations

import asyncio
import logging
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, Final

from gpupipe.errors import GpupipeError
from gpupipe.log import Log
from gpupipe.serve.router.places import cores_of
from gpupipe.serve.router.replica import Place, Replica

STARTING_SECONDS: Final = 600.0
"""In which a replica is to listen."""
AGAIN_SECONDS: Final = (1.0, 30.0)
"""After which a replica that has ended is started again, at first and at most: each time twice as long."""
LAST_SECONDS: Final = 10.0
"""Which a replica has beyond the time that talks have to end in."""

_LISTENS: Final = re.compile(rb"listening at http://(\S+):(\d+)/ and, for gRPC, at (\S+):(\d+)")

_log = Log(__name__)


class LocalReplica:
    """A server in a process of its own.

    Args:
        replica: that it stands for.
        arguments: of its command line, after `gpupipe serve`.
        cores: on which it runs, where a process can be told so; None: on all.
    """

    def __init__(self, replica: Replica, arguments: Sequence[str], cores: set[int] | None) -> None:
        self._replica, self._arguments, self._cores = replica, list(arguments), cores
        self._process: asyncio.subprocess.Process | None = None
        self._ending = False

    async def start(self) -> None:
        """Start it, and wait until it listens.

        Raises:
            GpupipeError: it does not start.
        """
        # Apart from the terminal, so that what its keys send is the router's alone.
        group = getattr(subprocess, "CREATE_NEW_PROCESS_GROUP", 0)
        apart: dict[str, Any] = {"creationflags": group} if sys.platform == "win32" else {"start_new_session": True}
        self._process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "gpupipe.serve.router",
            "-" if self._cores is None else ",".join(map(str, sorted(self._cores))),
            *self._arguments,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            **apart,
        )
        output = self._process.stdout
        assert output is not None
        try:
            async with asyncio.timeout(STARTING_SECONDS):
                while line := await output.readline():
                    if (found := _LISTENS.search(line)) is not None:
                        host = _reached(found[1].decode().strip("[]"))
                        named = f"[{host}]" if ":" in host else host
                        await self._replica.move(Place(host, int(found[2]), f"{named}:{int(found[4])}"))
                        return
        except TimeoutError:
            self._process.kill()
        raise GpupipeError(f"replica {self._replica.number} did not start", remedy="see what it has written")

    async def keep(self) -> None:
        """Start it again whenever it ends, until it is to."""
        pause, most = AGAIN_SECONDS
        while not self._ending:
            assert self._process is not None
            began = asyncio.get_running_loop().time()
            code = await self._process.wait()
            if self._ending:
                return
            await self._replica.move(None)
            if asyncio.get_running_loop().time() - began > most:  # it had lived: it does not end at its start
                pause = AGAIN_SECONDS[0]
            _log.event("replica has ended", logging.WARNING, replica=self._replica.number, code=code, again=pause)
            await asyncio.sleep(pause)
            if not self._ending:
                with suppress(GpupipeError):  # then it has written why, and is tried again
                    await self.start()
            pause = min(2 * pause, most)

    def end(self) -> None:
        """Tell it to end: its standard input does."""
        self._ending = True
        if self._process is not None and self._process.stdin is not None:
            self._process.stdin.close()

    def kill(self) -> None:
        """End it at once."""
        self._ending = True
        if self._process is not None:
            with suppress(ProcessLookupError):
                self._process.kill()

    async def wait(self, seconds: float) -> None:
        """Wait for its end; after so many seconds it is killed."""
        if self._process is None:
            return
        try:
            async with asyncio.timeout(seconds):
                await self._process.wait()
        except TimeoutError:
            self.kill()
            await self._process.wait()


def _reached(host: str) -> str:
    """Where this machine reaches a server that listens on a host."""
    return {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)


def shares(replicas: int) -> list[set[int] | None]:
    """The cores of each replica; None: any, where the system cannot be told."""
    if not hasattr(os, "sched_getaffinity"):
        return [None] * replicas
    cores = sorted(os.sched_getaffinity(0))
    return [cores_of(cores, number, replicas) for number in range(replicas)]
