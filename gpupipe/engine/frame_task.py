"""One frame to be drawn."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from gpupipe.compose.protocol import Drawing

SessionT = TypeVar("SessionT")


@dataclass(frozen=True)
class FrameTask(Generic[SessionT]):
    """One frame to be drawn, of one session."""

    session: SessionT
    index: int
    drawing: Drawing[Any, Any]
