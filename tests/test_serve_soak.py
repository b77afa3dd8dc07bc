"""Clients that come and go, break off and send rubbish: nobody notices, nothing stays. The long one is
`python -m gpupipe.serve.load --soak 2000`."""

from __future__ import annotations

from pathlib import Path

from gpupipe.demo import make_demo
from gpupipe.serve.load.soak import soak


def test_nothing_stays_of_clients(tmp_path: Path) -> None:
    make_demo(tmp_path / "anna", frames=30, size=(96, 64), model_size=64)
    found = soak(tmp_path / "anna", sessions=80, told=lambda _: None, idle=40, options=("--device", "cpu"))
    assert found["wrong"] == 0
    statuses = found["statuses"]
    assert statuses["OK"] > 30
    assert statuses["broken off"] > 10
    assert statuses["INVALID_ARGUMENT"] > 5
    levels = [each for each in found["levels"] if "files" in each]
    if levels:  # Linux tells them
        half = levels[len(levels) // 2 :]
        assert max(each["threads"] for each in half) <= max(each["threads"] for each in levels[: len(levels) // 2]) + 8
        # The least: whoever is connected when it is looked holds some for a while.
        assert min(each["files"] for each in half) <= levels[0]["files"] + 20
        assert half[-1]["rss"] < half[0]["rss"] + 60_000_000
