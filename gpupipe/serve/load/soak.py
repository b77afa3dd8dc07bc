"""Clients that come and go, break off, and send what is no message: nothing of them may stay, and nobody may notice."""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from hashlib import sha256
from pathlib import Path
from typing import Any, Final

import grpc
import numpy as np

from gpupipe.errors import GpupipeError
from gpupipe.media.sound import read_pcm
from gpupipe.serve.grpc import avatar_pb2 as pb
from gpupipe.serve.load.process import ServerProcess
from gpupipe.serve.load.talker import SPEAK

AT_A_TIME: Final = 8
IDLE: Final = 1000
"""Connections that say nothing, all the while."""

LEVELS: Final = 20
"""How often everything is counted."""

PATH: Final = f"/{SPEAK.containing_service.full_name}/{SPEAK.name}"

_KNOWN: Final = {"CANCELLED", "INVALID_ARGUMENT", "RESOURCE_EXHAUSTED", "NOT_FOUND", "UNIMPLEMENTED"}


def soak(
    folder: Path, *, sessions: int, told: Callable[[str], None], idle: int = IDLE, options: tuple[str, ...] = ()
) -> dict[str, Any]:
    """Let clients come to a server of its own, and count what it holds.

    A quarter of them break off somewhere, a quarter send bytes that are no messages or no sense; the others talk as
    fast as they are served, and their frames must be those of the first of them.

    Args:
        folder: the character's.
        sessions: how many come.
        told: is told how it goes.
        idle: connections that say nothing, meanwhile.
        options: more of the server's.

    Returns:
        As JSON: `levels`, `statuses` and `wrong`.

    Raises:
        GpupipeError: the server has ended, or somebody's frames are not his own.
    """
    pcm = np.concatenate(list(read_pcm(folder / "aud.wav")))[: 16_000 * 2]
    with ServerProcess(folder, ["--max-sessions", str(2 * AT_A_TIME), *options]) as server:
        run = _Soak(server, folder.resolve().name, (pcm * 32767).astype("<i2").tobytes(), told)
        return asyncio.run(run.all(sessions, idle))


class _Soak:
    def __init__(self, server: ServerProcess, character: str, sound: bytes, told: Callable[[str], None]) -> None:
        self._server, self._character, self._sound, self._told = server, character, sound, told
        self._statuses: Counter[str] = Counter()
        self._frames: str | None = None
        self._wrong = 0
        self._left = 0

    async def all(self, sessions: int, idle: int) -> dict[str, Any]:
        connections = [await _idle(self._server) for _ in range(idle)]
        levels: list[dict[str, Any]] = []
        await self._talk(random.Random(0), whole=True)  # which loads the character
        began, each = time.monotonic(), max(1, sessions // LEVELS)
        for first in range(0, sessions, each):
            self._left = min(each, sessions - first)
            await asyncio.gather(*(self._clients(random.Random(first * AT_A_TIME + n)) for n in range(AT_A_TIME)))
            found = self._server.levels() | {"sessions": first + each, "seconds": round(time.monotonic() - began, 1)}
            levels.append(found)
            self._told(", ".join(f"{name} {value}" for name, value in found.items()))
        for _, writer in connections:
            writer.close()
        if self._wrong:
            raise GpupipeError(f"{self._wrong} sessions got frames that are not those of the others")
        return {"levels": levels, "statuses": dict(self._statuses), "wrong": self._wrong}

    async def _clients(self, dice: random.Random) -> None:
        while self._left > 0:
            self._left -= 1
            kind = dice.random()
            if kind < 0.5:
                await self._talk(dice, whole=True)
            elif kind < 0.75:
                await self._talk(dice, whole=False)
            else:
                await self._rubbish(dice)

    async def _talk(self, dice: random.Random, *, whole: bool) -> None:
        breaks = dice.randrange(1, 40)
        digest, frames = sha256(), 0
        async with grpc.aio.insecure_channel(self._server.grpc, options=_LARGE) as channel:
            call = _speak(channel)
            try:
                await call.write(
                    pb.SpeakRequest(
                        config=pb.SpeakConfig(character=self._character, output=pb.OUTPUT_NV12)
                    ).SerializeToString()
                )
                await call.write(pb.SpeakRequest(audio=self._sound).SerializeToString())
                await call.write(pb.SpeakRequest(end=pb.SpeakEnd()).SerializeToString())
                await call.done_writing()
                async for data in call:
                    answer = pb.SpeakResponse.FromString(data)
                    if answer.WhichOneof("response") == "frame":
                        digest.update(answer.frame.data)
                        frames += 1
                    if not whole and frames >= breaks:
                        call.cancel()
                        self._statuses["broken off"] += 1
                        return
            except (grpc.RpcError, asyncio.CancelledError) as error:
                self._count(error)
                return
            self._statuses["OK"] += 1
            found = f"{frames} {digest.hexdigest()}"
            if self._frames is None:
                self._frames = found
            self._wrong += found != self._frames

    async def _rubbish(self, dice: random.Random) -> None:
        """Bytes that are no message, messages that make no sense, methods that there are not."""
        async with grpc.aio.insecure_channel(self._server.grpc, options=_LARGE) as channel:
            call = _speak(channel, PATH if dice.random() < 0.9 else "/gpupipe.v1.Avatar/Shout")
            with suppress(asyncio.CancelledError):
                try:
                    for _ in range(dice.randrange(1, 4)):
                        await call.write(self._nonsense(dice))
                    await call.done_writing()
                    async for _ in call:
                        pass
                except grpc.RpcError as error:
                    self._count(error)
                except asyncio.InvalidStateError:  # it was ended while more was written
                    self._statuses["ended early"] += 1

    def _nonsense(self, dice: random.Random) -> bytes:
        kind = dice.randrange(5)
        if kind == 0:
            return dice.randbytes(dice.randrange(200))
        if kind == 1:
            name = dice.choice(["../anna", "", "x" * 500, "nobody", "\0"])
            config = pb.SpeakConfig(character=name, output=dice.randrange(9), sample_rate=dice.randrange(-9, 10**9))  # type: ignore[arg-type]
            return bytes(pb.SpeakRequest(config=config).SerializeToString())
        if kind == 2:
            return bytes(pb.SpeakRequest(audio=dice.randbytes(999)).SerializeToString())
        config = pb.SpeakConfig(character=self._character, output=pb.OUTPUT_NV12)
        good = bytearray(pb.SpeakRequest(config=config).SerializeToString())
        if kind == 3:
            good[dice.randrange(len(good))] ^= 1 << dice.randrange(8)
        return bytes(good)

    def _count(self, error: BaseException) -> None:
        if isinstance(error, grpc.aio.AioRpcError):
            # What grpcio itself says where more is written to what the server has ended.
            ended = error.details() == "Internal error from Core"
            status = "ended early" if ended else error.code().name
            self._statuses[status] += 1
            if status not in _KNOWN and not ended:
                self._wrong += 1
                self._told(f"{status}: {error.details()}")


_LARGE: Final = [("grpc.max_receive_message_length", -1), ("grpc.use_local_subchannel_pool", 1)]


def _speak(channel: grpc.aio.Channel, path: str = PATH) -> Any:
    return channel.stream_stream(path)()


async def _idle(server: ServerProcess) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    host, _, port = server.http.removeprefix("http://").rpartition(":")
    return await asyncio.open_connection(host, int(port))
