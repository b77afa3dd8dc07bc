"""From a talk to the event loop: a thread takes and encodes its pictures, a bounded queue hands the answers over."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
import traceback
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Protocol

from gpupipe.errors import GpupipeError
from gpupipe.log import Log
from gpupipe.serve.costs import Costs
from gpupipe.serve.refusals import Silent
from gpupipe.serve.talk import Picture, Talk
from gpupipe.threads import POLL_SECONDS, Worker

QUEUED: Final = 8
"""Answers that wait for the event loop, of each talk: then its pictures wait, and it alone becomes late."""

_log = Log(__name__)


@dataclass(frozen=True)
class Answer:
    """A piece of what a client gets.

    Attributes:
        data: bytes: a packet, an image, a frame, or a piece of a file.
        index: which picture it is, or begins with.
        keyframe: whether decoding can begin with it.
        repeats: whether it stands for a picture that was passed over.
    """

    data: bytes | memoryview
    index: int
    keyframe: bool = True
    repeats: bool = False


class Encoder(Protocol):
    """What makes answers of pictures, in the delivering thread."""

    def encode(self, picture: Picture) -> Sequence[Answer]:
        """The answers that a picture completes."""

    def finish(self) -> Sequence[Answer]:
        """What is left, after the last picture."""

    def close(self) -> None:
        """Release everything, finished or not."""


class Delivery:
    """Answers of a talk, for `async for`. Closing it ends the talk.

    Args:
        talk: whose pictures are taken, from the start of the iteration on.
        encoder: that makes answers of them; closed with it.
        costs: where what it takes is counted.
    """

    def __init__(self, talk: Talk, encoder: Encoder, costs: Costs) -> None:
        self.talk, self._encoder, self._costs = talk, encoder, costs
        self._waiting: deque[Answer] = deque()
        self._condition = threading.Condition()
        self._over = self._closed = False
        self._error: BaseException | None = None
        self._loop = asyncio.get_running_loop()
        self._something = asyncio.Event()
        self._worker = Worker("deliver", self._run)
        self._worker.start()

    def __aiter__(self) -> Delivery:
        """Itself."""
        return self

    async def __anext__(self) -> Answer:
        """The next answer.

        Raises:
            GpupipeError: what has ended the talk early.
        """
        while True:
            with self._condition:
                if self._waiting:
                    self._condition.notify_all()
                    return self._waiting.popleft()
                if self._error is not None:
                    raise self._error
                if self._over:
                    raise StopAsyncIteration
                self._something.clear()
            await self._something.wait()

    async def aclose(self) -> None:
        """End the talk, and wait for its thread."""
        with self._condition:
            self._closed = True
            self._condition.notify_all()
        await asyncio.to_thread(self._end)

    def _end(self) -> None:
        self.talk.close()
        self._worker.wait()

    def _run(self) -> None:
        talk = self.talk
        pixels = talk.format.width * talk.format.height
        try:
            try:
                for picture in talk:
                    began = time.thread_time()
                    answers = self._encoder.encode(picture)
                    if talk.order.output != "webrtc":  # which is encoded elsewhere, and counted there
                        self._costs.encoded(talk.order.output, pixels, time.thread_time() - began)
                    if not self._put(answers):
                        return
                self._put(self._encoder.finish())
            finally:
                self._encoder.close()
        except BaseException as error:
            self._error = error if isinstance(error, GpupipeError) else _unexpected(talk, error)
            if isinstance(error, Silent):  # who has taken nothing is told so before anything else
                with self._condition:
                    self._waiting.clear()
        finally:
            self._over = True
            self._wake()
            talk.close()

    def _put(self, answers: Sequence[Answer]) -> bool:
        """Hand answers over, once there is room; False if nobody wants them any more."""
        for answer in answers:
            with self._condition:
                while len(self._waiting) >= QUEUED and not self._closed and self.talk.open:
                    self.talk.excused = True
                    self._condition.wait(POLL_SECONDS)
                if self._closed:
                    return False
                self._waiting.append(answer)
            self._wake()
        return True

    def _wake(self) -> None:
        try:
            self._loop.call_soon_threadsafe(self._something.set)
        except RuntimeError:  # the loop is closed: nobody waits
            self._closed = True


def _unexpected(talk: Talk, error: BaseException) -> GpupipeError:
    _log.event("talk failed", logging.ERROR, talk=talk.number, error="".join(traceback.format_exception(error)))
    return GpupipeError(f"the server failed: {type(error).__name__}", remedy="see its log")
