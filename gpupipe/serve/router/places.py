"""What `--replicas` says: how many servers this machine is to have, or where others are."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, Final
from urllib.parse import urlsplit

from gpupipe.errors import OptionError
from gpupipe.options import EngineOptions, ModelOptions, Option, ServeOptions, declared
from gpupipe.serve.router.replica import Place

MOST_REPLICAS: Final = 256
"""On one machine."""
GRPC_PORT: Final = 8501
"""Where a replica listens for gRPC unless it is said."""

OWN: Final = ("host", "port", "grpc_port", "cors", "replicas", "ray", "ray_cores", "jobs")
"""Options that a router does not hand on to its replicas as they are."""
OF_REPLICAS: Final = ("jobs", "max_jobs", "job_hours", "max_sessions", "most_load")
"""Options of the server that mean nothing to a router of other machines' servers."""


def places_of(text: str) -> int | list[Place]:
    """How many replicas are to be started, or where they are.

    >>> places_of("4"), places_of("http://a:8500,http://b:80=c:9")
    (4, [Place(host='a', port=8500, grpc='a:8501'), Place(host='b', port=80, grpc='c:9')])

    Raises:
        OptionError: it says neither.
    """
    if re.fullmatch(r"\d{1,9}", text, re.ASCII):
        if not 1 <= int(text) <= MOST_REPLICAS:
            raise OptionError("out of range", field="--replicas", value=text, remedy=f"give 1 to {MOST_REPLICAS}")
        return int(text)
    return [_place(each.strip(), text) for each in text.split(",")]


def _place(one: str, text: str) -> Place:
    url, equals, grpc = one.partition("=")
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError:
        host = port = None
    if host is None or port is None or parts.scheme != "http" or parts.path not in ("", "/") or parts.query:
        raise OptionError(
            "neither a number nor addresses",
            field="--replicas",
            value=text,
            remedy="give addresses such as http://10.0.0.5:8500, or http://10.0.0.5:8500=10.0.0.5:8501 with gRPC's",
        )
    if equals and not re.fullmatch(r"(\[[0-9a-fA-F:.]+\]|[^\s:\[\]/]+):\d{1,5}", grpc):
        raise OptionError("no address of gRPC", field="--replicas", value=grpc, remedy="give HOST:PORT")
    named = f"[{host}]" if ":" in host else host
    return Place(host, port, grpc or f"{named}:{GRPC_PORT}")


def check_only_its_own(options: ServeOptions, engine: Mapping[str, Any], model: Mapping[str, Any]) -> None:
    """Raise where an option is given that only the servers can have, which are elsewhere.

    Raises:
        OptionError: one is.
    """
    for name in OF_REPLICAS:
        _unless_default(declared(ServeOptions)[name], getattr(options, name))
    for group, given in ((EngineOptions, engine), (ModelOptions, model)):
        for name, value in given.items():
            if name in declared(group):
                _unless_default(declared(group)[name], value)


def _unless_default(option: Option, value: Any) -> None:
    if value != option.default:
        raise OptionError(
            "a router of servers elsewhere does not draw",
            field=option.flag,
            value=value,
            remedy="give it to the servers at the addresses of --replicas",
        )


def arguments_of(
    options: ServeOptions, engine: Mapping[str, Any], model: Mapping[str, Any], but: Sequence[str] = OWN
) -> list[str]:
    """The options of this command line that a replica is given, too, `but` for some."""
    found: list[str] = []
    values = {name: getattr(options, name) for name in declared(ServeOptions) if name not in but}
    every = {**declared(ServeOptions), **declared(EngineOptions), **declared(ModelOptions)}
    for name, value in {**values, **engine, **model}.items():
        option = every[name]
        if value == option.default or value is None:
            continue
        found += [option.flag] if option.kind == "switch" else [option.flag, str(value)]
    return found


def devices_of(device: str, replicas: int) -> list[str]:
    """The device, or devices, of each replica: in turn, if there is one for each at least.

    >>> devices_of("cuda:0,cuda:1,cuda:2", 2), devices_of("cpu", 2)
    (['cuda:0,cuda:2', 'cuda:1'], ['cpu', 'cpu'])

    Raises:
        OptionError: there are several, and fewer than replicas.
    """
    devices = device.split(",")
    if len(devices) == 1:
        return devices * replicas
    if len(devices) < replicas:
        raise OptionError(
            f"{len(devices)} devices for {replicas} replicas",
            field="--device",
            value=device,
            remedy="give one for each, or one for all",
        )
    return [",".join(devices[number::replicas]) for number in range(replicas)]


def cores_of(cores: Sequence[int], number: int, replicas: int) -> set[int]:
    """A replica's share of the cores; one that several share, where there are fewer than replicas.

    >>> cores_of([0, 1, 2, 3, 4], 0, 2), cores_of([0, 1, 2, 3, 4], 1, 2), cores_of([0, 1], 2, 3)
    ({0, 2, 4}, {1, 3}, {0})
    """
    return set(cores[number::replicas]) or {cores[number % len(cores)]}
