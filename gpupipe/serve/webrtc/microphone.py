"""A peer's microphone: a track that goes on and on, each of whose utterances becomes a speech."""

from __future__ import annotations

import asyncio
import logging
import time
import traceback
from collections.abc import Awaitable, Callable
from typing import Final, Protocol

import numpy as np
from aiortc.mediastreams import MediaStreamError
from numpy.typing import NDArray

from gpupipe.errors import Cancelled, GpupipeError
from gpupipe.log import Log
from gpupipe.media.resample import Resampler
from gpupipe.media.rtc import SOUND_RATE, SoundFrame, heard
from gpupipe.serve.webrtc.ear import HANGOVER_SECONDS, Ear, Said
from gpupipe.serve.webrtc.utterance import Utterance

PIECE: Final = SOUND_RATE // 25
"""Samples that are pushed at a time: one row of speech features."""

LOST_SECONDS: Final = 1.0
"""Of lost sound that silence stands for, at most, and what is less than `ROUNDING_SECONDS` is none."""

ROUNDING_SECONDS: Final = 0.005

_log = Log(__name__)


class Track(Protocol):
    """What aiortc gives of a peer's microphone."""

    async def recv(self) -> SoundFrame:
        """The next block of sound."""


class Microphone:
    """Hears a track.

    Args:
        ear: that finds speech.
        begin: opens an utterance whose first sound was heard at a time, seconds of `time.monotonic`.
        speaking: held while something is said; what the microphone hears while another holds it is not said.
        alive: told of every block.
    """

    def __init__(
        self,
        ear: Ear,
        begin: Callable[[float], Awaitable[Utterance]],
        speaking: asyncio.Lock,
        alive: Callable[[], None],
    ) -> None:
        self._ear, self._begin, self._speaking, self._alive = ear, begin, speaking, alive
        self._resampler: Resampler | None = None
        self._rate: int | None = None
        self._expected: float | None = None
        self._utterance: Utterance | None = None
        self._held: list[NDArray[np.float32]] = []

    async def run(self, track: Track, number: int) -> None:
        """Hear a track to its end. A block that stays away for as long as a pause ends an utterance, too.

        Args:
            track: which.
            number: of the peer, for the log.
        """
        try:
            while True:
                try:
                    frame = await asyncio.wait_for(track.recv(), HANGOVER_SECONDS)
                except TimeoutError:
                    await self._say(self._ear.end())
                    continue
                self._alive()
                await self._say(self._ear.hear(self._pcm(frame)))
        except MediaStreamError:
            await self._say(self._ear.end())
        except Exception:
            _log.event("microphone failed", logging.ERROR, peer=number, error=traceback.format_exc())
            raise
        finally:
            if self._utterance is not None:
                self._speaking.release()

    def _pcm(self, frame: SoundFrame) -> NDArray[np.float32]:
        """A block at `SOUND_RATE`, after silence for what was lost before it."""
        pcm, rate = heard(frame), frame.sample_rate
        if frame.pts is not None and frame.time_base is not None:
            at = float(frame.pts * frame.time_base)
            lost = 0.0 if self._expected is None else at - self._expected
            if ROUNDING_SECONDS < lost <= LOST_SECONDS:
                pcm = np.concatenate((np.zeros(round(lost * rate), np.float32), pcm))
            self._expected = at + frame.samples / rate
        if self._rate != rate:
            self._rate = rate
            self._resampler = None if rate == SOUND_RATE else Resampler(rate, SOUND_RATE)
        return pcm if self._resampler is None else self._resampler.push(pcm)

    async def _say(self, pieces: list[Said]) -> None:
        for said in pieces:
            try:
                await self._piece(said)
            except GpupipeError as error:
                _log.event("utterance ended early", logging.WARNING, error=str(error))
                self._leave()
                if isinstance(error, Cancelled):
                    raise MediaStreamError from error

    async def _piece(self, said: Said) -> None:
        if said.begins and not self._speaking.locked():
            await self._speaking.acquire()
            try:
                self._utterance = await self._begin(time.monotonic() - len(said.pcm) / SOUND_RATE)
            except BaseException:
                self._speaking.release()
                raise
        if self._utterance is None:
            return
        self._held.append(said.pcm)
        if said.ends or sum(map(len, self._held)) >= PIECE:
            pcm, self._held = np.concatenate(self._held), []
            await self._utterance.push(pcm)
        if said.ends:
            await self._utterance.finish()
            self._leave()

    def _leave(self) -> None:
        self._held = []
        if self._utterance is not None:
            self._utterance = None
            self._speaking.release()
