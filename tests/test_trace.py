"""trace: sums, percentiles, shares, the Chrome format, and memory that does not grow."""

import json
import statistics
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpupipe import trace as trace_room
from gpupipe.trace import COMPOSITE, INFER, PASTE, PREPARE, SAVE, Histogram, Span, Trace

BOUND = 0.005
"""How far a median or percentile may be from that of the runs: half of a bucket of 1 %."""

milliseconds = st.lists(st.floats(1e-5, 1e8), min_size=1, max_size=60)


def test_times_are_a_frame() -> None:
    trace = Trace()
    for span in (Span(INFER, "t", 0.0, 0.8, 8), Span(INFER, "t", 1.0, 1.2, 4), Span(SAVE, "u", 0.0, 1.2, 12)):
        trace.add(span)
    times = trace.times(INFER)
    assert times.frames == 12
    assert round(times.total_seconds, 9) == 1.0
    assert round(times.mean_ms, 6) == round(1000 / 12, 6)
    assert round(times.median_ms, 6) == 75.0  # of 100 and 50
    assert round(times.p95_ms, 6) == 100.0
    both = trace.times(INFER, SAVE)
    assert both.frames == 12
    assert round(both.mean_ms, 6) == round(2200 / 12, 6)
    assert round(both.median_ms, 6) == 175.0
    assert round(trace.mean_ms(INFER, SAVE), 6) == round(2200 / 12, 6)
    assert trace.times(PASTE) == (0.0, 0.0, 0.0, 0.0, 0)
    assert trace.mean_ms(PASTE) == 0.0


def test_a_span_without_frames_counts_for_the_sums_only() -> None:
    trace = Trace()
    trace.add(Span(PASTE, "t", 0.0, 0.4, 4))
    trace.add(Span(PASTE, "t", 1.0, 1.1, 0))
    times = trace.times(PASTE)
    assert (round(times.mean_ms, 6), round(times.median_ms, 6), times.frames) == (125.0, 100.0, 4)


def test_spans_side_by_side_are_one_extent() -> None:
    trace = Trace()
    assert trace.extent(PASTE) == 0
    for start, end in ((2.0, 5.0), (1.5, 4.0), (3.0, 3.5)):
        trace.add(Span(PASTE, "t", start, end, 1))
    assert (trace.extent(PASTE), trace.times(PASTE).total_seconds) == (3.5, 6.0)


@given(milliseconds)
def test_the_mean_is_exact_and_percentiles_are_within_half_a_bucket(values: list[float]) -> None:
    trace = Trace()
    for value in values:
        trace.add(Span(INFER, "t", 0.0, value / 1e3, 1))
    times = trace.times(INFER)
    assert times.total_seconds == pytest.approx(sum(values) / 1e3, rel=1e-12)
    assert times.mean_ms == pytest.approx(statistics.fmean(values), rel=1e-12)
    assert times.median_ms == pytest.approx(statistics.median(values), rel=BOUND)
    nearest_rank = float(np.quantile(values, 0.95, method="inverted_cdf"))
    assert times.p95_ms == pytest.approx(nearest_rank, rel=BOUND)


def test_percentiles_are_nearest_rank() -> None:
    histogram = Histogram()
    for number in range(1, 101):
        histogram.add(float(number))
    assert histogram.percentile(95) == pytest.approx(95, rel=BOUND)
    assert histogram.percentile(50) == pytest.approx(50, rel=BOUND)
    assert histogram.median() == pytest.approx(50.5, rel=BOUND)
    assert (histogram.percentile(1), histogram.percentile(100)) == (1.0, 100.0)
    assert (histogram.least, histogram.most, histogram.count) == (1.0, 100.0, 100)


def test_a_clock_that_stands_still_is_counted_too() -> None:
    trace = Trace()
    for _ in range(3):
        trace.add(Span(INFER, "t", 1.0, 1.0, 8))
    assert trace.times(INFER) == (0.0, 0.0, 0.0, 0.0, 24)


def test_a_long_trace_takes_no_more_memory_than_a_short_one() -> None:
    """Over every time that a histogram tells apart, and beyond."""
    trace = Trace()
    for power in np.linspace(-9, 12, 50_000):
        trace.add(Span(INFER, "t", 0.0, 10.0**power / 1e3, 1))
    buckets = trace._tallies[INFER].per_frame_ms._buckets
    assert len(buckets) <= 3472
    assert sys.getsizeof(buckets) < 300_000
    with pytest.raises(ValueError, match=r"keeps no spans; make it with Trace\(spans=True\)"):
        trace.chrome()


def test_the_oldest_spans_are_dropped_and_the_file_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trace_room, "MAX_SPANS", 4)
    trace = Trace(spans=True)
    for number in range(10):
        trace.add(Span(INFER, "t", float(number), number + 0.5, 1))
    assert [span.start for span in trace.spans] == [6.0, 7.0, 8.0, 9.0]
    assert trace.chrome()["otherData"] == {"oldest_spans_dropped": 6, "most_spans_kept": 4}
    assert trace.times(INFER).frames == 10, "sums are of all"


def test_a_span_is_shared_out_by_frames() -> None:
    engine, anna, ben = Trace(), Trace(spans=True), Trace()
    span = Span(INFER, "engine", 10.0, 10.8, 8)
    engine.add(span, [(anna, 6), (ben, 2)])
    assert engine.times(INFER).total_seconds == pytest.approx(0.8)
    assert anna.times(INFER).total_seconds == pytest.approx(0.6)
    assert ben.times(INFER).total_seconds == pytest.approx(0.2)
    assert [trace.times(INFER).frames for trace in (engine, anna, ben)] == [8, 6, 2]
    for trace in (engine, anna, ben):
        assert trace.mean_ms(INFER) == pytest.approx(100)
        assert trace.times(INFER).p95_ms == pytest.approx(100, rel=BOUND)
    (part,) = anna.spans
    assert (part.start, part.frames) == (10.0, 6)
    with pytest.raises(ValueError, match=r"0 to 8 frames \(got 9\)"):
        span.share(9)


def test_a_timed_block_is_shared_out_too() -> None:
    engine, session = Trace(), Trace()
    with engine.span(PREPARE, 4, [(session, 1)]):
        pass
    part = engine.times(PREPARE).total_seconds / 4
    assert session.times(*COMPOSITE).total_seconds == pytest.approx(part, abs=1e-9)  # a float of the clock is no finer


def test_any_thread_may_add() -> None:
    trace = Trace()

    def add() -> None:
        for _ in range(2000):
            trace.add(Span(SAVE, "t", 0.0, 0.001, 1))
            trace.times(SAVE)

    threads = [threading.Thread(target=add) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert trace.times(SAVE).frames == 8000
    assert trace.times(SAVE).total_seconds == pytest.approx(8.0)


def test_chrome_trace(tmp_path: Path) -> None:
    trace = Trace(spans=True)
    with trace.span(SAVE, 3):
        pass
    trace.save(tmp_path / "trace.json")
    read = json.loads((tmp_path / "trace.json").read_text("utf-8"))
    (name,) = (event for event in read["traceEvents"] if event["ph"] == "M")
    (event,) = (event for event in read["traceEvents"] if event["ph"] == "X")
    assert name["args"] == {"name": "MainThread"}
    assert (event["name"], event["tid"], event["args"]) == ("save", name["tid"], {"frames": 3})
    assert event["ts"] >= 0
    assert event["dur"] >= 0
    assert read["otherData"]["oldest_spans_dropped"] == 0


def test_a_marker_sees_every_span_opened_and_closed() -> None:
    seen: list[str | None] = []
    trace = Trace(marker=seen.append)
    with trace.span(PREPARE), trace.span(INFER):
        pass
    assert seen == ["prepare", "infer", None, None]
