"""What serves a crowd: a hub in this process, without a network, or a server in a process of its own, over gRPC."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from pathlib import Path

import grpc

from gpupipe.serve.hub import Hub
from gpupipe.serve.load.crowd import Together, crowd
from gpupipe.serve.load.process import ServerProcess, fill
from gpupipe.serve.load.talker import Said, of_hub, over_grpc


class WithoutNetwork:
    """Crowds of a hub in this process. A context manager, which gives what lets a crowd come.

    Args:
        folder: of the characters.
        said: what every client says.
        most_load: of the hub; 1 lets everybody in.
    """

    def __init__(self, folder: Path, said: Said, *, most_load: float) -> None:
        self._hub = Hub(folder, ["cpu"], {}, {}, most_load=most_load)
        self._hub.load(said.character)
        self._said = said

    def __enter__(self) -> Callable[[int], Together]:
        """Begin a with block, which closes the hub."""
        return self._tried

    def __exit__(self, *_: object) -> None:
        """Close it."""
        self._hub.close()

    def _tried(self, clients: int) -> Together:
        engine = self._hub.engines[0]
        frames, places, cpu = engine.timetable.frames, engine.timetable.places, time.process_time()
        found = asyncio.run(crowd(self._said, of_hub(self._hub), clients))
        filled = engine.timetable.frames - frames
        places = engine.timetable.places - places
        cores = (time.process_time() - cpu) / self._said.seconds
        return found.measured(batch_fill=filled / places if places else None, cores=round(cores, 2))


class OverNetwork:
    """Crowds of a server, over gRPC on the loopback. A context manager, which gives what lets a crowd come.

    Args:
        folder: of the characters.
        said: what every client says.
        most_load: of the server.
    """

    def __init__(self, folder: Path, said: Said, *, most_load: float) -> None:
        self._server = ServerProcess(folder, ["--most-load", str(most_load)])
        self._said = said

    def __enter__(self) -> Callable[[int], Together]:
        """Begin a with block, which ends the server."""
        return self._tried

    def __exit__(self, *_: object) -> None:
        """End it."""
        self._server.close()

    def _tried(self, clients: int) -> Together:
        server = self._server
        before, cpu = server.metrics(), server.cpu_seconds()
        found = asyncio.run(self._crowd(clients))
        cores = (server.cpu_seconds() - cpu) / self._said.seconds
        return found.measured(batch_fill=fill(before, server.metrics()), cores=round(cores, 2))

    async def _crowd(self, clients: int) -> Together:
        options = [("grpc.max_receive_message_length", -1)]
        async with grpc.aio.insecure_channel(self._server.grpc, options=options) as channel:
            return await crowd(self._said, over_grpc(channel), clients)
