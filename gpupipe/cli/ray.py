"""The arguments of commands that can run on a cluster."""

from __future__ import annotations

import argparse
from typing import Final

from gpupipe.cli.arguments import number
from gpupipe.errors import OptionError

HERE: Final = "local"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Which cluster, and what its engines get."""
    group = parser.add_argument_group("a cluster of Ray (pip install 'gpupipe[ray]'; docs/cluster.md)").add_argument
    group(
        "--ray",
        nargs="?",
        const=HERE,
        metavar="ADDRESS",
        help="draw the segments on the nodes of a cluster: auto, HOST:PORT or ray://HOST:PORT; without an address, on "
        "one that is started on this machine and stopped at the end",
    )
    group(
        "--ray-cores",
        type=number(1),
        metavar="N",
        help="CPU cores of an engine, where frames are composited on the CPU [default: 4, or what the node has]",
    )
    group(
        "--ray-keep",
        type=number(1),
        metavar="MINUTES",
        help="let the engines stay on the cluster until they have had no work for so long, for later renders with the "
        "same options [default: they end with the render]",
    )


def check(options: argparse.Namespace) -> None:
    """Raise an OptionError for what goes with a cluster only."""
    for flag, name in (("--ray-cores", "ray_cores"), ("--ray-keep", "ray_keep")):
        value = getattr(options, name, None)
        if options.ray is None and value is not None:
            raise OptionError("is for engines of a cluster", field=flag, value=value, remedy="give --ray too")
