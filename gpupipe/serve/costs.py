"""What a second of talk costs, as measured: of the device, and of the processor's cores."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import Final

from gpupipe.serve.order import Output

FIRST_ENCODING: Final[dict[Output, float]] = {
    "nv12": 1e-9,
    "jpeg": 8e-9,
    "h264": 12e-9,
    "fmp4": 12e-9,
    "hevc": 40e-9,
    "webrtc": 25e-9,
}
"""CPU seconds a pixel of handing a picture out, before any has been measured: rather too much."""

KEEP: Final = 0.9
"""Of what a mean was, when another measure comes to it."""


@dataclass
class Mean:
    """A mean that forgets.

    Attributes:
        value: so far.
        measured: whether anything has come to it yet.
    """

    value: float
    measured: bool = False

    def add(self, value: float, weight: int = 1) -> None:
        """Take a measure that stands for `weight` of them."""
        kept = KEEP**weight if self.measured else 0.0
        self.value, self.measured = kept * self.value + (1 - kept) * value, True


class Costs:
    """Measured costs. Any thread may add to them."""

    def __init__(self) -> None:
        self._drawing: dict[str, Mean] = {}
        self._encoding: dict[tuple[Output, int], Mean] = {}
        self._seconds: dict[Output, float] = {}
        self._lock = threading.Lock()

    def drawn(self, character: str, seconds: float, frames: int) -> None:
        """Drawing `frames` frames of a character has taken so many seconds in all, of the GPU or, without one, of CPU
        time."""
        with self._lock:
            self._drawing.setdefault(character, Mean(0.0)).add(seconds / frames, frames)

    def encoded(self, output: Output, pixels: int, seconds: float) -> None:
        """Handing out a picture of so many pixels has taken so many CPU seconds."""
        with self._lock:
            self._encoding.setdefault((output, pixels), Mean(0.0)).add(seconds)
            self._seconds[output] = self._seconds.get(output, 0.0) + seconds

    def encoding_seconds(self) -> dict[Output, float]:
        """CPU seconds that handing out has taken in all, by what the pictures became."""
        with self._lock:
            return dict(self._seconds)

    def drawing(self, character: str) -> float | None:
        """Seconds a frame of a character; None: not measured yet."""
        with self._lock:
            mean = self._drawing.get(character)
            return None if mean is None else mean.value

    def encoding(self, output: Output, pixels: int) -> float:
        """CPU seconds a picture."""
        with self._lock:
            mean = self._encoding.get((output, pixels))
            return pixels * FIRST_ENCODING[output] if mean is None else mean.value
