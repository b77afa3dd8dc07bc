"""Errors as HTTP tells them: a status, and one line without this machine's paths."""

from __future__ import annotations

import logging
import traceback
from collections.abc import Mapping
from typing import Final

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from gpupipe.errors import Cancelled, DeviceMemoryError, EngineClosed, GpupipeError, HostMemoryError, OptionError
from gpupipe.log import Log
from gpupipe.serve.refusals import BadRequest, NotFound, Refused, Silent, TooLarge

_log = Log(__name__)

INTERNAL: Final = "the server failed; see its log"

_STATUSES: Final[tuple[tuple[type[GpupipeError], int], ...]] = (
    (NotFound, 404),
    (TooLarge, 413),
    (BadRequest, 400),
    (OptionError, 400),
    (Silent, 408),
    (Refused, 503),
    (HostMemoryError, 503),
    (DeviceMemoryError, 503),
    (Cancelled, 503),
    (EngineClosed, 503),
)
"""The first that fits; every other error is the server's own, 500."""


def status_of(error: GpupipeError) -> int:
    """The status that stands for an error."""
    return next((status for kind, status in _STATUSES if isinstance(error, kind)), 500)


def told(error: GpupipeError) -> str:
    """What a client is told: the message, without the file, whose path is this machine's."""
    return str(GpupipeError(**error.parts))


def as_bad_request(error: GpupipeError, field: str) -> BadRequest:
    """What is wrong with something that a client has sent."""
    return BadRequest(**{"field": field} | {name: part for name, part in error.parts.items() if part is not None})


def error_response(status: int, what: str, headers: Mapping[str, str] | None = None) -> Response:
    """`{"error": "..."}`."""
    return JSONResponse({"error": what}, status, headers=dict(headers or {}))


def on_error(request: Request, error: Exception) -> Response:
    """The answer to a request that a `GpupipeError` has ended. What is the server's own fault is in its log alone."""
    assert isinstance(error, GpupipeError)
    headers = {"retry-after": str(error.retry_after)} if isinstance(error, Refused) else {}
    if request.method in ("POST", "PUT"):
        headers["connection"] = "close"  # the rest of its body is not read
    if (status := status_of(error)) == 500:
        text = "".join(traceback.format_exception(error))
        _log.event("request failed", logging.ERROR, path=request.url.path, error=text)
        return error_response(status, INTERNAL, headers)
    return error_response(status, told(error), headers)


def on_http_exception(request: Request, error: Exception) -> Response:
    """The answer to a request for what there is not, or that is put in a wrong way."""
    assert isinstance(error, HTTPException)
    return error_response(error.status_code, error.detail, error.headers)
