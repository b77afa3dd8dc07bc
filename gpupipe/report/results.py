"""`gpupipe report`: what `gpupipe bench` measured, as tables, as a page, and against another measurement.

    python -m gpupipe.report A.json [B.json …] [--html FILE] [--fail-above PERCENT]

The first file is what the others are compared with.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from gpupipe.errors import PackageError, reason

SCHEMA = 2
UPGRADED = 1
"""The schema that is still read: before there were classes, quality, the model's two floors and speech that is said
again."""
EXACT = "exact"
"""The class of those that draw the reference itself; the others are reduced precisions."""
NEEDED = ("gpupipe", "character", "settings", "machine", "ways", "absent", "stages", "floor", "sweep", "memory")

Result = dict[str, Any]


class Change(NamedTuple):
    """How one way's time in one stage changed from the first measurement to another.

    Attributes:
        stage: which.
        way: which.
        before: milliseconds a frame, median.
        after: likewise.
        percent: slower by, negative if faster.
        beyond_noise: whether the quartiles of both measurements do not overlap.
        broken: whether the result was right before and is wrong now.
        quality: of a reduced precision, the mean PSNR in the mouth region before and after, dB.
    """

    stage: str
    way: str
    before: float
    after: float
    percent: float
    beyond_noise: bool
    broken: bool = False
    quality: tuple[float, float] | None = None

    @property
    def regression(self) -> bool:
        """Slower beyond the noise, or wrong now."""
        return self.broken or (self.beyond_noise and self.percent > 0)

    def fails(self, percent: float) -> bool:
        """Whether it is a regression of more than `percent`; a result that broke always is."""
        return self.broken or (self.regression and self.percent > percent)


def load(path: Path) -> Result:
    """Read a measurement.

    Raises:
        PackageError: it is none.
    """
    remedy = "give a file that `gpupipe bench --json` wrote"
    try:
        result = json.loads(path.read_text("utf-8"))
    except OSError as error:
        raise PackageError(f"cannot be read: {reason(error)}", file=path, remedy=remedy) from error
    except ValueError as error:
        raise PackageError(f"is no JSON: {error}", file=path, remedy=remedy) from error
    if not isinstance(result, dict) or result.get("schema") not in (SCHEMA, UPGRADED):
        found = result.get("schema") if isinstance(result, dict) else None
        raise PackageError("is no measurement of this version", file=path, field="schema", value=found, remedy=remedy)
    for name in NEEDED:
        if name not in result:
            raise PackageError("missing", file=path, field=name, remedy=remedy)
    return result if result["schema"] == SCHEMA else _upgraded(result)


def _upgraded(result: Result) -> Result:
    """An older measurement as one of today: all that it has is exact, in fp32."""
    for rows in result["stages"].values():
        for row in rows.values():
            row |= {"class": EXACT, "quality": None, "drawn": None}
    settings = {"speech_frames": result["settings"]["frames"], "speech_repeats": 1, "feature_cache": "off"}
    return result | {
        "schema": SCHEMA,
        "settings": settings | result["settings"],
        "floor": {"model_ms": {}} | result["floor"],
        "precisions": {},
    }


def compare(before: Result, after: Result) -> list[Change]:
    """How the times of one measurement changed in another, for every stage and way in both."""
    changes = []
    for stage, rows in before["stages"].items():
        for way, old in rows.items():
            new = after["stages"].get(stage, {}).get(way)
            if new is None or old["meaningless"] or new["meaningless"]:
                continue
            a, b = old["ms"], new["ms"]
            apart = b["q1"] > a["q3"] or b["q3"] < a["q1"]
            percent = (b["median"] / a["median"] - 1) * 100 if a["median"] else 0.0
            broken = bool(old["right"] and not new["right"])
            both = [row["quality"]["psnr_mean"] for row in (old, new) if row["quality"]]
            quality = (both[0], both[1]) if len(both) == 2 else None
            changes.append(Change(stage, way, a["median"], b["median"], round(percent, 2), apart, broken, quality))
    return changes


def load_all(paths: Sequence[Path]) -> list[tuple[str, Result]]:
    """Read measurements, each named after its file; equal names are numbered.

    Raises:
        PackageError: one is no measurement.
    """
    names = [path.stem for path in paths]
    return [
        (name if names.count(name) == 1 else f"{name} ({number})", load(path))
        for number, (name, path) in enumerate(zip(names, paths, strict=True), 1)
    ]


def differences_in_kind(before: Result, after: Result) -> list[str]:
    """What besides the code differs between two measurements, so that their times may not be comparable."""
    asked = {
        "machine": ("cpu", "cores"),
        "character": ("name", "model"),
        "settings": ("frames", "batch", "workers", "model_threads", "speech_repeats", "feature_cache"),
    }
    return [
        f"differ in {section} {name}: {before[section][name]} and {after[section][name]}"
        for section, names in asked.items()
        for name in names
        if before[section][name] != after[section][name]
    ]


def wrong(result: Result) -> list[tuple[str, str]]:
    """The stages and ways whose result is wrong."""
    return [(stage, way) for stage, rows in result["stages"].items() for way, row in rows.items() if not row["right"]]


def failures(results: Sequence[tuple[str, Result]], percent: float | None) -> list[Change]:
    """The regressions since the first measurement by more than `percent`; none if that is None."""
    if percent is None:
        return []
    first = results[0][1]
    return [change for _, result in results[1:] for change in compare(first, result) if change.fails(percent)]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `gpupipe report`."""
    add = parser.add_argument
    add("measurements", type=Path, nargs="+", metavar="FILE.json", help="what `gpupipe bench --json` wrote")
    add("--html", type=Path, metavar="FILE", help="write a page with plots")
    add(
        "--fail-above",
        type=float,
        metavar="PERCENT",
        help="exit with 1 if anything is slower by more, beyond the noise",
    )
