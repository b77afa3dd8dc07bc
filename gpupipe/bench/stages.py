"""One stage of the comparison after the other: frames checked, passes timed, rows of the table made."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gpupipe.bench.algorithm import in_range
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
from gpupipe.bench.precisions import Likeness, Mouths, predicted_likeness
from gpupipe.bench.way import BenchStage, Floats, Way
from gpupipe.trace import FINISH, PARTS, Trace

TOLERANCES: dict[BenchStage, Tolerance] = {"compose": EXACT, "infer": ROUNDING, "render": ROUNDING}
"""What counts as right. Compositing is given the same predictions everywhere and leaves no room; the model's own
numbers may differ in their last bits."""


Checked = Difference | Likeness
"""What a comparison with the reference found: of a way that draws it, and of one in a reduced precision."""


def check(way: Way, stages: Sequence[BenchStage]) -> dict[BenchStage, Checked]:
    """Compare what a way makes with the reference, in every stage that makes anything: pixel by pixel, or the mouth's
    likeness in a reduced precision."""
    scene, pixel_format, exact = way.scene, way.pixel_format, way.precision == "fp32"
    found: dict[BenchStage, Checked] = {}
    if "compose" in stages and "compose" in way.stages:
        given = scene.predictions
        all_frames = Comparison(lambda o: scene.expected(o, given[o % len(given)], pixel_format), scene.frame_count)
        way.compose(all_frames)
        found["compose"] = all_frames.result()
    if "infer" in stages and "infer" in way.stages:
        predicted = way.predicted()
        found["infer"] = (
            difference(_levels(predicted), _levels(scene.predictions))
            if exact
            else predicted_likeness(scene, way.precision, predicted)
        )
    if "render" in stages and "render" in way.stages:
        frame_count = min(scene.frame_count, 2 * scene.batch_size)
        some = (
            Comparison(lambda o: scene.expected(o, scene.predicted(o)[0], pixel_format), frame_count)
            if exact
            else Mouths(scene, way.precision, pixel_format, frame_count)
        )
        way.render(some, Trace(), frame_count)
        found["render"] = some.result()
    return found


def _levels(prediction: Floats) -> NDArray[np.uint8]:
    """A prediction in grey levels, as it is pasted, in two dimensions."""
    levels: NDArray[np.uint8] = (in_range(prediction) * np.float32(255)).astype(np.uint8)
    return levels.reshape(-1, prediction.shape[-1])


class Timetable:
    """Times the stages of all ways.

    Args:
        ways: opened.
        checked: what `check` found, by way.
        runs: timed passes of each way and stage.
        folder: where videos may be written.
        clocks: of the host: seconds, and seconds of all cores; None for the real ones.
        say: told what is going on.
    """

    def __init__(
        self,
        ways: Sequence[Way],
        checked: Mapping[str, Mapping[BenchStage, Checked]],
        runs: int,
        folder: Path,
        *,
        clocks: tuple[Clock, Clock] | None = None,
        say: Callable[[str], None] = lambda line: None,
    ) -> None:
        self._ways, self._checked, self._runs, self._folder = ways, checked, runs, folder
        self._clocks: dict[str, Any] = {} if clocks is None else {"clock": clocks[0], "cpu_clock": clocks[1]}
        self._say = say
        self._parts: dict[str, list[dict[str, float]]] = {}
        self._bytes: dict[str, int] = {}

    def time(self, stage: BenchStage, bases: Sequence[str]) -> dict[str, dict[str, Any]]:
        """Time one stage.

        Args:
            stage: which.
            bases: the ways that every other is compared with.

        Returns:
            The rows of the table as JSON values, by way.
        """
        taking_part = [way for way in self._ways if stage in way.stages]
        by_name = {way.name: way for way in taking_part}

        def before(name: str, run: int) -> None:
            if name == taking_part[0].name:
                self._tell(stage, run)
            by_name[name].renew()

        times = in_turn(
            {way.name: self._pass(way, stage) for way in taking_part},
            self._runs,
            progress=before,
            **self._clocks,
        )
        rows = {way.name: self._row(way, stage, times[way.name]) for way in taking_part}
        places = rank(rows)
        for name, row in rows.items():
            row["rank"] = places.get(name)
            comparable = [base for base in bases if base in places and base != name and name in places]
            row["times_faster_than"] = {base: paired(times[base].seconds, times[name].seconds) for base in comparable}
        return rows

    def _tell(self, stage: BenchStage, run: int) -> None:
        self._say(f"{stage}: {'warm-up' if run < 0 else f'run {run + 1} of {self._runs}'}")

    def _pass(self, way: Way, stage: BenchStage) -> Pass:
        if stage == "compose":
            hand_over = way.hand_over()
            return lambda: way.compose(hand_over)
        if stage == "infer":
            return way.infer
        path = self._folder / f"{way.name}.mp4"
        if stage == "encode":
            way.encode(path)  # decodes what it encodes, once
            return lambda: way.encode(path)
        return lambda: self._render(way, path)

    def _render(self, way: Way, path: Path) -> None:
        trace, frame_count = Trace(), way.scene.frame_count
        with ExitStack() as finishing:
            save = finishing.enter_context(way.encoder(path))
            way.render(save, trace, frame_count)
            with trace.span(FINISH):
                finishing.close()
        self._parts.setdefault(way.name, []).append(
            {part: trace.times(part).total_seconds / frame_count * 1e3 for part in PARTS}
        )
        self._bytes[way.name] = path.stat().st_size

    def _row(self, way: Way, stage: BenchStage, times: Times) -> dict[str, Any]:
        found = self._checked[way.name].get(stage)
        pixels = found if isinstance(found, Difference) else None
        row: dict[str, Any] = {
            **timing(times, way.scene.frame_count),
            "class": "exact" if way.precision == "fp32" else way.precision,
            "pixel_format": way.pixel_format,
            "batch": way.batch_size,
            "threads": way.threads.get(stage),
            "compared_pixels": pixels.pixels if pixels else None,
            "differing_pixels": pixels.differing if pixels else None,
            "largest_difference": pixels.largest if pixels else None,
            **self._quality(way, found),
            # Nothing is computed where nothing is compared: the encoder takes the same frames from everyone.
            "right": found.passes if isinstance(found, Likeness) else found is None or found.within(TOLERANCES[stage]),
            "meaningless": way.meaningless,
        }
        if stage == "render":
            parts = median_parts(self._parts[way.name][-self._runs :])
            whole = row["ms"]["median"]
            row["parts"] = {
                part: {"ms": ms, "share": round(ms / whole, 4) if whole else None} for part, ms in parts.items()
            }
            row["video_bytes"] = self._bytes[way.name]
        return row

    def _quality(self, way: Way, found: Checked | None) -> dict[str, Any]:
        """Of a reduced precision: how its file was judged, on frames of the whole film, if it has one of its own; and
        what was drawn here."""
        if not isinstance(found, Likeness):
            return {"quality": None, "drawn": None}
        made = way.scene.made.get(way.precision)
        judged = found if made is None else Likeness.of(made.quality)
        return {"quality": judged._asdict(), "drawn": found._asdict()}


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
