"""The client over HTTP."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from http.client import HTTPConnection, HTTPException, HTTPResponse, HTTPSConnection
from pathlib import Path
from typing import Any, BinaryIO, Final
from urllib.parse import quote, urlencode, urlsplit

from gpupipe.errors import GpupipeError, reason

PIECE_BYTES: Final = 65_536
MOST_TEXT_BYTES: Final = 16_000_000
"""Of an answer that is read as a whole."""


class Rest:
    """Asks a server over HTTP.

    Args:
        url: where it listens, such as http://127.0.0.1:8500.
        token: one of its tokens, if it wants any.
        timeout: seconds without a byte, after which it is given up.

    Raises:
        GpupipeError: the URL is none. From every method: the server cannot be reached, or says no.
    """

    def __init__(self, url: str, token: str | None = None, *, timeout: float = 60.0) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise GpupipeError("is no URL of a server", field="--url", value=url, remedy="give http://HOST:PORT")
        self.url, self._timeout, self._path = url, timeout, parts.path.rstrip("/")
        self._connection = HTTPSConnection if parts.scheme == "https" else HTTPConnection
        try:
            self._where = parts.hostname, parts.port
        except ValueError as error:
            raise GpupipeError("has no such port", field="--url", value=url, remedy="give http://HOST:PORT") from error
        self._headers = {} if token is None else {"Authorization": f"Bearer {token}"}

    def characters(self) -> list[dict[str, Any]]:
        """The characters that are served: id, width, height, fps, frames."""
        with self._asked("GET", "/v1/characters") as answer, self._told():
            data = answer.read(MOST_TEXT_BYTES)
        try:
            found: list[dict[str, Any]] = json.loads(data)["characters"]
        except (ValueError, LookupError, TypeError) as error:
            raise GpupipeError("gives no list of characters", field=self.url, remedy="see whether it is one") from error
        return found

    def video(self, character: str, sound: Path, output: BinaryIO, **options: float | bool | None) -> int:
        """Have a character say a sound, and write the video as it comes.

        Args:
            character: its name.
            sound: a sound file.
            output: where the fragmented MP4 goes.
            options: the query's: realtime, delay, start_frame; None is left out.

        Returns:
            Bytes that were written.
        """
        given = {name: _text(value) for name, value in options.items() if value is not None}
        path = f"/v1/characters/{quote(character, safe='')}/video?{urlencode(given)}"
        written = 0
        with sound.open("rb") as body:
            headers = {"Content-Length": str(sound.stat().st_size), "Content-Type": "application/octet-stream"}
            with self._asked("POST", path, body, headers) as answer:
                while data := self._next(answer):
                    written += output.write(data)
                if written < (whole := int(answer.headers.get("Content-Length", 0))):
                    raise GpupipeError(f"breaks off after {written} of {whole} bytes", field=self.url)
        return written

    def _next(self, answer: HTTPResponse) -> bytes:
        with self._told():
            return answer.read1(PIECE_BYTES)  # raises where chunks break off

    @contextmanager
    def _asked(
        self, method: str, path: str, body: BinaryIO | None = None, headers: Mapping[str, str] | None = None
    ) -> Iterator[HTTPResponse]:
        connection = self._connection(*self._where, timeout=self._timeout)
        try:
            with self._told():
                with suppress(BrokenPipeError, ConnectionResetError):  # it may say no before it has all of the body
                    connection.request(method, self._path + path, body, self._headers | dict(headers or {}))
                answer = connection.getresponse()
                if answer.status != 200:
                    raise GpupipeError(f"{_said(answer)} ({answer.status})", field=self.url)
            yield answer
        finally:
            connection.close()

    @contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except (HTTPException, OSError) as error:
            raise GpupipeError(f"failed: {reason(error)}", field=self.url, remedy="see whether it runs") from error


def _text(value: float | bool) -> str:
    return str(value).lower()


def _said(answer: HTTPResponse) -> str:
    """Why a server says no."""
    data = answer.read(PIECE_BYTES)
    try:
        return str(json.loads(data)["error"])
    except (ValueError, LookupError, TypeError):
        return answer.reason or "no reason is given"
