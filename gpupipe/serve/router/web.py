"""The router's HTTP: the routes of a server, each of which leads to a replica."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from functools import partial
from http import HTTPStatus
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from gpupipe import __version__
from gpupipe.serve.http.app import API, guarded
from gpupipe.serve.http.guard import Counts
from gpupipe.serve.http.query import Query
from gpupipe.serve.http.uploads import Uploads
from gpupipe.serve.refusals import Gone, Refused
from gpupipe.serve.router.board import Board
from gpupipe.serve.router.relay import (
    JSON_BYTES,
    Change,
    answer,
    passed_on,
    pieces,
    renamed,
    retry_after,
    target,
    while_it_is_there,
)
from gpupipe.serve.router.replica import Replica
from gpupipe.serve.tokens import Tokens


class _App:
    """A route that answers by itself."""

    def __init__(self, work: Callable[[Request, Send], Awaitable[None]]) -> None:
        self._work = work

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._work(Request(scope, receive), send)


class Web:
    """What answers a router's clients over HTTP.

    Args:
        board: of the router.
        uploads: of the router.
    """

    def __init__(self, board: Board, uploads: Uploads) -> None:
        self._board, self._uploads = board, uploads

    def routes(self) -> list[Route]:
        """Those that lead to replicas."""
        character, job, talk = f"{API}/characters/{{id}}", f"{API}/jobs/{{id}}", f"{API}/talks/{{talk}}"
        return [
            Route(f"{API}/characters", _App(self._anywhere), methods=["GET"]),
            Route(character, _App(self._anywhere), methods=["GET"]),
            Route(f"{character}/picture", _App(self._anywhere), methods=["GET"]),
            Route(f"{character}/video", _App(self._video), methods=["POST"]),
            Route(f"{character}/offer", _App(self._offer), methods=["POST"]),
            Route(f"{API}/jobs", self._jobs, methods=["GET"]),
            Route(f"{API}/jobs", _App(self._submit), methods=["POST"]),
            Route(job, _App(partial(self._its_own, "job")), methods=["GET", "DELETE"]),
            Route(f"{job}/video", _App(partial(self._its_own, "job")), methods=["GET"]),
            Route(talk, _App(partial(self._its_own, "talk")), methods=["GET", "DELETE"]),
            Route(f"{talk}/audio", _App(self._audio), methods=["POST"]),
            Route(f"{API}/status", self._status, methods=["GET"]),
        ]

    async def _anywhere(self, request: Request, send: Send) -> None:
        """What every replica tells alike."""
        for replica in self._board.turns(request.path_params.get("id", "")):
            with replica.unless_unreachable():
                return await self._relay(request, send, replica, target(request))
        raise self._none()

    async def _video(self, request: Request, send: Send) -> None:
        await self._session(request, send, request.path_params["id"], None)

    async def _offer(self, request: Request, send: Send) -> None:
        await self._session(request, send, request.path_params["id"], "talk")

    async def _submit(self, request: Request, send: Send) -> None:
        query = request.scope["query_string"].decode("latin-1")
        character = Query(query, ("character", "start_frame", "frames", "sound", "crf")).text("character")
        await self._session(request, send, character, "id")

    async def _session(self, request: Request, send: Send, character: str, named: str | None) -> None:
        """Try one replica after the other, until one takes a request that comes with a body, or says what is wrong.

        Args:
            request: that is sent on.
            send: to its client.
            character: of it.
            named: what in the answer's JSON is the name of what was made, by which it is asked for later.
        """
        self._board.turns(character)  # before anything is read
        async with self._uploads.file(request) as path:
            length, waits = path.stat().st_size, list[int]()
            for replica in self._board.turns(character):
                with replica.unless_unreachable(), replica.session(character) as taken:
                    async with (
                        replica.exchange("POST", target(request), passed_on(request), length) as exchange,
                        while_it_is_there(request, exchange.send(pieces(path))),
                    ):
                        if await exchange.begin() == HTTPStatus.SERVICE_UNAVAILABLE:
                            waits.append(retry_after(exchange))
                            continue
                        taken()
                        change = None if named is None else partial(renamed, replica, named)
                        return await answer(send, exchange, self._number(replica), change)
        if not waits:
            raise self._none()
        raise self._board.full(min(waits))

    async def _audio(self, request: Request, send: Send) -> None:
        """Sound goes on as it comes, which may be as slowly as it is spoken."""
        replica, led = self._led(request, "talk")
        length = int(request.headers["content-length"]) if "content-length" in request.headers else -1
        async with (
            replica.exchange("POST", led, passed_on(request), length) as exchange,
            while_it_is_there(request, exchange.send(request.stream())),
        ):
            await answer(send, exchange, self._number(replica))

    async def _its_own(self, what: str, request: Request, send: Send) -> None:
        """What one replica knows: the one whose number its name begins with."""
        replica, led = self._led(request, what)
        key = "id" if what == "job" else "talk"
        own = request.path_params[key].partition("-")[2]
        await self._relay(request, send, replica, led, partial(renamed, replica, key, asked=own))

    async def _relay(
        self, request: Request, send: Send, replica: Replica, led: bytes, change: Change | None = None
    ) -> None:
        async with (
            replica.exchange(request.method, led, passed_on(request)) as exchange,
            while_it_is_there(request),
        ):
            await answer(send, exchange, self._number(replica), change)

    async def _jobs(self, request: Request) -> Response:
        """The jobs of all replicas that answer and take any."""
        found: list[dict[str, Any]] = []
        for replica in self._board.up:
            with suppress(Gone):
                async with replica.exchange("GET", target(request), passed_on(request)) as exchange:
                    if await exchange.begin() == 200:
                        jobs = json.loads(await exchange.whole(JSON_BYTES))["jobs"]
                        found += [renamed(replica, "id", job) for job in jobs]
        return JSONResponse({"jobs": sorted(found, key=lambda job: job["created"])})

    async def _status(self, _: Request) -> Response:
        """All replicas that answer, as one server: as loaded as they are on the average."""
        board = self._board
        told = [(each, each.told) for each in board.up if each.told is not None]
        talks = [
            talk | {"number": self._number(replica)(talk["number"])} for replica, one in told for talk in one["talks"]
        ]
        return JSONResponse(
            {
                "version": __version__,
                "closing": board.closing,
                "devices": [device for _, one in told for device in one["devices"]],
                "load": sum(one["load"] for _, one in told) / max(1, len(told)),
                "sessions": sum(one["sessions"] for _, one in told),
                "most_sessions": sum(one["most_sessions"] for _, one in told),
                "refused": board.refused.total(),
                "room": board.ready and any(one["room"] for _, one in told),
                "loaded": sorted({name for _, one in told for name in one["loaded"]}),
                "models": sorted({name for _, one in told for name in one["models"]}),
                "talks": talks,
            }
        )

    def _led(self, request: Request, what: str) -> tuple[Replica, bytes]:
        """The replica that a name leads to, and what is asked of it."""
        key = "id" if what == "job" else "talk"
        replica, name = self._board.named(request.path_params[key], what)
        if replica.told is None:
            raise Gone(f"the replica that holds the {what} does not answer", remedy="ask again later")
        end = request.url.path.rpartition(request.path_params[key])[2]
        query = request.scope["query_string"]
        return replica, f"{API}/{what}s/{name}{end}".encode() + (b"?" + query if query else b"")

    def _number(self, replica: Replica) -> Callable[[int], int]:
        """Makes of the number of a replica's talk one that no other replica's has."""
        return lambda number: number * len(self._board.replicas) + replica.number

    def _none(self) -> Refused:
        self._board.refused["gone"] += 1
        return Gone("none of the replicas answers", remedy="ask again later")


def application(
    board: Board,
    tokens: Tokens,
    uploads: Uploads,
    *,
    metrics: Counts,
    cors: Sequence[str] = (),
    loopback_only: bool = False,
) -> Starlette:
    """The application that uvicorn serves; the arguments are those of `http.app.application`."""
    return guarded(
        Web(board, uploads).routes(),
        lambda: None if board.ready else "the server is being shut down" if board.closing else "no replica takes talks",
        tokens,
        metrics=metrics,
        cors=cors,
        loopback_only=loopback_only,
    )
