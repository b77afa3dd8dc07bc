"""Which frames are decoded next, of a character that is larger than its memory: runs, each from one frame to a later.

Going on from the last frame is cheap; any other is decoded from the keyframe before. So backwards a run is a whole
group, or several small ones, or as much of a group's end as there are slots for. Nothing here decodes, nor knows of
threads.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection
from dataclasses import dataclass
from itertools import pairwise


@dataclass
class Run:
    """Frames that are decoded one behind the other.

    Attributes:
        sources: the frames.
        shown: what the session shows from now on until all of them are shown.
        behind: when each frame is shown that is shown behind them, as far as that is known.
        passed: of `shown`, how many are shown already.
    """

    sources: range
    shown: list[int]
    behind: dict[int, int]
    passed: int = 0

    def advance(self, source: int) -> bool:
        """The session shows this frame next; whether it is still before the run's end."""
        try:
            # A frame that is shown twice before the end: the first time is the safe guess.
            self.passed = self.shown.index(source, self.passed)
        except ValueError:
            return False
        return True

    def needed(self) -> set[int]:
        """Frames that are shown until all of the run are."""
        return set(self.shown[self.passed :])

    @property
    def backwards(self) -> bool:
        """Whether its last frame is shown first."""
        return self.shown[-1] < self.sources[-1]

    def shown_behind(self, source: int) -> tuple[float, int]:
        """When a frame is shown behind the run, for comparison: a larger value is later. Where that is not known, it is
        as far away in time as in the film."""
        return self.behind.get(source, math.inf), abs(source - self.sources[0])

    def passes(self, sources: Collection[int]) -> bool:
        """Whether any of some frames is shown before the run's end."""
        return bool(sources) and any(source in sources for source in self.shown)


def next_run(
    upcoming: Callable[[int], list[int]],
    free: int,
    forwards: int,
    longest: int,
    kept: int,
    begins: Callable[[int], int],
    there: Callable[[int], bool],
) -> Run | None:
    """The frames to decode now; None, if there is none.

    Args:
        upcoming: gives which frames are shown next, as many as are known of so many.
        free: slots whose frames are not being drawn.
        forwards: how many frames ahead of what is shown are decoded forwards: what was shown stays in the other slots
            for the way back, and at a session's beginning the processor is not taken from what it draws.
        longest: frames that a run has at most.
        kept: how many of the first frames need no slot, and are never decoded here.
        begins: gives the frame from which decoding begins for one.
        there: whether a frame is in a slot.
    """

    def missing(source: int) -> bool:
        return source >= kept and not there(source)

    shown = upcoming(min(free, forwards))
    if any(later < sooner for sooner, later in pairwise(shown)):
        shown = upcoming(free)
        if len(set(shown)) < len(shown):  # about the turn, where the same ones come again
            shown = upcoming(2 * free)
    place = next((place for place, source in enumerate(shown) if missing(source)), None)
    if place is None:
        return None
    before = len({source for source in shown[:place] if source >= kept})
    if before >= free:
        return None
    wanted = shown[place]
    if place + 1 == len(shown):
        shown = upcoming(place + 2)
    if any(sooner > later for sooner, later in pairwise(shown[max(0, place - 1) : place + 2])):
        begin = begins(wanted)
        # More groups at once begin less often. What is shown before them should last until they are decoded.
        while begin > kept and wanted - (earlier := begins(begin - 1)) < min(longest, before):
            begin = earlier
        most = min(longest, wanted - begin + 1)
        if len(shown) < place + most:
            shown = upcoming(place + most)
        count = _follow(shown[place : place + most], -1, missing)
        sources = range(wanted - count + 1, wanted + 1)
    else:
        count = _follow(shown[place : place + min(free, forwards) - before], 1, missing)
        sources = range(wanted, wanted + count)
    if not count:
        return None
    end = place + count
    behind: dict[int, int] = {}
    for when, source in enumerate(shown[end:]):
        behind.setdefault(source, when)
    return Run(sources, shown[:end], behind)


def _follow(shown: list[int], step: int, missing: Callable[[int], bool]) -> int:
    """How many frames, from the first on, are missing and a step from each other."""
    for place, source in enumerate(shown):
        if source != shown[0] + step * place or not missing(source):
            return place
    return len(shown)
