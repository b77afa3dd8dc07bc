"""The routes of a server, and what stands around them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Final

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from gpupipe.errors import GpupipeError
from gpupipe.serve.http.characters import Characters
from gpupipe.serve.http.errors import error_response, on_error, on_http_exception
from gpupipe.serve.http.guard import Counts, Guard
from gpupipe.serve.http.jobs import JobRoutes
from gpupipe.serve.http.openapi import document
from gpupipe.serve.http.page import page_routes
from gpupipe.serve.http.uploads import Uploads
from gpupipe.serve.http.video import Video
from gpupipe.serve.hub import Hub
from gpupipe.serve.jobs import Jobs
from gpupipe.serve.tokens import Tokens

API: Final = "/v1"


def application(
    hub: Hub,
    tokens: Tokens,
    jobs: Jobs | None,
    *,
    metrics: Counts,
    uploads: Uploads | None = None,
    extra: Sequence[Route] = (),
    cors: Sequence[str] = (),
    loopback_only: bool = False,
) -> Starlette:
    """The application that uvicorn serves, with `protocol.protocol` for its connections.

    Args:
        hub: of the server.
        tokens: wanted for all but the page and what tells of the server's health, see `guard.OPEN_TO_ALL`.
        jobs: renders to files; None: there are none.
        metrics: told of each request, and told by `/metrics`.
        uploads: shared with the `extra` routes that take bodies; None: there are no such routes.
        extra: more routes, such as WebRTC's.
        cors: origins of other servers' pages that may ask, such as `https://example.org`; "*": all.
        loopback_only: refuse who asks for another host than this machine, see `guard.Guard`.
    """
    characters, uploads = Characters(hub), uploads or Uploads(hub.limits)
    routes = [
        Route(f"{API}/characters", characters.every),
        Route(f"{API}/characters/{{id}}", characters.one),
        Route(f"{API}/characters/{{id}}/picture", characters.picture),
        Route(f"{API}/characters/{{id}}/video", Video(hub, uploads), methods=["POST"]),
        Route(f"{API}/status", characters.status),
        *(JobRoutes(hub, jobs, uploads).routes(API) if jobs is not None else ()),
        *extra,
    ]
    return guarded(
        routes,
        lambda: "the server is being shut down" if hub.closing else None,
        tokens,
        metrics=metrics,
        cors=cors,
        loopback_only=loopback_only,
    )


def guarded(
    routes: Sequence[Route],
    why_not: Callable[[], str | None],
    tokens: Tokens,
    *,
    metrics: Counts,
    cors: Sequence[str],
    loopback_only: bool,
) -> Starlette:
    """Routes behind the guard, with the page and what tells of the server beside them.

    Args:
        routes: whatever else there is.
        why_not: says why nobody can be taken in, for `/readyz`; None: they can.
        tokens: as in `application`, as all others.
    """

    async def readyz(_: Request) -> Response:
        why = why_not()
        return JSONResponse({"status": "ready"}) if why is None else error_response(503, why)

    every = [
        *routes,
        Route("/healthz", _healthz),
        Route("/readyz", readyz),
        Route("/metrics", partial(_metrics, metrics)),
        *page_routes(),
    ]
    text = document([*every, Route("/openapi.json", _healthz)], tokens_wanted=tokens.wanted)
    every.append(Route("/openapi.json", partial(_openapi, text)))
    return Starlette(
        routes=every,
        middleware=[Middleware(Guard, tokens, metrics, cors, loopback_only=loopback_only)],
        exception_handlers={GpupipeError: on_error, HTTPException: on_http_exception},
    )


async def _healthz(_: Request) -> Response:
    return JSONResponse({"status": "ok"})


async def _metrics(metrics: Counts, _: Request) -> Response:
    text, kind = metrics.text()
    return Response(text, headers={"content-type": kind})


async def _openapi(text: dict[str, object], _: Request) -> Response:
    return JSONResponse(text)
