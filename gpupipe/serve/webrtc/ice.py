"""Where a peer is looked for, and where the server may be found by it."""

from __future__ import annotations

import ipaddress
from functools import partial
from typing import Any, Final

from aiortc import RTCPeerConnection, RTCSessionDescription
from aiortc.sdp import SessionDescription

from gpupipe.serve.refusals import BadRequest

MOST_MEDIA: Final = 8
"""Tracks and channels of an offer."""

MOST_CANDIDATES: Final = 64
"""Of an offer: the server sends a few packets to each."""

_CANDIDATE: Final = "a=candidate:"
_ADDRESS: Final = 4
"""Its place among the words of a candidate."""


def parsed_offer(sdp: str, client: str | None) -> tuple[RTCSessionDescription, SessionDescription]:
    """An offer as it is taken, and what it says.

    A browser whose page may not use the microphone hides its own addresses behind names that only its own network
    resolves; the address that the request came from is put in their place. No name is ever resolved: candidates with
    other names are left out.

    Args:
        sdp: as the client has sent it.
        client: the address that the request came from.

    Raises:
        BadRequest: it is no offer that can be answered.
    """
    known = client if client is not None and _is_address(client) else None
    # Lines, and words of a line, end where aiortc says that they do.
    lines = (_resolved(line, known) for line in sdp.splitlines())
    sdp = "".join(f"{line}\r\n" for line in lines if line is not None)
    try:
        said = SessionDescription.parse(sdp)
    except Exception as error:  # whatever a stranger's text brings about
        raise BadRequest("is no session description", field="sdp", remedy="send what createOffer gives") from error
    if not 0 < len(said.media) <= MOST_MEDIA:
        raise BadRequest(f"must have 1 to {MOST_MEDIA} media", field="sdp", value=len(said.media))
    candidates = sum(len(media.ice_candidates) for media in said.media)
    if candidates > MOST_CANDIDATES:
        raise BadRequest(f"must have {MOST_CANDIDATES} candidates at most", field="sdp", value=candidates)
    return RTCSessionDescription(sdp=sdp, type="offer"), said


def _resolved(line: str, client: str | None) -> str | None:
    """A line of an offer, with the client's address for a hidden one; None: a candidate whose address is not known."""
    if not line.startswith(_CANDIDATE):
        return line
    words = line.removeprefix(_CANDIDATE).split()
    if len(words) <= _ADDRESS or _is_address(words[_ADDRESS]):
        return line
    if client is None or not words[_ADDRESS].endswith(".local"):
        return None
    words[_ADDRESS] = client
    return _CANDIDATE + " ".join(words)


def be_found_at(connection: RTCPeerConnection, addresses: list[str] | None) -> None:
    """Let a connection be had at these addresses of this machine alone. Call it before the answer is made.

    aiortc takes those of every interface, but never the loopback's.

    Args:
        connection: with all its transceivers.
        addresses: IPv4 or IPv6; None: as aiortc does, and the loopback's too.
    """
    transports: set[Any] = {each.receiver.transport.transport for each in connection.getTransceivers()}
    if connection.sctp is not None:
        transports.add(connection.sctp.transport.transport)
    for transport in transports:
        agent = transport.iceGatherer._connection
        agent.get_component_candidates = partial(_candidates, agent.get_component_candidates, addresses)


async def _candidates(original: Any, only: list[str] | None, component: int, addresses: list[str]) -> Any:
    return await original(component, [*addresses, "127.0.0.1"] if only is None else only)


def addresses_of(host: str) -> list[str] | None:
    """Where a server that listens on a host may be found: there; None: at every address that there is.

    >>> addresses_of("127.0.0.1"), addresses_of("localhost"), addresses_of("0.0.0.0"), addresses_of("192.0.2.1")
    (['127.0.0.1'], ['127.0.0.1'], None, ['192.0.2.1'])
    >>> addresses_of("[::1]"), addresses_of("[::]")
    (['::1'], None)
    """
    host = host.removeprefix("[").removesuffix("]")
    if host == "localhost":
        return ["127.0.0.1"]
    if not _is_address(host) or ipaddress.ip_address(host).is_unspecified:
        return None
    return [host]


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True
