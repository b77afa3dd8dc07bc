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

FIRST_HEARING: Final = 0.02
"""CPU seconds for a second of sound, before any was measured."""

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
        self._device: dict[str, Mean] = {}
        self._cores: dict[str, Mean] = {}
        self._encoding: dict[tuple[Output, int], Mean] = {}
        self._hearing = Mean(FIRST_HEARING)
        self._seconds: dict[Output, float] = {}
        self._lock = threading.Lock()

    def drawn(self, character: str, device: float | None, cores: float | None, weight: int = 1) -> None:
        """Drawing a frame of a character takes so many seconds of the GPU, and so many CPU seconds of whatever is
        neither encoding nor hearing; None: not measured now."""
        with self._lock:
            for means, value in ((self._device, device), (self._cores, cores)):
                if value is not None:
                    means.setdefault(character, Mean(0.0)).add(value, weight)

    def heard(self, seconds: float, of: float) -> None:
        """Making features of `of` seconds of sound has taken so many CPU seconds."""
        with self._lock:
            self._hearing.add(seconds / of, 4)

    def encoded(self, output: Output, pixels: int, seconds: float) -> None:
        """Handing out a picture of so many pixels has taken so many CPU seconds."""
        with self._lock:
            self._encoding.setdefault((output, pixels), Mean(0.0)).add(seconds)
            self._seconds[output] = self._seconds.get(output, 0.0) + seconds

    def device(self, character: str) -> float | None:
        """Seconds a frame of a character that the GPU needs; None: not measured, as where there is none."""
        with self._lock:
            return None if (mean := self._device.get(character)) is None else mean.value

    def cores(self, character: str) -> float | None:
        """CPU seconds a frame of a character; None: not measured yet."""
        with self._lock:
            return None if (mean := self._cores.get(character)) is None else mean.value

    def encoding(self, output: Output, pixels: int) -> float:
        """CPU seconds a picture."""
        with self._lock:
            mean = self._encoding.get((output, pixels))
            return pixels * FIRST_ENCODING[output] if mean is None else mean.value

    def hearing(self) -> float:
        """CPU seconds for a second of sound."""
        with self._lock:
            return self._hearing.value

    def encoding_seconds(self) -> dict[Output, float]:
        """CPU seconds that handing out has taken in all, by what the pictures became."""
        with self._lock:
            return dict(self._seconds)
