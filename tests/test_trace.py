"""trace: sums, percentiles and the Chrome format."""

import json
from pathlib import Path

from gpupipe.trace import Span, Trace, percentile


def test_times_are_a_frame() -> None:
    trace = Trace()
    trace.spans += [Span("a", "t", 0.0, 0.8, 8), Span("a", "t", 1.0, 1.2, 4), Span("b", "u", 0.0, 1.2, 12)]
    times = trace.times("a")
    assert times.frames == 12
    assert round(times.total_seconds, 9) == 1.0
    assert round(times.mean_ms, 6) == round(1000 / 12, 6)
    assert round(times.median_ms, 6) == 75.0  # of 100 and 50
    assert round(times.p95_ms, 6) == 100.0
    both = trace.times("a", "b")
    assert both.frames == 12
    assert round(both.mean_ms, 6) == round(2200 / 12, 6)
    assert round(both.median_ms, 6) == 175.0
    assert trace.times("nothing") == (0.0, 0.0, 0.0, 0, 0)


def test_percentiles_are_nearest_rank() -> None:
    numbers = [float(n) for n in range(1, 101)]
    assert percentile(numbers, 95) == 95.0
    assert percentile(numbers, 50) == 50.0
    assert percentile([7.0], 95) == 7.0
    assert percentile([1.0, 2.0], 1) == 1.0


def test_chrome_trace(tmp_path: Path) -> None:
    trace = Trace()
    with trace.span("decode", 3):
        pass
    trace.save(tmp_path / "trace.json")
    read = json.loads((tmp_path / "trace.json").read_text("utf-8"))
    (name,) = (event for event in read["traceEvents"] if event["ph"] == "M")
    (event,) = (event for event in read["traceEvents"] if event["ph"] == "X")
    assert name["args"] == {"name": "MainThread"}
    assert (event["name"], event["tid"], event["args"]) == ("decode", name["tid"], {"frames": 3})
    assert event["ts"] >= 0
    assert event["dur"] >= 0


def test_a_marker_sees_every_span_opened_and_closed() -> None:
    seen: list[str | None] = []
    trace = Trace(marker=seen.append)
    with trace.span("outer"), trace.span("inner"):
        pass
    assert seen == ["outer", "inner", None, None]
