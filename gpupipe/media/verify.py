"""Whether a finished video, or folder of images, is whole: all of it decoded, every time stamp looked at."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any, Final, cast

import av

from gpupipe.errors import OutputError, reason
from gpupipe.media.limits import DEFAULT
from gpupipe.media.nal_units import is_sound, length_size
from gpupipe.media.opening import media_options, media_url, opened
from gpupipe.media.video import probe

SOUND_FRAME_SECONDS = 0.05
"""By how much sound may be longer or shorter than the picture: a frame of AAC at 22,050 Hz lasts 46 ms."""

STRICT: Final = {"err_detect": "explode"}
"""A decoder's option: what it would conceal is an error (libavcodec, options_table.h: `AV_EF_EXPLODE`)."""
END_OF_JPEG: Final = b"\xff\xd9"
"""The marker with which a JPEG ends (ITU-T T.81, B.1.1.3: EOI)."""


@dataclass
class Verified:
    """What a finished video, or folder of images, was found to hold.

    Attributes:
        path: which.
        frames: decoded.
        width, height: pixels.
        fps: frames a second; None for images.
        keyframes: the numbers of the frames at which decoding can begin.
        sound_seconds: how long the decoded sound is; None without any.
        problems: what is wrong, each in a line.
    """

    path: Path
    frames: int = 0
    width: int = 0
    height: int = 0
    fps: Fraction | None = None
    keyframes: list[int] = field(default_factory=list)
    sound_seconds: float | None = None
    problems: list[str] = field(default_factory=list)


def verify_video(path: Path) -> Verified:
    """Decode a video from its first frame to its last. What the decoder would conceal is a problem here.

    Raises:
        MediaError: it is missing, no video, truncated, or holds no frame.
    """
    info = probe(path)
    found = Verified(path, width=info.width, height=info.height, fps=info.fps)
    wrong_times = 0
    tick = Fraction(0)
    damaged: set[int] = set()
    with opened(path, DEFAULT) as (container, stream):
        context = stream.codec_context
        context.options = {**context.options, **STRICT, "max_pixels": str(DEFAULT.max_pixels)}
        lengths = length_size(context.name, context.extradata)
        tick = stream.time_base or tick
        try:
            for packet in container.demux(stream):
                if packet.is_corrupt or (lengths is not None and not is_sound(bytes(packet), lengths)):
                    damaged.add(found.frames if packet.pts is None else round(packet.pts * tick * info.fps))
                for frame in packet.decode():
                    wrong_times += frame.pts is None or round(frame.pts * tick * info.fps) != found.frames
                    if frame.is_corrupt:
                        damaged.add(found.frames)
                    if frame.key_frame:
                        found.keyframes.append(found.frames)
                    if (frame.width, frame.height) != (info.width, info.height):
                        found.problems.append(f"frame {found.frames} is {frame.width}x{frame.height}")
                    found.frames += 1
        except (av.FFmpegError, OSError) as error:
            found.problems.append(f"frame {found.frames} cannot be decoded: {reason(error)}")
    if damaged:
        others = f", and {len(damaged) - 1} more" if len(damaged) > 1 else ""
        found.problems.append(f"frame {min(damaged)} is damaged{others}")
    if found.frames != info.frames:
        found.problems.append(f"{found.frames} frames of {info.frames} can be decoded")
    if wrong_times:
        found.problems.append(f"{wrong_times} frames are not shown at their number over {info.fps} frames a second")
    if found.keyframes[:1] != [0]:
        found.problems.append("the first frame is no keyframe")
    _verify_sound(path, found, float(found.frames / info.fps))
    return found


def _verify_sound(path: Path, found: Verified, picture_seconds: float) -> None:
    with av.open(media_url(path), options=media_options(DEFAULT), metadata_errors="replace") as container:
        if not container.streams.audio:
            return
        seconds = Fraction(0)
        try:
            for frame in _sound(container):
                seconds += Fraction(frame.samples, frame.sample_rate)
        except (av.FFmpegError, OSError) as error:
            found.problems.append(f"the sound cannot be decoded after {float(seconds):.2f} s: {reason(error)}")
        found.sound_seconds = float(seconds)
        if abs(found.sound_seconds - picture_seconds) > SOUND_FRAME_SECONDS:
            found.problems.append(f"the sound lasts {found.sound_seconds:.2f} s, the picture {picture_seconds:.2f} s")


def _sound(container: Any) -> Iterator[Any]:
    yield from container.decode(container.streams.audio[0])


def verify_images(folder: Path, images: Iterable[Path]) -> Verified:
    """Decode the images of a folder, `frame_0000.jpg` and on.

    Raises:
        OutputError: there are none.
    """
    numbered = {int(re.sub(r"\D", "", path.stem)): path for path in images}
    if not numbered:
        raise OutputError(
            "neither a video nor a folder of images", file=folder, remedy="give what a render has written"
        )
    found = Verified(folder)
    found.problems += [f"frame {number} is missing" for number in range(max(numbered)) if number not in numbered]
    for _, path in sorted(numbered.items()):
        size = _size_of(path)
        if size is None:
            found.problems.append(f"{path.name} cannot be decoded")
            continue
        if not found.frames:
            found.width, found.height = size
        elif size != (found.width, found.height):
            found.problems.append(f"{path.name} is {size[0]}x{size[1]}")
        found.frames += 1
    return found


def _size_of(image: Path) -> tuple[int, int] | None:
    """Width and height of an image that can be decoded to its end; None for any other.

    By FFmpeg, which says nothing to standard error, as libjpeg and libpng do of what is damaged. It takes a JPEG that
    has been cut off for a picture, grey from there on; so its end is looked for.
    """
    codec = "mjpeg" if image.suffix == ".jpg" else "png"
    try:
        data = image.read_bytes()
        context = cast(av.VideoCodecContext, av.CodecContext.create(codec, "r"))
        context.options = {**STRICT, "max_pixels": str(DEFAULT.max_pixels)}
        frames = context.decode(av.Packet(data)) + context.decode(None)
    except (av.FFmpegError, OSError, ValueError):
        return None
    if len(frames) != 1 or frames[0].is_corrupt or (codec == "mjpeg" and not data.endswith(END_OF_JPEG)):
        return None
    return frames[0].width, frames[0].height
