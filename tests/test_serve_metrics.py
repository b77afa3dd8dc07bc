"""What Prometheus is told, of talks that were held."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
from prometheus_client.parser import text_string_to_metric_families

from gpupipe.demo import make_demo
from gpupipe.media.sound import read_pcm
from gpupipe.serve.hub import Hub
from gpupipe.serve.limits import ServeLimits
from gpupipe.serve.metrics import Metrics
from gpupipe.serve.order import TalkOrder
from gpupipe.serve.refusals import Refused


def samples(metrics: Metrics) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    """Every sample by its name and its labels."""
    content, kind = metrics.text()
    assert kind.startswith("text/plain")
    families = text_string_to_metric_families(content.decode())
    return {(s.name, tuple(sorted(s.labels.items()))): s.value for family in families for s in family.samples}


def test_what_was_done_is_told(tmp_path: Path) -> None:
    make_demo(tmp_path / "anna", frames=30, size=(320, 192), model_size=160)
    pcm = np.concatenate(list(read_pcm(tmp_path / "anna" / "aud.wav")))
    with Hub(tmp_path, ["cpu"], {}, {}, limits=ServeLimits(sessions=1)) as hub:
        metrics = Metrics(hub)
        anna = (("character", "anna"),)
        assert ("gpupipe_frames_total", anna) not in samples(metrics)
        with hub.open(TalkOrder("anna", "nv12", realtime=False)) as talk:
            talk.push(pcm)
            talk.finish()
            assert samples(metrics)["gpupipe_sessions", (*anna, ("output", "nv12"))] == 1
            with pytest.raises(Refused):
                hub.open(TalkOrder("anna", "nv12"))
            pictures = sum(1 for _ in talk)
        metrics.requests("http", "video", "200")
        metrics.requests("http", "video", "200")
        told = samples(metrics)
    assert pictures == 30
    assert told["gpupipe_frames_total", anna] == told["gpupipe_frames_total", anna] == 30
    assert told["gpupipe_talks_total", anna] == 1
    assert ("gpupipe_sessions", (*anna, ("output", "nv12"))) not in told
    assert told["gpupipe_refusals_total", (("reason", "sessions"),)] == 1
    assert told["gpupipe_requests_total", (("method", "video"), ("protocol", "http"), ("status", "200"))] == 2
    cpu = ("device", "cpu")
    engine = hub.engines[0]
    assert told["gpupipe_batch_frames_sum", (cpu,)] == engine.trace.times("infer").frames >= 30
    assert told["gpupipe_batch_places_total", (cpu,)] == engine.timetable.places
    for stage in ("prepare", "infer", "paste"):
        kind = (cpu, ("stage", stage))
        runs = told["gpupipe_stage_seconds_count", kind]
        assert runs == told["gpupipe_batch_frames_count", (cpu,)]
        bounds = sorted(
            (float(dict(labels)["le"]), value)
            for (name, labels), value in told.items()
            if name == "gpupipe_stage_seconds_bucket" and ("stage", stage) in labels
        )
        assert bounds[-1] == (float("inf"), runs)
        assert [value for _, value in bounds] == sorted(value for _, value in bounds)
        most = told["gpupipe_stage_seconds_sum", kind] / runs
        assert 0 < most < 60
    assert told["gpupipe_cache_bytes", (cpu,)] > 30 * 320 * 192


def test_the_dashboard_asks_for_what_there_is(tmp_path: Path) -> None:
    """Every metric that it names is told, and every one that is told is shown."""
    page = json.loads((Path(__file__).parents[1] / "docs" / "grafana-dashboard.json").read_text("utf-8"))
    make_demo(tmp_path / "anna", frames=2, size=(64, 64), model_size=32)
    with Hub(tmp_path, ["cpu"], {}, {}) as hub:
        families = list(text_string_to_metric_families(Metrics(hub).text()[0].decode()))
    suffixes = {"counter": ("_total",), "gauge": ("",), "histogram": ("_bucket", "_sum", "_count")}
    told = {family.name: {family.name + each for each in suffixes[family.type]} for family in families}
    queries = [target["expr"] for panel in page["panels"] for target in panel["targets"]]
    asked = {name for query in queries for name in re.findall(r"gpupipe_\w+", query)}
    known = set().union(*told.values())
    created = {name for name in told if name.endswith("_created")}
    assert asked <= known, asked - known
    assert all(asked & names for name, names in told.items() if name not in created)
    for query in queries:
        assert query.count("(") == query.count(")")
        assert query.count('{instance=~"$instance"}') == len(re.findall(r"gpupipe_\w+", query))
    places = [(panel["gridPos"]["x"], panel["gridPos"]["y"]) for panel in page["panels"]]
    assert len(set(places)) == len(places)
    assert len({panel["id"] for panel in page["panels"]}) == len(places)
