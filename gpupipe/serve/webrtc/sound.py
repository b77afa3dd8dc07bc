"""Sound that a client pushes for its peer: a request's body, as samples."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Iterator
from concurrent.futures import Executor
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray
from starlette.requests import Request

from gpupipe.errors import MediaError
from gpupipe.media.limits import Limits
from gpupipe.media.resample import Resampler
from gpupipe.media.rtc import SOUND_RATE
from gpupipe.media.sound import read_pcm
from gpupipe.serve.http.errors import as_bad_request
from gpupipe.serve.http.uploads import Uploads, checked_sound
from gpupipe.serve.limits import ServeLimits
from gpupipe.serve.refusals import BadRequest, Silent, TooLarge

Encoding = Literal["s16le", "f32le"]
ENCODINGS: Final[dict[Encoding, str]] = {"s16le": "<i2", "f32le": "<f4"}
"""Of raw samples, by FFmpeg's names."""

RATES: Final = (8000, 96_000)

Pcm = NDArray[np.float32]


def checked_encoding(encoding: str) -> Encoding:
    """An encoding of raw samples.

    Raises:
        BadRequest: there is none of that name.
    """
    for known in ENCODINGS:
        if encoding == known:
            return known
    raise BadRequest("no such encoding", field="encoding", value=encoding[:20], remedy="use s16le or f32le")


class Raw:
    """Raw mono samples as they come, whose bytes may be cut anywhere.

    Args:
        encoding: of the samples.
        rate: samples a second.
    """

    def __init__(self, encoding: Encoding, rate: int) -> None:
        self._type, self._rest = np.dtype(ENCODINGS[encoding]), b""
        self._resampler = None if rate == SOUND_RATE else Resampler(rate, SOUND_RATE)

    def push(self, data: bytes) -> Pcm:
        """The samples that some more bytes complete, float32 `[n]` at `SOUND_RATE`.

        Raises:
            BadRequest: they hold NaN or infinity.
        """
        data = self._rest + data
        whole = len(data) // self._type.itemsize * self._type.itemsize
        self._rest = data[whole:]
        samples = np.frombuffer(data[:whole], self._type)
        pcm = samples.astype(np.float32)
        if self._type.kind == "i":
            pcm /= np.float32(32768)
        elif not np.isfinite(pcm).all():
            raise BadRequest("the sound holds NaN or infinity", field="body", remedy="send finite samples")
        return pcm if self._resampler is None else self._resampler.push(pcm)

    def finish(self) -> Pcm:
        """The samples that are left.

        Raises:
            BadRequest: the last one is cut off.
        """
        if self._rest:
            raise BadRequest("ends within a sample", field="body", remedy=f"send {self._type.itemsize} bytes for each")
        return np.empty(0, np.float32) if self._resampler is None else self._resampler.finish()


async def raw_sound(request: Request, encoding: Encoding, rate: int, limits: ServeLimits) -> AsyncGenerator[Pcm]:
    """A body of raw samples, while it comes.

    Raises:
        BadRequest, TooLarge, Silent: it is wrong, too long, or stays away.
    """
    raw, received = Raw(encoding, rate), 0
    stream = request.stream()
    while True:
        try:
            async with asyncio.timeout(limits.idle_seconds):
                data = await anext(stream, None)
        except TimeoutError as error:
            raise Silent(
                "no sound came for too long", field="body", remedy="end the request with the speech"
            ) from error
        if data is None:
            break
        received += len(data)
        if received > limits.upload_bytes:
            raise TooLarge(f"is larger than {limits.upload_bytes} bytes", field="body", remedy="send it in parts")
        if data:
            yield raw.push(data)
    if not received:
        raise BadRequest("is empty", field="body", remedy="send samples")
    yield raw.finish()


async def file_sound(
    request: Request, uploads: Uploads, limits: Limits, seconds: float, threads: Executor
) -> AsyncGenerator[Pcm]:
    """A body that is a sound file, once all of it has come, decoded as it is wanted.

    Args:
        request: whose body it is.
        uploads: of the server.
        limits: under which it is decoded.
        seconds: that are taken.
        threads: in which it is decoded.

    Raises:
        BadRequest, TooLarge, Silent, Refused: as `Uploads.file`; it cannot be decoded; it is too long.
    """
    async with uploads.file(request) as path:
        await _in_thread(threads, checked_sound, path, limits, seconds)
        chunks = read_pcm(path, SOUND_RATE, limits)
        try:
            while (chunk := await _in_thread(threads, _decoded, chunks)) is not None:
                yield chunk
        finally:
            close: Any = getattr(chunks, "close", None)
            await asyncio.to_thread(close)


async def _in_thread(threads: Executor, work: Any, *given: Any) -> Any:
    """What work gives that is none for the event loop. If this is cancelled, the work is still waited for."""
    done = asyncio.get_running_loop().run_in_executor(threads, work, *given)
    try:
        return await asyncio.shield(done)
    except asyncio.CancelledError:
        await asyncio.wait([done])
        raise


def _decoded(chunks: Iterator[Pcm]) -> Pcm | None:
    try:
        return next(chunks, None)
    except MediaError as error:
        raise as_bad_request(error, "body") from error
