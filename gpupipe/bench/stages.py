"""One stage of the comparison after the other: frames checked, passes timed, rows of the table made."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gpupipe.bench.entrants import Entrant, StageName
from gpupipe.bench.measure import (
    EXACT,
    ROUNDING,
    Clock,
    Comparison,
    Difference,
    Pass,
    Times,
    Tolerance,
    difference,
    in_turn,
    median_parts,
    paired,
    rank,
    timing,
)
from gpupipe.bench.scene import Floats
from gpupipe.trace import Trace

PARTS = ("prepare", "infer", "paste", "save", "finish")
"""The spans of a whole render, in this order; `finish` flushes the encoder and joins the video's parts."""

TOLERANCES: dict[StageName, Tolerance] = {"compose": EXACT, "infer": ROUNDING, "render": ROUNDING}
"""What counts as right. Compositing is given the same predictions everywhere and leaves no room; the model's own
numbers may differ in their last bits."""


def check(entrant: Entrant, stages: Sequence[StageName]) -> dict[StageName, Difference]:
    """Compare what a way makes with the reference, in every stage that makes anything."""
    scene, pixel_format = entrant.scene, entrant.pixel_format
    found: dict[StageName, Difference] = {}
    if "compose" in stages and "compose" in entrant.stages:
        given = scene.predictions
        all_frames = Comparison(lambda o: scene.expected(o, given[o % len(given)], pixel_format), scene.frames)
        entrant.compose(all_frames)
        found["compose"] = all_frames.result()
    if "infer" in stages and "infer" in entrant.stages:
        found["infer"] = difference(_levels(entrant.predicted()), _levels(scene.predictions))
    if "render" in stages and "render" in entrant.stages:
        frames = min(scene.frames, 2 * scene.batch)
        some = Comparison(lambda o: scene.expected(o, scene.predicted(o)[0], pixel_format), frames)
        entrant.render(some, Trace(), frames)
        found["render"] = some.result()
    return found


def _levels(prediction: Floats) -> NDArray[np.uint8]:
    """A prediction in grey levels, as it is pasted, in two dimensions."""
    clean = np.nan_to_num(prediction, nan=0.0, posinf=1.0, neginf=0.0)
    levels: NDArray[np.uint8] = np.trunc(np.clip(clean, 0, 1) * np.float32(255)).astype(np.uint8)
    return levels.reshape(-1, prediction.shape[-1])


class Timetable:
    """Times the stages of all ways.

    Args:
        entrants: opened.
        checked: what `check` found, by entrant.
        runs: timed passes of each way and stage.
        folder: where videos may be written.
        clocks: of the host: seconds, and seconds of all cores; None for the real ones.
        say: told what is going on.
    """

    def __init__(
        self,
        entrants: Sequence[Entrant],
        checked: Mapping[str, Mapping[StageName, Difference]],
        runs: int,
        folder: Path,
        *,
        clocks: tuple[Clock, Clock] | None = None,
        say: Callable[[str], None] = lambda line: None,
    ) -> None:
        self._entrants, self._checked, self._runs, self._folder = entrants, checked, runs, folder
        self._clocks: dict[str, Any] = {} if clocks is None else {"clock": clocks[0], "cpu_clock": clocks[1]}
        self._say = say
        self._parts: dict[str, list[dict[str, float]]] = {}
        self._bytes: dict[str, int] = {}

    def time(self, stage: StageName, bases: Sequence[str]) -> dict[str, dict[str, Any]]:
        """Time one stage.

        Args:
            stage: which.
            bases: the ways that every other is compared with.

        Returns:
            The rows of the table as JSON values, by way.
        """
        taking_part = [entrant for entrant in self._entrants if stage in entrant.stages]
        times = in_turn(
            {entrant.name: self._pass(entrant, stage) for entrant in taking_part},
            self._runs,
            progress=lambda name, run: self._tell(stage, run) if name == taking_part[0].name else None,
            **self._clocks,
        )
        rows = {entrant.name: self._row(entrant, stage, times[entrant.name]) for entrant in taking_part}
        places = rank(rows)
        for name, row in rows.items():
            row["rank"] = places.get(name)
            comparable = [base for base in bases if base in places and base != name and name in places]
            row["times_faster_than"] = {base: paired(times[base].seconds, times[name].seconds) for base in comparable}
        return rows

    def _tell(self, stage: StageName, run: int) -> None:
        self._say(f"{stage}: {'warm-up' if run < 0 else f'run {run + 1} of {self._runs}'}")

    def _pass(self, entrant: Entrant, stage: StageName) -> Pass:
        if stage == "compose":
            hand_over = entrant.hand_over()
            return lambda: entrant.compose(hand_over)
        if stage == "infer":
            return entrant.infer
        path = self._folder / f"{entrant.name}.mp4"
        if stage == "encode":
            entrant.encode(path)  # decodes what it encodes, once
            return lambda: entrant.encode(path)
        return lambda: self._render(entrant, path)

    def _render(self, entrant: Entrant, path: Path) -> None:
        trace, frames = Trace(), entrant.scene.frames
        with ExitStack() as finishing:
            save = finishing.enter_context(entrant.encoder(path))
            entrant.render(save, trace, frames)
            with trace.span("finish"):
                finishing.close()
        self._parts.setdefault(entrant.name, []).append(
            {part: trace.times(part).total_seconds / frames * 1e3 for part in PARTS}
        )
        self._bytes[entrant.name] = path.stat().st_size

    def _row(self, entrant: Entrant, stage: StageName, times: Times) -> dict[str, Any]:
        found = self._checked[entrant.name].get(stage)
        row: dict[str, Any] = {
            **timing(times, entrant.scene.frames),
            "pixel_format": entrant.pixel_format,
            "batch": entrant.batch,
            "threads": entrant.threads.get(stage),
            "compared_pixels": found.pixels if found else None,
            "differing_pixels": found.differing if found else None,
            "largest_difference": found.largest if found else None,
            # Nothing is computed where nothing is compared: the encoder takes the same frames from everyone.
            "right": found.within(TOLERANCES[stage]) if found else True,
            "meaningless": entrant.meaningless,
        }
        if stage == "render":
            parts = median_parts(self._parts[entrant.name][-self._runs :])
            whole = row["ms"]["median"]
            row["parts"] = {
                part: {"ms": ms, "share": round(ms / whole, 4) if whole else None} for part, ms in parts.items()
            }
            row["video_bytes"] = self._bytes[entrant.name]
        return row


def add_floors(rows: Mapping[str, dict[str, Any]], floors: Mapping[str, float | None]) -> None:
    """Add the floor, and the ratio to it, to the rows of one stage.

    Args:
        rows: by way.
        floors: milliseconds a frame, by way.
    """
    for name, row in rows.items():
        floor = floors.get(name)
        row["floor_ms"] = floor
        row["times_the_floor"] = round(row["ms"]["median"] / floor, 2) if floor else None
