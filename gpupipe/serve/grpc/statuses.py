"""What a client is told of an error: a status, and one line that names no file of the server."""

from __future__ import annotations

from grpc import StatusCode

from gpupipe.errors import Cancelled, DeviceMemoryError, EngineClosed, GpupipeError, HostMemoryError, OptionError
from gpupipe.serve.refusals import BadRequest, Gone, NotFound, Refused, Silent, TooLarge

_STATUSES: tuple[tuple[type[GpupipeError], StatusCode], ...] = (
    (NotFound, StatusCode.NOT_FOUND),
    (TooLarge, StatusCode.RESOURCE_EXHAUSTED),
    (BadRequest, StatusCode.INVALID_ARGUMENT),
    (Silent, StatusCode.DEADLINE_EXCEEDED),
    (Refused, StatusCode.RESOURCE_EXHAUSTED),
    (OptionError, StatusCode.INVALID_ARGUMENT),
    (HostMemoryError, StatusCode.RESOURCE_EXHAUSTED),
    (DeviceMemoryError, StatusCode.RESOURCE_EXHAUSTED),
    (EngineClosed, StatusCode.UNAVAILABLE),
    (Cancelled, StatusCode.CANCELLED),
)

INTERNAL = "the server failed; see its log"


def status_of(error: GpupipeError) -> StatusCode:
    """The status of an error."""
    if isinstance(error, Gone) or (isinstance(error, Refused) and error.closing):
        return StatusCode.UNAVAILABLE
    return next((status for kind, status in _STATUSES if isinstance(error, kind)), StatusCode.INTERNAL)


def told(error: GpupipeError) -> str:
    """An error's message, without the path of the file that it is about; of the server's own failures just that."""
    return INTERNAL if status_of(error) is StatusCode.INTERNAL else str(GpupipeError(**error.parts))


def retry_after(error: GpupipeError) -> tuple[tuple[str, str], ...]:
    """Trailing metadata that say after how many seconds to ask again."""
    return (("retry-after", str(error.retry_after)),) if isinstance(error, Refused) else ()
