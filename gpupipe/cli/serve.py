"""`gpupipe serve`: characters that speak for clients over a network."""

from __future__ import annotations

import argparse
import asyncio
import sys
from pathlib import Path
from typing import cast

from gpupipe.cli import ray
from gpupipe.cli.arguments import add_group, add_options, given, group_given
from gpupipe.errors import OptionError
from gpupipe.options import EngineKeywords, ModelKeywords, ServeOptions
from gpupipe.serve.packages import require_packages


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Whom to serve, where, and within which limits."""
    parser.add_argument(
        "characters",
        nargs="?",
        type=Path,
        metavar="CHARACTERS/",
        help="a folder of character folders, or a character's own; left out where --replicas names servers elsewhere",
    )
    add_group(parser, ServeOptions, "the server")
    add_options(parser, ModelKeywords)
    add_options(parser, EngineKeywords)


def run(options: argparse.Namespace) -> int:
    """Serve until told to end."""
    require_packages()
    ray.check(options)
    from gpupipe.serve.listen import Listening, is_loopback
    from gpupipe.serve.router.route import route
    from gpupipe.serve.server import serve

    chosen = group_given(options, ServeOptions)

    def told(where: Listening) -> None:
        host = f"[{where.host}]" if ":" in where.host else where.host
        if chosen.replicas is None and chosen.ray is None:
            print(f"characters: {', '.join(where.characters)}; on {', '.join(where.devices)}")
        else:
            print(f"a router of servers on {', '.join(where.devices) or 'other machines'}")
        for note in where.notes:
            print(note)
        if chosen.token_file is None and not is_loopback(where.host):
            print("warning: whoever reaches this machine may use the server: it wants no tokens", file=sys.stderr)
        print(f"listening at http://{host}:{where.port}/ and, for gRPC, at {host}:{where.grpc_port}", flush=True)

    engine = cast(EngineKeywords, given(options, EngineKeywords))
    model = cast(ModelKeywords, given(options, ModelKeywords))
    if chosen.ray is not None:
        from gpupipe.cluster.serving import serve_on_cluster

        asyncio.run(serve_on_cluster(options.characters, chosen, engine, model, told=told))
    elif chosen.replicas is not None:
        asyncio.run(route(options.characters, chosen, engine, model, told=told))
    elif options.characters is None:
        raise OptionError("is missing", field="CHARACTERS/", remedy="give a folder of character folders")
    else:
        asyncio.run(serve(options.characters, chosen, engine, model, told=told))
    return 0
