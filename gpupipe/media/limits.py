"""What is taken from files whose makers nobody knows: how large a picture, how many frames, and who decodes them."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from os import PathLike
from typing import Final

from gpupipe.errors import MediaError, OptionError
from gpupipe.geometry import SPEECH_RATE
from gpupipe.options import EngineOptions, declared

_DECLARED: Final = declared(EngineOptions)


@dataclass(frozen=True)
class Limits:
    """Checked before anything of that size is allocated.

    Attributes:
        max_pixels: of a video's frame.
        max_frames: of a character, and of an output.
        max_memory: bytes that a decoder in a process of its own may take; None: `isolate.MEMORY`.
        isolate: decode in processes of their own, and follow nothing out of the character's folder.
    """

    max_pixels: int = _DECLARED["max_pixels"].default
    max_frames: int = _DECLARED["max_frames"].default
    max_memory: int | None = None
    isolate: bool = False

    @classmethod
    def of(cls, options: EngineOptions) -> Limits:
        """Those that an engine is opened with."""
        return cls(options.max_pixels, options.max_frames, options.max_memory, options.isolate)

    @property
    def max_sound_seconds(self) -> float:
        """The longest sound: as long as the most frames last at the rate of speech features."""
        return self.max_frames / SPEECH_RATE

    @property
    def notes(self) -> tuple[str, ...]:
        """What to say of them beside a result."""
        if not self.isolate:
            return ()
        said = "videos and sounds are decoded in processes of their own, and sound is encoded, not copied"
        return (said + ("" if sys.platform == "linux" else "; their memory is not limited on this system"),)

    def check_size(self, file: str | PathLike[str], width: int, height: int) -> None:
        """Raise a MediaError for a frame that is too large."""
        if width * height > self.max_pixels:
            raise MediaError(
                f"larger than --max-pixels {self.max_pixels}",
                file=file,
                field="size",
                value=f"{width}x{height}",
                remedy="make the video smaller, or --max-pixels larger",
            )

    def check_frames(self, file: str | PathLike[str], frames: int) -> None:
        """Raise a MediaError for too many frames."""
        if frames > self.max_frames:
            raise MediaError(
                f"more than --max-frames {self.max_frames}",
                file=file,
                field="frames",
                value=frames,
                remedy="make the video shorter, or --max-frames larger",
            )

    def check_output(self, frames: int) -> None:
        """Raise an OptionError for too many frames of an output."""
        if frames > self.max_frames:
            raise OptionError(
                f"the output has more than --max-frames {self.max_frames}",
                field="--frames",
                value=frames,
                remedy="give shorter speech, fewer --frames, or a larger --max-frames",
            )

    def check_sound(self, file: str | PathLike[str], seconds: float) -> None:
        """Raise a MediaError for a sound that is too long, or whose length is no number of seconds."""
        if not 0 <= seconds <= self.max_sound_seconds:
            raise MediaError(
                f"lasts no time from 0 to the {self.max_sound_seconds:.0f} s of --max-frames {self.max_frames}",
                file=file,
                field="duration",
                value=f"{seconds:.0f} s",
                remedy="give a shorter sound, or a larger --max-frames",
            )


DEFAULT: Final = Limits()
