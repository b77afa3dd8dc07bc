"""The tracks that a peer sees and hears, and the clock of both."""

from __future__ import annotations

import asyncio
import logging
import time
import traceback
from collections.abc import Callable
from concurrent.futures import Executor
from fractions import Fraction
from typing import Final

import numpy as np
from aiortc import MediaStreamTrack
from aiortc.mediastreams import MediaStreamError
from numpy.typing import NDArray

from gpupipe.errors import GpupipeError
from gpupipe.log import Log
from gpupipe.media.rtc import BLOCK_SAMPLES, SOUND_RATE, PictureFrame, SoundFrame, picture_frame, sound_frame
from gpupipe.serve.webrtc.stage import FilmedFrames, Shown, Stage, drawn

BLOCK_SECONDS: Final = BLOCK_SAMPLES / SOUND_RATE

SOUND_SECONDS: Final = BLOCK_SECONDS
"""How much later than its tick a block of sound is sent: by then a tick that it reaches into has begun, and the
picture, which is encoded meanwhile, leaves at about the same time."""

_log = Log(__name__)


class Show:
    """Plays a stage: a picture and its sound each tick, from `begin` on, for two tracks of one connection.

    What is behind the clock skips pictures, never sound.

    Args:
        stage: what is shown.
        filmed: where filmed frames come from.
        shape: of pictures, `[H * 3 // 2, W]`.
        threads: in which pictures are made.
        full_range: whether their samples use 0…255.
        encoded: told the seconds that encoding and sending a picture has taken.

    Attributes:
        picture, sound: the tracks.
        pictures: handed to the encoder so far.
        begun: set once the first tick is due.
        error: what has ended it.
    """

    def __init__(
        self,
        stage: Stage,
        filmed: FilmedFrames,
        shape: tuple[int, ...],
        threads: Executor,
        *,
        full_range: bool,
        encoded: Callable[[float], None],
    ) -> None:
        self.stage, self.picture, self.sound = stage, PictureTrack(self), SoundTrack(self)
        self.pictures = 0
        self.begun = asyncio.Event()
        self.error: GpupipeError | None = None
        self._filmed, self._shape, self._threads = filmed, shape, threads
        self._full_range, self._encoded = full_range, encoded
        self._changed = asyncio.Condition()
        self._ready: PictureFrame | None = None
        self._waiting = np.empty(0, np.float32)
        self._given = self._last = -1
        self._sent: float | None = None
        self._task: asyncio.Task[None] | None = None
        self._closed = False

    def begin(self) -> None:
        """The connection is there. More than once is allowed."""
        if self._task is None and not self._closed:
            self.stage.begin(time.monotonic())
            self.begun.set()
            self._task = asyncio.create_task(self._run())

    async def next_picture(self) -> PictureFrame:
        """The next picture, once it is due; those that were missed meanwhile are left out."""
        self.begin()
        if self._sent is not None:
            self._encoded(time.monotonic() - self._sent)
        async with self._changed:
            await self._changed.wait_for(lambda: self._closed or self._ready is not None)
            frame, self._ready = self._ready, None
        if frame is None:
            raise MediaStreamError
        self.pictures += 1
        self._sent = time.monotonic()
        return frame

    async def next_sound(self) -> SoundFrame:
        """The next 20 ms of sound, once they are due."""
        self.begin()
        self._given += 1
        due = self.stage.due(0) + self._given * BLOCK_SECONDS + SOUND_SECONDS
        await asyncio.sleep(max(0.0, due - time.monotonic()))
        async with self._changed:
            await self._changed.wait_for(lambda: self._closed or len(self._waiting) >= BLOCK_SAMPLES)
            if self._closed:
                raise MediaStreamError
            block, self._waiting = self._waiting[:BLOCK_SAMPLES], self._waiting[BLOCK_SAMPLES:]
        return sound_frame(block, self._given * BLOCK_SAMPLES)

    async def aclose(self) -> None:
        """End both tracks."""
        self._closed = True
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        async with self._changed:
            self._changed.notify_all()
        self.picture.stop()
        self.sound.stop()

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        try:
            while True:
                tick = self.stage.ticks
                await asyncio.sleep(max(0.0, self.stage.due(tick) - time.monotonic()))
                shown = self.stage.tick()
                await self._hear(shown.sound)
                behind = time.monotonic() > self.stage.due(tick + 1)
                if not shown.still and not behind:
                    frame = await loop.run_in_executor(self._threads, self._made, shown, tick)
                    async with self._changed:
                        self._ready = frame
                        self._changed.notify_all()
        except GpupipeError as error:
            self.error = error
        except Exception:
            _log.event("show failed", logging.ERROR, error=traceback.format_exc())
            self.error = GpupipeError("the server failed", remedy="see its log")

    async def _hear(self, sound: NDArray[np.float32]) -> None:
        async with self._changed:
            self._waiting = np.concatenate((self._waiting, sound))
            self._changed.notify_all()

    def _made(self, shown: Shown, tick: int) -> PictureFrame:
        nv12 = drawn(shown, self._filmed, self._shape)
        return picture_frame(nv12, tick, Fraction(self.stage.fps), full_range=self._full_range)


class PictureTrack(MediaStreamTrack):
    """The pictures of a show."""

    kind = "video"

    def __init__(self, show: Show) -> None:
        super().__init__()
        self._show = show

    async def recv(self) -> PictureFrame:
        """The next one, in its time."""
        if self.readyState != "live":
            raise MediaStreamError
        return await self._show.next_picture()


class SoundTrack(MediaStreamTrack):
    """The sound of a show."""

    kind = "audio"

    def __init__(self, show: Show) -> None:
        super().__init__()
        self._show = show

    async def recv(self) -> SoundFrame:
        """The next 20 ms, in their time."""
        if self.readyState != "live":
            raise MediaStreamError
        return await self._show.next_sound()
