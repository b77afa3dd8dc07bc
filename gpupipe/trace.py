"""What happened when: times of each stage, their percentiles, and a trace that Chrome and Perfetto open."""

from __future__ import annotations

import json
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

Marker = Callable[[str | None], None]
"""Opens a profiler's range of that name, or closes the innermost one (None)."""


class Span(NamedTuple):
    """One run of a stage: seconds on `time.perf_counter`'s clock, and the frames done in it."""

    stage: str
    thread: str
    start: float
    end: float
    frames: int


class StageTimes(NamedTuple):
    """Milliseconds a frame of one stage, over its runs; `total_seconds` is their sum."""

    mean_ms: float
    median_ms: float
    p95_ms: float
    total_seconds: float
    frames: int


class Trace:
    """Collects spans from any thread.

    Args:
        marker: also told of every span, for a profiler's ranges (NVTX on a GPU).
    """

    def __init__(self, marker: Marker | None = None) -> None:
        self.spans: list[Span] = []
        self.marker = marker
        self.origin = time.perf_counter()
        self._lock = threading.Lock()
        self._sums: dict[str, tuple[float, int]] = {}

    def add(self, span: Span) -> None:
        """Add a span that was timed elsewhere."""
        with self._lock:
            self.spans.append(span)
            seconds, frames = self._sums.get(span.stage, (0.0, 0))
            self._sums[span.stage] = seconds + span.end - span.start, frames + span.frames

    def mean_ms(self, *stages: str) -> float:
        """Milliseconds a frame so far of one stage, or of several one after the other; cheap on a long trace."""
        with self._lock:
            sums = [self._sums[stage] for stage in stages if stage in self._sums]
        return sum(seconds / frames * 1e3 for seconds, frames in sums if frames)

    @contextmanager
    def span(self, stage: str, frames: int = 0) -> Iterator[None]:
        """Time a with block in which `frames` frames went through `stage`."""
        if self.marker:
            self.marker(stage)
        start = time.perf_counter()
        try:
            yield
        finally:
            self.add(Span(stage, threading.current_thread().name, start, time.perf_counter(), frames))
            if self.marker:
                self.marker(None)

    def times(self, *stages: str) -> StageTimes:
        """Times of one stage, or of several taken together, one after the other."""
        spans = [span for span in self.spans if span.stage in stages]
        frames = max((sum(s.frames for s in spans if s.stage == stage) for stage in stages), default=0)
        total = sum(span.end - span.start for span in spans)
        if not frames:
            return StageTimes(0.0, 0.0, 0.0, total, 0)
        parts = [
            sorted((s.end - s.start) / s.frames * 1e3 for s in spans if s.stage == stage and s.frames)
            for stage in stages
        ]
        return StageTimes(
            mean_ms=total / frames * 1e3,
            median_ms=sum(statistics.median(part) for part in parts if part),
            p95_ms=sum(percentile(part, 95) for part in parts if part),
            total_seconds=total,
            frames=frames,
        )

    def chrome(self) -> dict[str, Any]:
        """The spans in Chrome's trace event format: complete events ("X"), microseconds, one row a thread."""
        threads = list(dict.fromkeys(span.thread for span in self.spans))
        events: list[dict[str, Any]] = [
            {"ph": "M", "name": "thread_name", "pid": 1, "tid": number, "args": {"name": name}}
            for number, name in enumerate(threads)
        ]
        events += [
            {
                "ph": "X",
                "name": span.stage,
                "pid": 1,
                "tid": threads.index(span.thread),
                "ts": (span.start - self.origin) * 1e6,
                "dur": (span.end - span.start) * 1e6,
                "args": {"frames": span.frames},
            }
            for span in self.spans
        ]
        return {"traceEvents": events, "displayTimeUnit": "ms"}

    def save(self, path: Path) -> None:
        """Write `chrome()` as JSON."""
        path.write_text(json.dumps(self.chrome()), "utf-8")


def percentile(ordered: list[float], percent: float) -> float:
    """The nearest-rank percentile of sorted numbers.

    >>> percentile([1.0, 2.0, 3.0, 4.0], 50)
    2.0
    """
    return ordered[max(0, -(-len(ordered) * percent // 100).__trunc__() - 1)]
