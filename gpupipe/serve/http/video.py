"""`POST /v1/characters/{id}/video`: a sound in, a video out while it is still being rendered."""

from __future__ import annotations

import asyncio
import logging
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future, wait
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, Final, ParamSpec, TypeVar

import numpy as np
from numpy.typing import NDArray
from starlette.requests import Request
from starlette.types import Receive, Scope, Send

from gpupipe.errors import Cancelled, GpupipeError, MediaError
from gpupipe.log import Log
from gpupipe.media.fragments import sound_rate
from gpupipe.media.sound import decode_sound, read_pcm
from gpupipe.serve.conversation import Conversation
from gpupipe.serve.fragmented import Fragmented
from gpupipe.serve.http.errors import INTERNAL, as_bad_request, told
from gpupipe.serve.http.query import Query
from gpupipe.serve.http.uploads import Uploads, checked_sound
from gpupipe.serve.hub import Hub
from gpupipe.serve.order import DELAY_SECONDS, LEAST_DELAY_SECONDS, TalkOrder
from gpupipe.serve.talk import Talk

MOST_START_FRAME: Final = 1_000_000_000
MOST_DELAY_SECONDS: Final = 10.0

P = ParamSpec("P")
T = TypeVar("T")

_log = Log(__name__)


class Video:
    """The route, as an application.

    Args:
        hub: of the server.
        uploads: of the server.
    """

    def __init__(self, hub: Hub, uploads: Uploads) -> None:
        self._hub, self._uploads = hub, uploads

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request.

        Raises:
            GpupipeError: before the answer has begun.
        """
        request = Request(scope, receive)
        order = video_order(request.path_params["id"], scope["query_string"].decode("latin-1"))
        await _in_thread(self._hub.opening, self._hub.characters.get, order.character)
        async with self._uploads.file(request) as path:
            await self._answer(order, path, receive, send)

    async def _answer(self, order: TalkOrder, path: Path, receive: Receive, send: Send) -> None:
        hub = self._hub
        limits = hub.engines[0].limits
        # Both are decoded as they are wanted: the speech ahead of what is drawn, the sound beside it. Their beginnings
        # are decoded at once, which takes a while where that is done in processes of their own.
        speech = _Chunks(hub.hearing, read_pcm(path, limits=limits))
        sound: _Chunks | None = None
        made: list[Fragmented] = []

        feeder: asyncio.Task[None] | None = None
        leaving: asyncio.Task[None] | None = None
        try:
            info = await _in_thread(hub.hearing, checked_sound, path, limits, hub.limits.seconds)
            rate, channels = sound_rate(info.rate), min(2, info.channels)
            layout = "mono" if channels == 1 else "stereo"
            sound = _Chunks(hub.hearing, decode_sound(path, rate=rate, layout=layout, limits=limits))

            def encoder(talk: Talk) -> Fragmented:
                made.append(Fragmented(talk, sound, rate=rate, channels=channels))
                return made[0]

            async with await Conversation.open(hub, order, encoder) as conversation:
                feeder = asyncio.create_task(_feed(hub, conversation, speech))
                leaving = asyncio.create_task(_until_gone(conversation.talk, receive))
                await _give(conversation, made[0].codecs, send)
        finally:
            if leaving is not None:
                leaving.cancel()
            if feeder is not None:
                await feeder  # it ends with the talk
            for chunks in (speech, sound):
                if chunks is not None:
                    await asyncio.to_thread(chunks.close)


def video_order(character: str, query: str) -> TalkOrder:
    """What a request asks for.

    Raises:
        BadRequest: it cannot be had.
    """
    fields = Query(query, ("realtime", "delay", "start_frame"))
    return TalkOrder(
        character,
        "fmp4",
        realtime=fields.flag("realtime", unset=False),
        delay=fields.seconds("delay", LEAST_DELAY_SECONDS, MOST_DELAY_SECONDS) or DELAY_SECONDS,
        start_frame=fields.whole("start_frame", 0, MOST_START_FRAME) or 0,
    )


class _Chunks(Iterator[NDArray[np.float32]]):
    """An upload's sound, whose first chunk is decoded at once.

    Args:
        executor: in which that is done.
        chunks: float32, as `media.sound` gives them.

    Raises:
        BadRequest: by `next`: it cannot be decoded.
    """

    def __init__(self, executor: Executor, chunks: Iterator[NDArray[np.float32]]) -> None:
        self._chunks = chunks
        self._begun = executor.submit(_begin, chunks)
        self._first: Future[NDArray[np.float32] | None] | None = self._begun

    def __next__(self) -> NDArray[np.float32]:
        """The next chunk."""
        try:
            if self._first is None:
                return next(self._chunks)
            first, self._first = self._first.result(), None
            if first is None:
                raise StopIteration
            return first
        except MediaError as error:
            raise as_bad_request(error, "body") from error

    def close(self) -> None:
        """End what decodes. More than once is allowed, and in any thread that does not take chunks meanwhile."""
        if not self._begun.cancel():
            wait([self._begun])
        close: Any = getattr(self._chunks, "close", None)
        if close is not None:
            close()


async def _feed(hub: Hub, conversation: Conversation, speech: _Chunks) -> None:
    """Push all of a speech; what is wrong with it ends the talk."""
    talk = conversation.talk
    try:
        while talk.open and (chunk := await _in_thread(hub.hearing, _next, speech)) is not None:
            await conversation.push(chunk)
        await conversation.finish()
    except MediaError as error:  # too short to be heard
        await asyncio.to_thread(talk.fail, as_bad_request(error, "body"))
    except GpupipeError as error:
        await asyncio.to_thread(talk.fail, error)
    except Exception:
        _log.event("talk failed", logging.ERROR, talk=talk.number, error=traceback.format_exc())
        await asyncio.to_thread(talk.fail, GpupipeError(INTERNAL))


def _begin(chunks: Iterator[NDArray[np.float32]]) -> NDArray[np.float32] | None:
    return next(chunks, None)


def _next(chunks: _Chunks) -> NDArray[np.float32] | None:
    return next(chunks, None)  # no StopIteration leaves a thread


async def _until_gone(talk: Talk, receive: Receive) -> None:
    """End a talk whose client has gone."""
    while (await receive())["type"] != "http.disconnect":
        pass
    await asyncio.to_thread(talk.fail, Cancelled("the client has gone"))


async def _give(conversation: Conversation, codecs: str, send: Send) -> None:
    """Send the answers as they come. What ends the talk before the first is raised; later it ends the answer, without
    the end that a whole one has."""
    begun = False
    try:
        async for answer in conversation:
            if not begun:
                headers = {
                    "content-type": f'video/mp4; codecs="{codecs}"',
                    "cache-control": "no-store",
                    "gpupipe-talk": str(conversation.talk.number),
                }
                pairs = [(name.encode(), value.encode()) for name, value in headers.items()]
                await send({"type": "http.response.start", "status": 200, "headers": pairs})
                begun = True
            await send({"type": "http.response.body", "body": bytes(answer.data), "more_body": True})
    except GpupipeError as error:
        if not begun:
            raise
        _log.event("answer broken off", logging.WARNING, talk=conversation.talk.number, error=told(error))
        return
    with suppress(OSError):
        await send({"type": "http.response.body", "body": b"", "more_body": False})


async def _in_thread(executor: Executor, work: Callable[P, T], *given: P.args, **named: P.kwargs) -> T:
    """What work gives that is no work for the event loop. If this is cancelled, the work is still waited for."""
    done = asyncio.get_running_loop().run_in_executor(executor, partial(work, *given, **named))
    try:
        return await asyncio.shield(done)
    except asyncio.CancelledError:
        await asyncio.wait([done])
        raise
