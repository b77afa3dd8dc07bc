"""What takes finished frames: the protocols of outputs and of those who write to them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from gpupipe.compose.surface import Surface
from gpupipe.gpu.device import Device


class Writer(Protocol):
    """Writes frames of an output, in one thread: whole segments, each segment's frames in order."""

    @property
    def on_host(self) -> bool:
        """Whether it takes frames from the host; else from the GPU that has drawn them."""

    @property
    def kept(self) -> int:
        """Frames that it has not released, at most, when `write` returns."""

    def write(self, surface: Surface) -> None:
        """Take the next frame; it is released once it has been read, or has failed."""

    def close(self) -> None:
        """Finish the last segment, and release every frame."""

    def abort(self) -> None:
        """Stop, and release every frame; what is not finished is left to the output's own `leave`."""


class Output(Protocol):
    """Where the frames of a render go."""

    @property
    def notes(self) -> tuple[str, ...]:
        """What to say of the way in which frames are taken."""

    def writer(self, gpu: Device | None = None) -> Writer:
        """Somebody to write frames; several may write different segments at a time.

        Args:
            gpu: that draws the frames; None: the CPU does.
        """

    def commit(self) -> None:
        """Finish, and give the result its name. Every writer has been closed."""

    def leave(self) -> None:
        """Stop: what is finished stays beside the output, for who resumes. Every writer has been closed or aborted."""


def on_host(surface: Surface) -> NDArray[np.uint8]:
    """The pixels of a surface that has them on the host."""
    assert surface.host is not None, "outputs are given frames on the host"
    return surface.host


def copied(surfaces: Iterable[Surface]) -> Iterator[NDArray[np.uint8]]:
    """The pixels of surfaces, each the caller's to keep; the surfaces are released."""
    for surface in surfaces:
        frame = on_host(surface).copy()
        surface.release()
        yield frame
