"""The most clients that are served in time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, Protocol, TypeVar

FINE: Final = 16
"""A step of the search is one client, or a sixteenth of them where they are many."""


class Outcome(Protocol):
    """What became of some clients."""

    @property
    def in_time(self) -> bool:
        """Whether all were served in time."""


OutcomeT = TypeVar("OutcomeT", bound=Outcome)


def largest(tried: Callable[[int], OutcomeT], first: int, most: int) -> tuple[int, dict[int, OutcomeT]]:
    """Find it: by doubling, then by halves; a number that fails is tried once more, as the system may have been busy.

    Args:
        tried: lets so many come.
        first: how many come first.
        most: how many come at most.

    Returns:
        The most that were served in time, 0 if none, and what became of each number that was tried.
    """
    found: dict[int, OutcomeT] = {}

    def good(clients: int) -> bool:
        found[clients] = tried(clients)
        if not found[clients].in_time:
            found[clients] = tried(clients)
        return found[clients].in_time

    low, high = 0, None
    clients = min(first, most)
    while high is None or high - low > max(1, low // FINE):
        if good(clients):
            low = clients
        else:
            high = clients
        if high is None:
            if low == most:
                break
            clients = min(2 * low, most)
        else:
            clients = (low + high) // 2
        if clients in found:
            break
    return low, dict(sorted(found.items()))
