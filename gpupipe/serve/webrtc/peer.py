"""One peer: a connection, a character that is there for it, and what is said."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from concurrent.futures import Executor
from contextlib import suppress
from dataclasses import replace
from typing import Any, Final

import numpy as np
from aiortc import RTCPeerConnection
from numpy.typing import NDArray

from gpupipe.engine.filmed import Filmed
from gpupipe.errors import Cancelled
from gpupipe.log import Log
from gpupipe.media.rtc import SOUND_RATE
from gpupipe.serve.conversation import Conversation
from gpupipe.serve.costs import FIRST_ENCODING
from gpupipe.serve.hub import Hub
from gpupipe.serve.order import TalkOrder
from gpupipe.serve.refusals import BadRequest, Refused
from gpupipe.serve.seats import Seat
from gpupipe.serve.webrtc.ear import Ear
from gpupipe.serve.webrtc.microphone import Microphone
from gpupipe.serve.webrtc.stage import Stage
from gpupipe.serve.webrtc.tracks import Show
from gpupipe.serve.webrtc.utterance import Pixels, Utterance

STAYS_AWAY_SECONDS: Final = 1.0
"""After which a speech whose sound stays away is taken for finished."""

MOST_WAITING: Final = 8
"""Sounds that wait until what is said before them has ended."""

CONNECTING_SECONDS: Final = 10.0
"""How long sound waits for its peer to be connected."""

CLOSING_SECONDS: Final = 5.0
"""How long a connection is waited for when it is closed."""

_log = Log(__name__)


class Peer:
    """A connection and its character. Everything is for the event loop.

    Args:
        hub: of the server.
        seat: the place that is held for it; given back at the end.
        filmed: the character's filmed frames; closed at the end.
        order: of its talks.
        connection: not yet answered; closed at the end.
        threads: in which pictures are made.
        number: by which logs call it.

    Attributes:
        show: what it is shown; its tracks are for the connection.
        active: when something was last heard of it, seconds of `time.monotonic`.
        closed: whether it has ended, or is being ended.
    """

    def __init__(
        self,
        hub: Hub,
        seat: Seat,
        filmed: Filmed,
        order: TalkOrder,
        connection: RTCPeerConnection,
        threads: Executor,
        number: int,
    ) -> None:
        self._hub, self._seat, self._filmed, self.order, self.connection = hub, seat, filmed, order, connection
        spec, fps = filmed.order.spec, filmed.order.fps
        pixels = spec.width * spec.height
        # By the clock, as the encoder has threads of its own: so what other programs hold up is left out.
        most = pixels * FIRST_ENCODING["webrtc"]
        self.number = number
        self.stage = Stage(fps)
        self.show = Show(
            self.stage,
            filmed,
            spec.format.shape,
            threads,
            full_range=spec.colour.full_range,
            encoded=lambda seconds: hub.costs.encoded("webrtc", pixels, min(seconds, most)),
        )
        self.active = time.monotonic()
        self.closed = False
        self._speaking = asyncio.Lock()
        self._microphone: asyncio.Task[None] | None = None
        self._waiting = 0
        self._ending: set[asyncio.Task[None]] = set()
        self._over = asyncio.Event()

    def listen(self, track: Any) -> None:
        """Hear a microphone: each time that somebody speaks is a speech of its own. The first track alone is heard."""
        if self._microphone is None:
            ear = Ear(max(1.0, self._hub.limits.seconds - 1.0))
            microphone = Microphone(ear, self._begin, self._speaking, self._heard)
            self._microphone = asyncio.create_task(microphone.run(track, self.number))

    async def say(self, sound: AsyncIterator[NDArray[np.float32]]) -> float:
        """Have sound said, after all that is said already; gives its seconds once all of it is taken.

        Sound that stays away for a while ends one speech, and begins the next when it goes on.

        Args:
            sound: float32 `[n]` each, at `SOUND_RATE`.

        Raises:
            GpupipeError: it cannot be said, or the peer has gone.
        """
        if self._waiting >= MOST_WAITING:
            raise Refused(f"{MOST_WAITING} sounds wait to be said already", retry_after=1)
        self._waiting += 1
        try:
            await self._connected()
            await self._speaking.acquire()
        finally:
            self._waiting -= 1
        try:
            return await self._say(sound)
        finally:
            self._speaking.release()

    def look(self, now: float, idle_seconds: float) -> str | None:
        """Close what has been said, and see whether it is over: gives why it must end, or None."""
        done, self.stage.done[:] = list(self.stage.done), []
        for utterance in done:
            task = asyncio.create_task(utterance.aclose())
            self._ending.add(task)
            task.add_done_callback(self._ending.discard)
        if self.connection.connectionState in ("failed", "closed"):
            return f"the connection has {self.connection.connectionState}"
        if self.show.error is not None:
            return str(self.show.error)
        heard = self._microphone
        if heard is not None and heard.done() and not heard.cancelled() and heard.exception() is not None:
            return "its microphone cannot be heard"
        if self._hub.closing and not self.stage.busy:
            return "the server is being shut down"
        if self.stage.busy:  # a talk sees to itself whether its client still sends
            self.active = now
        if now - self.active > idle_seconds:
            return f"nothing came for {idle_seconds:.0f} s"
        return None

    async def aclose(self, why: str) -> None:
        """End it; nothing is left."""
        if self.closed:
            await self._over.wait()
            return
        self.closed = True
        _log.event("peer ended", peer=self.number, reason=why, pictures=self.show.pictures, late=self.stage.late)
        try:
            if self._microphone is not None:
                self._microphone.cancel()
                await asyncio.gather(self._microphone, return_exceptions=True)
            await self.show.aclose()
            await asyncio.gather(*(each.aclose() for each in self.stage.close()), return_exceptions=True)
            await asyncio.gather(*self._ending, return_exceptions=True)
            with suppress(TimeoutError):
                await asyncio.wait_for(self.connection.close(), CLOSING_SECONDS)
        finally:
            self._hub.release(self._seat)
            await asyncio.to_thread(self._filmed.close)
            self._over.set()

    async def _connected(self) -> None:
        try:
            await asyncio.wait_for(self.show.begun.wait(), CONNECTING_SECONDS)
        except TimeoutError as error:
            raise BadRequest("the peer is not connected", field="talk", remedy="take the answer first") from error

    async def _say(self, sound: AsyncIterator[NDArray[np.float32]]) -> float:
        samples = 0
        utterance: Utterance | None = None
        coming = asyncio.ensure_future(anext(sound, None))
        try:
            while True:
                done, _ = await asyncio.wait({coming}, timeout=STAYS_AWAY_SECONDS)
                self._raise_if_over()
                if not done:
                    if utterance is not None:
                        await utterance.finish()
                    utterance = None
                    continue
                pcm = coming.result()
                if pcm is None:
                    return samples / SOUND_RATE
                for at in range(0, len(pcm), SOUND_RATE):
                    self._heard()
                    utterance = utterance or await self._begin(self.active)
                    await utterance.push(pcm[at : at + SOUND_RATE])
                samples += len(pcm)
                coming = asyncio.ensure_future(anext(sound, None))
        finally:
            coming.cancel()
            await asyncio.gather(coming, return_exceptions=True)
            if utterance is not None and not utterance.over and not self.closed:
                await utterance.finish()

    async def _begin(self, since: float) -> Utterance:
        """A speech whose first sound was heard at a time, seconds of `time.monotonic`."""
        self._raise_if_over()
        position = self.stage.position_at(since + self.order.delay)
        around = 2 * max(1, self._filmed.period - 1)
        order = replace(self.order, start_frame=position % around)
        conversation = await Conversation.open(self._hub, order, lambda _: Pixels(), self._seat)
        conversation.talk.delay = self.stage.due_at(position) - time.monotonic()
        utterance = Utterance(conversation, position)
        if self.closed:
            await utterance.aclose()
        self._raise_if_over()
        self.stage.say(utterance)
        return utterance

    def _raise_if_over(self) -> None:
        if self.closed:
            raise Cancelled("the peer has gone")

    def _heard(self) -> None:
        self.active = time.monotonic()
