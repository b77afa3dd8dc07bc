"""One frame to be drawn."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from gpupipe.compose.protocol import Drawing

if TYPE_CHECKING:
    from gpupipe.engine.session import Session


@dataclass(frozen=True)
class FrameTask:
    """One frame to be drawn, of one session."""

    session: Session
    index: int
    drawing: Drawing[Any, Any]
