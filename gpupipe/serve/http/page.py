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
    files = {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.suffix in KINDS}
    return [
        Route("/" if name == "index.html" else f"/{name}", partial(_file, data, KINDS[Path(name).suffix]))
        for name, data in files.items()
    ]


async def _file(data: bytes, kind: str, _: Request) -> Response:
    return Response(data, media_type=kind, headers=HEADERS)
