"""A server's HTTP side on the loopback, for tests: uvicorn in a thread."""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import uvicorn

from gpupipe.serve.http.protocol import protocol


class Counted:
    """Stands for `metrics.Metrics`."""

    def __init__(self) -> None:
        self.seen: Counter[tuple[str, str, str]] = Counter()

    def requests(self, protocol: str, method: str, status: str) -> None:
        self.seen[protocol, method, status] += 1

    def text(self) -> tuple[bytes, str]:
        return b"gpupipe_info 1\n", "text/plain; version=0.0.4"


@contextmanager
def served(app: Any, idle_seconds: float = 30.0) -> Iterator[int]:
    """Serve an application; its port."""
    config = uvicorn.Config(
        app,
        port=0,
        http=protocol(idle_seconds),
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        timeout_graceful_shutdown=1,
    )
    server, started = uvicorn.Server(config), threading.Event()
    ports: list[int] = []

    async def run() -> None:
        serving = asyncio.create_task(server.serve())
        while not server.started and not serving.done():
            await asyncio.sleep(0.01)
        ports.append(server.servers[0].sockets[0].getsockname()[1])
        started.set()
        await serving

    thread = threading.Thread(target=lambda: asyncio.run(run()), daemon=True)
    thread.start()
    assert started.wait(10)
    try:
        yield ports[0]
    finally:
        server.should_exit = True
        thread.join(20)
    assert not thread.is_alive()
