"""What takes finished frames: the protocols of outputs and of those who write to them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from gpupipe.compose.surface import Surface


class Writer(Protocol):
    """Writes frames of an output, in one thread: whole segments, each segment's frames in order."""

    def write(self, surface: Surface) -> None:
        """Take the next frame; it is released once it is written, or has failed."""

    def close(self) -> None:
        """Finish the last segment."""

    def abort(self) -> None:
        """Stop, leaving what is not finished to the output's own `abort`."""


class Output(Protocol):
    """Where the frames of a render go."""

    def writer(self) -> Writer:
        """Somebody to write frames; several may write different segments at a time."""

    def commit(self) -> None:
        """Finish, and give the result its name. Every writer has been closed."""

    def abort(self) -> None:
        """Remove everything that was written. Every writer has been closed or aborted. Does nothing after `commit`."""


@contextmanager
def releasing(surface: Surface) -> Iterator[None]:
    """Release a surface when a with block ends, well or not."""
    try:
        yield
    finally:
        surface.release()


def on_host(surface: Surface) -> NDArray[np.uint8]:
    """The pixels of a surface that has them on the host."""
    assert surface.host is not None, "outputs are given frames on the host"
    return surface.host
