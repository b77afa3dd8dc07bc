"""Files to a node, and segments from it: in pieces, unless both see the same folder."""

from __future__ import annotations

import threading
from collections.abc import MutableMapping
from pathlib import Path

from gpupipe.cluster.remote import Link
from gpupipe.cluster.work import PIECE_BYTES, Bundle, Drawn, JobSpec
from gpupipe.errors import ClusterError, reason
from gpupipe.log import Log

Sending = MutableMapping[tuple[str, str], threading.Lock]
"""A lock for each node and bundle, so that it is sent once."""

_log = Log(__name__)


def send(link: Link, spec: JobSpec, sending: Sending, *, shared: bool) -> None:
    """See that a node has all that a job needs.

    Args:
        link: an engine on the node.
        spec: the job.
        sending: locks.
        shared: whether a folder of the same name there may be the same one.

    Raises:
        ClusterError: a file cannot be read, or did not come as it was sent.
        Lost: the engine does not answer any more.
    """
    for bundle in spec.bundles:
        with sending[link.node_id, bundle.key]:
            if link.ask("lacks", bundle, shared=shared):
                with _log.timed("files sent", node=link.node, file=bundle.root, bytes=bundle.nbytes):
                    _send(link, bundle)


def _send(link: Link, bundle: Bundle) -> None:
    for each in bundle.files:
        path = Path(bundle.root) / each.name
        try:
            with path.open("rb") as file:
                for offset in range(0, max(1, each.size), PIECE_BYTES):
                    link.ask("write", bundle, each.name, offset, file.read(min(PIECE_BYTES, each.size - offset)))
        except OSError as error:
            raise ClusterError(f"cannot be read: {reason(error)}", file=path, remedy="check its rights") from error
    link.ask("seal", bundle)


def fetch(link: Link, drawn: Drawn, path: Path, *, shared: bool) -> None:
    """Bring a segment from a node.

    Args:
        link: the engine that has drawn it.
        drawn: what it has told of it.
        path: where it is to be, a file or a folder; nothing is there yet.
        shared: whether the node sees that path too.

    Raises:
        Lost: the engine does not answer any more.
        OSError: it cannot be written.
    """
    if shared and link.ask("deliver", drawn.ticket, str(path.resolve())):
        return
    if drawn.folder:
        path.mkdir(exist_ok=True)
    for name, size in drawn.files:
        with (path / name if drawn.folder else path).open("wb") as file:
            for offset in range(0, size, PIECE_BYTES):
                file.write(link.ask("read", drawn.ticket, name, offset, PIECE_BYTES))
