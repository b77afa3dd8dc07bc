"""What happens, told to the standard `logging`: a record an event. Nothing is shown unless somebody asks for it.

Loggers are named like their rooms, `gpupipe.engine.core`. A record's message is for people: the event, and its fields,
such as `model opened path=m.onnx seconds=0.412`. For programs it has two attributes: `event`, the event's name, and
`fields`, a dict whose keys do not change. What is never done is to tell of a single frame that went well.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Final

ROOT: Final = "gpupipe"
logging.getLogger(ROOT).addHandler(logging.NullHandler())  # else warnings would go to standard error unasked

_job: ContextVar[str | None] = ContextVar("job", default=None)


class Log:
    """Tells of events.

    Args:
        name: of the room.
    """

    def __init__(self, name: str) -> None:
        self._logger = logging.getLogger(name)

    def event(self, what: str, /, level: int = logging.INFO, **fields: Any) -> None:
        """Tell of an event.

        Args:
            what: its name.
            level: `logging.INFO` for what a render does, `DEBUG` for its details, `WARNING` for what went wrong.
            fields: values of JSON, or what `str` tells; the job of this thread is added, and what is None is left out.
        """
        if not self._logger.isEnabledFor(level):
            return
        fields = {"job": _job.get()} | fields
        told = {name: round(value, 6) if isinstance(value, float) else value for name, value in fields.items()}
        told = {name: value for name, value in told.items() if value is not None}
        text = " ".join([what, *(f"{name}={_text(value)}" for name, value in told.items() if value != ())])
        self._logger.log(level, text, extra={"event": what, "fields": told}, stacklevel=2)

    @contextmanager
    def timed(self, what: str, /, level: int = logging.INFO, **fields: Any) -> Iterator[dict[str, Any]]:
        """Tell of what is done in the with block, once it is done, with its `seconds`; nothing, if it fails.

        Yields:
            The fields, to which those that are known later can be added.
        """
        began = time.perf_counter()
        yield fields
        self.event(what, level, **fields, seconds=time.perf_counter() - began)


def _text(value: Any) -> str:
    return "; ".join(map(str, value)) if isinstance(value, tuple) else str(value)


@contextmanager
def job(name: str) -> Iterator[None]:
    """Let the events of the with block, in this thread, be those of a job."""
    token = _job.set(name)
    try:
        yield
    finally:
        _job.reset(token)
