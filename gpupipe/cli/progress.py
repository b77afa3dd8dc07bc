"""Showing how far a render is: a bar on a terminal, a line every 20 frames elsewhere."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from gpupipe.render.jobfile import JobLine
from gpupipe.render.stats import Progress as Done

LINE_EVERY = 20


class LineProgress:
    """Writes `Processed 40/500 frames (8.10ms inf, 1.60ms comp, 4.10ms save)` after every 20 frames.

    Args:
        write: takes a line.
    """

    def __init__(self, write: Callable[[str], None]) -> None:
        self._write = write
        self._written = 0

    def __call__(self, done: Done) -> None:
        """Say how far the render is, if it has passed another 20 frames or the end."""
        passed = list(range(self._written - self._written % LINE_EVERY + LINE_EVERY, done.done + 1, LINE_EVERY))
        if done.done == done.total and done.total % LINE_EVERY:
            passed.append(done.total)
        for frames in passed:
            self._write(f"Processed {frames}/{done.total} frames ({_times(done)})")
        self._written = done.done

    def close(self) -> None:
        """Nothing is left to do."""


class TerminalProgress:
    """A bar with frames a second, the time left, and the stages' times, on standard error."""

    def __init__(self) -> None:
        self._bar = Progress(
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[fps]:.1f} FPS"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[times]}"),
            console=Console(stderr=True),
            transient=True,
        )
        self._task = self._bar.add_task("render", total=None, fps=0.0, times="loading")
        self._bar.start()

    def __call__(self, done: Done) -> None:
        """Move the bar."""
        fps = done.done / done.seconds if done.seconds else 0.0
        self._bar.update(self._task, completed=done.done, total=done.total, fps=fps, times=_times(done))

    def close(self) -> None:
        """Take the bar away."""
        self._bar.stop()


def _times(done: Done) -> str:
    return f"{done.inference_ms:.2f}ms inf, {done.composite_ms:.2f}ms comp, {done.save_ms:.2f}ms save"


class JobsProgress:
    """A bar for each job under way, on standard error; a context manager.

    Args:
        show: whether there is a terminal to show bars on.
    """

    def __init__(self, *, show: bool) -> None:
        self._bars = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            console=Console(stderr=True),
            transient=True,
            disable=not show,
        )
        self._tasks: dict[int, TaskID] = {}

    def __call__(self, job: JobLine, done: Done) -> None:
        """Move a job's bar."""
        if job.line not in self._tasks:
            self._tasks[job.line] = self._bars.add_task(Path(job.output).name, total=done.total)
        self._bars.update(self._tasks[job.line], completed=done.done)

    def end(self, job: JobLine) -> None:
        """Take a job's bar away."""
        if (task := self._tasks.pop(job.line, None)) is not None:
            self._bars.remove_task(task)

    def __enter__(self) -> JobsProgress:
        """Begin to show bars."""
        self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Take them away."""
        self._bars.stop()
