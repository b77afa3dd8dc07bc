"""A render that was submitted: its progress, its result, and calling it off."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import CancelledError, Executor, Future
from pathlib import Path

from gpupipe.engine.session import Session
from gpupipe.errors import Cancelled
from gpupipe.render.stats import OnProgress, Progress, RenderStats

Work = Callable[[OnProgress, Callable[[Session], None]], RenderStats]


class Job:
    """A render on its way. Made by `Engine.submit`.

    Attributes:
        output: what it writes.
        progress: how far it is; None before its first frame is written.
    """

    def __init__(self, output: Path | str, executor: Executor, work: Work, told: OnProgress | None) -> None:
        self.output = output
        self.progress: Progress | None = None
        self._told = told
        self._cancelled = threading.Event()
        self._session: Session | None = None
        self._future: Future[RenderStats] = executor.submit(self._run, work)

    @property
    def done(self) -> bool:
        """Whether it has ended, well or not."""
        return self._future.done()

    def result(self, timeout: float | None = None) -> RenderStats:
        """What was done, once it is done.

        Args:
            timeout: seconds to wait at most; None: as long as it takes.

        Raises:
            GpupipeError: what ended it (`Cancelled` if `cancel` did); nothing is left of its output then.
            TimeoutError: it is still going on.
        """
        try:
            return self._future.result(timeout)
        except CancelledError as error:
            raise self._was_cancelled() from error

    def cancel(self) -> None:
        """Call it off, and leave nothing of it; the other jobs go on. Does nothing once it is done."""
        self._cancelled.set()
        self._future.cancel()
        session = self._session
        if session is not None:
            session.fail(self._was_cancelled())

    def when_done(self, told: Callable[[Job], None]) -> None:
        """Have `told` called with this job, in its thread, once it is done; at once if it is."""
        self._future.add_done_callback(lambda _: told(self))

    def _run(self, work: Work) -> RenderStats:
        return work(self._progressed, self._opened)

    def _opened(self, session: Session) -> None:
        self._session = session
        if self._cancelled.is_set():  # while it was being opened
            session.fail(self._was_cancelled())

    def _progressed(self, progress: Progress) -> None:
        self.progress = progress
        if self._told is not None:
            self._told(progress)

    def _was_cancelled(self) -> Cancelled:
        return Cancelled("the render was cancelled", file=self.output)
