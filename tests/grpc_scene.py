"""A gRPC server on the loopback, in a thread with an event loop of its own, and clients of its services."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import grpc
from google.protobuf.message_factory import GetMessageClass

from gpupipe.serve.grpc.server import grpc_server
from gpupipe.serve.hub import Hub
from gpupipe.serve.tokens import Tokens

NO_LIMIT = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]


@dataclass
class Counted:
    """Requests that have ended."""

    seen: list[tuple[str, str, str]] = field(default_factory=list)

    def requests(self, protocol: str, method: str, status: str) -> None:
        self.seen.append((protocol, method, status))


@contextmanager
def served(hub: Hub, tokens: tuple[str, ...] = (), counted: Counted | None = None) -> Iterator[grpc.Channel]:
    """A channel to a server of a hub."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()

    def run(work: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(work, loop).result(30)

    async def start() -> tuple[grpc.aio.Server, int]:
        server, port = await grpc_server(hub, Tokens(tokens), "127.0.0.1:0", metrics=counted or Counted())
        await server.start()
        return server, port

    try:
        server, port = run(start())
        try:
            with grpc.insecure_channel(f"127.0.0.1:{port}", options=NO_LIMIT) as channel:
                yield channel
        finally:
            run(server.stop(0))
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join(30)
        loop.close()


def method(channel: grpc.Channel, service: Any, name: str) -> Any:
    """What calls a method, given its service's descriptor; of streams, and of single messages."""
    of = service.methods_by_name[name]
    make = getattr(
        channel,
        f"{'stream' if of.client_streaming else 'unary'}_{'stream' if of.server_streaming else 'unary'}",
    )
    return make(
        f"/{service.full_name}/{name}",
        request_serializer=lambda message: message if isinstance(message, bytes) else message.SerializeToString(),
        response_deserializer=GetMessageClass(of.output_type).FromString,
    )
