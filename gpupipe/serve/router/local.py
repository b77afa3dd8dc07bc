"""Replicas that are processes of this machine."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from gpupipe.errors import GpupipeError, OptionError
from gpupipe.log import Log
from gpupipe.options import EngineKeywords, ModelKeywords, ServeOptions
from gpupipe.serve.router.kept import STARTING_SECONDS, KeptReplica
from gpupipe.serve.router.places import arguments_of, cores_of, devices_of
from gpupipe.serve.router.process import apart, command, listened
from gpupipe.serve.router.replica import Place, Replica

_log = Log(__name__)


class LocalReplica(KeptReplica):
    """A server in a process of its own. It ends when its standard input does.

    Args:
        replica: that it stands for.
        arguments: of its command line, after `gpupipe serve`.
        cores: on which it runs, where a process can be told so; None: on all.
    """

    def __init__(self, replica: Replica, arguments: Sequence[str], cores: set[int] | None) -> None:
        super().__init__(replica)
        self._arguments, self._cores = list(arguments), cores
        self._process: asyncio.subprocess.Process | None = None

    async def _begin(self) -> Place:
        pipe = asyncio.subprocess.PIPE
        self._process = await asyncio.create_subprocess_exec(
            *command(self._arguments, self._cores), stdin=pipe, stdout=pipe, **apart()
        )
        output = self._process.stdout
        assert output is not None
        try:
            async with asyncio.timeout(STARTING_SECONDS):
                while line := await output.readline():
                    if (place := listened(line)) is not None:
                        return place
        except TimeoutError:
            self._process.kill()
        raise GpupipeError(f"replica {self.replica.number} did not start", remedy="see what it has written")

    async def _ended(self) -> int | str:
        return 0 if self._process is None else await self._process.wait()

    def _close(self) -> None:
        if self._process is not None and self._process.stdin is not None:
            self._process.stdin.close()

    def _kill(self) -> None:
        if self._process is not None:
            with suppress(ProcessLookupError):
                self._process.kill()

    def _tell(self, error: GpupipeError) -> None:
        # It has written why itself.
        _log.event("replica not started", logging.WARNING, replica=self.replica.number, error=str(error))


def local_replicas(
    count: int, folder: Path | None, options: ServeOptions, engine: EngineKeywords, model: ModelKeywords
) -> list[LocalReplica]:
    """So many replicas, not started yet, on free ports of the router's own address.

    Args:
        count: of them.
        folder: of the characters.
        options: of the router, and of its replicas.
        engine: of the replicas.
        model: likewise.

    Raises:
        OptionError: the folder is missing, or there are too few devices.
    """
    if folder is None:
        raise OptionError("is missing", field="CHARACTERS/", remedy="give a folder of character folders")
    devices = devices_of(str(engine.get("device", "auto")), count)
    found = []
    for number, (device, cores) in enumerate(zip(devices, shares(count), strict=True)):
        arguments = [str(folder), "--host", options.host, "--port", "0", "--grpc-port", "0"]
        if options.jobs is not None:
            arguments += ["--jobs", str(Path(options.jobs) / f"replica-{number}")]
        arguments += arguments_of(options, engine | {"device": device}, model)
        found.append(LocalReplica(Replica(number), arguments, cores))
    return found


def shares(replicas: int) -> list[set[int] | None]:
    """The cores of each replica; None: any, where the system cannot be told."""
    if not hasattr(os, "sched_getaffinity"):
        return [None] * replicas
    cores = sorted(os.sched_getaffinity(0))
    return [cores_of(cores, number, replicas) for number in range(replicas)]
