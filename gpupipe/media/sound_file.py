"""Sound in files: opening them, what they say about their sound, and how far that can be trusted.

A user of `av`, beside `video`.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import NamedTuple

import av
from av.audio.stream import AudioStream
from av.container import InputContainer
from av.stream import Disposition, Stream

from gpupipe.errors import MediaError, reason
from gpupipe.media.isolate import isolated_facts
from gpupipe.media.limits import DEFAULT, Limits
from gpupipe.media.opening import media_options, media_url

StrPath = str | PathLike[str]

_WITHOUT_DELAY = {"aac", "mpegts", "flv", "avi"}
"""Formats, by FFmpeg's names of their demuxers, in which AAC has its encoder's delay nowhere on record."""
_FFMPEG_NAME, _FFMPEG_DELAY_SAMPLES = b"Lavc", 1024


@dataclass(frozen=True)
class SoundInfo:
    """What a file says about its sound."""

    codec: str
    """FFmpeg's name of the codec, such as `aac`, `mp3`, `pcm_s16le`."""
    rate: int
    """Samples a second."""
    channels: int
    """Channels, as stored."""
    duration_seconds: float
    """Seconds of sound, without encoder delay where the file says how much that is."""
    start_seconds: float = 0.0
    """Seconds of the file before its sound starts, as in a video whose sound comes later."""
    unknown_delay: bool = False
    """Whether the sound begins with an encoder delay of unknown length, which is then heard as silence: AAC in a format
    that has no place for it, by an encoder that does not name itself (see `unrecorded_delay_seconds`)."""

    @property
    def end_seconds(self) -> float:
        """Seconds of the file at which its sound ends: as long as `sound.read_pcm` gives samples."""
        return self.start_seconds + self.duration_seconds


class PacketScan(NamedTuple):
    """Where the compressed sound of a file lies, in seconds of its own timestamps."""

    first_seconds: float
    end_seconds: float
    whole: bool
    """Every packet has a time and a length, follows the one before, and is to be played (or is encoder delay)."""


def probe_sound(path: StrPath, limits: Limits = DEFAULT) -> SoundInfo:
    """What a file says about its sound, without decoding it.

    The duration is the header's where the format has an exact one (wav, flac, mp4), else it is counted from the
    packets, and can include up to two codec frames (about 50 ms) of encoder delay and padding.

    Args:
        path: the file.
        limits: what is taken.

    Raises:
        MediaError: the file is missing, empty, no media file, has no sound, or more of it than is taken.
    """
    if limits.isolate:
        return isolated_facts("probe_sound", path, limits, lambda told: SoundInfo(**told))
    with open_sound(path, limits) as (container, stream):
        seconds = exact_seconds(container, stream)
        codec = stream.codec_context
        delay = unrecorded_delay_seconds(path, container, stream)
        if seconds is None:
            scan = scan_packets(container, stream)
            seconds = scan.end_seconds - max(scan.first_seconds, stream_seconds(stream, stream.start_time))
            seconds = max(0.0, seconds - (delay or 0.0))
        start = start_seconds(container, stream, delay or 0.0)
        limits.check_sound(path, start + seconds)
        return SoundInfo(codec.codec.canonical_name, codec.sample_rate, codec.channels, seconds, start, delay is None)


@contextmanager
def open_sound(path: StrPath, limits: Limits = DEFAULT) -> Iterator[tuple[InputContainer, AudioStream]]:
    """Open a file and its best audio stream; FFmpeg's errors, in the body too, become `MediaError`."""
    file = Path(path)
    remedy = "give a sound or video file that FFmpeg reads, such as wav, mp3, m4a or mp4"
    if not file.exists():
        raise MediaError("there is no such file", file=path, remedy=remedy)
    if file.is_dir():
        raise MediaError("this is a folder, not a sound file", file=path, remedy=remedy)
    if not file.is_file():
        raise MediaError("this is a pipe or a device, not a sound file", file=path, remedy=remedy)
    if file.stat().st_size == 0:
        raise MediaError("the file is empty", file=path, value="0 bytes", remedy=remedy)
    try:
        # Tags in unknown encodings must not stop the sound.
        container = av.open(media_url(file), options=media_options(limits), metadata_errors="replace")
    except (av.FFmpegError, OSError, ValueError) as error:
        raise MediaError("cannot be opened as a media file", file=path, value=reason(error), remedy=remedy) from error
    with container:
        stream = container.streams.best("audio")
        if not isinstance(stream, AudioStream) or stream.codec_context is None or not stream.codec_context.sample_rate:
            kinds = sorted({other.type or "unknown" for other in container.streams})
            raise MediaError("the file has no sound that FFmpeg decodes", file=path, value=kinds, remedy=remedy)
        try:
            yield container, stream
        except av.FFmpegError as error:
            raise MediaError(
                "the sound cannot be decoded: the file is corrupt or cut off",
                file=path,
                value=reason(error),
                remedy="copy or export the file again",
            ) from error


def scan_packets(container: InputContainer, stream: AudioStream) -> PacketScan:
    """Read every packet of a freshly opened stream, decoding none."""
    first = end = None
    whole, largest = True, 0
    for packet in container.demux(stream):
        if packet.pts is None or packet.duration is None:
            whole = whole and packet.size == 0
            continue
        largest = max(largest, packet.duration)
        delay = packet.pts + packet.duration <= (stream.start_time or 0)
        whole = whole and (delay or not packet.is_discard) and not packet.is_corrupt
        whole = whole and packet.duration > 0 and (end is None or packet.pts == end)
        first = packet.pts if first is None else min(first, packet.pts)
        after = packet.pts + (packet.duration or largest)
        end = after if end is None else max(end, after)
    return PacketScan(stream_seconds(stream, first), stream_seconds(stream, end), whole and first is not None)


def start_seconds(container: InputContainer, stream: AudioStream, delay_seconds: float = 0.0) -> float:
    """When the sound starts after the file does: the earliest start of its sound and pictures (cover art excepted).

    Args:
        container: the file.
        stream: its sound.
        delay_seconds: what `unrecorded_delay_seconds` says: the sound starts that much after its first sample.
    """
    if stream.start_time is None:
        return 0.0
    start = stream_seconds(stream, stream.start_time) + delay_seconds
    others = [
        float(other.start_time * other.time_base)
        for other in (*container.streams.audio, *container.streams.video)
        if other.start_time is not None
        and other.time_base is not None
        and other.index != stream.index
        and not _is_cover(other)
    ]
    return start - min(start, *others) if others else 0.0


def unrecorded_delay_seconds(path: StrPath, container: InputContainer, stream: AudioStream) -> float | None:
    """How long the encoder's delay is that a file's timestamps do not tell of; None if nothing tells.

    An AAC encoder puts at least 1024 samples before the sound. MP4 and Matroska record how many; ADTS (.aac), MPEG-TS,
    FLV and AVI have no place for it. FFmpeg's own encoder puts 1024, and its name into the first packet (libavcodec,
    aacenc.c: `initial_padding`, `put_bitstream_info`), so that its files are told exactly. For others there is no
    convention to follow: FFmpeg and the players built on it skip nothing, QuickTime took every encoder's delay for 2112
    samples (Apple, Technical Note TN2258), and encoders in use have 1024, 1600, 2048 and more. Nothing is skipped then:
    the sound begins with some 20 to 50 ms of silence.
    """
    if stream.codec_context.name != "aac" or container.format.name not in _WITHOUT_DELAY:
        return 0.0
    with open_sound(path) as (again, same):
        first = next((bytes(packet) for packet in again.demux(same) if packet.size), b"")
    return _FFMPEG_DELAY_SAMPLES / stream.codec_context.sample_rate if _FFMPEG_NAME in first else None


def _is_cover(stream: Stream) -> bool:
    return bool(stream.disposition & Disposition.attached_pic)


def stream_seconds(stream: AudioStream, pts: int | None) -> float:
    """A time of the stream in seconds; 0 if it is not known."""
    return 0.0 if pts is None or stream.time_base is None else float(pts * stream.time_base)


def exact_seconds(container: InputContainer, stream: AudioStream) -> float | None:
    """The length of the sound if the header gives it exactly; elsewhere FFmpeg may estimate it from the bit rate."""
    kinds = set(container.format.name.split(","))
    # Only an MP3 with a Xing or LAME tag, which counts its frames, has a start after the encoder's delay.
    exact = kinds & {"wav", "flac", "mov"} or ("mp3" in kinds and stream.start_time)
    return stream_seconds(stream, stream.duration) if exact and stream.duration else None


def promised_seconds(path: StrPath, container: InputContainer, stream: AudioStream) -> float:
    """The least that a file which is not cut off holds; 0 if it does not say."""
    if container.format.name == "wav":
        return _wav_seconds(path)
    if container.format.name.startswith("matroska") and len(container.streams) == 1 and container.duration:
        return container.duration / av.time_base - max(0.0, stream_seconds(stream, stream.start_time))
    return exact_seconds(container, stream) or 0.0


def _wav_seconds(path: StrPath) -> float:
    """Seconds in a RIFF file's data chunk as its header says; FFmpeg goes by the size of the file instead."""
    with Path(path).open("rb") as file:
        if file.read(12)[:4] != b"RIFF":
            return 0.0
        bytes_a_second = 0
        while len(head := file.read(8)) == 8:
            name, size = struct.unpack("<4sI", head)
            if name == b"data":
                # Writers that cannot seek back leave 0 or about the largest number there.
                return size / bytes_a_second if bytes_a_second and size < 0x7FFF_0000 else 0.0
            if name == b"fmt " and size >= 12:
                bytes_a_second = struct.unpack_from("<8xI", file.read(12))[0]
                size -= 12
            file.seek(size + size % 2, os.SEEK_CUR)
    return 0.0
