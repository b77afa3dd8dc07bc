"""A request's body on its way to a file: limited in size, in time and in number while it streams in."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

from starlette.requests import Request

from gpupipe.errors import MediaError
from gpupipe.media.limits import Limits
from gpupipe.media.sound import SoundInfo, probe_sound
from gpupipe.serve.http.errors import as_bad_request
from gpupipe.serve.http.scratch import Scratch, remove_abandoned
from gpupipe.serve.limits import ServeLimits
from gpupipe.serve.refusals import BadRequest, Refused, Silent, TooLarge

AT_A_TIME: Final = 32
"""Bodies that stream in at a time."""

LEAST_RATE: Final = 8192
"""Bytes a second that a body must come with, on the whole, once it has had `idle_seconds`."""

LEAST_FREE_BYTES: Final = 1 << 30
"""Of a disk, after all that may still come of the uploads under way: below it nothing more is taken."""

_WRITTEN_BYTES: Final = 1 << 20
"""Written to the file at a time."""


class Uploads:
    """Bodies of a server's requests: one for all of its routes, as they are counted together.

    Args:
        limits: of the server.
    """

    def __init__(self, limits: ServeLimits) -> None:
        self._limits = limits
        self._coming: dict[Path, int] = {}  # bytes that each file may still get
        self._scratch = Scratch()

    def open(self) -> None:
        """See that files can be written, and remove what servers that were killed have left. Not for the event loop.

        Raises:
            OutputError: they cannot.
        """
        self._scratch.folder()
        remove_abandoned()

    def close(self) -> None:
        """Remove what is left. Not for the event loop."""
        self._scratch.close()

    @asynccontextmanager
    async def file(self, request: Request) -> AsyncIterator[Path]:
        """A body in a file that lasts as long as the with block; raises like `take`."""
        folder = await asyncio.to_thread(self._new)
        try:
            path = folder / "sound"
            await self.take(request, path)
            yield path
        finally:
            await asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True)

    def _new(self) -> Path:
        return Path(tempfile.mkdtemp(dir=self._scratch.folder()))

    async def take(self, request: Request, path: Path) -> None:
        """Write a body to a new file.

        Raises:
            BadRequest: it is no file's bytes.
            TooLarge: there is more of it than is taken.
            Silent: it comes too slowly.
            Refused: too many others come, or the disk is nearly full.
            starlette.requests.ClientDisconnect: the client has gone.
        """
        most = self._most(request)
        if len(self._coming) >= AT_A_TIME:
            raise Refused(f"{AT_A_TIME} uploads are under way, as many as may be", retry_after=1)
        self._coming[path] = most
        try:
            if await asyncio.to_thread(_free, path.parent) < sum(self._coming.values()) + LEAST_FREE_BYTES:
                raise Refused("the server's disk is nearly full", retry_after=60)
            await self._write(request, path)
        finally:
            del self._coming[path]

    def _most(self, request: Request) -> int:
        """Bytes that a body has at most, by its head."""
        kind = request.headers.get("content-type", "")
        if kind.startswith("multipart/"):
            raise BadRequest(
                "is a form",
                field="body",
                value=kind[:40],
                remedy="send the sound file itself: curl --data-binary @FILE",
            )
        length = request.headers.get("content-length")
        most = self._limits.upload_bytes if length is None else int(length)
        if most > self._limits.upload_bytes:
            raise self._too_large()
        return most

    async def _write(self, request: Request, path: Path) -> None:
        idle, began, received = self._limits.idle_seconds, time.monotonic(), 0
        stream, held = request.stream(), bytearray()
        with path.open("xb") as file:
            while True:
                left = began + idle + received / LEAST_RATE - time.monotonic()
                try:
                    async with asyncio.timeout(max(0.0, min(idle, left))):
                        chunk = await anext(stream, None)
                except TimeoutError as error:
                    raise Silent("the body comes too slowly", field="body", remedy="send it faster") from error
                received += len(chunk or b"")
                if received > self._limits.upload_bytes:
                    raise self._too_large()
                held += chunk or b""
                if len(held) >= _WRITTEN_BYTES or (chunk is None and held):
                    await asyncio.to_thread(file.write, bytes(held))
                    self._coming[path] -= len(held)
                    held.clear()
                if chunk is None:
                    break
        if not received:
            raise BadRequest("is empty", field="body", remedy="send a sound file's bytes")

    def _too_large(self) -> TooLarge:
        return TooLarge(
            f"is larger than {self._limits.upload_bytes} bytes",
            field="body",
            remedy="send a compressed, or shorter, sound",
        )


def checked_sound(path: Path, limits: Limits, seconds: float) -> SoundInfo:
    """What an uploaded file says of its sound. Not for the event loop.

    Args:
        path: the file.
        limits: under which it is read.
        seconds: that are taken.

    Raises:
        BadRequest: it is no sound that can be read.
        TooLarge: it is too long.
    """
    try:
        info = probe_sound(path, limits)
    except MediaError as error:
        raise as_bad_request(error, "body") from error
    if info.end_seconds > seconds:
        raise TooLarge(
            f"lasts longer than {seconds:.0f} s",
            field="body",
            value=f"{info.end_seconds:.1f} s",
            remedy="send it in parts",
        )
    return info


def _free(folder: Path) -> int:
    return shutil.disk_usage(folder).free
