"""Reading video: what a file holds, and its frames as NumPy arrays.

One of the few rooms that use PyAV; `tests/test_layering.py` names them.
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any, Final, NamedTuple

import av
import numpy as np
from av.video.reformatter import VideoReformatter
from numpy.typing import NDArray

from gpupipe.colour import DEFAULT_MATRIX, Colour, PixelFormat
from gpupipe.errors import GpupipeError, MediaError, reason
from gpupipe.media.index import BEGINNING, FrameIndex, NotThereError, Start, Timing, can_seek, frames_from, index_of
from gpupipe.media.isolate import isolated, isolated_facts
from gpupipe.media.limits import DEFAULT, Limits
from gpupipe.media.matroska import is_matroska, shortfall
from gpupipe.media.opening import opened

Frame = NDArray[np.uint8]

SLOWEST_FPS: Final = Fraction(1, 10)
FASTEST_FPS: Final = Fraction(1000)
"""Frames a second that a film can have; beyond them a header lies, and times and lengths overflow."""


class _Packet(NamedTuple):
    """What counting frames needs of a packet; its data is let go of, or a whole file would be held."""

    timing: Timing
    is_corrupt: bool
    is_discard: bool


@dataclass(frozen=True)
class VideoInfo:
    """What a video file holds.

    Attributes:
        path: the file.
        codec: FFmpeg's name of the codec.
        width: pixels.
        height: pixels.
        fps: frames a second.
        frames: frames that are shown, counted from the packets without decoding.
        colour: how the stream describes its colours.
        sample_aspect_ratio: width of a pixel over its height.
        timing_error_seconds: the furthest that a frame's own time is from its number over `fps`, both counted from the
            first frame: 0, or the rounding of timestamps, at a constant rate.
        limits: under which it is read.
        index: where its frames are, for reading that does not begin at the first; None: to be asked for.
    """

    path: Path
    codec: str
    width: int
    height: int
    fps: Fraction
    frames: int
    colour: Colour
    sample_aspect_ratio: Fraction
    timing_error_seconds: float = 0.0
    limits: Limits = DEFAULT
    index: FrameIndex | None = field(default=None, compare=False, repr=False)


def require_even(
    file: Path | str, width: int, height: int, *, what: str, error: type[GpupipeError] = MediaError
) -> None:
    """Raise unless a picture's size is one that 4:2:0 has: a sample of each chroma for every 2x2 pixels.

    Args:
        file: what the error is to name.
        width: pixels.
        height: pixels.
        what: needs it: `video`, `nv12`.
        error: the kind to raise.
    """
    if width % 2 or height % 2:
        raise error(
            f"{what} needs an even width and height",
            file=file,
            field="size",
            value=f"{width}x{height}",
            remedy="write a folder of images in bgr24, or crop the body video",
        )


def _packets(
    path: Path, container: av.container.InputContainer, stream: av.VideoStream, limits: Limits
) -> list[_Packet]:
    found = []
    try:
        for packet in container.demux(stream):
            if packet.size:
                timing = Timing(packet.pts, packet.dts, packet.is_keyframe)
                found.append(_Packet(timing, packet.is_corrupt, packet.is_discard))
                limits.check_frames(path, len(found))
    except av.FFmpegError as error:
        raise MediaError(f"cannot be read: {reason(error)}", file=path, remedy="write it again") from error
    return found


def probe(path: Path | str, limits: Limits = DEFAULT) -> VideoInfo:
    """Read what `path` holds, from its header and packets.

    Args:
        path: the file.
        limits: what is taken.

    Raises:
        MediaError: it is missing, not a video, empty, has fewer frames than its header says, or more than is taken.
    """
    path = file = Path(path)
    if limits.isolate:
        return isolated_facts("probe", path, limits, lambda told: _info(file, limits, told))
    with opened(path, limits) as (container, stream):
        context = stream.codec_context
        packets = stored = _packets(path, container, stream, limits)
        if len(packets) < stream.frames:
            # The header counts those too that an edit list leaves out.
            with opened(path, limits, ignore_editlist="1") as (again, same):
                stored = _packets(path, again, same, limits)
        if not stored and not stream.frames:
            raise MediaError("holds no frame", file=path, remedy="write it again")
        whole = sum(not packet.is_corrupt for packet in stored)
        if whole < max(len(stored), stream.frames):
            raise MediaError(
                f"is truncated: {whole} whole frames of {max(len(stored), stream.frames)}",
                file=path,
                remedy="write it again",
            )
        fps = stream.average_rate or stream.guessed_rate
        if not fps:
            raise MediaError("has no frame rate", file=path, field="fps", value=fps, remedy="write it again with one")
        if not SLOWEST_FPS <= fps <= FASTEST_FPS:
            raise MediaError(
                f"is no frame rate from {float(SLOWEST_FPS)} to {FASTEST_FPS}",
                file=path,
                field="fps",
                value=float(fps),
                remedy="write it again with one",
            )
        if is_matroska(container):
            with opened(path, limits) as (again, _):
                short = shortfall(path, again, float(1 / fps))
            if short is not None:
                raise MediaError(f"is truncated: {short}", file=path, remedy="write it again")
        shown = [packet.timing for packet in packets if not packet.is_discard]
        return VideoInfo(
            path=path,
            codec=context.name,
            width=context.width,
            height=context.height,
            fps=Fraction(fps),
            frames=len(shown),
            colour=Colour(
                # 0 is RGB, whose frames are converted.
                matrix=int(context.colorspace) or DEFAULT_MATRIX,
                range=int(context.color_range),
                primaries=int(context.color_primaries),
                transfer=int(context.color_trc),
            ),
            sample_aspect_ratio=Fraction(stream.sample_aspect_ratio or 1),
            timing_error_seconds=_timing_error(shown, stream.time_base, float(fps)),
            limits=limits,
            index=index_of(shown) if can_seek(container) else FrameIndex(),
        )


def _info(path: Path, limits: Limits, told: dict[str, Any]) -> VideoInfo:
    """What another process found, from JSON values: those of `dataclasses.asdict`, fractions as text."""
    ratios = {name: Fraction(told[name]) for name in ("fps", "sample_aspect_ratio")}
    return VideoInfo(**told | ratios | {"path": path, "colour": Colour(**told["colour"]), "limits": limits})


def _timing_error(timings: list[Timing], time_base: Fraction | None, fps: float) -> float:
    if time_base is None:
        return 0.0
    up, down = time_base.as_integer_ratio()
    times = sorted(timing.pts * up / down for timing in timings if timing.pts is not None)
    return max((abs(time - times[0] - number / fps) for number, time in enumerate(times)), default=0.0)


def read_frames(
    path: Path | str,
    pixel_format: PixelFormat,
    count: int | None = None,
    limits: Limits = DEFAULT,
    start: Start = BEGINNING,
) -> Generator[Frame]:
    """Decode the first `count` frames of a video (all of them by default), in the order in which they are shown.

    Args:
        path: the file.
        pixel_format: of the frames.
        count: how many.
        limits: what is taken, and whether a process of its own decodes it.
        start: with which of them to begin (`FrameIndex.start`).

    Yields:
        uint8 `[H, W, 3]` for bgr24, as PyAV's `to_ndarray(format="bgr24")` gives; uint8 `[H * 3 // 2, W]` for nv12, the
        decoded planes unchanged. Each array is new, and all have one size.

    Raises:
        MediaError: a frame cannot be decoded, is stored turned (as phones film; OpenCV turns it, so that rectangles
            would not fit), has another size than the header says, or there are fewer than `count`.
    """
    path = Path(path)
    if limits.isolate:
        yield from isolated("read_frames", path, limits, pixel_format=pixel_format, count=count, start=start._asdict())
        return
    reformatter = VideoReformatter()
    done = start.first
    with opened(path, limits) as (container, stream):
        size = stream.codec_context.width, stream.codec_context.height
        stream.thread_type = "AUTO"
        try:
            for frame in frames_from(container, stream, start) if count != 0 else ():
                if frame.is_corrupt:
                    raise MediaError("is damaged", file=path, field=f"frame {done}", remedy="write it again")
                if frame.rotation:
                    raise MediaError(
                        "is stored turned, for players to turn back",
                        file=path,
                        field="rotation",
                        value=frame.rotation,
                        remedy="write it again upright (ffmpeg does when it encodes)",
                    )
                if (frame.width, frame.height) != size:
                    raise MediaError(
                        f"is not {size[0]}x{size[1]} as the header says",
                        file=path,
                        field=f"frame {done}: size",
                        value=f"{frame.width}x{frame.height}",
                        remedy="write it again in one size",
                    )
                if pixel_format == "nv12":
                    require_even(path, frame.width, frame.height, what="nv12")
                yield _nv12(frame, reformatter) if pixel_format == "nv12" else _bgr24(frame, reformatter)
                done += 1
                if done == count:
                    return
        except NotThereError:  # the file's table says other than its frames: counting them is always right
            yield from read_frames(path, pixel_format, count, limits, Start(done))
            return
        except (av.FFmpegError, ValueError) as error:  # a pixel format that nothing converts is a ValueError
            raise MediaError(
                f"cannot be decoded: {reason(error)}", file=path, field=f"frame {done}", remedy="write it again"
            ) from error
    if count is not None and done < count:
        raise MediaError(f"ends after {done} of {count} frames", file=path, remedy="write it again")


def _bgr24(frame: av.VideoFrame, reformatter: VideoReformatter) -> Frame:
    return np.asarray(reformatter.reformat(frame, format="bgr24").to_ndarray(), np.uint8)


def _nv12(frame: av.VideoFrame, reformatter: VideoReformatter) -> Frame:
    width, height = frame.width, frame.height
    if frame.format.name not in ("yuv420p", "yuvj420p"):
        # Another subsampling or depth: converted once, within the stream's own matrix and range.
        frame = reformatter.reformat(
            frame,
            format="yuv420p",
            src_color_range=frame.color_range,
            dst_color_range=frame.color_range,
            dst_colorspace=frame.colorspace,
        )
    out = np.empty((height * 3 // 2, width), np.uint8)
    out[:height] = _plane(frame.planes[0], width, height)
    chroma = out[height:].reshape(height // 2, width // 2, 2)
    chroma[..., 0] = _plane(frame.planes[1], width // 2, height // 2)
    chroma[..., 1] = _plane(frame.planes[2], width // 2, height // 2)
    return out


def _plane(plane: av.video.plane.VideoPlane, width: int, height: int) -> Frame:
    return np.frombuffer(memoryview(plane), np.uint8).reshape(-1, plane.line_size)[:height, :width]
