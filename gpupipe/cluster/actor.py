"""What runs on a node as an actor: an engine that is opened when it is asked for."""

from __future__ import annotations

import os
import threading
import time
from typing import Any, Final

from gpupipe.cluster.node import Node
from gpupipe.cluster.work import Failure
from gpupipe.errors import GpupipeError
from gpupipe.options import EngineKeywords

POLL_SECONDS: Final = 1.0


class EngineActor:
    """Passes questions on to a `Node`. One that is kept ends by itself when nobody asks it anything for a while."""

    def __init__(self) -> None:
        self._node: Node | None = None
        self._asked = 0
        self._last = time.monotonic()
        self._lock = threading.Lock()

    def open(
        self, options: EngineKeywords, slots: int, cores: int, idle_seconds: float | None
    ) -> dict[str, str] | Failure:
        """Open the engine, if it is not.

        Args:
            options, slots, cores: see `Node`.
            idle_seconds: after so long without a question it ends; None: it does not.

        Returns:
            Its facts.
        """
        try:
            with self._lock:
                self._last = time.monotonic()
                if self._node is None:
                    self._node = Node(options, slots, cores)
                    if idle_seconds is not None:
                        threading.Thread(target=self._end_when_idle, args=(idle_seconds,), daemon=True).start()
                return self._node.facts()
        except GpupipeError as error:
            return Failure.of(error)

    def ask(self, what: str, *given: Any, **named: Any) -> Any:
        """Have the node do something; an error of gpupipe's comes back as a `Failure`."""
        assert self._node is not None, "it has been opened"
        with self._lock:
            self._asked += 1
        try:
            return getattr(self._node, what)(*given, **named)
        except GpupipeError as error:
            return Failure.of(error)
        finally:
            with self._lock:
                self._asked -= 1
                self._last = time.monotonic()

    def _end_when_idle(self, seconds: float) -> None:
        while True:
            time.sleep(min(POLL_SECONDS, seconds))
            with self._lock:
                if not self._asked and time.monotonic() - self._last >= seconds:
                    assert self._node is not None
                    self._node.close()
                    os._exit(0)
