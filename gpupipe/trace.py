"""What happened when: times of each stage, their percentiles, and a trace that Chrome and Perfetto open.

A trace takes no more memory after a month than after a minute: of each stage it keeps sums and a histogram. The spans
themselves are kept only when asked for, and then the latest `MAX_SPANS` of them.
"""

from __future__ import annotations

import json
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from math import ceil, floor, log
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple

Stage = Literal[
    "load", "prepare", "infer", "paste", "save", "finish", "queue prepare", "queue infer", "queue paste"
]  # fmt: skip
"""What a span may be of. The constants below are their names everywhere else."""

LOAD: Final = "load"
"""Decoding a character's frames, caching them, and opening the model."""
PREPARE: Final = "prepare"
"""Crops and speech to the model's inputs."""
INFER: Final = "infer"
"""The model."""
PASTE: Final = "paste"
"""Predictions to finished frames."""
SAVE: Final = "save"
"""Finished frames to the encoder, or wherever they go."""
FINISH: Final = "finish"
"""Flushing the encoder, joining the parts, putting the file in its place."""

COMPOSITE: Final[tuple[Stage, ...]] = (PREPARE, PASTE)
"""What gpupipe does itself to draw a frame."""
PARTS: Final[tuple[Stage, ...]] = (PREPARE, INFER, PASTE, SAVE, FINISH)
"""The parts of a render, once all is loaded, in their order."""
QUEUED: Final[dict[Stage, Stage]] = {PREPARE: "queue prepare", INFER: "queue infer", PASTE: "queue paste"}
"""The host's part of a step that the GPU does: telling it to."""

MAX_SPANS: Final = 200_000
"""The most spans that a trace keeps: those of two hours at 25 frames a second in batches of 8, in about 40 MB."""

BUCKET_RATIO: Final = 1.01
"""From one bucket of a histogram to the next."""
LEAST_MS: Final = 1e-6
MOST_MS: Final = 1e9
"""What a histogram tells apart: a nanosecond to eleven days; what lies beyond counts as the nearest of them."""

Marker = Callable[[str | None], None]
"""Opens a profiler's range of that name, or closes the innermost one (None)."""


class Span(NamedTuple):
    """One run of a stage: seconds on `time.perf_counter`'s clock, and the frames done in it."""

    stage: Stage
    thread: str
    start: float
    end: float
    frames: int

    def share(self, frames: int) -> Span:
        """The part of `frames` of its frames: from the same start, and so much shorter.

        >>> Span("infer", "engine", 1.0, 3.0, 8).share(2)
        Span(stage='infer', thread='engine', start=1.0, end=1.5, frames=2)
        """
        if not 0 <= frames <= self.frames:
            raise ValueError(f"a share must have 0 to {self.frames} frames (got {frames})")
        part = frames / self.frames if frames else 0.0
        return self._replace(end=self.start + (self.end - self.start) * part, frames=frames)


class StageTimes(NamedTuple):
    """Milliseconds a frame of one stage, over its runs; `total_seconds` is their sum.

    The mean and the sums are exact. The median and the 95th percentile are within 0.5 % of those of the runs, and
    exact where they are the shortest or the longest run.
    """

    mean_ms: float
    median_ms: float
    p95_ms: float
    total_seconds: float
    frames: int


class Histogram:
    """How often which time occurred, in buckets of 1 % that are made when they are first needed, 3,472 at most.

    Attributes:
        count: of times added.
        total: their sum, milliseconds.
        least: of them, milliseconds; infinite while there is none.
        most: likewise.
    """

    def __init__(self) -> None:
        self.count, self.total = 0, 0.0
        self.least, self.most = float("inf"), float("-inf")
        self._buckets: dict[int, int] = {}

    def add(self, milliseconds: float) -> None:
        """Count a time."""
        within = min(max(milliseconds, LEAST_MS), MOST_MS)
        bucket = floor(log(within / LEAST_MS) / log(BUCKET_RATIO))
        self._buckets[bucket] = self._buckets.get(bucket, 0) + 1
        self.count += 1
        self.total += milliseconds
        self.least, self.most = min(self.least, milliseconds), max(self.most, milliseconds)

    def ranked(self, rank: int) -> float:
        """The time of a rank, from 1 for the shortest to `count`, within half a bucket."""
        if rank <= 1:
            return self.least
        if rank >= self.count:
            return self.most
        below = 0
        for bucket in sorted(self._buckets):
            below += self._buckets[bucket]
            if below >= rank:
                break
        middle = LEAST_MS * float(BUCKET_RATIO ** (bucket + 0.5))
        return min(max(middle, self.least), self.most)

    def median(self) -> float:
        """The middle time, or the mean of the two in the middle."""
        return (self.ranked((self.count + 1) // 2) + self.ranked(self.count // 2 + 1)) / 2

    def percentile(self, percent: float) -> float:
        """The nearest-rank percentile."""
        return self.ranked(ceil(self.count * percent / 100))

    def below(self, bounds: Sequence[float]) -> list[int]:
        """How many times were at most as long as each of some bounds, milliseconds, within half a bucket."""
        middles = [(LEAST_MS * float(BUCKET_RATIO ** (bucket + 0.5)), found) for bucket, found in self._buckets.items()]
        return [sum(found for middle, found in middles if middle <= bound) for bound in bounds]


class _Tally:
    """What is kept of a stage: sums of all its spans, and the milliseconds a frame of those with frames."""

    def __init__(self) -> None:
        self.seconds, self.frames = 0.0, 0
        self.start, self.end = float("inf"), float("-inf")
        self.per_frame_ms = Histogram()

    def add(self, start: float, end: float, frames: int) -> None:
        seconds = end - start
        self.seconds += seconds
        self.start, self.end = min(self.start, start), max(self.end, end)
        self.frames += frames
        if frames:
            self.per_frame_ms.add(seconds / frames * 1e3)


class Trace:
    """Collects spans from any thread.

    Args:
        marker: also told of every span, for a profiler's ranges (NVTX on a GPU).
        spans: keep the spans themselves too, the latest `MAX_SPANS`, for `chrome`.
    """

    def __init__(self, marker: Marker | None = None, *, spans: bool = False) -> None:
        self.marker = marker
        self.origin = time.perf_counter()
        self._lock = threading.Lock()
        self._tallies: dict[Stage, _Tally] = {}
        self._spans: deque[Span] | None = deque(maxlen=MAX_SPANS) if spans else None
        self._dropped = 0

    @property
    def spans(self) -> list[Span]:
        """The spans that are kept, in the order in which they ended.

        Raises:
            ValueError: none are kept.
        """
        if self._spans is None:
            raise ValueError("this trace keeps no spans; make it with Trace(spans=True)")
        with self._lock:
            return list(self._spans)

    def add(self, span: Span, shares: Sequence[tuple[Trace, int]] = ()) -> None:
        """Add a span that was timed elsewhere.

        Args:
            span: what was timed.
            shares: other traces that get their part of it, and how many of its frames are theirs.
        """
        with self._lock:
            self._tallies.setdefault(span.stage, _Tally()).add(span.start, span.end, span.frames)
            if self._spans is not None:
                self._dropped += len(self._spans) == self._spans.maxlen
                self._spans.append(span)
        for trace, frames in shares:
            trace.add(span.share(frames))

    @contextmanager
    def span(self, stage: Stage, frames: int = 0, shares: Sequence[tuple[Trace, int]] = ()) -> Iterator[None]:
        """Time a with block in which `frames` frames went through `stage`; `shares` as for `add`."""
        if self.marker:
            self.marker(stage)
        start = time.perf_counter()
        try:
            yield
        finally:
            self.add(Span(stage, threading.current_thread().name, start, time.perf_counter(), frames), shares)
            if self.marker:
                self.marker(None)

    def mean_ms(self, *stages: Stage) -> float:
        """Milliseconds a frame so far of one stage, or of several one after the other."""
        with self._lock:
            tallies = [self._tallies[stage] for stage in stages if stage in self._tallies]
            return sum(tally.seconds / tally.frames * 1e3 for tally in tallies if tally.frames)

    def times(self, *stages: Stage) -> StageTimes:
        """Times of one stage, or of several taken together, one after the other."""
        with self._lock:
            tallies = [self._tallies[stage] for stage in stages if stage in self._tallies]
            frames = max((tally.frames for tally in tallies), default=0)
            total = sum((tally.seconds for tally in tallies), 0.0)
            runs = [tally.per_frame_ms for tally in tallies if tally.frames]
            return StageTimes(
                mean_ms=total / frames * 1e3 if frames else 0.0,
                median_ms=sum((found.median() for found in runs), 0.0),
                p95_ms=sum((found.percentile(95) for found in runs), 0.0),
                total_seconds=total,
                frames=frames,
            )

    def extent(self, stage: Stage) -> float:
        """Seconds from the beginning of a stage's first span to the end of its last one."""
        with self._lock:
            tally = self._tallies.get(stage)
            return 0.0 if tally is None else tally.end - tally.start

    def below(self, bounds: Sequence[float]) -> dict[Stage, tuple[list[int], int, float]]:
        """Of each stage that has any, its runs by their milliseconds a frame: how many took at most as long as each of
        some bounds, how many there are, and the sum of their milliseconds a frame."""
        with self._lock:
            found = {stage: tally.per_frame_ms for stage, tally in self._tallies.items() if tally.frames}
            return {stage: (each.below(bounds), each.count, each.total) for stage, each in found.items()}

    def chrome(self) -> dict[str, Any]:
        """The spans in Chrome's trace event format: complete events ("X"), microseconds, one row a thread.

        `otherData`, which viewers show as it is, tells how many spans were dropped because there were more than a
        trace keeps; they are the oldest.

        Raises:
            ValueError: no spans are kept.
        """
        spans = self.spans
        threads = {name: number for number, name in enumerate(dict.fromkeys(span.thread for span in spans))}
        events: list[dict[str, Any]] = [
            {"ph": "M", "name": "thread_name", "pid": 1, "tid": number, "args": {"name": name}}
            for name, number in threads.items()
        ]
        events += [
            {
                "ph": "X",
                "name": span.stage,
                "pid": 1,
                "tid": threads[span.thread],
                "ts": (span.start - self.origin) * 1e6,
                "dur": (span.end - span.start) * 1e6,
                "args": {"frames": span.frames},
            }
            for span in spans
        ]
        kept = {"oldest_spans_dropped": self._dropped, "most_spans_kept": MAX_SPANS}
        return {"traceEvents": events, "displayTimeUnit": "ms", "otherData": kept}

    def save(self, path: Path) -> None:
        """Write `chrome()` as JSON."""
        path.write_text(json.dumps(self.chrome()), "utf-8")
