"""`gpupipe serve`: characters that speak for clients over a network."""

from __future__ import annotations

import argparse
import asyncio
import sys
from pathlib import Path
from typing import Final, cast

from gpupipe.cli.arguments import add_group, add_options, given, group_given
from gpupipe.errors import OptionError
from gpupipe.machine import package_version
from gpupipe.options import EngineKeywords, ModelKeywords, ServeOptions

PACKAGES: Final = ("aiortc", "grpcio", "prometheus-client", "starlette", "uvicorn")
"""Of the extra `serve`."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Whom to serve, where, and within which limits."""
    parser.add_argument(
        "characters", type=Path, metavar="CHARACTERS/", help="a folder of character folders, or a character's own"
    )
    add_group(parser, ServeOptions, "the server")
    add_options(parser, ModelKeywords)
    add_options(parser, EngineKeywords)


def run(options: argparse.Namespace) -> int:
    """Serve until told to end."""
    missing = [name for name in PACKAGES if package_version(name) is None]
    if missing:
        raise OptionError(
            f"gpupipe serve needs {', '.join(missing)}",
            remedy="install what is missing with pip install 'gpupipe[serve]'",
        )
    from gpupipe.serve.listen import is_loopback
    from gpupipe.serve.server import Listening, serve

    chosen = group_given(options, ServeOptions)

    def told(where: Listening) -> None:
        host = f"[{where.host}]" if ":" in where.host else where.host
        print(f"characters: {', '.join(where.characters)}; on {', '.join(where.devices)}")
        for note in where.notes:
            print(note)
        if chosen.token_file is None and not is_loopback(where.host):
            print("warning: whoever reaches this machine may use the server: it wants no tokens", file=sys.stderr)
        print(f"listening at http://{host}:{where.port}/ and, for gRPC, at {host}:{where.grpc_port}", flush=True)

    asyncio.run(
        serve(
            options.characters,
            chosen,
            cast(EngineKeywords, given(options, EngineKeywords)),
            cast(ModelKeywords, given(options, ModelKeywords)),
            told=told,
        )
    )
    return 0
