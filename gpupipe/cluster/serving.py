"""A router whose replicas live on the nodes of a Ray cluster."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from gpupipe.cluster.berths import Berths
from gpupipe.cluster.fleet import LOCAL, connected, nodes
from gpupipe.cluster.render import DEVICES
from gpupipe.cluster.replicas import Order, RayReplica, ray_replicas
from gpupipe.cluster.server import Wanted
from gpupipe.errors import OptionError, OutputError, reason
from gpupipe.options import EngineKeywords, ModelKeywords, ServeOptions
from gpupipe.serve.listen import Listening, check_exposure, is_loopback
from gpupipe.serve.router.places import OWN, arguments_of, places_of
from gpupipe.serve.router.route import route
from gpupipe.serve.tokens import Tokens

NOT_HANDED_ON: Final = (*OWN, "token_file")
"""Options that replicas are not given as they are."""
MARK: Final = ".router-"
"""How the file begins, in the folder of jobs, by which nodes know it."""


async def serve_on_cluster(
    folder: Path | None,
    options: ServeOptions,
    engine: EngineKeywords,
    model: ModelKeywords,
    *,
    told: Callable[[Listening], None] = lambda _: None,
    ending: asyncio.Event | None = None,
) -> None:
    """Send sessions to servers on the nodes of the cluster `options.ray`, which are started with these options, until a
    signal comes; see `serve.router.route`, whose arguments these are.

    Args:
        folder: of the characters, which is at the same path on every node.
        options: of the router, and of replicas.
        engine: of replicas.
        model: likewise.
        told: called once, when it listens.
        ending: ends it like a signal, which is not listened to then.

    Raises:
        GpupipeError: the cluster does not answer, its nodes are not alike, or a replica does not start.
    """
    check(folder, options, engine)
    check_exposure(options)
    assert folder is not None
    count = None if options.replicas is None else places_of(options.replicas)
    assert not isinstance(count, list)
    where = folder.resolve()
    with _marked(options.jobs) as mark, connected(options.ray or LOCAL):

        def launch(tokens: Tokens) -> Sequence[RayReplica]:
            berths = Berths(nodes, str(engine.get("device") or "auto"), options.ray_cores, count)
            _check_reach(berths, options)
            wanted = Wanted(str(where), _absolute(model.get("model")), berths.device, mark)
            arguments = _arguments(where, options, engine | {"device": berths.device}, model)
            return ray_replicas(berths, Order(arguments, wanted, "\n".join(tokens.every)))

        await route(folder, options, engine, model, told=told, ending=ending, launch=launch)


def check(folder: Path | None, options: ServeOptions, engine: EngineKeywords) -> None:
    """Refuse what makes no sense on a cluster, before it is asked.

    Raises:
        OptionError: something does not.
    """
    if folder is None:
        remedy = "give a folder of character folders, before --ray, which takes what follows for an address"
        raise OptionError("is missing", field="CHARACTERS/", remedy=remedy)
    if options.replicas is not None and not isinstance(places_of(options.replicas), int):
        raise OptionError(
            "servers that run elsewhere are not started on a cluster",
            field="--replicas",
            value=options.replicas,
            remedy="give a number, or leave --ray out",
        )
    if (device := engine.get("device") or "auto") not in DEVICES:
        raise OptionError(
            "names a GPU of one machine",
            field="--device",
            value=device,
            remedy="give auto, cpu or cuda: Ray picks GPUs",
        )


def _check_reach(berths: Berths, options: ServeOptions) -> None:
    """Refuse replicas that strangers could use."""
    beyond = sorted({each.address for each in berths.first if not is_loopback(each.address)})
    if beyond and options.token_file is None and not options.insecure:
        raise OptionError(
            "other machines could use the replicas there without a token",
            field="--ray",
            value=", ".join(beyond),
            remedy="give --token-file, or --insecure where something else keeps strangers out",
        )


def _arguments(
    folder: Path, options: ServeOptions, engine: EngineKeywords, model: ModelKeywords
) -> Callable[[int, str], list[str]]:
    """What a replica's command line has, given its number and its node's address."""
    if (path := _absolute(model.get("model"))) is not None:
        model = model | {"model": path}
    common = arguments_of(options, engine, model, NOT_HANDED_ON)

    def of(number: int, address: str) -> list[str]:
        found = [str(folder), "--host", address, "--port", "0", "--grpc-port", "0"]
        if options.jobs is not None:
            found += ["--jobs", str(Path(options.jobs).resolve() / f"replica-{number}")]
        return found + common

    return of


def _absolute(path: Any) -> str | None:
    return None if path is None else str(Path(path).resolve())


@contextmanager
def _marked(jobs: Path | str | None) -> Iterator[tuple[str, str] | None]:
    """A file in the folder of jobs, while the with block lasts, by which nodes see that it is this one: its path, and
    what it says."""
    if jobs is None:
        yield None
        return
    folder, text = Path(jobs).resolve(), uuid.uuid4().hex
    path = folder / f"{MARK}{text[:12]}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        path.write_text(text, "ascii")
    except OSError as error:
        raise OutputError(f"cannot be written: {reason(error)}", file=path, field="--jobs") from error
    try:
        yield str(path), text
    finally:
        path.unlink(missing_ok=True)
