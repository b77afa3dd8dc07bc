"""What goes through a router over HTTP: a request as it is sent on, and an answer as it comes."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager, suppress
from http import HTTPStatus
from pathlib import Path
from typing import Any, Final

from starlette.requests import ClientDisconnect, Request
from starlette.types import Send

from gpupipe.log import Log
from gpupipe.serve.refusals import Gone
from gpupipe.serve.router.replica import Replica, name_of
from gpupipe.serve.router.upstream import Exchange, Headers

JSON_BYTES: Final = 1 << 24
"""Of an answer that is changed on its way, at most."""
PIECE_BYTES: Final = 1 << 18
"""Of a file, read at a time."""

_PASSED_ON: Final = frozenset(
    {b"authorization", b"content-type", b"accept", b"range", b"if-range", b"if-none-match", b"if-modified-since"}
)
"""Headers of a request that a replica is told; its origin has been looked at here."""
_KEPT_BACK: Final = frozenset({b"connection", b"keep-alive", b"transfer-encoding", b"date", b"server", b"vary"})
"""Headers of an answer that are about a replica's own connection, or are said here."""

Change = Callable[[Any], Any]
"""What is made of an answer's JSON."""

_log = Log(__name__)


def target(request: Request) -> bytes:
    """A request's path and query, as they came."""
    path: bytes = request.scope["raw_path"]
    query: bytes = request.scope["query_string"]
    return path + (b"?" + query if query else b"")


def passed_on(request: Request) -> Headers:
    """The headers of a request that a replica is told."""
    return [(name, value) for name, value in request.scope["headers"] if name in _PASSED_ON]


def retry_after(exchange: Exchange) -> int:
    """After how many seconds a replica that has no room may be asked again."""
    said = dict(exchange.headers).get(b"retry-after", b"")
    return int(said) if said.isdigit() else 5


def renamed(replica: Replica, key: str, told: dict[str, Any], asked: str | None = None) -> dict[str, Any]:
    """An answer's JSON with the name that clients know; in an error, with that of what was `asked` for."""
    if key in told:
        return told | {key: name_of(replica, str(told[key]))}
    if asked is not None and "error" in told:
        own, known = (f"(got {name!r})" for name in (asked, name_of(replica, asked)))
        return told | {"error": str(told["error"]).replace(own, known)}
    return told


async def pieces(path: Path) -> AsyncIterator[bytes]:
    """A file's bytes."""
    with path.open("rb") as file:
        while data := await asyncio.to_thread(file.read, PIECE_BYTES):
            yield data


@asynccontextmanager
async def while_it_is_there(request: Request, first: Coroutine[Any, Any, None] | None = None) -> AsyncIterator[None]:
    """Do something first, beside the async with block, which ends when the request's client has gone.

    Raises:
        ClientDisconnect: it has gone.
    """
    block = asyncio.current_task()
    assert block is not None
    gone = False

    async def watch() -> None:
        nonlocal gone
        try:
            if first is not None:
                await first
            while (await request.receive())["type"] != "http.disconnect":
                pass
        except ClientDisconnect:
            pass
        gone = True
        block.cancel()

    watching = asyncio.create_task(watch())
    try:
        yield
    except asyncio.CancelledError:
        if gone and block.uncancel() == 0:
            raise ClientDisconnect from None
        raise
    finally:
        watching.cancel()
        await asyncio.wait({watching})


async def answer(send: Send, exchange: Exchange, number: Callable[[int], int], change: Change | None = None) -> None:
    """Send a replica's answer on as it comes; if it breaks off, this does.

    Args:
        send: to the client.
        exchange: with the replica.
        number: makes a talk's number of the replica's.
        change: made of an answer's JSON, if it is some; None: the answer goes on as it is.

    Raises:
        Gone: the replica has ended before the answer had begun.
    """
    status = await exchange.begin()
    headers = [(name, value) for name, value in exchange.headers if name not in _KEPT_BACK]
    if change is not None and dict(headers).get(b"content-type") == b"application/json":
        told = change(json.loads(await exchange.whole(JSON_BYTES)))
        data = json.dumps(told, ensure_ascii=False, separators=(",", ":")).encode()
        headers = [(name, value) for name, value in headers if name not in (b"content-length", b"location")]
        headers.append((b"content-length", str(len(data)).encode()))
        if status == HTTPStatus.ACCEPTED:
            headers.append((b"location", f"/v1/jobs/{told['id']}".encode()))
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": data})
        return
    talk = b"gpupipe-talk"
    headers = [(name, str(number(int(value))).encode() if name == talk else value) for name, value in headers]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    try:
        async for data in exchange.body():
            await send({"type": "http.response.body", "body": data, "more_body": True})
    except Gone as error:
        _log.event("answer broken off", logging.WARNING, path=exchange.path, error=str(error))
        return  # without the answer's end, which tells the client
    with suppress(OSError):
        await send({"type": "http.response.body", "body": b"", "more_body": False})
