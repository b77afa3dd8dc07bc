"""The router as a whole: its replicas, where it listens, and its end."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Final

from gpupipe.errors import OptionError
from gpupipe.log import Log
from gpupipe.options import EngineKeywords, ModelKeywords, ServeOptions
from gpupipe.serve.ending import told_to_end
from gpupipe.serve.http.uploads import Uploads
from gpupipe.serve.listen import (
    LAST_SECONDS,
    HttpServer,
    Listening,
    access_of,
    address_of,
    bound,
    limits_of,
)
from gpupipe.serve.router.board import Board
from gpupipe.serve.router.kept import LAST_SECONDS as REPLICAS_LAST_SECONDS
from gpupipe.serve.router.kept import KeptReplica, Launch
from gpupipe.serve.router.local import local_replicas
from gpupipe.serve.router.metrics import RouterMetrics
from gpupipe.serve.router.places import check_only_its_own, places_of
from gpupipe.serve.router.replica import Replica
from gpupipe.serve.router.rpc import grpc_router
from gpupipe.serve.router.web import application

LOOK_SECONDS: Final = 0.1
"""Between two looks whether talks are still under way, once the router is to end."""

_log = Log(__name__)


async def route(
    folder: Path | None,
    options: ServeOptions,
    engine: EngineKeywords,
    model: ModelKeywords,
    *,
    told: Callable[[Listening], None] = lambda _: None,
    ending: asyncio.Event | None = None,
    launch: Launch | None = None,
) -> None:
    """Send sessions to the replicas that `options.replicas` names, or to as many that are started with these options,
    until a signal comes; see `server.serve`, whose arguments these are.

    Args:
        folder: of the characters; None where the replicas are elsewhere.
        options: of the router, and of replicas that it starts.
        engine: of replicas that it starts.
        model: likewise.
        told: called once, when it listens.
        ending: ends it like a signal, which is not listened to then.
        launch: makes the replicas, instead of what `options.replicas` says.

    Raises:
        GpupipeError: an address is in use, or a replica does not start.
    """
    tokens, cors, loopback_only = access_of(options)
    if launch is None:
        replicas, kept = _replicas(folder, options, engine, model)
    else:
        kept = launch(tokens)
        replicas = [each.replica for each in kept]
    async with AsyncExitStack() as closing:
        listening = bound(options.host, options.port)
        closing.callback(listening.close)
        board = Board(replicas, tokens.any)
        closing.push_async_callback(board.close)
        for each in kept:
            closing.push_async_callback(each.wait, REPLICAS_LAST_SECONDS)
            closing.callback(each.end)
        await asyncio.gather(*(each.start() for each in kept))
        await board.look()
        watching = [asyncio.create_task(board.watch()), *(asyncio.create_task(each.keep()) for each in kept)]
        for task in watching:
            closing.callback(task.cancel)
        metrics, limits = RouterMetrics(board), limits_of(options)
        uploads = Uploads(limits)
        closing.push_async_callback(asyncio.to_thread, uploads.close)
        await asyncio.to_thread(uploads.open)
        app = application(
            board,
            tokens,
            uploads,
            metrics=metrics,
            cors=cors,
            loopback_only=loopback_only,
        )
        address = address_of(options.host, options.grpc_port)
        rpc, grpc_port = await grpc_router(board, tokens, address, limits, metrics=metrics)
        closing.push_async_callback(rpc.stop, LAST_SECONDS)
        await rpc.start()
        http = HttpServer(app, options)

        def at_once() -> None:
            for each in kept:
                each.kill()

        with told_to_end(ending, at_once) as ended:
            serving = asyncio.create_task(http.serve(sockets=[listening]))
            where = _where(options, board, listening.getsockname()[1], grpc_port)
            _log.event("router listens", host=where.host, port=where.port, grpc_port=grpc_port, replicas=len(replicas))
            told(where)
            waiting = asyncio.create_task(ended.wait())
            await asyncio.wait({waiting, serving}, return_when=asyncio.FIRST_COMPLETED)
            waiting.cancel()
            _log.event("router ends", talks=board.under_way, grace=options.grace)
            board.closing = True
            for each in kept:
                each.end()
            await _until_done(board, options.grace + (LAST_SECONDS if kept else 0))
            http.should_exit = True
            await asyncio.gather(serving, rpc.stop(LAST_SECONDS))


def _replicas(
    folder: Path | None, options: ServeOptions, engine: EngineKeywords, model: ModelKeywords
) -> tuple[list[Replica], Sequence[KeptReplica]]:
    """The replicas that `options.replicas` says, and those of them that are started on this machine."""
    places = places_of(options.replicas or "1")
    if isinstance(places, int):
        kept = local_replicas(places, folder, options, engine, model)
        return [each.replica for each in kept], kept
    check_only_its_own(options, engine, model)
    if folder is not None:
        raise OptionError(
            "servers elsewhere have characters of their own",
            field="CHARACTERS/",
            value=str(folder),
            remedy="leave it out",
        )
    return [Replica(number, place) for number, place in enumerate(places)], []


def _where(options: ServeOptions, board: Board, port: int, grpc_port: int) -> Listening:
    """What is told where the router listens."""
    up = board.up
    notes = [f"replica {each.number}: {each.place.url}" for each in up]
    notes += [f"replica {each.number} does not answer yet" for each in board.replicas if each.told is None]
    devices = tuple(str(device) for each in up for device in (each.told or {}).get("devices", ()))
    return Listening(options.host, port, grpc_port, (), devices, tuple(notes))


async def _until_done(board: Board, seconds: float) -> None:
    """Wait until nothing goes through the router, so many seconds at most."""
    clock = asyncio.get_running_loop().time
    until = clock() + seconds
    while board.under_way and clock() < until:
        await asyncio.sleep(LOOK_SECONDS)
