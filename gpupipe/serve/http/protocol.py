"""uvicorn's HTTP protocol, with the limits that it has not: of a request's head, and of a client that does not read."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
import sys
from typing import Any, Final

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

HEAD_BYTES: Final = 65_536
"""Of a request line and its headers, of the headers behind a body, and of what is no body between two pieces of one."""

TOO_LARGE: Final = "The request's head is too large."

SENT_BYTES: Final = 524_288
"""That the system keeps for a client who has not taken them yet; left alone, Linux takes up to 4 MB for each."""

NO_LINGER: Final = struct.pack("hh" if sys.platform == "win32" else "ii", 1, 0)


def protocol(idle_seconds: float) -> type[asyncio.Protocol]:
    """The protocol for `uvicorn.Config(http=…)`.

    A connection ends whose request's head takes longer than `idle_seconds`, or is longer than `HEAD_BYTES`, as do the
    headers behind a body; whose request has not come whole `idle_seconds` after it was answered; or whose client has
    taken nothing of what is sent for `idle_seconds`.

    Args:
        idle_seconds: as in `ServeLimits`.
    """

    class Limited(HttpToolsProtocol):
        def __init__(self, *given: Any, **named: Any) -> None:
            super().__init__(*given, **named)
            self._head_bytes = 0
            self._in_head = True
            self._too_large = False
            self._head_timer: asyncio.TimerHandle | None = None
            self._rest_timer: asyncio.TimerHandle | None = None
            self._write_timer: asyncio.TimerHandle | None = None

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            with contextlib.suppress(OSError):
                self._socket().setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SENT_BYTES)
            self._begin_head()

        def connection_lost(self, exc: Exception | None) -> None:
            self._end_head()
            self._end_rest()
            self._write_again()
            super().connection_lost(exc)

        def data_received(self, data: bytes) -> None:
            self._head_bytes += len(data)
            if self._in_head and self._head_timer is None:
                self._head_timer = self.loop.call_later(idle_seconds, self._send_away)
            super().data_received(data)
            # What came with the end of a head, or with a piece of a body, was not counted here.
            if self._head_bytes > HEAD_BYTES and not self.transport.is_closing():
                if self._in_head:
                    self.send_400_response(TOO_LARGE)
                else:
                    self._send_away()

        def on_headers_complete(self) -> None:
            self._end_head()
            self._head_bytes = 0
            # A body, or another head, may have come with it: it is told by what was read.
            if len(self.url) + sum(len(name) + len(value) + 4 for name, value in self.headers) > HEAD_BYTES:
                self._too_large = True
                raise ValueError(TOO_LARGE)  # the parser stops, and a 400 is sent
            super().on_headers_complete()

        def send_400_response(self, msg: str) -> None:
            super().send_400_response(TOO_LARGE if self._too_large else msg)

        def on_body(self, body: bytes) -> None:
            self._head_bytes = 0
            super().on_body(body)

        def on_message_complete(self) -> None:
            super().on_message_complete()
            self._in_head, self._head_bytes = True, 0
            self._end_rest()

        def on_response_complete(self) -> None:
            # With none behind it, the last request is the one that was answered.
            if not self.pipeline and not self._in_head and self._rest_timer is None:
                self._rest_timer = self.loop.call_later(idle_seconds, self._send_away)
            super().on_response_complete()

        def pause_writing(self) -> None:
            super().pause_writing()
            if self._write_timer is None:
                self._write_timer = self.loop.call_later(idle_seconds, self._send_away)

        def resume_writing(self) -> None:
            self._write_again()
            super().resume_writing()

        def _send_away(self) -> None:
            """End the connection, with all that the system has still to send: who does not read would keep that."""
            with contextlib.suppress(OSError):
                self._socket().setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, NO_LINGER)
            self.transport.abort()

        def _socket(self) -> Any:
            return self.transport.get_extra_info("socket")

        def _begin_head(self) -> None:
            self._in_head, self._head_bytes = True, 0
            self._head_timer = self.loop.call_later(idle_seconds, self._send_away)

        def _end_head(self) -> None:
            self._in_head = False
            if self._head_timer is not None:
                self._head_timer.cancel()
                self._head_timer = None

        def _end_rest(self) -> None:
            if self._rest_timer is not None:
                self._rest_timer.cancel()
                self._rest_timer = None

        def _write_again(self) -> None:
            if self._write_timer is not None:
                self._write_timer.cancel()
                self._write_timer = None

    return Limited
