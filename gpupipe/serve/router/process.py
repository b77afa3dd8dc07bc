"""A server that is a process of its own: how it is started, and where it listens, as it says itself."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterable, Sequence
from typing import Any, Final

from gpupipe.serve.router.replica import Place

_LISTENS: Final = re.compile(rb"listening at http://(\S+):(\d+)/ and, for gRPC, at (\S+):(\d+)")


def command(arguments: Sequence[str], cores: Iterable[int] | None) -> list[str]:
    """What is run: a server that ends when its standard input does.

    Args:
        arguments: of its command line, after `gpupipe serve`.
        cores: on which it runs, where a process can be told so; None: on all.
    """
    on = "-" if cores is None else ",".join(map(str, sorted(cores)))
    return [sys.executable, "-m", "gpupipe.serve.router", on, *arguments]


def apart() -> dict[str, Any]:
    """Apart from the terminal, so that what its keys send is the router's alone; as `subprocess` takes it."""
    if sys.platform == "win32":
        return {"creationflags": subprocess.CREATE_NEW_PROCESS_GROUP}
    return {"start_new_session": True}


def listened(line: bytes) -> Place | None:
    """Where a server listens that has said this, as its own machine reaches it; None: it does not yet."""
    if (found := _LISTENS.search(line)) is None:
        return None
    host = _reached(found[1].decode().strip("[]"))
    named = f"[{host}]" if ":" in host else host
    return Place(host, int(found[2]), f"{named}:{int(found[4])}")


def _reached(host: str) -> str:
    """Where this machine reaches a server that listens on a host."""
    return {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
