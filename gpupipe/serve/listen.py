"""Where a server listens, and to whom it may be open."""

from __future__ import annotations

import contextlib
import ipaddress
import re
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NamedTuple

import uvicorn

from gpupipe.errors import OptionError, reason
from gpupipe.options import ServeOptions
from gpupipe.serve.http.protocol import protocol
from gpupipe.serve.limits import ServeLimits
from gpupipe.serve.tokens import Tokens

BACKLOG: Final = 1024

KEEP_ALIVE_SECONDS: Final = 15
"""For which a connection stays open between two requests."""

LAST_SECONDS: Final = 2
"""In which clients that were told that the server ends are to take that, before their connections are closed."""


ORIGIN: Final = re.compile(
    r"(?P<scheme>[a-z][a-z0-9+.-]*)://(?:[a-z0-9._-]+|\[[0-9a-f:.]+\])(?::(?P<port>[1-9]\d{0,4}))?", re.ASCII
)
"""As browsers send it."""
LAST_PORT: Final = 65535
OWN_PORTS: Final = {("http", "80"), ("https", "443")}
"""Ports that browsers leave out of an origin."""


@dataclass(frozen=True)
class Listening:
    """Where a server listens, and what it serves.

    Attributes:
        host: its address.
        port: of HTTP.
        grpc_port: of gRPC.
        characters: their names.
        devices: on which they are drawn.
        notes: what was picked on its own, and why.
    """

    host: str
    port: int
    grpc_port: int
    characters: tuple[str, ...]
    devices: tuple[str, ...]
    notes: tuple[str, ...]


def check_exposure(options: ServeOptions) -> None:
    """Raise unless the server is closed to strangers: by its address, or by tokens; or is said to be meant open.

    Raises:
        OptionError: it would be open to the network.
    """
    if options.token_file is None and not options.insecure and not is_loopback(options.host):
        raise OptionError(
            "other machines could use the server without a token",
            field="--host",
            value=options.host,
            remedy="give --token-file, or --insecure where something else keeps strangers out",
        )


def origins_of(options: ServeOptions) -> tuple[str, ...]:
    """The origins of pages that may ask, as `--cors` names them; "*": all.

    Raises:
        OptionError: it names none that a browser sends (https://fetch.spec.whatwg.org/#origin-header).
    """
    named = options.cors
    if named is None:
        return ()
    parts = ORIGIN.fullmatch(named)
    port = None if parts is None else parts["port"]
    is_one = parts is not None and (parts["scheme"], port) not in OWN_PORTS and int(port or 0) <= LAST_PORT
    if named != "*" and not is_one:
        raise OptionError(
            "no origin as browsers send it",
            field="--cors",
            value=named,
            remedy="give scheme://host or scheme://host:port, in small letters, without the scheme's own port and "
            "without a path, such as https://example.com; or *",
        )
    return (named,)


class Access(NamedTuple):
    """Who may ask.

    Attributes:
        tokens: of which one must be shown, if there are any.
        cors: origins of other servers' pages that may ask.
        loopback_only: whether those are refused who ask for another host than this machine, see `http.guard.Guard`.
    """

    tokens: Tokens
    cors: tuple[str, ...]
    loopback_only: bool


def access_of(options: ServeOptions) -> Access:
    """Who may ask, as the options say.

    Raises:
        OptionError: strangers could, or the tokens cannot be read, or an origin is none.
    """
    check_exposure(options)
    cors = origins_of(options)
    tokens = Tokens() if options.token_file is None else Tokens.read(Path(options.token_file))
    # Without tokens it listens on the loopback, unless it is said to be meant open: see `check_exposure`.
    return Access(tokens, cors, not tokens.wanted and not options.insecure)


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches an address."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def bound(host: str, port: int) -> socket.socket:
    """A socket that is bound, and not listening yet.

    Raises:
        OptionError: the address is no address of this machine, or the port is in use.
    """
    try:
        (family, kind, protocol, _, address), *_ = socket.getaddrinfo(
            host.strip("[]"), port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
    except OSError as error:
        raise OptionError(f"no such address: {reason(error)}", field="--host", value=host) from error
    made = socket.socket(family, kind, protocol)
    try:
        if hasattr(socket, "SO_EXCLUSIVEADDRUSE"):  # Windows, where SO_REUSEADDR lets two listen on one port
            made.setsockopt(socket.SOL_SOCKET, socket.SO_EXCLUSIVEADDRUSE, 1)
        else:
            made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind(address)
        made.listen(BACKLOG)
    except OSError as error:
        made.close()
        raise OptionError(
            f"cannot be listened on: {reason(error)}", field="--port", value=port, remedy="use another, or 0 for any"
        ) from error
    return made


class HttpServer(uvicorn.Server):
    """uvicorn that leaves the signals to us.

    Args:
        application: an ASGI application.
        options: of the server.
    """

    def __init__(self, application: Any, options: ServeOptions) -> None:
        super().__init__(
            uvicorn.Config(
                application,
                http=protocol(options.idle),
                ws="none",
                lifespan="off",
                log_config=None,
                log_level="warning",
                access_log=False,
                proxy_headers=False,
                server_header=False,
                limit_concurrency=options.max_connections,
                backlog=BACKLOG,
                timeout_keep_alive=KEEP_ALIVE_SECONDS,
                timeout_graceful_shutdown=LAST_SECONDS,
            )
        )

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Nothing."""
        yield


def limits_of(options: ServeOptions) -> ServeLimits:
    """What clients may take, as the options say."""
    return ServeLimits(
        sessions=options.max_sessions,
        seconds=options.max_seconds,
        upload_bytes=options.max_upload,
        idle_seconds=options.idle,
        connections=options.max_connections,
        jobs=options.max_jobs,
        job_hours=options.job_hours,
    )


def address_of(host: str, port: int) -> str:
    """As gRPC takes it."""
    return f"[{host}]:{port}" if ":" in host and not host.startswith("[") else f"{host}:{port}"
