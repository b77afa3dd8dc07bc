"""What stands around every route: who may ask, what every answer says, counting, and errors that none has caught."""

from __future__ import annotations

import logging
import traceback
from collections.abc import Sequence
from http import HTTPStatus
from typing import Any, Final, Protocol

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gpupipe.log import Log
from gpupipe.serve.http.errors import INTERNAL, error_response
from gpupipe.serve.http.page import page_paths
from gpupipe.serve.listen import is_loopback
from gpupipe.serve.tokens import Tokens

CLIENT_GONE: Final = "499"
"""How a request is counted whose client has gone before it was answered."""

OPEN_TO_ALL: Final = frozenset({"/healthz", "/readyz", "/openapi.json"} | page_paths())
"""Paths that may be asked for without a token; every other wants one, whatever a route may make of it."""

SAID_ALWAYS: Final = {
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
    "x-frame-options": "DENY",
}

CORS: Final = {
    "access-control-allow-methods": "GET, HEAD, POST, DELETE, OPTIONS",
    "access-control-allow-headers": "authorization, content-type, range",
    "access-control-expose-headers": "gpupipe-talk, location, retry-after, content-range",
    "access-control-max-age": "600",
}

_log = Log(__name__)


class Counts(Protocol):
    """What is counted of requests, and told of all; see `metrics.Metrics`."""

    def requests(self, protocol: str, method: str, status: str) -> None:
        """Count a request."""

    def text(self) -> tuple[bytes, str]:
        """The exposition, and its content type."""


class Guard:
    """The outermost application.

    Args:
        app: what answers.
        tokens: wanted for every path but those of `OPEN_TO_ALL`.
        metrics: where requests are counted.
        cors: origins of other servers' pages that may ask; "*": all.
        loopback_only: whether to refuse who asks for another host than this machine by one of its own names. A page
            whose name somebody else lets lead to this machine is no other server's page to a browser.
    """

    def __init__(
        self,
        app: ASGIApp,
        tokens: Tokens,
        metrics: Counts,
        cors: Sequence[str] = (),
        *,
        loopback_only: bool = False,
    ) -> None:
        self._app, self._tokens, self._metrics, self._cors = app, tokens, metrics, tuple(cors)
        self._loopback_only = loopback_only

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, whatever happens."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        allowed = self._allowed_origin(headers)
        status: str | None = None

        async def sent(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = str(message["status"])
                said = MutableHeaders(scope=message)
                for name, value in SAID_ALWAYS.items():
                    said.setdefault(name, value)
                if allowed is not None:
                    said["access-control-allow-origin"] = allowed
                    said["access-control-expose-headers"] = CORS["access-control-expose-headers"]
                    said.add_vary_header("origin")
            await send(message)

        try:
            refusal = self._refusal(scope, headers, allowed)
            await (self._app if refusal is None else refusal)(scope, receive, sent)
        except ClientDisconnect:
            status = status or CLIENT_GONE
        except Exception:
            _log.event("request failed", logging.ERROR, path=scope["path"], error=traceback.format_exc())
            if status is None:
                await error_response(500, INTERNAL, {"connection": "close"})(scope, receive, sent)
            # Otherwise the answer ends without its end, which tells the client.
        finally:
            self._metrics.requests("http", _name(scope), status or CLIENT_GONE)

    def _refusal(self, scope: Scope, headers: Headers, allowed: str | None) -> Response | None:
        """The answer to who may not ask; None for all others."""
        path = scope["path"]
        origin = headers.get("origin")
        if self._loopback_only and not is_loopback(_host(headers.get("host", "localhost"))):
            remedy = "ask for localhost; or start the server with --token-file, or --insecure"
            return error_response(421, f"host: without a token only this machine may be asked; {remedy}")
        if scope["method"] == "OPTIONS" and allowed is not None and "access-control-request-method" in headers:
            return Response(status_code=HTTPStatus.NO_CONTENT, headers=CORS)
        # Without a token the browser of somebody on this machine could be made to ask by any page that is shown in it.
        if origin is not None and allowed is None and origin.partition("://")[2] != headers.get("host"):
            return error_response(403, "pages of other servers may not ask; start the server with --cors ORIGIN")
        if path not in OPEN_TO_ALL and not self._tokens.allows(headers.get("authorization")):
            remedy = "send the header Authorization: Bearer TOKEN with one of the server's tokens"
            shown = {"www-authenticate": "Bearer", "connection": "close"}
            return error_response(401, f"a token is wanted; {remedy}", shown)
        return None

    def _allowed_origin(self, headers: Headers) -> str | None:
        origin = headers.get("origin")
        return origin if origin is not None and (origin in self._cors or "*" in self._cors) else None


def _host(header: str) -> str:
    """A Host header's name or address, without the port."""
    host = header if header.endswith("]") else header.rpartition(":")[0] or header
    return host.lower().removesuffix(".")


def _name(scope: Scope) -> str:
    """A request's method and route, never what a client has written."""
    route: Any = scope.get("route")
    methods = (route.methods or ()) if isinstance(route, Route) else ()
    if not isinstance(route, Route) or scope["method"] not in methods:
        return "other"
    return f"{scope['method']} {route.path}"
