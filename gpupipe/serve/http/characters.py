"""Who can speak, what they look like, and how busy the server is."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from dataclasses import asdict
from typing import Any, Final

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from gpupipe import __version__
from gpupipe.character.folder import Character
from gpupipe.colour import PixelFormat
from gpupipe.errors import GpupipeError
from gpupipe.log import Log
from gpupipe.media.images import jpeg
from gpupipe.media.video import read_frames
from gpupipe.seen import Seen, seen
from gpupipe.serve.batches import PIXEL_FORMAT
from gpupipe.serve.characters import Listed
from gpupipe.serve.http.errors import told
from gpupipe.serve.hub import Hub

PICTURES: Final = 64
"""Characters whose picture is kept in memory, of some 30 kB each."""
PICTURE_SIDE: Final = 640
PICTURE_QUALITY: Final = 85

_log = Log(__name__)


class Characters:
    """The routes of characters, and of the server's state.

    Args:
        hub: of the server.
    """

    def __init__(self, hub: Hub) -> None:
        self._hub = hub
        self._pictures: OrderedDict[tuple[str, Seen], bytes] = OrderedDict()

    async def every(self, _: Request) -> Response:
        """All characters; those whose folders are wrong apart, with what is wrong."""
        return JSONResponse(await asyncio.get_running_loop().run_in_executor(self._hub.opening, self._every))

    async def one(self, request: Request) -> Response:
        """A character."""
        name = request.path_params["id"]
        listed = await asyncio.get_running_loop().run_in_executor(self._hub.opening, self._hub.characters.listed, name)
        return JSONResponse(_character(listed))

    async def picture(self, request: Request) -> Response:
        """A character's first frame, as a JPEG."""
        name = request.path_params["id"]
        data = await asyncio.get_running_loop().run_in_executor(self._hub.opening, self._picture, name)
        return Response(data, media_type="image/jpeg", headers={"cache-control": "private, max-age=300"})

    async def status(self, _: Request) -> Response:
        """How busy the server is, and each talk under way."""
        hub = self._hub
        talks = sorted(hub.talks, key=lambda talk: talk.number)
        return JSONResponse(
            {
                "version": __version__,
                "closing": hub.closing,
                "devices": [engine.device for engine in hub.engines],
                "load": hub.load_share(),
                "sessions": len(talks),
                "most_sessions": hub.limits.sessions,
                "refused": hub.refused,
                "room": hub.seats.room,
                **await asyncio.to_thread(self._loaded),
                "talks": [
                    {
                        "number": talk.number,
                        "character": talk.order.character,
                        "output": talk.order.output,
                        "realtime": talk.order.realtime,
                        "seconds": talk.seconds,
                        "frames": talk.pictures_given,
                        "late": talk.late + talk.dropped,
                    }
                    for talk in talks
                ],
            }
        )

    def _loaded(self) -> dict[str, list[str]]:
        known = sorted(self._hub.characters.known().items())

        def holds(character: Character, pixel_format: PixelFormat) -> bool:
            try:
                return any(one.holds(character, pixel_format=pixel_format) for one in self._hub.engines)
            except GpupipeError:  # it cannot be drawn, and so is not kept
                return False

        def held(pixel_format: PixelFormat) -> list[str]:
            return [name for name, character in known if holds(character, pixel_format)]

        return {"loaded": held("nv12"), "models": held(PIXEL_FORMAT)}

    def _every(self) -> dict[str, Any]:
        right, wrong = [], []
        for name in self._hub.characters.names():
            try:
                right.append(_character(self._hub.characters.listed(name)))
            except GpupipeError as error:
                _log.event("character cannot be served", character=name, error=str(error))
                wrong.append({"id": name, "error": told(error)})
        return {"characters": right, "broken": wrong}

    def _picture(self, name: str) -> bytes:
        character = self._hub.characters.get(name)
        key = name, seen(character.body.path)
        if key not in self._pictures:
            limits = self._hub.engines[0].limits
            frame = next(read_frames(character.body.path, "bgr24", 1, limits))
            self._pictures[key] = jpeg(frame, PICTURE_QUALITY, longest_side=PICTURE_SIDE)
            while len(self._pictures) > PICTURES:
                self._pictures.popitem(last=False)
        return self._pictures[key]


def _character(listed: Listed) -> dict[str, Any]:
    found = asdict(listed)
    return {"id": found.pop("name"), **found}
