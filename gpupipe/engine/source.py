"""What the scheduler sees of sessions and lanes."""

from __future__ import annotations

from typing import Protocol, TypeVar


class Lane(Protocol):
    """What frames must share to go in one batch."""

    @property
    def batch(self) -> int:
        """The most frames in a batch."""

    def __hash__(self) -> int:
        """By identity."""


LaneT = TypeVar("LaneT", bound=Lane)
LaneT_co = TypeVar("LaneT_co", bound=Lane, covariant=True)


class Source(Protocol[LaneT_co]):
    """What the scheduler sees of a session: frames in order, some of which can be drawn now."""

    @property
    def lane(self) -> LaneT_co:
        """Where its frames go."""

    @property
    def available(self) -> int:
        """Frames that could be drawn now."""

    @property
    def expects_more(self) -> bool:
        """Whether more than the available frames will come."""

    @property
    def stock(self) -> int:
        """Finished frames that wait to be taken."""

    def deadline(self, ahead: int) -> float:
        """When the `ahead`-th frame from now must be finished, seconds; infinity for no deadline. The first that is not
        available is asked for too."""
