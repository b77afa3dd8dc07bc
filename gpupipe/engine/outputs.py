"""Which output frames a session draws: all from the first on, or ranges of them that it takes as it comes to them."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from itertools import chain, islice

ENDLESS = range(1 << 62)
"""The frames of a speech whose length is not known yet."""


class Outputs:
    """Output frames in the order in which a session draws them. Used under the session's lock.

    Args:
        more: gives the next range, each frame of which lies behind those before; None: there are no more.
        shared: whether others take ranges too, so that none may be taken before it is needed.

    Attributes:
        endless: whether the end is not told by the ranges.
    """

    def __init__(self, more: Callable[[], range | None], *, shared: bool = True) -> None:
        self._more: Callable[[], range | None] | None = more
        self._shared = shared
        self._ranges: deque[range] = deque()
        self._known = 0
        self.endless = False

    @classmethod
    def all(cls) -> Outputs:
        """All there will be, for a speech whose length is not known yet."""
        outputs = cls.of(ENDLESS)
        outputs.endless = True
        return outputs

    @classmethod
    def of(cls, *ranges: range) -> Outputs:
        """Those of ranges that are known from the start."""
        waiting = deque(ranges)
        return cls(lambda: waiting.popleft() if waiting else None, shared=False)

    def left(self, wanted: int) -> int:
        """How many frames are left, counted up to `wanted`; takes further ranges as far as that needs."""
        while self._known < wanted and self._more is not None:
            if (found := self._more()) is None:
                self._more = None
            else:
                self._ranges.append(found)
                self._known += len(found)
        return min(self._known, wanted)

    def peek(self, ahead: int) -> int | None:
        """The `ahead`-th frame from here; None if there are not so many."""
        if self.left(ahead + 1) <= ahead:
            return None
        for each in self._ranges:
            if ahead < len(each):
                return each[ahead]
            ahead -= len(each)
        raise AssertionError("as many as are known lie in the ranges")

    def known(self, count: int) -> list[int]:
        """The next frames, as many of `count` as are known: if ranges are shared, those in the ranges taken so far."""
        if not self._shared:
            self.left(count)
        return list(islice(chain.from_iterable(self._ranges), count))

    def pop(self) -> int:
        """The next frame, which is passed by this."""
        while not self._ranges[0]:
            self._ranges.popleft()
        first = self._ranges[0]
        self._ranges[0] = first[1:]
        self._known -= 1
        return first[0]
