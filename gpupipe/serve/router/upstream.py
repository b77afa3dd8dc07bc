"""One HTTP request to a replica, its body and its answer in pieces as they come."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from contextlib import suppress
from types import TracebackType
from typing import Final

import httptools

from gpupipe.errors import reason
from gpupipe.serve.refusals import Gone

CONNECT_SECONDS: Final = 3.0
PIECE_BYTES: Final = 65_536
"""Read at a time; twice as many wait before a replica is waited with."""

Headers = list[tuple[bytes, bytes]]


class Unreachable(Gone):
    """A replica takes no connections: nothing of a request has reached it."""


class Exchange:
    """A request, and the answer to it, on a connection of its own: an async context manager.

    Args:
        host: of the replica.
        port: of its HTTP.
        method: such as "GET".
        target: path and query, as they stand in a request line.
        headers: of the request, without those that are about the connection.
        length: of its body in bytes; None: it has none; -1: not known, it comes in chunks.

    Attributes:
        path: that is asked for.
        status: of the answer, once it has begun.
        headers: likewise.

    Raises:
        Unreachable: by entering: the replica takes no connections.
        Gone: by reading: it has ended before its answer had.
    """

    def __init__(
        self,
        host: str,
        port: int,
        method: str,
        target: bytes,
        headers: Iterable[tuple[bytes, bytes]] = (),
        length: int | None = None,
    ) -> None:
        self._host, self._port, self._method = host, port, method
        self.path = target.partition(b"?")[0].decode("latin-1")
        self._chunked = length == -1
        named = f"[{host}]" if ":" in host else host
        lines = [
            method.encode() + b" " + target + b" HTTP/1.1",
            f"host: {named}:{port}".encode(),
            b"connection: close",
            *(name + b": " + value for name, value in headers),
        ]
        if length is not None:
            lines.append(b"transfer-encoding: chunked" if self._chunked else f"content-length: {length}".encode())
        self._head = b"\r\n".join([*lines, b"", b""])
        self.status = 0
        self.headers: Headers = []
        self._pieces: list[bytes] = []
        self._begun = self._complete = False
        self._parser = httptools.HttpResponseParser(self)

    async def __aenter__(self) -> Exchange:
        """Connect, and send the request's head."""
        try:
            async with asyncio.timeout(CONNECT_SECONDS):
                self._reader, self._writer = await asyncio.open_connection(self._host, self._port, limit=PIECE_BYTES)
        except (OSError, TimeoutError) as error:
            raise Unreachable(f"the replica cannot be reached: {reason(error)}", remedy="ask again later") from error
        self._writer.write(self._head)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the connection."""
        self._writer.transport.abort()

    async def send(self, body: AsyncIterator[bytes]) -> None:
        """Send the request's body. A replica that takes no more of it says why in its answer."""
        with suppress(OSError):
            async for data in body:
                if data:
                    self._writer.write(b"%x\r\n%b\r\n" % (len(data), data) if self._chunked else data)
                    await self._writer.drain()
            if self._chunked:
                self._writer.write(b"0\r\n\r\n")
                await self._writer.drain()

    async def begin(self) -> int:
        """Wait for the answer's head; its status."""
        while not self._begun:
            await self._read()
        return self.status

    async def body(self) -> AsyncIterator[bytes]:
        """The answer's body as it comes."""
        await self.begin()
        while True:
            if self._pieces:
                data = b"".join(self._pieces)
                self._pieces.clear()
                yield data
            if self._complete:
                return
            await self._read()

    async def whole(self, most: int) -> bytes:
        """All of the answer's body.

        Raises:
            Gone: it has more than `most` bytes, too.
        """
        held = bytearray()
        async for data in self.body():
            held += data
            if len(held) > most:
                raise Gone(f"a replica's answer has more than {most} bytes", remedy="see that it is one of gpupipe's")
        return bytes(held)

    async def _read(self) -> None:
        try:
            data = await self._reader.read(PIECE_BYTES)
            if not data:
                raise ConnectionResetError("it has closed the connection")
            self._parser.feed_data(data)
        except (OSError, httptools.HttpParserError) as error:
            raise Gone(f"the replica has ended in the middle: {reason(error)}", remedy="ask again") from error

    def on_header(self, name: bytes, value: bytes) -> None:
        """The parser has found a header."""
        self.headers.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        """The parser has found the end of the head."""
        self.status = self._parser.get_status_code()
        self._begun = True
        self._complete = self._method == "HEAD"

    def on_body(self, data: bytes) -> None:
        """The parser has found some of the body."""
        self._pieces.append(data)

    def on_message_complete(self) -> None:
        """The parser has found the answer's end."""
        self._complete = True
