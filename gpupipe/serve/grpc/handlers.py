"""The methods of a service, as gRPC takes them: by the service's descriptor, with what all methods have in common."""

from __future__ import annotations

import asyncio
import logging
import traceback
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, Final, Protocol

import grpc
from google.protobuf.message import DecodeError
from google.protobuf.message_factory import GetMessageClass

from gpupipe.errors import GpupipeError
from gpupipe.log import Log
from gpupipe.serve.grpc.statuses import INTERNAL, retry_after, status_of, told
from gpupipe.serve.refusals import BadRequest, Silent, TooLarge

SMALL_BYTES: Final = 16_384
"""Of a message, for which no other size is said: names and numbers."""

LAST_SECONDS: Final = 1.0
"""In which a client that took nothing can still be told why its call ends."""

ASK_SECONDS: Final = 5.0
"""In which the one message of a method that takes one must have come."""

_log = Log(__name__)


class Counter(Protocol):
    """What counts requests; `metrics.Metrics`."""

    def requests(self, protocol: str, method: str, status: str) -> None:
        """Count one that has ended."""


class Malformed:
    """Stands for a message that is none."""


@dataclass(frozen=True)
class Oversized:
    """Stands for a message that is larger than the method takes, and is not kept.

    Attributes:
        size: its bytes.
        most: that it may have.
    """

    size: int
    most: int


def handler_of(
    service: Any,
    descriptor: Any,
    counter: Counter,
    *,
    idle: Callable[[], float],
    sizes: Mapping[str, int] | None = None,
) -> grpc.GenericRpcHandler:
    """All methods of a service.

    Args:
        service: has a coroutine function of each method's name, or for a stream of answers an async generator function;
            it is given the request, or an async iterator of them, and raises `GpupipeError`s.
        descriptor: of the service.
        counter: of requests.
        idle: seconds after which a client that takes no answer is sent away.
        sizes: bytes that a message of a method may have, by the method's name; of all others `SMALL_BYTES`.

    Raises:
        AttributeError: a method is missing.
    """
    methods = {
        method.name: method_of(
            getattr(service, method.name), method, counter, idle, (sizes or {}).get(method.name, SMALL_BYTES)
        )
        for method in descriptor.methods
    }
    return grpc.method_handlers_generic_handler(descriptor.full_name, methods)


def method_of(
    behaviour: Callable[..., Any],
    method: Any,
    counter: Counter,
    idle: Callable[[], float],
    most: int = SMALL_BYTES,
) -> grpc.RpcMethodHandler:
    """One method of a service, by its descriptor, whose messages have `most` bytes; see `handler_of`."""
    calls = _Calls(behaviour, method.name, counter, idle)
    # Every method is served as if requests were a stream, which is the same on the wire: so none is read, nor has
    # memory, before the method asks for it.
    make = grpc.stream_stream_rpc_method_handler if method.server_streaming else grpc.stream_unary_rpc_method_handler
    run = calls.stream if method.server_streaming else calls.unary
    return make(run, parsed(GetMessageClass(method.input_type), most), _bytes_of)


def parsed(message: type[Any], most: int) -> Callable[[bytes], Any]:
    """Makes a message of `most` bytes or fewer, or a `Malformed`: gRPC itself would tell the client of the server's
    fault. Of more it makes an `Oversized`, without looking at them."""

    def parse(data: bytes) -> Any:
        if len(data) > most:
            return Oversized(len(data), most)
        try:
            return message.FromString(data)
        except DecodeError:
            return Malformed()

    return parse


async def checked(requests: AsyncIterator[Any]) -> AsyncGenerator[Any]:
    """Requests as they come.

    Raises:
        BadRequest: one is malformed, or larger than is taken.
    """
    async for request in requests:
        yield _formed(request)


async def only(requests: AsyncIterator[Any], seconds: float = ASK_SECONDS) -> Any:
    """The one request of a method that takes one.

    Args:
        requests: as they come.
        seconds: in which it must have come.

    Raises:
        BadRequest: there is none, or it is malformed, or larger than is taken.
        Silent: it has not come in time.
    """
    try:
        async with asyncio.timeout(seconds):
            async for request in requests:
                return _formed(request)
    except TimeoutError as error:
        raise Silent(f"no request came for {seconds:g} s", remedy="send it at once") from error
    raise BadRequest("no message came", remedy="send one")


def _formed(request: Any) -> Any:
    if isinstance(request, Malformed):
        raise BadRequest("a message is malformed", remedy="use the service's own .proto file")
    if isinstance(request, Oversized):
        raise TooLarge(f"a message has {request.size} bytes", remedy=f"send {request.most} at most")
    return request


def log_failure(method: str, error: Exception) -> None:
    """Log why a request has failed; as an error, with all of it, if that is the server's own fault."""
    status = status_of(error) if isinstance(error, GpupipeError) else grpc.StatusCode.INTERNAL
    if status is grpc.StatusCode.INTERNAL:
        text = "".join(traceback.format_exception(error))
        _log.event("request failed", logging.ERROR, method=method, status=status.name, error=text)
    else:
        _log.event("request failed", method=method, status=status.name, error=str(error))


class _Calls:
    """Runs a method, counts its requests, and tells what went wrong."""

    def __init__(self, behaviour: Callable[..., Any], name: str, counter: Counter, idle: Callable[[], float]) -> None:
        self._behaviour, self._name, self._counter, self._idle = behaviour, name, counter, idle

    async def unary(self, requests: AsyncIterator[Any], context: Any) -> Any:
        async with Told(context, self._name, self._counter):
            return await self._behaviour(requests)

    async def stream(self, requests: AsyncIterator[Any], context: Any) -> None:
        # Not a generator itself: one whose answer cannot be sent any more would be closed when it is collected.
        async with (
            Told(context, self._name, self._counter),
            aclosing(checked(requests)) as told,
            aclosing(self._behaviour(told)) as answers,
        ):
            async for answer in answers:
                await self._write(context, answer)

    async def _write(self, context: Any, answer: Any) -> None:
        seconds = self._idle()
        try:
            async with asyncio.timeout(seconds):
                await context.write(answer)
        except TimeoutError as error:
            raise Silent(f"no answer was taken for {seconds:g} s", remedy="read the answers") from error


class Told:
    """An async with block whose errors the client is told."""

    def __init__(self, context: Any, name: str, counter: Counter) -> None:
        self._context, self._name, self._counter = context, name, counter

    async def __aenter__(self) -> None:
        pass

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, _: object) -> None:
        if error is None:
            self._count(grpc.StatusCode.OK)
        elif isinstance(error, GpupipeError):
            self._count(status := status_of(error))
            log_failure(self._name, error)
            await self._abort(status, told(error), retry_after(error))
        elif isinstance(error, grpc.aio.AioRpcError):  # of a server behind this one, which has told why
            self._count(error.code())
            await self._abort(error.code(), error.details() or "", tuple(error.trailing_metadata() or ()))
        elif isinstance(error, Exception):
            self._count(grpc.StatusCode.INTERNAL)
            log_failure(self._name, error)
            await self._abort(grpc.StatusCode.INTERNAL, INTERNAL)
        else:  # cancelled: the client has gone, or its deadline has passed
            self._count(grpc.StatusCode.CANCELLED)

    async def _abort(self, status: grpc.StatusCode, what: str, trailing: tuple[tuple[str, str], ...] = ()) -> None:
        """End the call. The status lies behind what was answered before: who does not read that is not waited for."""
        try:
            async with asyncio.timeout(LAST_SECONDS):
                await self._context.abort(status, what, trailing)
        except TimeoutError:
            raise asyncio.CancelledError from None

    def _count(self, status: grpc.StatusCode) -> None:
        self._counter.requests("grpc", self._name, status.name)


def _bytes_of(message: Any) -> bytes:
    data: bytes = message.SerializeToString()
    return data
