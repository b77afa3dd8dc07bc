"""A WebRTC peer as tests have it: aiortc on the loopback, and a server in the same event loop."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import numpy as np
import uvicorn
from aiortc import MediaStreamTrack, RTCConfiguration, RTCPeerConnection, RTCSessionDescription
from aiortc.mediastreams import MediaStreamError
from numpy.typing import NDArray
from serving import Counted

from gpupipe.media.rtc import BLOCK_SAMPLES, SOUND_RATE, SoundFrame, sound_frame
from gpupipe.serve.http.app import application
from gpupipe.serve.http.protocol import protocol
from gpupipe.serve.http.uploads import Uploads
from gpupipe.serve.hub import Hub
from gpupipe.serve.tokens import Tokens
from gpupipe.serve.webrtc.ice import be_found_at
from gpupipe.serve.webrtc.routes import Peers

TOKENS = Tokens(())


@asynccontextmanager
async def serving(hub: Hub) -> AsyncIterator[tuple[httpx.AsyncClient, Peers]]:
    """A client of a server with WebRTC."""
    counted = Counted()
    uploads = Uploads(hub.limits)
    peers = Peers(hub, counted, uploads, host="127.0.0.1")
    app = application(hub, TOKENS, None, metrics=counted, uploads=uploads, extra=peers.routes(TOKENS))
    config = uvicorn.Config(app, port=0, http=protocol(30), ws="none", lifespan="off", log_config=None)
    server = uvicorn.Server(config)
    running = asyncio.create_task(server.serve())
    while not server.started:
        await asyncio.sleep(0.01)
    port = server.servers[0].sockets[0].getsockname()[1]
    try:
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=30) as client:
            yield client, peers
    finally:
        await peers.aclose()
        server.should_exit = True
        await running


class Peer:
    """A peer that keeps what it gets.

    Args:
        microphone: what it says; None: it only listens.

    Attributes:
        pictures: tick, when it came (seconds of `time.monotonic`), and the luma plane, uint8 `[H, W]`.
        sound: when each block of 20 ms came, and its samples, float32 `[960]`.
        talk: the server's key.
    """

    def __init__(self, microphone: MediaStreamTrack | None = None) -> None:
        self.connection = RTCPeerConnection(RTCConfiguration(iceServers=[]))
        if microphone is None:
            self.connection.addTransceiver("audio", direction="recvonly")
        else:
            self.connection.addTrack(microphone)
        self.connection.addTransceiver("video", direction="recvonly")
        self.connection.on("track", self._listen)
        self.pictures: list[tuple[int, float, NDArray[np.uint8]]] = []
        self.sound: list[tuple[float, NDArray[np.float32]]] = []
        self.talk = ""
        self.first_block = 0
        self._tasks: list[asyncio.Task[None]] = []

    async def call(self, client: httpx.AsyncClient, character: str) -> None:
        """Send an offer, and take the answer."""
        connection = self.connection
        offer = await connection.createOffer()
        be_found_at(connection, ["127.0.0.1"])
        await connection.setLocalDescription(offer)
        sent = {"sdp": connection.localDescription.sdp, "type": "offer"}
        answered = await client.post(f"/v1/characters/{character}/offer", json=sent)
        async with asyncio.timeout(60):
            while answered.status_code == 503:  # what was late on a busy machine is soon forgotten
                await asyncio.sleep(1)
                answered = await client.post(f"/v1/characters/{character}/offer", json=sent)
        answer = answered.raise_for_status().json()
        self.talk = answer["talk"]
        await connection.setRemoteDescription(RTCSessionDescription(answer["sdp"], answer["type"]))

    async def until(self, pictures: int, seconds: float = 20.0) -> None:
        """Wait for so many pictures."""
        async with asyncio.timeout(seconds):
            while len(self.pictures) < pictures:
                await asyncio.sleep(0.02)

    async def vanish(self) -> None:
        """Go without a word: nothing is sent, or answered, any more."""
        for transceiver in self.connection.getTransceivers():
            agent = transceiver.receiver.transport.transport._connection
            for each in agent._protocols:
                each.transport.abort()
        for task in self._tasks:
            task.cancel()

    async def close(self) -> None:
        """Hang up."""
        for task in self._tasks:
            task.cancel()
        await self.connection.close()

    def _listen(self, track: Any) -> None:
        self._tasks.append(asyncio.create_task(self._take(track)))

    async def _take(self, track: Any) -> None:
        try:
            while True:
                frame = await track.recv()
                now = time.monotonic()
                if track.kind == "video":
                    tick = round(float(frame.pts * frame.time_base) * 25)
                    luma = frame.to_ndarray()[: frame.height].copy()
                    self.pictures.append((tick, now, luma))
                else:
                    mono = frame.to_ndarray().reshape(-1, 2).mean(axis=1) / 32768
                    self.sound.append((now, mono.astype(np.float32)))
        except MediaStreamError:
            pass


class Says(MediaStreamTrack):
    """A microphone that hears one sound, and silence before and after it.

    Args:
        pcm: float32 `[n]` at 48 kHz.
        before: seconds of silence.
    """

    kind = "audio"

    def __init__(self, pcm: NDArray[np.float32], before: float) -> None:
        super().__init__()
        self._pcm = np.concatenate((np.zeros(round(before * SOUND_RATE), np.float32), pcm))
        self._at, self._began = 0, 0.0

    async def recv(self) -> SoundFrame:
        self._began = self._began or time.monotonic()
        await asyncio.sleep(max(0.0, self._began + self._at / SOUND_RATE - time.monotonic()))
        block = self._pcm[self._at : self._at + BLOCK_SAMPLES]
        block = np.concatenate((block, np.zeros(BLOCK_SAMPLES - len(block), np.float32)))
        self._at += BLOCK_SAMPLES
        return sound_frame(block, self._at - BLOCK_SAMPLES)
