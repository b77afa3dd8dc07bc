"""Pictures and sound one by one, as a WebRTC connection's own encoders take and give them.

A user of `av`, beside `video` and `sound`. No files.
"""

from __future__ import annotations

from fractions import Fraction
from typing import Final

import av
import numpy as np
from numpy.typing import NDArray

SOUND_RATE: Final = 48_000
"""Samples a second of Opus, and so of all sound here."""
BLOCK_SAMPLES: Final = 960
"""Of a packet of sound: 20 ms."""

_FULL_RANGE, _LIMITED_RANGE = 2, 1  # FFmpeg's AVCOL_RANGE_JPEG and _MPEG

PictureFrame = av.VideoFrame
SoundFrame = av.AudioFrame


def picture_frame(nv12: NDArray[np.uint8], index: int, fps: Fraction, *, full_range: bool = False) -> PictureFrame:
    """A picture for an encoder, which is a copy.

    Args:
        nv12: uint8 `[H * 3 // 2, W]`.
        index: its time is `index / fps`.
        fps: pictures a second.
        full_range: whether samples use 0…255; the encoders' streams say nothing of it, which means 16…235.
    """
    frame = av.VideoFrame.from_ndarray(nv12, format="nv12")
    if full_range:
        frame.color_range = _FULL_RANGE
        frame = frame.reformat(format="yuv420p", src_color_range=_FULL_RANGE, dst_color_range=_LIMITED_RANGE)
    else:
        frame = frame.reformat(format="yuv420p")
    frame.pts, frame.time_base = index, 1 / fps
    return frame


def sound_frame(pcm: NDArray[np.float32], at: int) -> SoundFrame:
    """A block of mono sound for an encoder.

    Args:
        pcm: float32 `[n]` at `SOUND_RATE`, full scale ±1.
        at: samples before it.
    """
    samples = np.rint(np.clip(pcm, -1.0, 1.0) * np.float32(32767)).astype(np.int16)
    frame = av.AudioFrame.from_ndarray(samples[None], format="s16", layout="mono")
    frame.sample_rate, frame.pts, frame.time_base = SOUND_RATE, at, Fraction(1, SOUND_RATE)
    return frame


def heard(frame: SoundFrame) -> NDArray[np.float32]:
    """What a decoder gives, as mono: the mean of the channels.

    Args:
        frame: 16-bit samples, channels in turn.

    Returns:
        float32 `[n]`, full scale ±1, at the frame's own rate.
    """
    samples = frame.to_ndarray().reshape(-1, frame.layout.nb_channels)
    mono: NDArray[np.float32] = samples.mean(axis=1, dtype=np.float32) / np.float32(32768)
    return mono
