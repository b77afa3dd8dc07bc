"""What listens for gRPC: the services, whoever may ask for them, and how large a message may be."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final

import grpc
from grpc_reflection.v1alpha import reflection

from gpupipe.errors import OptionError, reason
from gpupipe.serve.grpc import avatar_pb2, health, monolithic_pb2
from gpupipe.serve.grpc.avatar import AvatarService
from gpupipe.serve.grpc.handlers import Counter, handler_of
from gpupipe.serve.grpc.monolithic import MonolithicService
from gpupipe.serve.hub import Hub
from gpupipe.serve.limits import ServeLimits
from gpupipe.serve.tokens import Tokens

AVATAR: Final = avatar_pb2.DESCRIPTOR.services_by_name["Avatar"]
MONOLITHIC: Final = monolithic_pb2.DESCRIPTOR.services_by_name["MonolithicService"]

IDLE_MS: Final = 300_000
"""After which a connection without requests is closed."""

PING_MS: Final = 60_000
"""After which one that is silent is asked whether it is still there."""
LEAST_PING_MS: Final = 10_000
"""Between questions of a client's own."""

AUDIO_BYTES: Final = 4_194_304
"""Of a message of a speech."""

OPEN_TO_ALL: Final = f"/{health.DESCRIPTOR.full_name}/"
"""Health checking, which who looks after servers asks for without a token; it tells nothing else."""


async def grpc_server(hub: Hub, tokens: Tokens, address: str, *, metrics: Counter) -> tuple[grpc.aio.Server, int]:
    """A server, which listens once it is started.

    Args:
        hub: of the server.
        tokens: who may ask.
        address: "host:port"; port 0 takes a free one.
        metrics: counts requests.

    Returns:
        The server, and its port.

    Raises:
        OptionError: the address cannot be had.
    """
    names = (AVATAR.full_name, MONOLITHIC.full_name, health.DESCRIPTOR.full_name, reflection.SERVICE_NAME)
    size = hub.limits.message_bytes

    def idle() -> float:
        return hub.limits.idle_seconds

    handlers = (
        handler_of(AvatarService(hub), AVATAR, metrics, idle=idle, sizes={"Speak": min(AUDIO_BYTES, size)}),
        handler_of(MonolithicService(hub), MONOLITHIC, metrics, idle=idle, sizes={"InferBatchComposite": size}),
        handler_of(health.HealthService(names, lambda: hub.closing), health.DESCRIPTOR, metrics, idle=idle),
    )
    return await listener(handlers, names, tokens, address, limits=hub.limits, metrics=metrics)


async def listener(
    handlers: Sequence[grpc.GenericRpcHandler],
    names: Sequence[str],
    tokens: Tokens,
    address: str,
    *,
    limits: ServeLimits,
    metrics: Counter,
) -> tuple[grpc.aio.Server, int]:
    """A server of these services, with reflection; see `grpc_server`.

    Args:
        handlers: of the services.
        names: of the services, reflection too.
        tokens: who may ask.
        address: "host:port"; port 0 takes a free one.
        limits: of clients.
        metrics: counts requests.

    Raises:
        OptionError: the address cannot be had.
    """
    size = limits.message_bytes
    server = grpc.aio.server(
        interceptors=[_Tokens(tokens, metrics)],
        options=[
            ("grpc.max_receive_message_length", size),
            ("grpc.max_send_message_length", size),
            ("grpc.max_connection_idle_ms", IDLE_MS),
            ("grpc.keepalive_time_ms", PING_MS),
            ("grpc.http2.min_ping_interval_without_data_ms", LEAST_PING_MS),
            ("grpc.so_reuseport", 0),  # another server's port is an error, not shared
        ],
        maximum_concurrent_rpcs=limits.connections,
    )
    server.add_generic_rpc_handlers(tuple(handlers))
    reflection.enable_server_reflection(names, server)
    try:
        port = server.add_insecure_port(address)
    except RuntimeError as error:
        await server.stop(None)
        raise OptionError(
            f"cannot be had: {reason(error)}", field="--grpc-port", value=address, remedy="use another"
        ) from error
    return server, port


class _Tokens(grpc.aio.ServerInterceptor):  # type: ignore[misc]  # grpc has no types
    """Lets in who shows one of the server's tokens."""

    def __init__(self, tokens: Tokens, counter: Counter) -> None:
        self._tokens, self._counter = tokens, counter

    async def intercept_service(self, continuation: Callable[[Any], Awaitable[Any]], handler_call_details: Any) -> Any:
        if handler_call_details.method.startswith(OPEN_TO_ALL):
            return await continuation(handler_call_details)
        shown = [value for key, value in handler_call_details.invocation_metadata if key == "authorization"]
        if self._tokens.allows(shown[0] if len(shown) == 1 else None):
            return await continuation(handler_call_details)

        async def refuse(_: Any, context: Any) -> None:
            self._counter.requests("grpc", "any", grpc.StatusCode.UNAUTHENTICATED.name)
            await context.abort(
                grpc.StatusCode.UNAUTHENTICATED, "authorization: a token is needed; send `Bearer TOKEN` as metadata"
            )

        return grpc.stream_stream_rpc_method_handler(refuse)
