"""Decoded sound: any file that FFmpeg reads, as float32 samples from time 0, streamed.

A user of `av`, beside `video`. What is heard at t seconds of the file is at sample t × rate: encoder delay is skipped,
sound that starts later than the picture is preceded by silence, and holes in the timestamps are silence too.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import av
import av.filter
import numpy as np
from av.audio.frame import AudioFrame
from av.audio.layout import AudioLayout
from av.audio.stream import AudioStream
from av.container import InputContainer
from numpy.typing import NDArray

from gpupipe.errors import MediaError
from gpupipe.media.isolate import isolated
from gpupipe.media.limits import DEFAULT, Limits
from gpupipe.media.sound_file import (
    SoundInfo,
    StrPath,
    exact_seconds,
    open_sound,
    probe_sound,
    promised_seconds,
    start_seconds,
    stream_seconds,
    unrecorded_delay_seconds,
)

__all__ = ["SoundInfo", "decode_sound", "probe_sound", "read_pcm"]

_GAP_SECONDS = 0.05
"""A hole in the timestamps is filled from this length on; below it is rounding (Matroska counts milliseconds)."""
_CODEC_FRAME_SECONDS = 0.3
"""More than any codec frame lasts: 2048 samples of 8 kHz AAC last 0.256 s."""
_MISSING_SECONDS = 0.5
"""A file with this much less sound than its header says is cut off."""


def read_pcm(path: StrPath, rate: int = 16_000, limits: Limits = DEFAULT) -> Iterator[NDArray[np.float32]]:
    """Decode a file's sound to mono, in chunks of about a second.

    Channels are mixed by libswresample's default matrix, normalised so that no mix can exceed full scale: stereo is
    (left + right) / 2; of surround sound the centre counts 1, front left and right √½, the back and side channels ½
    or √½, low-frequency effects 0, divided by their sum. Resampled by libswresample's default (linear phase, no delay).

    Time 0 is where the file starts: the earliest of its sound and picture. In a format without a place for the
    encoder's delay (ADTS .aac, MPEG-TS) the delay is skipped if the encoder is FFmpeg's, and else heard as silence:
    see `sound_file.unrecorded_delay_seconds`.

    Args:
        path: any file that FFmpeg reads: wav, mp3, m4a, a video, …
        rate: samples a second wanted.
        limits: what is taken, and whether a process of its own decodes it.

    Yields:
        float32 `[n]`, full scale ±1.

    Raises:
        MediaError: while iterating: the file is missing, empty, no media file, has no sound, does not decode, holds
            less than its header says, holds a value that is not finite, or is longer than is taken.
    """
    for chunk in decode_sound(path, rate=rate, layout="mono", limits=limits):
        if not np.isfinite(chunk).all():
            raise MediaError("the sound holds NaN or infinite samples", file=path, remedy="export the file again")
        yield chunk[0]


def decode_sound(path: StrPath, *, rate: int, layout: str, limits: Limits = DEFAULT) -> Iterator[NDArray[np.float32]]:
    """`read_pcm` with the channels of FFmpeg's channel layout `layout`, such as `stereo`.

    Yields:
        float32 `[channels, n]`.
    """
    if limits.isolate:
        yield from isolated("decode_sound", path, limits, rate=rate, layout=layout)
        return
    held: list[NDArray[np.float32]] = []
    samples = given = 0
    for piece in _decoded(path, rate, layout, limits):
        held.append(piece)
        samples += piece.shape[1]
        given += piece.shape[1]
        limits.check_sound(path, given / rate)  # a header may have said anything
        if samples >= rate:
            yield np.concatenate(held, axis=1)
            held, samples = [], 0
    if samples:
        yield np.concatenate(held, axis=1)


def _decoded(path: StrPath, rate: int, layout: str, limits: Limits) -> Iterator[NDArray[np.float32]]:
    """The sound of a file in small pieces, ended where its header says so."""
    with open_sound(path, limits) as (container, stream):
        exact, promised = exact_seconds(container, stream), promised_seconds(path, container, stream)
        delay = unrecorded_delay_seconds(path, container, stream) or 0.0
        lead = start_seconds(container, stream, delay)
        end = None if exact is None else round((lead + exact) * rate)
        done, tail = 0, list[NDArray[np.float32]]()
        for piece in _timed(container, stream, lead - delay, rate, layout):
            done += piece.shape[1]
            over = 0 if end is None else max(0, min(piece.shape[1], done - end))
            yield piece[:, : piece.shape[1] - over]
            if over:
                # What a codec's last frame holds past the end is padding; if there is more, the header was wrong.
                tail.append(piece[:, piece.shape[1] - over :])
                if end is not None and done - end > _CODEC_FRAME_SECONDS * rate:
                    yield from tail
                    end, tail = None, []
        if done == 0:
            raise MediaError(
                "the file holds no sound", file=path, value="0 samples", remedy="record or export it again"
            )
        if done / rate < lead + promised - _MISSING_SECONDS:
            raise MediaError(
                f"the sound is cut off: the header says {lead + promised:.3f} s",
                file=path,
                value=f"{done / rate:.3f} s",
                remedy="copy or export the file again",
            )


def _timed(
    container: InputContainer, stream: AudioStream, begin: float, rate: int, layout: str
) -> Iterator[NDArray[np.float32]]:
    """Decoded and converted pieces, end to end, each where its timestamp puts it.

    The first sample is `begin` seconds after time 0; what comes before time 0 is left out.
    """
    shift = begin - stream_seconds(stream, stream.start_time)
    latest = 1 + (container.duration or 0) / av.time_base
    run: _Run | None = None
    for frame in container.decode(stream):
        now = 0.0 if run is None else run.now
        at = now if frame.pts is None or frame.time is None else frame.time + shift
        if at > latest or (run is not None and at < now - _GAP_SECONDS):
            # The clock jumped, as where two recordings were joined: go on from here.
            shift, at = shift + now - at, now
        if run is None or run.format != _format(frame) or at > now + _GAP_SECONDS:
            if run is not None:
                yield from run.push(None)
            given = 0 if run is None else run.given
            start = at if run is None or at > now + _GAP_SECONDS else now
            owed = round(start * rate) - given
            for first in range(0, owed, rate):
                yield np.zeros((AudioLayout(layout).nb_channels, min(rate, owed - first)), np.float32)
            run = _Run(frame, start, given + max(0, owed), rate, layout, skip=max(0, -owed))
        yield from run.push(frame)
    if run is not None:
        yield from run.push(None)


def _format(frame: AudioFrame) -> tuple[str, str, int]:
    return frame.format.name, frame.layout.name, frame.sample_rate


class _Run:
    """Frames of one format without a hole between them, on their way through libswresample."""

    def __init__(self, frame: AudioFrame, start: float, given: int, rate: int, layout: str, *, skip: int) -> None:
        self.format = _format(frame)
        self.given = given
        self._start, self._samples, self._skip = start, 0, skip
        sample_format, source_layout, source_rate = self.format
        self._graph = av.filter.Graph()
        self._graph.link_nodes(
            self._graph.add(
                "abuffer",
                sample_fmt=sample_format,
                channel_layout=source_layout,
                sample_rate=str(source_rate),
                time_base=f"1/{source_rate}",
            ),
            # Without rematrix_maxval a mix to float is not normalised: stereo would come out √2 too loud.
            self._graph.add("aresample", rematrix_maxval="1"),
            self._graph.add("aformat", sample_fmts="fltp", channel_layouts=layout, sample_rates=str(rate)),
            self._graph.add("abuffersink"),
        ).configure()

    @property
    def now(self) -> float:
        """Seconds at which the next frame is due."""
        return self._start + self._samples / self.format[2]

    def push(self, frame: AudioFrame | None) -> Iterator[NDArray[np.float32]]:
        if frame is not None:
            self._samples += frame.samples
            frame.pts = None
        self._graph.push(frame)
        while True:
            try:
                piece: NDArray[Any] = self._graph.pull().to_ndarray()
            except (av.BlockingIOError, av.EOFError):
                return
            drop = min(self._skip, piece.shape[1])
            self._skip -= drop
            self.given += piece.shape[1] - drop
            yield piece[:, drop:]
