"""What a peer sees and hears next: in step, whatever is late.

Time is told in *ticks*, one a picture, and place in *positions* of the ping-pong order. Both go on together, but that a
tick whose sound is not there yet stands still: nothing is lost then, and both wait. A picture that is not there in time
is not waited for: the one before stays in sight while the sound goes on.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass
from fractions import Fraction
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from gpupipe.geometry import Rect
from gpupipe.media.rtc import SOUND_RATE
from gpupipe.serve.idle import SEAM, blend, spoken_share
from gpupipe.serve.webrtc.utterance import Utterance


class FilmedFrames(Protocol):
    """What `engine.filmed.Filmed` gives."""

    def rect(self, position: int) -> Rect:
        """Where spoken pictures differ from filmed ones."""

    def read(self, position: int) -> NDArray[np.uint8]:
        """A filmed frame."""


@dataclass(frozen=True)
class Shown:
    """What one tick shows.

    Attributes:
        sound: float32 `[n]` at `SOUND_RATE`, that goes with the picture.
        position: of the picture.
        still: whether the picture before stays in sight.
        spoken: the spoken picture's bytes, nv12; None: the filmed one is shown.
        share: how much of the spoken picture is shown, of `SEAM + 1`.
    """

    sound: NDArray[np.float32]
    position: int
    still: bool = False
    spoken: bytes | memoryview | None = None
    share: int = 0


class Stage:
    """Decides what each tick shows. For the event loop alone, and quick.

    Args:
        fps: pictures, and ticks, a second.

    Attributes:
        ticks: so far.
        position: of the next picture.
        late: pictures that were not there in time.
        waited: ticks that stood still for sound that was not there yet.
        done: utterances that are over, for their owner to close.
    """

    def __init__(self, fps: Fraction) -> None:
        self.fps = fps
        self.ticks = self.position = self.late = self.waited = 0
        self.done: list[Utterance] = []
        self._coming: deque[Utterance] = deque()
        self._began: float | None = None

    @property
    def busy(self) -> bool:
        """Whether somebody speaks, or is about to."""
        return bool(self._coming)

    def begin(self, now: float) -> None:
        """The first tick is due now, seconds of `time.monotonic`."""
        self._began = now

    def due(self, tick: int) -> float:
        """When a tick is due, seconds of `time.monotonic`."""
        assert self._began is not None, "begin comes first"
        return self._began + float(tick / self.fps)

    def due_at(self, position: int) -> float:
        """When a position is reached, unless there is something to wait for before."""
        return self.due(self.ticks + position - self.position)

    def position_at(self, when: float) -> int:
        """The first position that is reached no earlier than that, and after all that is said before.

        Args:
            when: seconds of `time.monotonic`.
        """
        ahead = math.ceil((when - self.due(self.ticks)) * self.fps)
        after = max((each.position + (each.total or 0) for each in self._coming), default=0)
        return max(self.position + max(0, ahead), after)

    def say(self, utterance: Utterance) -> None:
        """Show an utterance from its position on. If that has gone by, frames go back to it: no sound is lost."""
        if not self._coming:
            self.position = min(self.position, utterance.position)
        self._coming.append(utterance)

    def tick(self) -> Shown:
        """What is shown next."""
        samples = self._boundary(self.ticks + 1) - self._boundary(self.ticks)
        self.ticks += 1
        position = self.position
        while self._coming and self._is_over(self._coming[0]):
            self.done.append(self._coming.popleft())
        if not self._coming or position < self._coming[0].position:
            self.position += 1
            return Shown(np.zeros(samples, np.float32), position)
        utterance = self._coming[0]
        if not utterance.has_sound(samples):
            self.waited += 1
            return Shown(np.zeros(samples, np.float32), position, still=True)
        self.position += 1
        index = position - utterance.position
        picture = utterance.picture(index)
        if picture is None or picture.repeats:
            self.late += 1
            return Shown(utterance.sound(samples), position, still=True)
        return Shown(utterance.sound(samples), position, False, picture.data, spoken_share(index, utterance.total))

    def close(self) -> list[Utterance]:
        """End all that is said; gives what is to be closed."""
        found = [*self.done, *self._coming]
        self.done.clear()
        self._coming.clear()
        return found

    def _is_over(self, utterance: Utterance) -> bool:
        said = self.position - utterance.position
        return utterance.over or (utterance.total is not None and said >= utterance.total)

    def _boundary(self, tick: int) -> int:
        return math.floor(tick * SOUND_RATE / self.fps)


def drawn(shown: Shown, filmed: FilmedFrames, shape: tuple[int, ...]) -> NDArray[np.uint8]:
    """The picture of a tick that does not stand still, good until the next one is drawn. Not for the event loop.

    Args:
        shown: what the tick shows.
        filmed: where filmed frames come from.
        shape: of a picture, `[H * 3 // 2, W]`.

    Returns:
        uint8 nv12 of that shape.

    Raises:
        GpupipeError: the filmed frame cannot be had.
    """
    if shown.spoken is None:
        return filmed.read(shown.position)
    spoken = np.frombuffer(shown.spoken, np.uint8).reshape(shape)
    if shown.share > SEAM:
        return spoken
    mixed = filmed.read(shown.position)
    blend(mixed, spoken, filmed.rect(shown.position), shown.share)
    return mixed
