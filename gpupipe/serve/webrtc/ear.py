"""Where in a sound that goes on and on somebody speaks. No clock: a second is as many samples.

Plain on purpose: the level of each 20 ms, in dB of full scale. Speech begins where three in a row are above `BEGIN_DB`,
and goes on until all of `HANGOVER_SECONDS` lie below the lower `GO_ON_DB`; so neither a click begins it, nor a pause
between two words ends it. What was heard in the `LEAD_SECONDS` before is part of it, as consonants are quiet.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from gpupipe.media.rtc import BLOCK_SAMPLES, SOUND_RATE

BEGIN_DB: Final = -42.0
GO_ON_DB: Final = -50.0
BEGIN_BLOCKS: Final = 3
HANGOVER_SECONDS: Final = 0.6
LEAD_SECONDS: Final = 0.2

_FLOOR: Final = 1e-10


@dataclass(frozen=True)
class Said:
    """A piece of somebody's speech.

    Attributes:
        pcm: float32 `[n]` at `SOUND_RATE`.
        begins: whether it is the first piece.
        ends: whether it is the last one.
    """

    pcm: NDArray[np.float32]
    begins: bool = False
    ends: bool = False


class Ear:
    """Finds speech.

    Args:
        longest: seconds after which a speech is ended, and the next begins.
    """

    def __init__(self, longest: float = 3600.0) -> None:
        self._longest = round(longest * SOUND_RATE / BLOCK_SAMPLES)
        self._rest = np.empty(0, np.float32)
        self._lead: deque[NDArray[np.float32]] = deque(maxlen=_blocks(LEAD_SECONDS) + BEGIN_BLOCKS)
        self._loud = self._quiet = self._said = 0

    @property
    def speaks(self) -> bool:
        """Whether somebody speaks now."""
        return self._said > 0

    def hear(self, pcm: NDArray[np.float32]) -> list[Said]:
        """What is speech of the next samples, in pieces of 20 ms but for the first of a speech.

        Args:
            pcm: float32 `[n]` at `SOUND_RATE`, full scale ±1.
        """
        heard = np.concatenate((self._rest, pcm))
        whole = len(heard) // BLOCK_SAMPLES * BLOCK_SAMPLES
        self._rest = heard[whole:]
        found = (self._block(block) for block in heard[:whole].reshape(-1, BLOCK_SAMPLES))
        return [said for said in found if said is not None]

    def end(self) -> list[Said]:
        """No more comes for now: a speech under way ends."""
        self._lead.clear()
        rest, self._rest = self._rest, np.empty(0, np.float32)
        spoke, self._loud, self._quiet, self._said = self.speaks, 0, 0, 0
        return [Said(rest, ends=True)] if spoke else []

    def _block(self, block: NDArray[np.float32]) -> Said | None:
        level = 10 * np.log10(float(np.mean(np.square(block, dtype=np.float64))) + _FLOOR)
        if not self.speaks:
            self._lead.append(block)
            self._loud = self._loud + 1 if level > BEGIN_DB else 0
            if self._loud < BEGIN_BLOCKS:
                return None
            lead = np.concatenate(self._lead)
            self._said, self._quiet = len(self._lead), 0
            self._lead.clear()
            return Said(lead, begins=True)
        self._said += 1
        self._quiet = 0 if level > GO_ON_DB else self._quiet + 1
        if self._quiet < _blocks(HANGOVER_SECONDS) and self._said < self._longest:
            return Said(block)
        self._loud = self._said = 0
        return Said(block, ends=True)


def _blocks(seconds: float) -> int:
    return round(seconds * SOUND_RATE / BLOCK_SAMPLES)
