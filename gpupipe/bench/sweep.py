"""Whole renders over batch sizes and numbers of workers."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from gpupipe.bench.measure import Times, in_turn, median_parts, paired
from gpupipe.bench.registry import way_named
from gpupipe.bench.scene import Scene
from gpupipe.bench.way import NoTrace, Way
from gpupipe.errors import OptionError
from gpupipe.trace import COMPOSITE, INFER, PARTS, SAVE, Trace

SWEPT = ("parallel", "gpupipe-cpu-nv12", "gpupipe-cuda-nv12")
"""The ways with batches and workers of their own."""


class Combination(NamedTuple):
    """A way with a batch size and a number of compositing threads."""

    way: str
    batch_size: int
    workers: int

    def __str__(self) -> str:
        return f"{self.way}, batch {self.batch_size}, workers {self.workers}"


def sweep(
    scene: Scene,
    names: Sequence[str],
    batch_sizes: Sequence[int],
    worker_counts: Sequence[int],
    *,
    runs: int,
    folder: Path,
    say: Callable[[str], None] = lambda line: None,
) -> list[dict[str, Any]]:
    """Render with every combination, in turn, `runs` times; loading is not counted.

    A way may take smaller batches and fewer threads than it is asked to: the CPU takes no more frames at a time than
    the model runs at once, and no way has more threads than there are frames in a batch. Combinations that come to the
    same are rendered once, and the table has what was run.

    Args:
        scene: what to render.
        names: the ways.
        batch_sizes: frames in a batch, to be asked for, ascending.
        worker_counts: compositing threads, likewise.
        runs: renders of each combination.
        folder: where videos may be written.
        say: told what is going on.

    Returns:
        Rows as JSON values, with milliseconds a frame of inference, compositing (preparing and pasting) and saving, of
        the whole, and the speed-up against the way's own first combination.
    """
    say("sweep: finding out which combinations are the same run")
    combinations = distinct(scene, names, batch_sizes, worker_counts, say)
    parts: dict[Combination, list[dict[str, float]]] = {combination: [] for combination in combinations}

    def render(combination: Combination) -> float:
        """Seconds of one render."""
        with opened(scene, combinations[combination]) as way:
            path, trace = folder / "sweep.mp4", Trace()
            with way.encoder(path) as save:
                way.render(save, NoTrace(), min(combination.batch_size, scene.frame_count))
            began = time.perf_counter()
            with way.encoder(path) as save:
                way.render(save, trace, scene.frame_count)
            seconds = time.perf_counter() - began
        parts[combination].append({part: trace.times(part).total_seconds / scene.frame_count * 1e3 for part in PARTS})
        return seconds

    labels = {str(combination): combination for combination in combinations}
    times = in_turn(
        {label: (lambda one=one: render(one)) for label, one in labels.items()},  # type: ignore[misc]
        runs,
        warm_up=0,  # each render warms its own model up
        progress=lambda label, run: say(f"sweep: run {run + 1} of {runs}, {label}"),
    )
    return rows({labels[label]: found for label, found in times.items()}, parts, scene.frame_count)


def distinct(
    scene: Scene,
    names: Sequence[str],
    batch_sizes: Sequence[int],
    worker_counts: Sequence[int],
    say: Callable[[str], None] = lambda line: None,
) -> dict[Combination, Combination]:
    """What the combinations that are asked for come to, each once, and which of them was asked for first.

    Args:
        scene: what to render.
        names: the ways.
        batch_sizes: ascending.
        worker_counts: ascending.
        say: told what is left out, and why.
    """
    found: dict[Combination, Combination] = {}
    for name in names:
        for batch_size in batch_sizes:
            ran = Combination(name, batch_size, 0)
            for workers in worker_counts:
                asked = Combination(name, batch_size, workers)
                try:
                    with opened(scene, asked) as way:
                        ran = Combination(name, way.batch_size, way.threads["render"])
                except OptionError as error:  # a model that takes batches of one size only
                    say(f"sweep: {asked} is left out: {error}")
                    continue
                found.setdefault(ran, asked)
                if ran.workers < workers:
                    break  # more of them come to the same
            if ran.batch_size < batch_size:
                break
    return found


@contextmanager
def opened(scene: Scene, combination: Combination) -> Iterator[Way]:
    """The way of a combination, opened for it."""
    name, batch_size, workers = combination
    way = way_named(scene.varied(frame_count=scene.frame_count, batch_size=batch_size, workers=workers), name)
    try:
        way.open()
        yield way
    finally:
        way.close()


def rows(
    times: dict[Combination, Times], parts: dict[Combination, list[dict[str, float]]], frame_count: int
) -> list[dict[str, Any]]:
    """The table: one row a combination, the fastest of each way marked."""
    table: list[dict[str, Any]] = []
    for combination, found in times.items():
        base = next(other for one, other in times.items() if one.way == combination.way)
        each = median_parts(parts[combination])
        seconds = statistics.median(found.seconds)
        table.append(
            {
                "way": combination.way,
                "batch": combination.batch_size,
                "workers": combination.workers,
                "fps": round(frame_count / seconds, 2),
                "inference_ms": each[INFER],
                "composite_ms": round(sum(each[part] for part in COMPOSITE), 4),
                "save_ms": each[SAVE],
                "total_ms": round(seconds / frame_count * 1e3, 4),
                "speedup": paired(base.seconds, found.seconds),
            }
        )
    for row in table:
        row["best"] = row["fps"] == max(other["fps"] for other in table if other["way"] == row["way"])
    return table
