"""The engines of a run, and what each has been told."""

from __future__ import annotations

import logging
import threading
import time
import warnings
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator
from typing import Any, Final

from gpupipe.character.folder import GpupipeWarning
from gpupipe.cluster.board import Board
from gpupipe.cluster.facts import JOINING, Facts, facts_here, require_alike
from gpupipe.cluster.fleet import Lost
from gpupipe.cluster.remote import Link, Remote, answers
from gpupipe.errors import ClusterError, GpupipeError
from gpupipe.log import Log

CLOSE_SECONDS: Final = 5.0
"""How long engines have to end what they do and clean up, before they are killed."""
BEHIND_SECONDS: Final = 1.0
"""How long those have that still draw what others have drawn: they may hang."""
RESTARTS: Final = 10
"""How often an engine is started anew whose process has ended."""
PATIENCE_SECONDS: Final = 30.0
"""After so long without an engine, somebody is told; and one that has had no room for so long is not counted on."""

_log = Log(__name__)


class Unfit(Exception):
    """An engine finds something else in a job than another one, and one of the two has joined while the run went on.

    Attributes:
        error: what.
    """

    def __init__(self, error: ClusterError) -> None:
        super().__init__(str(error))
        self.error = error


class Hand:
    """An engine that is open, and what it has been told.

    Args:
        link: the engine.
        joined: whether its node was found while the run went on.
    """

    def __init__(self, link: Link, *, joined: bool = False) -> None:
        self.link, self.joined = link, joined
        self.lost = False
        self.begun: set[str] = set()
        self.sees: dict[str, bool] = {}
        self.telling = threading.Lock()


class Crew:
    """An engine's place in a run, whoever has it: it is started anew when it was lost.

    Args:
        remote: starts it.
        joined: whether its node was found while the run went on.
    """

    def __init__(self, remote: Remote, *, joined: bool = False) -> None:
        self.remote, self.joined = remote, joined
        self.hand: Hand | None = None
        self.starts = 0
        self.since = time.monotonic()
        self.gone = False
        self.lock = threading.Lock()


class Crews:
    """All engines of a run. Used from any thread.

    Args:
        remotes: those that there are when it begins, not started yet.
        board: gives them work.
        may_join: whether more may come later: without, the run ends when the last engine is gone.
        try_out: sees whether one that has joined fits, before it takes work; raises `Unfit`, or what it raises.
    """

    def __init__(
        self,
        remotes: Iterable[Remote],
        board: Board,
        *,
        may_join: bool,
        try_out: Callable[[Hand], None] = lambda hand: None,
    ) -> None:
        self._all = [Crew(remote) for remote in remotes]
        self._board, self._may_join, self._try_out = board, may_join, try_out
        self._first: tuple[Crew, str, Facts] | None = None
        self._lock = threading.Lock()
        self.closing = False
        self.last_loss = "there was none"

    def __iter__(self) -> Iterator[Crew]:
        return iter(tuple(self._all))

    @property
    def any_opened(self) -> bool:
        """Whether one has ever been open."""
        return self._first is not None

    @property
    def any_left(self) -> bool:
        """Whether one is there, or may come back."""
        return any(not crew.gone for crew in self)

    @property
    def count(self) -> int:
        """Those that are there, or will soon be: without those that have waited long for room on their nodes."""
        now = time.monotonic()
        return sum(
            not crew.gone and ((crew.hand is not None and not crew.hand.lost) or now - crew.since < PATIENCE_SECONDS)
            for crew in self
        )

    def join(self, remote: Remote) -> Crew:
        """One more, on a node that was found while the run went on."""
        crew = Crew(remote, joined=True)
        self._all.append(crew)
        return crew

    def open_hand(self, crew: Crew) -> Hand | None:
        """The engine, started if it was not, or if the one that was is lost.

        Returns:
            None: there is none any more.

        Raises:
            GpupipeError: it cannot be opened, or is not like the others, and its node was there from the beginning.
            ClusterError: it is gone, was the last, and none may join.
        """
        with crew.lock:
            if (crew.hand is None or crew.hand.lost) and not crew.gone and not self.closing:
                self._start(crew)
            return None if crew.gone or self.closing else crew.hand

    def leave_out(self, crew: Crew, error: GpupipeError) -> None:
        """Do without an engine that is not like another one, where one of the two has joined."""
        with crew.lock:
            if not crew.gone:
                self._drop(crew, f"is not like the others, and not used any more: {error}", str(error))

    def call_off(self, engines: Collection[str], job: str, segment: int) -> None:
        """Let engines, by name, draw a segment of a job no further."""
        for crew in self:
            if crew.remote.name in engines and crew.hand is not None:
                crew.hand.link.begin_to_ask("call_off", job, segment)

    def forget(self, job: str) -> None:
        """Let the engines forget a job, and call off what they do of it."""
        for crew in self:
            if (hand := crew.hand) is not None and job in hand.begun:
                hand.begun.discard(job)
                hand.sees.pop(job, None)
                hand.link.begin_to_ask("end", job)

    def close(self) -> None:
        """Let the engines end what they do, and then end them, but for those that are kept."""
        behind, asked = self._board.behind(), defaultdict[bool, list[tuple[Hand, Any]]](list)
        for crew in self:
            if (hand := crew.hand) is None or hand.lost:
                continue
            mine = asked[crew.remote.name in behind]
            if crew.remote.keep_seconds is None:
                mine += asked_of(hand, "close")
            else:
                mine += [ref for job in tuple(hand.begun) for ref in asked_of(hand, "end", job)]
        answers(asked[False], CLOSE_SECONDS)
        answers(asked[True], BEHIND_SECONDS)
        for crew in self:
            crew.remote.close()

    def _start(self, crew: Crew) -> None:
        try:
            if crew.starts > RESTARTS:
                raise Lost(f"it has ended {crew.starts} times")
            crew.since = time.monotonic()
            link, facts = crew.remote.start()
            self._compare(crew, link.node, facts)
            hand = Hand(link, joined=crew.joined)
            if crew.joined:
                self._try_out(hand)
        except Lost as error:
            self._drop(crew, f"{crew.remote.share.node}: draws no more: {error}", str(error))
        except (Unfit, GpupipeError) as error:
            if not (crew.joined or (self._first is not None and self._first[0].joined)):
                raise
            crew.remote.close()
            self._drop(crew, f"a node that has joined is not used: {error}", str(error))
        else:
            crew.hand, crew.starts = hand, crew.starts + 1
            self._board.join(crew.remote.name, crew.remote.slots)

    def _compare(self, crew: Crew, node: str, facts: Facts) -> None:
        """See that an engine would make the same bytes as the others."""
        require_alike(node, facts, "the machine that joins them", facts_here(), JOINING)
        with self._lock:
            if self._first is None:
                self._first = crew, node, facts
            _, first, others = self._first
        require_alike(node, facts, first, others)

    def _drop(self, crew: Crew, warning: str, why: str) -> None:
        """An engine is gone for good."""
        crew.gone, self.last_loss = True, why
        self._board.leave(crew.remote.name)
        if self.closing:
            return
        warnings.warn(warning, GpupipeWarning, stacklevel=4)
        _log.event("engine gone", logging.WARNING, engine=crew.remote.name, node=crew.remote.share.node, error=why)
        if not (self._may_join or self.any_left):
            raise self.none_left()

    def none_left(self) -> ClusterError:
        """That all engines are gone."""
        return ClusterError(
            f"no engine is left, the last went so: {self.last_loss}",
            field="--ray",
            remedy="--resume goes on with what is finished",
        )


def asked_of(hand: Hand, what: str, *given: Any) -> list[tuple[Hand, Any]]:
    """An answer that is waited for, if there is to be one."""
    answer = hand.link.begin_to_ask(what, *given)
    return [] if answer is None else [(hand, answer)]
