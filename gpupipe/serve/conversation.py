"""A talk as the event loop has it: what every protocol uses."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Final

import numpy as np
from numpy.typing import NDArray

from gpupipe.serve.delivery import Answer, Delivery, Encoder
from gpupipe.serve.hub import Hub
from gpupipe.serve.loading import in_turn
from gpupipe.serve.order import TalkOrder
from gpupipe.serve.seats import Seat
from gpupipe.serve.talk import Talk

ROOM_SECONDS: Final = 0.02
"""How often a talk that has no room for more sound is asked again."""


class Conversation:
    """A talk: sound in by `push`, answers out by `async for`, one task for each. Made by `open`; must be closed.

    Args:
        hub: that has opened it.
        talk: which.
        delivery: of its answers.
    """

    def __init__(self, hub: Hub, talk: Talk, delivery: Delivery) -> None:
        self._hub, self.talk, self._delivery = hub, talk, delivery

    @classmethod
    async def open(
        cls, hub: Hub, order: TalkOrder, encoder: Callable[[Talk], Encoder], reserved: Seat | None = None
    ) -> Conversation:
        """Open a talk.

        Args:
            hub: of the server.
            order: what is asked for.
            encoder: makes what makes answers of its pictures.
            reserved: the place that is held for it, see `Hub.reserve`.

        Raises:
            GpupipeError: as `Hub.open`, or the encoder cannot be opened.
        """
        work = in_turn(hub.opening, hub.loading, lambda loads: hub.open(order, reserved, loads=loads))
        opening = asyncio.ensure_future(work)
        try:
            talk = await asyncio.shield(opening)
        except asyncio.CancelledError:  # the client has gone; the talk is ended once it is open
            opening.add_done_callback(_close_if_open)
            raise
        try:
            return cls(hub, talk, Delivery(talk, encoder(talk), hub.costs))
        except BaseException:
            talk.close()
            raise

    async def push(self, pcm: NDArray[np.float32]) -> None:
        """Take sound, once there is room for it; see `Talk.push`."""
        while not self.talk.has_room and self.talk.open:
            await asyncio.sleep(ROOM_SECONDS)
        if self.talk.only_holds(len(pcm)):
            self.talk.push(pcm)
        else:
            await asyncio.get_running_loop().run_in_executor(self._hub.hearing, self.talk.push, pcm)

    async def finish(self) -> None:
        """End the speech; see `Talk.finish`."""
        await asyncio.get_running_loop().run_in_executor(self._hub.hearing, self.talk.finish)

    def __aiter__(self) -> AsyncIterator[Answer]:
        """Answers in order; raises what has ended the talk early."""
        return self._delivery

    async def aclose(self) -> None:
        """End it, and wait until nothing of it is left."""
        await self._delivery.aclose()

    async def __aenter__(self) -> Conversation:
        """Begin a with block, which ends it."""
        return self

    async def __aexit__(self, *_: object) -> None:
        """End it."""
        await self.aclose()


def _close_if_open(opening: asyncio.Future[Talk]) -> None:
    if not opening.cancelled() and opening.exception() is None:
        opening.result().close()
