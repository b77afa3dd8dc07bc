"""What takes finished frames: the protocol of outputs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from gpupipe.compose.surface import Surface


class Output(Protocol):
    """Takes finished frames in order: a sink."""

    def write(self, surface: Surface) -> None:
        """Take the next frame; it is released once it is written, or has failed."""

    def commit(self) -> None:
        """Finish, and give the result its name."""

    def abort(self) -> None:
        """Remove everything that was written. Does nothing after `commit`."""


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
