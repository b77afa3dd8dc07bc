"""The router's gRPC: the services of a server, whose messages go to replicas and back as they are."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any, Final

import grpc
from google.protobuf.message_factory import GetMessageClass
from grpc_reflection.v1alpha import reflection

from gpupipe import __version__
from gpupipe.errors import reason
from gpupipe.serve.grpc import avatar_pb2 as pb
from gpupipe.serve.grpc import health
from gpupipe.serve.grpc import monolithic_pb2 as go
from gpupipe.serve.grpc.handlers import Counter, Told, handler_of, method_of, only, parsed
from gpupipe.serve.grpc.hearing import wish_of
from gpupipe.serve.grpc.server import AUDIO_BYTES, AVATAR, MONOLITHIC, listener
from gpupipe.serve.limits import ServeLimits
from gpupipe.serve.refusals import BadRequest, Gone, Silent
from gpupipe.serve.router.board import ANSWER_SECONDS, Board
from gpupipe.serve.router.models import Models
from gpupipe.serve.router.replica import MODEL, Replica
from gpupipe.serve.tokens import Tokens

CONNECT_SECONDS: Final = 3.0
BATCHES: Final = 8
"""Of the Go server's service that go through at a time: each may have a hundred megabytes of inputs."""

_PASSED_ON: Final = ("authorization",)


async def grpc_router(
    board: Board, tokens: Tokens, address: str, limits: ServeLimits, *, metrics: Counter
) -> tuple[grpc.aio.Server, int]:
    """A server that sends on what it is asked, and its port; see `grpc.server.grpc_server`.

    Raises:
        OptionError: the address cannot be had.
    """
    names = (AVATAR.full_name, MONOLITHIC.full_name, health.DESCRIPTOR.full_name, reflection.SERVICE_NAME)

    def idle() -> float:
        return limits.idle_seconds

    through, avatar, models = Through(board, limits, metrics), Avatar(board), Models(board)
    handlers = (
        grpc.method_handlers_generic_handler(
            AVATAR.full_name,
            {
                "Speak": grpc.stream_stream_rpc_method_handler(through.speak),
                **{
                    name: method_of(getattr(avatar, name), AVATAR.methods_by_name[name], metrics, idle)
                    for name in ("ListCharacters", "GetStatus")
                },
            },
        ),
        grpc.method_handlers_generic_handler(
            MONOLITHIC.full_name,
            {
                method.name: grpc.stream_stream_rpc_method_handler(through.batch)
                if method.name == "InferBatchComposite"
                else method_of(getattr(models, method.name), method, metrics, idle)
                for method in MONOLITHIC.methods
            },
        ),
        handler_of(health.HealthService(names, lambda: not board.ready), health.DESCRIPTOR, metrics, idle=idle),
    )
    return await listener(handlers, names, tokens, address, limits=limits, metrics=metrics)


class Through:
    """The methods whose messages are not unpacked, but for the first.

    Args:
        board: of the router.
        limits: of clients.
        counter: of requests.
    """

    def __init__(self, board: Board, limits: ServeLimits, counter: Counter) -> None:
        self._board, self._limits, self._counter = board, limits, counter
        self._room = asyncio.Semaphore(BATCHES)

    async def speak(self, requests: AsyncIterator[bytes], context: Any) -> None:
        """A speech, on the first replica that takes it."""
        async with Told(context, "Speak", self._counter):
            first = await self._first(requests)
            read: Any = parsed(pb.SpeakRequest, AUDIO_BYTES)(first)
            if not isinstance(read, pb.SpeakRequest):
                raise BadRequest("a message is malformed", remedy="use the service's own .proto file")
            character = wish_of(read).order.character
            refusal: grpc.aio.AioRpcError | None = None
            for replica in self._board.turns(character):
                with replica.session(character) as taken:
                    async with _call(replica, "/gpupipe.v1.Avatar/Speak", context) as call:
                        if call is None:
                            continue
                        try:
                            with suppress(asyncio.InvalidStateError):  # it has ended: what is read says how
                                await call.write(first)
                            answer = await call.read()
                        except grpc.aio.AioRpcError as error:
                            if not _refuses(error):
                                raise
                            refusal = error
                            continue
                        taken()
                        await _on(call, answer, requests, context)
                        return
            if refusal is None:
                raise Gone("none of the replicas answers", remedy="ask again later")
            raise self._board.full(_retry_after(refusal))

    async def batch(self, requests: AsyncIterator[bytes], context: Any) -> None:
        """A batch of frames of the Go server's service, on the replica that holds its model."""
        name = "InferBatchComposite"
        async with Told(context, name, self._counter), self._room:
            request = await self._first(requests)
            # Of every message that is about a model its name is the first field; the others stay unknown.
            read: Any = parsed(go.UnloadModelRequest, self._limits.message_bytes)(request)
            model = MODEL + (read.model_id if isinstance(read, go.UnloadModelRequest) else "")
            for replica in self._board.turns(model):
                with replica.session(model) as taken:
                    async with _call(replica, f"/{MONOLITHIC.full_name}/{name}", context) as call:
                        if call is None:
                            continue
                        with suppress(asyncio.InvalidStateError):
                            await call.write(request)
                        answer = await call.read()
                        taken()
                        await _on(call, answer, requests, context)
                        return
            raise Gone("none of the replicas answers", remedy="ask again later")

    async def _first(self, requests: AsyncIterator[bytes]) -> bytes:
        seconds = self._limits.idle_seconds
        try:
            async with asyncio.timeout(seconds):
                async for request in requests:
                    return request
        except TimeoutError as error:
            raise Silent(f"no message came for {seconds:.0f} s", remedy="send it at once") from error
        raise BadRequest("no message came", remedy="send one")


class Avatar:
    """The methods of `gpupipe.v1.Avatar` that tell of the server.

    Args:
        board: of the router.
    """

    def __init__(self, board: Board) -> None:
        self._board = board

    async def ListCharacters(self, requests: AsyncIterator[Any]) -> Any:
        """The characters, and whether any replica has them loaded."""
        request = await only(requests)
        method = AVATAR.methods_by_name["ListCharacters"]
        for replica in self._board.turns(""):
            try:
                call = replica.channel.unary_unary(
                    f"/{AVATAR.full_name}/ListCharacters",
                    request_serializer=GetMessageClass(method.input_type).SerializeToString,
                    response_deserializer=GetMessageClass(method.output_type).FromString,
                )
                answer = await call(request, metadata=self._board.metadata, timeout=ANSWER_SECONDS)
            except (Gone, grpc.aio.AioRpcError):
                continue
            loaded = {name for each in self._board.up for name in each.state.holds}
            for character in answer.characters:
                character.loaded = character.name in loaded
            return answer
        raise Gone("none of the replicas answers", remedy="ask again later")

    async def GetStatus(self, requests: AsyncIterator[Any]) -> Any:
        """All replicas as one server, as loaded as they are on the average."""
        await only(requests)
        told = [each.told for each in self._board.up if each.told is not None]
        return pb.GetStatusResponse(
            version=__version__,
            sessions=sum(one["sessions"] for one in told),
            most_sessions=sum(one["most_sessions"] for one in told),
            load=sum(one["load"] for one in told) / max(1, len(told)),
            closing=self._board.closing,
        )


@asynccontextmanager
async def _call(replica: Replica, method: str, context: Any) -> AsyncGenerator[Any]:
    """A call of a replica's, which ends with the async with block; None: it cannot be reached.

    Raises:
        AioRpcError: by the block, if the replica has ended the call with an error; one that has ended itself: Gone.
    """
    try:
        async with asyncio.timeout(CONNECT_SECONDS):
            await replica.channel.channel_ready()
    except (TimeoutError, Gone):
        replica.leave_out(f"it cannot be reached over gRPC for {CONNECT_SECONDS:.0f} s")
        yield None
        return
    metadata = [(key, value) for key, value in context.invocation_metadata() if key in _PASSED_ON]
    call = replica.channel.stream_stream(method)(metadata=metadata, timeout=context.time_remaining())
    try:
        yield call
    except grpc.aio.AioRpcError as error:
        if error.code() is grpc.StatusCode.UNAVAILABLE and not _refuses(error):
            raise Gone(f"the replica has ended in the middle: {reason(error)}", remedy="speak again") from error
        raise
    except asyncio.CancelledError:
        task = asyncio.current_task()
        if task is not None and task.cancelling():  # the client has gone
            raise
        raise Gone("the replica has ended in the middle", remedy="speak again") from None
    finally:
        call.cancel()


async def _on(call: Any, answer: Any, requests: AsyncIterator[bytes], context: Any) -> None:
    """Send a client's messages on to a replica and back, each side's as fast as the other takes them."""

    async def send() -> None:
        with suppress(asyncio.InvalidStateError, grpc.aio.AioRpcError):  # what is read says how it has ended
            async for request in requests:
                await call.write(request)
            await call.done_writing()

    sending = asyncio.create_task(send())
    try:
        while answer is not grpc.aio.EOF:
            await context.write(answer)
            answer = await call.read()
    finally:
        sending.cancel()
        await asyncio.wait({sending})


def _refuses(error: grpc.aio.AioRpcError) -> bool:
    """Whether a replica has said itself that it has no room, or is being shut down."""
    closing = error.code() is grpc.StatusCode.UNAVAILABLE and any(
        key == "retry-after" for key, _ in (error.trailing_metadata() or ())
    )
    return closing or error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


def _retry_after(error: grpc.aio.AioRpcError) -> int:
    said = dict(error.trailing_metadata() or ()).get("retry-after", "5")
    return int(said) if said.isdecimal() else 5
