"""A router and servers in an event loop of their own, and clients of theirs."""

from __future__ import annotations

import asyncio
import queue
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import grpc
import httpx
from grpc_scene import NO_LIMIT, method

from gpupipe.serve.grpc import avatar_pb2 as pb
from gpupipe.serve.grpc.server import AVATAR
from gpupipe.serve.listen import Listening

TOKEN = "a-token-of-a-test-0001"
AUTHORIZATION = [("authorization", f"Bearer {TOKEN}")]
END = pb.SpeakRequest(end=pb.SpeakEnd())


class Scene:
    """Servers, each of which takes one talk, and a router before them, in an event loop of their own."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever)
        self._thread.start()
        self._open: list[tuple[asyncio.Event, Any]] = []

    def run(self, work: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(60)

    def start(self, work: Callable[..., Any], *given: Any) -> Listening:
        async def begin() -> Listening:
            ending, told = asyncio.Event(), self.loop.create_future()
            engine = {} if given[0] is None else {"device": "cpu"}
            task = asyncio.create_task(work(*given, engine, {}, told=told.set_result, ending=ending))
            await asyncio.wait({task, told}, return_when=asyncio.FIRST_COMPLETED)
            if task.done():
                await task
            self._open.append((ending, task))
            where: Listening = told.result()
            return where

        found: Listening = self.run(begin())
        return found

    def close(self) -> None:
        async def end() -> None:
            for ending, task in reversed(self._open):
                ending.set()
                await task

        try:
            self.run(end())
        finally:
            self.loop.call_soon_threadsafe(self.loop.stop)
            self._thread.join(30)
            self.loop.close()


class Client:
    """Asks a server, or the router."""

    def __init__(self, where: Listening, token: str | None = TOKEN) -> None:
        self.grpc = grpc.insecure_channel(f"127.0.0.1:{where.grpc_port}", options=NO_LIMIT)
        headers = {} if token is None else {"authorization": f"Bearer {token}"}
        self.http = httpx.Client(base_url=f"http://127.0.0.1:{where.port}", headers=headers, timeout=30)
        self.metadata = AUTHORIZATION if token else []

    def status(self) -> Any:
        return self.http.get("/v1/status").json()

    def until(self, name: str, value: Any) -> None:
        """Wait until the status says so."""
        until = time.monotonic() + 60
        while self.status()[name] != value:
            assert time.monotonic() < until, self.status()
            time.sleep(0.05)

    def speak(self, *requests: Any) -> Any:
        return method(self.grpc, AVATAR, "Speak")(iter(requests), metadata=self.metadata, timeout=60)

    @contextmanager
    def talk(self, character: str = "anna") -> Iterator[Any]:
        """A talk that has begun, and whose sound has not come."""
        sound: queue.Queue[Any] = queue.Queue()
        sound.put(config(character))
        call = method(self.grpc, AVATAR, "Speak")(iter(sound.get, None), metadata=self.metadata, timeout=60)
        try:
            assert next(call).header.width == 320
            yield call
        finally:
            call.cancel()
            sound.put(None)

    def close(self) -> None:
        self.http.close()
        self.grpc.close()


def config(character: str = "anna") -> Any:
    return pb.SpeakRequest(config=pb.SpeakConfig(character=character, output=pb.OUTPUT_NV12))
