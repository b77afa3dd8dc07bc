"""Whether a Matroska file is whole. It has no count of frames, as MP4 has, but says how long it is, twice over."""

from __future__ import annotations

from pathlib import Path

import av
from av.container import InputContainer

_EBML, _SEGMENT = b"\x1a\x45\xdf\xa3", b"\x18\x53\x80\x67"


def is_matroska(container: InputContainer) -> bool:
    """Whether an opened file is Matroska or WebM, whatever its suffix says."""
    return "matroska" in container.format.name.split(",")


def shortfall(path: Path, container: InputContainer, frame_seconds: float) -> str | None:
    """How a Matroska file falls short of what its header says, or None if it does not.

    The header has the segment's size in bytes and the latest end of all its streams. A file that was written to a pipe
    or never finished has neither, and passes.

    Args:
        path: the file.
        container: the same, just opened; its packets are read, and none decoded.
        frame_seconds: of its picture; a difference of no more than a frame is rounding.

    Returns:
        `123 of 456 bytes` or `0.280 of 0.480 seconds`.
    """
    size, promised = path.stat().st_size, _segment_end(path)
    if promised is not None and size < promised:
        return f"{size} of {promised} bytes"
    if not container.duration:
        return None
    duration, (start, end) = container.duration / av.time_base, _extent(container)
    # FFmpeg's muxer counts the sound's encoder delay in, which its demuxer puts before 0.
    if duration - (end - min(0.0, start)) > frame_seconds:
        return f"{end:.3f} of {duration:.3f} seconds"
    return None


def _extent(container: InputContainer) -> tuple[float, float]:
    """When the first packet of any stream starts and the last one ends, in seconds."""
    start = end = 0.0
    before: dict[int, int] = {}
    for packet in container.demux():
        if packet.pts is None or not packet.size:
            continue
        # One without a length lasts as long as the one before it.
        ticks = packet.duration or max(0, packet.pts - before.get(packet.stream_index, packet.pts))
        before[packet.stream_index] = packet.pts
        start = min(start, float(packet.pts * packet.time_base))
        end = max(end, float((packet.pts + ticks) * packet.time_base))
    return start, end


def _segment_end(path: Path) -> int | None:
    """Bytes of a file up to the end of its first segment; None if its header does not say.

    Source: RFC 8794, sections 4 (variable-size integers) and 6.2 (unknown sizes); RFC 9559, section 5.1 (Segment).
    """
    with path.open("rb") as file:
        head = file.read(1 << 12)
    if not head.startswith(_EBML):
        return None
    size, at = _element_size(head, len(_EBML))
    segment = at + (size or 0)
    if not head.startswith(_SEGMENT, segment):
        return None
    size, at = _element_size(head, segment + len(_SEGMENT))
    return None if size is None else at + size


def _element_size(data: bytes, at: int) -> tuple[int | None, int]:
    """An element's size, None if unknown, and where its content begins."""
    if at >= len(data) or not data[at]:
        return None, at + 1
    length = 9 - data[at].bit_length()
    ones = (1 << 7 * length) - 1
    value = int.from_bytes(data[at : at + length], "big") & ones
    return (None if value == ones else value), at + length
