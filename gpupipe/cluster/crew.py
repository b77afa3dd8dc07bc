"""The engines of a run, and what each has been told."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any, Final

from gpupipe.cluster.fleet import Link, Remote, answers

CLOSE_SECONDS: Final = 5.0
"""How long engines have to end what they do and clean up, before they are killed."""


class Hand:
    """An engine that is open, and what it has been told.

    Args:
        link: the engine.
    """

    def __init__(self, link: Link) -> None:
        self.link = link
        self.lost = False
        self.begun: set[str] = set()
        self.sees: dict[str, bool] = {}
        self.telling = threading.Lock()


class Crew:
    """An engine's place in a run, whoever has it: it is started anew when it was lost.

    Args:
        remote: starts it.
    """

    def __init__(self, remote: Remote) -> None:
        self.remote = remote
        self.hand: Hand | None = None
        self.starts = 0
        self.gone = False
        self.lock = threading.Lock()


def close_all(crews: Sequence[Crew]) -> None:
    """Let the engines end what they do, and then end them, but for those that are kept."""
    asked: list[tuple[Hand, Any]] = []
    for crew in crews:
        if (hand := crew.hand) is None or hand.lost:
            continue
        if crew.remote.keep_seconds is None:
            asked += asked_of(hand, "close")
        else:
            asked += [ref for job in tuple(hand.begun) for ref in asked_of(hand, "end", job)]
    answers(asked, CLOSE_SECONDS)
    for crew in crews:
        crew.remote.close()


def asked_of(hand: Hand, what: str, *given: Any) -> list[tuple[Hand, Any]]:
    """An answer that is waited for, if there is to be one."""
    answer = hand.link.begin_to_ask(what, *given)
    return [] if answer is None else [(hand, answer)]
