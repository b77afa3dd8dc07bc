"""Who is connected: peers come in by an offer, and those that have gone leave nothing."""

from __future__ import annotations

import asyncio
import itertools
import logging
import secrets
import time
import traceback
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any, Final

from aiortc import RTCConfiguration, RTCPeerConnection, RTCRtpSender, RTCSessionDescription
from aiortc.sdp import SessionDescription

from gpupipe.engine.filmed import Filmed
from gpupipe.errors import GpupipeError
from gpupipe.log import Log
from gpupipe.machine import cpu_count
from gpupipe.options import ModelOptions
from gpupipe.render.plan import whole
from gpupipe.serve.hub import Hub
from gpupipe.serve.loading import in_turn
from gpupipe.serve.order import TalkOrder
from gpupipe.serve.refusals import BadRequest, NotFound, Refused
from gpupipe.serve.seats import Seat
from gpupipe.serve.webrtc.ice import addresses_of, be_found_at, parsed_offer
from gpupipe.serve.webrtc.peer import Peer

LOOK_SECONDS: Final = 0.25
"""How often it is seen who has gone."""

ANSWER_SECONDS: Final = 10.0
"""That an answer to an offer takes at most."""

_log = Log(__name__)


class Connected:
    """The peers of a server. Everything is for the event loop, `aclose` too.

    Args:
        hub: of the server.
        host: where the server listens, and so where peers find it; "0.0.0.0": at all of its addresses.
    """

    def __init__(self, hub: Hub, host: str) -> None:
        self._hub, self._addresses = hub, addresses_of(host)
        self._threads = ThreadPoolExecutor(cpu_count(), "picture")
        self._peers: dict[str, Peer] = {}
        self._ending: set[asyncio.Task[None]] = set()
        self._numbers = itertools.count(1)
        self._watch: asyncio.Task[None] | None = None

    def __len__(self) -> int:
        """How many are connected, or about to be."""
        return len(self._peers)

    def get(self, key: str) -> Peer:
        """A peer.

        Raises:
            NotFound: there is none, or it has gone.
        """
        found = self._peers.get(key)
        if found is None or found.closed:
            raise NotFound("no such talk", field="talk", remedy="send an offer, and use the talk of its answer")
        return found

    async def answer(self, character: str, sdp: str, client: str | None) -> tuple[str, RTCSessionDescription]:
        """Let a peer in.

        Args:
            character: its name.
            sdp: the offer.
            client: the address that it came from.

        Returns:
            The key by which the peer is called, which cannot be guessed, and the answer.

        Raises:
            BadRequest: the offer cannot be answered.
            GpupipeError: as `Hub.open`.
        """
        offer, said = parsed_offer(sdp, client)
        _check(said)
        order = TalkOrder(character, "webrtc", rate=48_000)
        peer = await self._seated(order)
        try:
            async with asyncio.timeout(ANSWER_SECONDS):
                answer = await self._negotiate(peer, offer, said)
        except BaseException as error:
            await peer.aclose("its offer cannot be answered")
            if isinstance(error, Exception) and not isinstance(error, GpupipeError):
                _log.event("offer refused", logging.WARNING, peer=peer.number, error=traceback.format_exc())
                raise BadRequest("cannot be answered", field="sdp", remedy="send what createOffer gives") from error
            raise
        key = secrets.token_urlsafe(12)
        self._peers[key] = peer
        if self._watch is None:
            self._watch = asyncio.create_task(self._watching())
        _log.event("peer came", peer=peer.number, character=character)
        return key, answer

    def end(self, key: str, why: str) -> None:
        """Have a peer ended, without waiting."""
        peer = self._peers.pop(key, None)
        if peer is not None:
            task = asyncio.create_task(peer.aclose(why))
            self._ending.add(task)
            task.add_done_callback(self._ending.discard)

    async def aclose(self) -> None:
        """End all of them."""
        for key in list(self._peers):
            self.end(key, "the server is being shut down")
        if self._watch is not None:
            self._watch.cancel()
            await asyncio.gather(self._watch, return_exceptions=True)
        await asyncio.gather(*self._ending, return_exceptions=True)
        await asyncio.to_thread(self._threads.shutdown)

    async def _seated(self, order: TalkOrder) -> Peer:
        """A peer that has its place and its character, and no connection yet."""
        if self._hub.closing:
            raise Refused("the server is being shut down", closing=True, remedy="ask another server")
        work = in_turn(self._hub.opening, self._hub.loading, lambda loads: self._held(order, loads))
        opening = asyncio.ensure_future(work)
        try:
            seat, filmed = await asyncio.shield(opening)
        except asyncio.CancelledError:  # the client has gone; what was held for it is given back once it is
            opening.add_done_callback(self._give_back)
            raise
        connection = RTCPeerConnection(RTCConfiguration(iceServers=[]))
        return Peer(self._hub, seat, filmed, order, connection, self._threads, next(self._numbers))

    def _held(self, order: TalkOrder, loads: bool) -> tuple[Seat, Filmed]:
        seat = self._hub.reserve(order, loads=loads)
        try:
            character = self._hub.characters.get(order.character)
            return seat, seat.engine.filmed(whole(character, "nv12", ModelOptions()))
        except BaseException:
            self._hub.release(seat)
            raise

    def _give_back(self, opening: asyncio.Future[tuple[Seat, Filmed]]) -> None:
        if not opening.cancelled() and opening.exception() is None:
            seat, filmed = opening.result()
            self._hub.release(seat)
            filmed.close()

    async def _negotiate(self, peer: Peer, offer: RTCSessionDescription, said: SessionDescription) -> Any:
        connection = peer.connection
        tracks: dict[str, Any] = {"video": peer.show.picture, "audio": peer.show.sound}
        heard = False
        for media in said.media:
            if media.kind not in ("audio", "video"):
                continue
            # What nobody would take is not let in: one microphone, and no camera.
            takes = media.kind == "audio" and not heard and media.direction in ("sendonly", "sendrecv")
            heard |= takes
            if media.direction in ("recvonly", "sendrecv") and media.kind in tracks:
                direction = "sendrecv" if takes else "sendonly"
                transceiver = connection.addTransceiver(tracks.pop(media.kind), direction)
                if media.kind == "video":
                    transceiver.setCodecPreferences(_codecs())
            else:
                connection.addTransceiver(media.kind, "recvonly" if takes else "inactive")
        await connection.setRemoteDescription(offer)
        for transceiver in connection.getTransceivers():
            if transceiver.kind == "audio" and "recv" in transceiver.direction and transceiver.receiver.track:
                peer.listen(transceiver.receiver.track)
        be_found_at(connection, self._addresses)
        await connection.setLocalDescription(await connection.createAnswer())
        return connection.localDescription

    async def _watching(self) -> None:
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            for key, peer in list(self._peers.items()):
                with suppress(Exception):
                    why = peer.look(time.monotonic(), self._hub.limits.idle_seconds)
                    if why is not None:
                        self.end(key, why)


def _check(said: SessionDescription) -> None:
    """Raise unless an offer asks for picture and sound."""
    for kind in ("video", "audio"):
        wanted = [media.direction for media in said.media if media.kind == kind]
        if not any(direction in ("recvonly", "sendrecv") for direction in wanted):
            raise BadRequest(
                f"the offer asks for no {kind}",
                field="sdp",
                remedy=f'add pc.addTransceiver("{kind}", {{direction: "recvonly"}})',
            )


def _codecs() -> list[Any]:
    """Of video: H.264 first, then VP8."""
    found = RTCRtpSender.getCapabilities("video").codecs
    return sorted(found, key=lambda codec: ("video/h264", "video/vp8", "video/rtx").index(codec.mimeType.lower()))
