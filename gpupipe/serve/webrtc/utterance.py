"""One speech of a peer: its sound, kept until it is to be heard, and its pictures, until they are to be seen."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from gpupipe.errors import GpupipeError
from gpupipe.media.rtc import SOUND_RATE
from gpupipe.serve.conversation import Conversation
from gpupipe.serve.delivery import Answer
from gpupipe.serve.talk import Picture

PICTURES_AHEAD: Final = 3
"""Pictures that lie ready, besides those that wait in the delivery."""


class Utterance:
    """A talk whose sound and pictures are taken in step. For the event loop alone.

    Args:
        conversation: opened; closed with this.
        position: in the ping-pong order, of its first picture.

    Attributes:
        position: likewise.
        total: pictures in all, once its sound has ended.
        error: what has ended it early.
    """

    def __init__(self, conversation: Conversation, position: int) -> None:
        self._conversation, self.position = conversation, position
        self.total: int | None = None
        self.error: GpupipeError | None = None
        self._sound: deque[NDArray[np.float32]] = deque()
        self._samples = 0
        self._pictures: asyncio.Queue[Answer] = asyncio.Queue(PICTURES_AHEAD)
        self._head: Answer | None = None
        self._reader = asyncio.create_task(self._read())

    @property
    def over(self) -> bool:
        """Whether nothing more of it is to be shown, for an error."""
        return self.error is not None

    async def push(self, pcm: NDArray[np.float32]) -> None:
        """Take the next samples, once there is room for them.

        Args:
            pcm: float32 `[n]` at `SOUND_RATE`.

        Raises:
            GpupipeError: what has ended it.
        """
        await self._conversation.push(pcm)
        self._sound.append(pcm)
        self._samples += len(pcm)

    async def finish(self) -> None:
        """End its sound. One that is too short to be heard is given silence.

        Raises:
            GpupipeError: what has ended it.
        """
        missing = SOUND_RATE // 4 - round(self._conversation.talk.seconds * SOUND_RATE)
        if missing > 0:
            await self.push(np.zeros(missing, np.float32))
        await self._conversation.finish()
        self.total = self._conversation.talk.total

    def has_sound(self, samples: int) -> bool:
        """Whether the next samples are there, or will never be."""
        return self._samples >= samples or self.total is not None or self.over

    def sound(self, samples: int) -> NDArray[np.float32]:
        """The next samples, float32 `[samples]`; silence where there are no more."""
        taken = np.zeros(samples, np.float32)
        at = 0
        while at < samples and self._sound:
            piece = self._sound.popleft()
            count = min(len(piece), samples - at)
            taken[at : at + count] = piece[:count]
            at += count
            if count < len(piece):
                self._sound.appendleft(piece[count:])
        self._samples -= at
        return taken

    def picture(self, index: int) -> Answer | None:
        """A picture; None if it is not there yet. Those before it are let go."""
        while self._head is None or self._head.index < index:
            if self._pictures.empty():
                return None
            self._head = self._pictures.get_nowait()
        return self._head if self._head.index == index else None

    async def aclose(self) -> None:
        """End it, whatever is still to be shown."""
        self._reader.cancel()
        await asyncio.gather(self._reader, return_exceptions=True)
        await self._conversation.aclose()

    async def _read(self) -> None:
        try:
            async for answer in self._conversation:
                await self._pictures.put(answer)
        except GpupipeError as error:
            self.error = error


class Pixels:
    """The encoder of a talk whose pictures are encoded elsewhere: each is copied."""

    def encode(self, picture: Picture) -> Sequence[Answer]:
        """See `delivery.Encoder`; the data is nv12."""
        return [Answer(picture.pixels.tobytes(), picture.index, repeats=picture.repeats)]

    def finish(self) -> Sequence[Answer]:
        """Nothing is left."""
        return []

    def close(self) -> None:
        """Nothing is held."""
