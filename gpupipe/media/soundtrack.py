"""The sound of a finished video: packets of AAC, copied or encoded, ready to be muxed beside the picture's.

A user of `av`, beside `video`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from fractions import Fraction

import numpy as np
from av.audio.frame import AudioFrame
from av.audio.stream import AudioStream
from av.container import InputContainer, OutputContainer
from av.packet import Packet
from numpy.typing import NDArray

from gpupipe.errors import OutputError
from gpupipe.media.limits import DEFAULT, Limits
from gpupipe.media.sound import decode_sound
from gpupipe.media.sound_file import (
    StrPath,
    exact_seconds,
    open_sound,
    probe_sound,
    scan_packets,
    start_seconds,
    stream_seconds,
)

AAC_RATES = (96_000, 88_200, 64_000, 48_000, 44_100, 32_000)
"""Sample rates that are kept: those of AAC (ISO/IEC 14496-3, sampling frequency index) at which a packet of 1024
samples lasts at most 32 ms, less than a frame at 30 fps: up to there no last packet outlasts the picture by a frame."""
BITS_PER_CHANNEL = 64_000
"""Bit rate of each encoded channel: 128 kbit/s for stereo."""

_OTHER_RATE = 48_000
_PACKET_SAMPLES = 1024
_SILENCE_SAMPLES = 16_384
_MOV_FAMILY = {"mov", "mp4", "ipod", "3gp", "3g2"}
# A sound that starts later than this does not start with the picture.
_START_SECONDS = 0.001


def sound_packets(
    container: OutputContainer,
    source: StrPath,
    duration_seconds: float | Fraction,
    *,
    frame_seconds: float | Fraction | None = None,
    limits: Limits = DEFAULT,
) -> tuple[AudioStream, Iterator[Packet[AudioStream]]]:
    """Add a file's sound to an output, exactly as long as the picture to within one frame.

    Copied packet by packet if it is AAC of one of `AAC_RATES` in an MP4 or MOV, goes into one, starts at 0, has no
    hole, and ends less than a frame before the picture. Otherwise decoded and encoded by FFmpeg's own AAC encoder:
    mono stays mono, stereo stays stereo, more channels become stereo; the sample rate stays if it is one of
    `AAC_RATES`, else it is 48 kHz; what is missing is silence. Either way the sound is cut at `duration_seconds`.

    The last packet says how much of it counts, but FFmpeg's decoder, and players that use it, play it to its end. Where
    packets are longer than frames (21 ms at 48 kHz, against 17 ms at 60 fps), a last packet of which more than a frame
    would be too much is therefore left out: the sound then ends before the picture, by the difference of the two
    lengths at most (5 ms), and in no case decodes to more than the picture and a frame.

    Encoder delay: the first packets have negative times, which MP4 and MOV keep as an edit list and Matroska as a codec
    delay, so that a click at t is heard at t. Only an encoder can hand a delay to Matroska; hence no copies there.

    Args:
        container: an open output (mp4, mov, mkv, …) that already has its video stream, its header not yet written.
        source: any file that FFmpeg reads.
        duration_seconds: how long the picture is.
        frame_seconds: how long one frame is; by default as the container's first video stream says.
        limits: what is taken of the source. Where a process of its own decodes it, nothing is copied.

    Returns:
        The new stream, and its packets, in the order of their dts. The caller muxes them between the picture's packets:
        smallest `packet.dts * packet.time_base` first. Packets are made while they are asked for, so that errors of
        the sound's data come then.

    Raises:
        MediaError: the file cannot be read (see `sound.read_pcm`).
        OutputError: the container cannot hold AAC.
    """
    if "aac" not in container.supported_codecs:
        raise OutputError(
            "this kind of file cannot hold AAC sound",
            file=container.name,
            value=container.format.name,
            remedy="write an .mp4, .mov or .mkv, or leave the sound out",
        )
    if not 0 < duration_seconds < math.inf:
        raise ValueError(f"duration_seconds must be above 0 (got {duration_seconds!r})")
    seconds = Fraction(duration_seconds).limit_denominator(1_000_000)
    if frame_seconds is None:
        rates = [video.average_rate or video.codec_context.framerate for video in container.streams.video]
        frame_seconds = 1 / rates[0] if rates and rates[0] else 0
    if limits.isolate:
        info = probe_sound(source, limits)
        rate, channels = info.rate, info.channels
    else:
        with open_sound(source, limits) as (opened, original):
            if container.format.name in _MOV_FAMILY and _starts_whole(opened, original, seconds - frame_seconds):
                copy = container.add_stream_from_template(original)
                # 1024 samples, or twice as many if half of the band is made by the decoder (HE-AAC).
                samples = original.codec_context.frame_size
                length = Fraction(samples, original.codec_context.sample_rate)
                return copy, _ending_with_the_picture(_copied(copy, source, seconds), length, seconds, frame_seconds)
            rate, channels = original.codec_context.sample_rate, original.codec_context.channels
    channels = min(2, channels)
    layout = "mono" if channels == 1 else "stereo"
    rate = rate if rate in AAC_RATES else _OTHER_RATE
    encoded = container.add_stream("aac", rate=rate, layout=layout)
    encoded.codec_context.bit_rate = channels * BITS_PER_CHANNEL
    packets = _encoded(encoded, decode_sound(source, rate=rate, layout=layout, limits=limits), seconds, rate, layout)
    return encoded, _ending_with_the_picture(packets, Fraction(_PACKET_SAMPLES, rate), seconds, frame_seconds)


def _starts_whole(opened: InputContainer, stream: AudioStream, longer_than: float | Fraction) -> bool:
    """Whether the sound can be copied into an MP4: AAC out of one, from time 0 without a hole past `longer_than`."""
    if stream.codec_context.name != "aac" or stream.codec_context.sample_rate not in AAC_RATES:
        return False
    if not _MOV_FAMILY & set(opened.format.name.split(",")):
        return False
    begin = max(start_seconds(opened, stream), abs(stream_seconds(stream, stream.start_time)))
    long_enough = (exact_seconds(opened, stream) or 0.0) > longer_than
    return begin < _START_SECONDS and long_enough and scan_packets(opened, stream).whole


def _ending_with_the_picture(
    packets: Iterator[Packet[AudioStream]],
    length: Fraction,
    seconds: Fraction,
    frame_seconds: float | Fraction,
) -> Iterator[Packet[AudioStream]]:
    """The packets but for a last one that, played to its end, outlasts the picture by more than a frame.

    Args:
        packets: in order.
        length: seconds that each decodes to.
        seconds: of the picture.
        frame_seconds: of a frame; 0 if it is not known, and every packet is kept.
    """
    for packet in packets:
        assert packet.pts is not None
        start = packet.pts * packet.time_base
        # The first packet to be heard stays: there must be sound.
        if start <= 0 or not frame_seconds or start + length - seconds <= frame_seconds:
            yield packet


def _copied(stream: AudioStream, source: StrPath, seconds: Fraction) -> Iterator[Packet[AudioStream]]:
    with open_sound(source) as (opened, original):
        for packet in opened.demux(original):
            if packet.pts is None or packet.time_base is None or not packet.duration:
                continue
            left = (seconds - packet.pts * packet.time_base) / packet.time_base
            if left <= 0:
                return
            packet.duration = min(packet.duration, max(1, round(left)))
            packet.stream = stream
            yield packet


def _encoded(
    stream: AudioStream, sound: Iterator[NDArray[np.float32]], seconds: Fraction, rate: int, layout: str
) -> Iterator[Packet[AudioStream]]:
    given, channels = 0, stream.codec_context.channels
    for samples in _of_length(sound, round(seconds * rate), channels):
        frame = AudioFrame.from_ndarray(samples, format="fltp", layout=layout)
        frame.sample_rate, frame.time_base, frame.pts = rate, Fraction(1, rate), given
        given += samples.shape[1]
        yield from stream.encode(frame)
    yield from stream.encode(None)


def _of_length(chunks: Iterator[NDArray[np.float32]], samples: int, channels: int) -> Iterator[NDArray[np.float32]]:
    """The chunks, cut at `samples` in all or followed by silence up to there."""
    for chunk in chunks:
        yield np.ascontiguousarray(chunk[:, :samples])
        samples -= chunk.shape[1]
        if samples <= 0:
            return
    while samples > 0:
        silence = np.zeros((channels, min(samples, _SILENCE_SAMPLES)), np.float32)
        samples -= silence.shape[1]
        yield silence
