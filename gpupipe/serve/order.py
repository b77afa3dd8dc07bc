"""What a client asks for: a talk, before it is opened."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

Output = Literal["h264", "hevc", "jpeg", "nv12", "fmp4", "webrtc"]
"""What a talk's pictures become: packets of a video stream, images, frames as they are drawn, a fragmented MP4 file
with the sound, or pictures that WebRTC's own encoder takes."""

DELAY_SECONDS: Final = 0.6
"""From a frame's own time to when it is due, unless a client asks for another. The front end hears 0.4525 s ahead
(`speech.stream.FeatureStream`): 0.28 s that the model hears ahead, the rest is the window of the last row. What is left
is for drawing and encoding."""

LEAST_DELAY_SECONDS: Final = 0.5


@dataclass(frozen=True)
class TalkOrder:
    """A talk that is wished for.

    Attributes:
        character: its name.
        output: what the pictures become, which costs CPU time.
        realtime: whether each frame is due at the talk's start + its own time + `delay`; else they come as fast as
            there is room, behind all that are due.
        delay: seconds, see `DELAY_SECONDS`.
        start_frame: position in the ping-pong order at which it starts.
        rate: samples a second of the sound that is pushed.
    """

    character: str
    output: Output
    realtime: bool = True
    delay: float = DELAY_SECONDS
    start_frame: int = 0
    rate: int = 16_000
