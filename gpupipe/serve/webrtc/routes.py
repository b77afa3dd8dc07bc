"""WebRTC's routes: an offer, sound that is pushed, how it goes, and the end."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any, Final, Protocol

import numpy as np
from numpy.typing import NDArray
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from gpupipe.serve.http.query import Query
from gpupipe.serve.http.uploads import Uploads
from gpupipe.serve.hub import Hub
from gpupipe.serve.refusals import BadRequest, Silent, TooLarge
from gpupipe.serve.tokens import Tokens
from gpupipe.serve.webrtc.peers import Connected
from gpupipe.serve.webrtc.sound import RATES, checked_encoding, file_sound, raw_sound

OFFER_BYTES: Final = 200_000
"""Of an offer, at most: a browser's has 10 kB."""


class Counts(Protocol):
    """What requests are counted by; see `metrics.Metrics`."""

    def requests(self, protocol: str, method: str, status: str) -> None:
        """Count a request."""


class Peers:
    """WebRTC's part of a server.

    Args:
        hub: of the server.
        metrics: told of each peer that came.
        uploads: of the server.
        host: where the server listens, and so where peers find it.
    """

    def __init__(self, hub: Hub, metrics: Counts, uploads: Uploads, *, host: str) -> None:
        self._hub, self._metrics, self._uploads = hub, metrics, uploads
        self.connected = Connected(hub, host)

    def routes(self, tokens: Tokens) -> list[Route]:
        """The routes. What asks for one of the tokens, and tells errors, stands around all of a server's routes:
        `http.app.application`."""
        del tokens
        return [
            Route("/v1/characters/{id}/offer", self.offer, methods=["POST"]),
            Route("/v1/talks/{talk}/audio", self.audio, methods=["POST"]),
            Route("/v1/talks/{talk}", self.talk, methods=["GET", "DELETE"]),
        ]

    async def aclose(self) -> None:
        """End every peer."""
        await self.connected.aclose()

    async def offer(self, request: Request) -> Response:
        """A session description in, another out, and the key of the talk."""
        Query(request.url.query, ())
        sdp = await self._offered(request)
        client = request.client.host if request.client is not None else None
        key, answer = await self.connected.answer(request.path_params["id"], sdp, client)
        self._metrics.requests("webrtc", "offer", "answered")
        return JSONResponse({"sdp": answer.sdp, "type": answer.type, "talk": key})

    async def audio(self, request: Request) -> Response:
        """Sound that a peer's character says, once what is said before it has ended; answered when all is taken."""
        fields = Query(request.url.query, ("encoding", "rate"))
        peer = self.connected.get(request.path_params["talk"])
        rate = fields.whole("rate", *RATES)
        sound: AsyncGenerator[NDArray[np.float32]]
        if rate is not None:
            sound = raw_sound(request, checked_encoding(fields.text("encoding")), rate, self._hub.limits)
        else:
            limits = self._hub.engines[0].limits
            sound = file_sound(request, self._uploads, limits, self._hub.limits.seconds, self._hub.hearing)
        async with aclosing(sound):
            return JSONResponse({"seconds": await peer.say(sound)})

    async def talk(self, request: Request) -> Response:
        """How a talk goes; or its end."""
        key = request.path_params["talk"]
        peer = self.connected.get(key)
        if request.method == "DELETE":
            self.connected.end(key, "its client has said so")
            return Response(status_code=204)
        stage = peer.stage
        return JSONResponse(
            {
                "character": peer.order.character,
                "state": peer.connection.connectionState,
                "speaking": stage.busy,
                "ticks": stage.ticks,
                "pictures": peer.show.pictures,
                "late": stage.late,
                "waited": stage.waited,
            }
        )

    async def _offered(self, request: Request) -> str:
        held = bytearray()
        try:
            async with asyncio.timeout(self._hub.limits.idle_seconds):
                async for data in request.stream():
                    held += data
                    if len(held) > OFFER_BYTES:
                        raise TooLarge(f"is larger than {OFFER_BYTES} bytes", field="body", remedy="send an offer")
        except TimeoutError as error:
            raise Silent("the body comes too slowly", field="body", remedy="send it faster") from error
        remedy = 'send {"type": "offer", "sdp": "…"}'
        try:
            said: Any = json.loads(held)
        except (ValueError, RecursionError) as error:
            raise BadRequest("is no JSON", field="body", remedy=remedy) from error
        if not isinstance(said, dict) or said.get("type") != "offer" or not isinstance(said.get("sdp"), str):
            raise BadRequest("is no offer", field="body", remedy=remedy)
        sdp: str = said["sdp"]
        return sdp
