"""What clients are told when they cannot have what they ask for."""

from __future__ import annotations

from typing import Any

from gpupipe.errors import GpupipeError


class NotFound(GpupipeError):
    """There is no such character, or job. HTTP 404, gRPC NOT_FOUND."""


class BadRequest(GpupipeError):
    """What a client sent cannot be used. HTTP 400 (413 where it is too large), gRPC INVALID_ARGUMENT."""


class TooLarge(BadRequest):
    """More than is taken: HTTP 413, gRPC RESOURCE_EXHAUSTED."""


class Refused(GpupipeError):
    """There is no room now. HTTP 503 with Retry-After, gRPC RESOURCE_EXHAUSTED (UNAVAILABLE while it shuts down).

    Attributes:
        retry_after: seconds after which to ask again.
        closing: whether the server is being shut down.
    """

    def __init__(self, what: str, *, retry_after: int = 5, closing: bool = False, **more: Any) -> None:
        super().__init__(what, **more)
        self.retry_after, self.closing = retry_after, closing


class Gone(Refused):
    """A server behind a router does not answer, or has ended. HTTP 503 with Retry-After, gRPC UNAVAILABLE."""


class Silent(GpupipeError):
    """A client has sent nothing, or taken nothing, for too long. HTTP 408, gRPC DEADLINE_EXCEEDED."""
