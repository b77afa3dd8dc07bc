"""A server: one event loop for HTTP, WebRTC and gRPC, the hub behind them, and its end."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import AsyncExitStack
from pathlib import Path

from gpupipe.log import Log
from gpupipe.options import EngineKeywords, ModelKeywords, ServeOptions
from gpupipe.serve.ending import told_to_end
from gpupipe.serve.grpc.server import grpc_server
from gpupipe.serve.http.app import application
from gpupipe.serve.http.uploads import Uploads
from gpupipe.serve.hub import Hub
from gpupipe.serve.jobs import Jobs
from gpupipe.serve.listen import (
    LAST_SECONDS,
    HttpServer,
    Listening,
    access_of,
    address_of,
    bound,
    limits_of,
)
from gpupipe.serve.metrics import Metrics
from gpupipe.serve.webrtc.routes import Peers

_log = Log(__name__)


async def serve(
    folder: Path,
    options: ServeOptions,
    engine: EngineKeywords,
    model: ModelKeywords,
    *,
    told: Callable[[Listening], None] = lambda _: None,
    ending: asyncio.Event | None = None,
) -> None:
    """Serve until a signal comes: then no more talks are taken, those under way have `options.grace` seconds to end,
    the others are told, and it returns. A second signal ends the process at once.

    Args:
        folder: of the characters.
        options: what it listens on, and what its clients may take.
        engine: of each device of `device`, which may name several.
        model: how models are run.
        told: called once, when it listens.
        ending: ends it like a signal, which is not listened to then.

    Raises:
        GpupipeError: an address is in use, a device cannot be opened, there are no characters.
    """
    tokens, cors, loopback_only = access_of(options)
    async with AsyncExitStack() as closing:
        listening = bound(options.host, options.port)
        closing.callback(listening.close)
        devices = str(engine.get("device", "auto")).split(",")
        hub = await asyncio.to_thread(
            Hub, folder, devices, engine, model, limits=limits_of(options), most_load=options.most_load
        )
        closing.push_async_callback(asyncio.to_thread, hub.close)
        metrics = Metrics(hub)
        jobs = None
        if options.jobs is not None:
            jobs = Jobs(hub, Path(options.jobs))
            await asyncio.to_thread(jobs.start)
            closing.push_async_callback(asyncio.to_thread, jobs.close)
        uploads = Uploads(hub.limits)
        closing.push_async_callback(asyncio.to_thread, uploads.close)
        await asyncio.to_thread(uploads.open)
        peers = Peers(hub, metrics, uploads, host=options.host)
        closing.push_async_callback(peers.aclose)
        app = application(
            hub,
            tokens,
            jobs,
            metrics=metrics,
            uploads=uploads,
            extra=peers.routes(tokens),
            cors=cors,
            loopback_only=loopback_only,
        )
        rpc, grpc_port = await grpc_server(hub, tokens, address_of(options.host, options.grpc_port), metrics=metrics)
        closing.push_async_callback(rpc.stop, LAST_SECONDS)
        await rpc.start()
        http = HttpServer(app, options)
        with told_to_end(ending) as ended:
            serving = asyncio.create_task(http.serve(sockets=[listening]))
            where = Listening(
                options.host,
                listening.getsockname()[1],
                grpc_port,
                tuple(hub.characters.names()),
                tuple(each.device for each in hub.engines),
                tuple(note for each in hub.engines for note in each.notes),
            )
            _log.event("server listens", host=where.host, port=where.port, grpc_port=grpc_port, notes=where.notes)
            told(where)
            waiting = asyncio.create_task(ended.wait())
            await asyncio.wait({waiting, serving}, return_when=asyncio.FIRST_COMPLETED)
            waiting.cancel()
            _log.event("server ends", talks=len(hub.talks), grace=options.grace)
            await asyncio.to_thread(hub.seats.close, options.grace)
            http.should_exit = True
            await asyncio.gather(serving, rpc.stop(LAST_SECONDS), peers.aclose())
