"""Talks on a CUDA device: many share its batches, which cost what a batch costs."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gpupipe.demo import make_demo
from gpupipe.media.sound import read_pcm
from gpupipe.serve.hub import Hub
from gpupipe.serve.order import TalkOrder

pytestmark = [pytest.mark.cuda, pytest.mark.timeout(120)]

TALKS, BATCH = 16, 8


def test_sixteen_talks_fill_batches_of_two_launches(
    tmp_path: Path, softcuda_counters: Callable[[], dict[str, Any]]
) -> None:
    make_demo(tmp_path / "anna", frames=25, size=(96, 64), model_size=32)
    pcm = np.concatenate(list(read_pcm(tmp_path / "anna" / "aud.wav")))
    with Hub(tmp_path, ["cuda:0"], {}, {"provider": "cpu", "batch": BATCH}) as hub:
        hub.load("anna")
        engine = hub.engines[0]
        talks = [hub.open(TalkOrder("anna", "nv12", realtime=False, start_frame=n)) for n in range(TALKS)]
        departed, places, before = engine.timetable.departed.copy(), engine.timetable.places, softcuda_counters()
        counts: list[int] = []
        takers = [threading.Thread(target=lambda talk=talk: counts.append(sum(1 for _ in talk))) for talk in talks]
        for taker in takers:
            taker.start()
        for start in range(0, len(pcm), 1600):
            for talk in talks:
                talk.push(pcm[start : start + 1600])
        for talk in talks:
            talk.finish()
        for taker in takers:
            taker.join(60)
        after = softcuda_counters()
        batches = engine.timetable.departed.total() - departed.total()
        frames = sum(size * (count - departed[size]) for size, count in engine.timetable.departed.items())
        fill = frames / (engine.timetable.places - places)
        for talk in talks:
            talk.close()
    assert counts == [25] * TALKS
    assert frames == 25 * TALKS
    launches = {name: count - before["launches"].get(name, 0) for name, count in after["launches"].items()}
    assert sum(launches.values()) == 2 * batches
    print(f"{TALKS} talks, {frames} frames: {batches} batches of {BATCH}, {fill:.0%} full, 2 launches each")
    assert fill > 0.7
