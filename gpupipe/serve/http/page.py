"""The page at `/`: files of the package, and nothing else."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Final

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

FOLDER: Final = Path(__file__).parent.parent / "page"

KINDS: Final = {
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".svg": "image/svg+xml",
}

HEADERS: Final = {
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; media-src 'self' blob:; "
        "img-src 'self' blob:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "permissions-policy": "microphone=(self), camera=(), geolocation=()",
    "cross-origin-opener-policy": "same-origin",
    "cache-control": "no-cache",
}


def page_routes(folder: Path = FOLDER) -> list[Route]:
    """A route for each file of the page, `/` for `index.html`."""
    return [Route(_path_of(file), partial(_file, file.read_bytes(), KINDS[file.suffix])) for file in _files(folder)]


def page_paths(folder: Path = FOLDER) -> set[str]:
    """The paths of those routes."""
    return {_path_of(file) for file in _files(folder)}


def _files(folder: Path) -> list[Path]:
    return [file for file in sorted(folder.iterdir()) if file.suffix in KINDS]


def _path_of(file: Path) -> str:
    return "/" if file.name == "index.html" else f"/{file.name}"


async def _file(data: bytes, kind: str, _: Request) -> Response:
    return Response(data, media_type=kind, headers=HEADERS)
