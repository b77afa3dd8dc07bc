"""Nodes that join while a run goes on: how many engines more it is to have, and for how long it waits without any."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Sequence
from typing import Final

from gpupipe.character.folder import GpupipeWarning
from gpupipe.cluster.board import Board
from gpupipe.cluster.crew import Crews
from gpupipe.cluster.fleet import Lost
from gpupipe.cluster.job import ClusterJob
from gpupipe.cluster.remote import Remote

LOOK_SECONDS: Final = 5.0
"""How often the nodes of the cluster are looked at."""
WITHOUT_SECONDS: Final = 60.0
"""For so long a run waits for a node that has no engine left."""

More = Callable[[int], Sequence[Remote]]
"""Gives so many engines at most, not started yet, on nodes where the run has had none; raises `Lost` where the cluster
does not answer."""


class Joining:
    """Which engines are to join a run.

    Args:
        more: gives them.
        jobs: of the run, in order.
        board: knows what is left to be done.
        crews: the engines of the run.
        clock: tells the time, in seconds.
    """

    def __init__(
        self,
        more: More,
        jobs: Sequence[ClusterJob],
        board: Board,
        crews: Crews,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._more, self._jobs, self._board, self._crews, self._clock = more, jobs, board, crews, clock
        self._without: float | None = None

    def look(self) -> Sequence[Remote]:
        """The engines that are to join now, one at most for each segment that nobody draws.

        Raises:
            ClusterError: none has joined for long, and no other is left.
        """
        pending = self._board.pending()
        waiting = pending.waiting + sum(max(1, self._jobs[number].count) for number in pending.unopened)
        most = min(waiting, waiting + pending.running - self._crews.count)
        try:
            found = self._more(most) if most > 0 else ()
        except Lost:  # it is asked again
            found = ()
        if found or self._crews.any_left or not waiting + pending.running:
            self._without = None
        elif self._without is None:
            self._without = self._clock()
            warnings.warn(
                f"no engine is left: waiting for a node that joins, {WITHOUT_SECONDS:.0f} seconds at most",
                GpupipeWarning,
                stacklevel=4,
            )
        elif self._clock() - self._without > WITHOUT_SECONDS:
            raise self._crews.none_left()
        return found
