"""Whole renders over batch sizes and numbers of workers."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from gpupipe.bench.entrants import NoTrace
from gpupipe.bench.lineup import line_up
from gpupipe.bench.measure import Times, in_turn, median_parts, paired
from gpupipe.bench.scene import Scene
from gpupipe.bench.stages import PARTS
from gpupipe.trace import Trace

SWEPT = ("parallel", "gpupipe-cpu-nv12", "gpupipe-cuda-nv12")
"""The ways with batches and workers of their own."""

Key = tuple[str, int, int]


def sweep(
    scene: Scene,
    names: Sequence[str],
    batches: Sequence[int],
    workers: Sequence[int],
    *,
    runs: int,
    folder: Path,
    say: Callable[[str], None] = lambda line: None,
) -> list[dict[str, Any]]:
    """Render with every combination, in turn, `runs` times; loading is not counted.

    Args:
        scene: what to render.
        names: the ways.
        batches: frames in a batch.
        workers: compositing threads; a GPU has none, so it is rendered with the first number only.
        runs: renders of each combination.
        folder: where videos may be written.
        say: told what is going on.

    Returns:
        Rows as JSON values, with milliseconds a frame of inference, compositing (preparing and pasting) and saving, of
        the whole, and the speed-up against the way's own first combination.
    """
    keys: list[Key] = [
        (name, batch, count)
        for name in names
        for batch in batches
        for count in (workers[:1] if "cuda" in name else workers)
    ]
    parts: dict[Key, list[dict[str, float]]] = {key: [] for key in keys}

    def render(key: Key) -> float:
        """Seconds of one render."""
        name, batch, count = key
        varied = scene.varied(frames=scene.frames, batch=batch, workers=count)
        (entrant,) = (entrant for entrant in line_up(varied) if entrant.name == name)
        entrant.open()
        try:
            path, trace = folder / "sweep.mp4", Trace()
            with entrant.encoder(path) as save:
                entrant.render(save, NoTrace(), min(batch, scene.frames))
            began = time.perf_counter()
            with entrant.encoder(path) as save:
                entrant.render(save, trace, scene.frames)
            seconds = time.perf_counter() - began
        finally:
            entrant.close()
        parts[key].append({part: trace.times(part).total_seconds / scene.frames * 1e3 for part in PARTS})
        return seconds

    labels = {f"{name}, batch {batch}, workers {count}": (name, batch, count) for name, batch, count in keys}
    times = in_turn(
        {label: (lambda key=key: render(key)) for label, key in labels.items()},  # type: ignore[misc]
        runs,
        warm_up=0,  # each render warms its own model up
        progress=lambda label, run: say(f"sweep: run {run + 1} of {runs}, {label}"),
    )
    return rows({labels[label]: found for label, found in times.items()}, parts, scene.frames)


def rows(times: dict[Key, Times], parts: dict[Key, list[dict[str, float]]], frames: int) -> list[dict[str, Any]]:
    """The table: one row a combination, the fastest of each way marked."""
    table: list[dict[str, Any]] = []
    for (name, batch, count), found in times.items():
        base = next(other for key, other in times.items() if key[0] == name)
        each = median_parts(parts[name, batch, count])
        seconds = statistics.median(found.seconds)
        table.append(
            {
                "way": name,
                "batch": batch,
                "workers": count,
                "fps": round(frames / seconds, 2),
                "inference_ms": each["infer"],
                "composite_ms": round(each["prepare"] + each["paste"], 4),
                "save_ms": each["save"],
                "total_ms": round(seconds / frames * 1e3, 4),
                "speedup": paired(base.seconds, found.seconds),
            }
        )
    for row in table:
        row["best"] = row["fps"] == max(other["fps"] for other in table if other["way"] == row["way"])
    return table
