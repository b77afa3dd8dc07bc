"""What to compare, and the arguments of `gpupipe bench` that say so."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from gpupipe.bench.registry import FAMILIES
from gpupipe.bench.way import BENCH_STAGES, BenchStage


class Effort(NamedTuple):
    """How much is done where nothing is asked for."""

    frame_count: int
    batch_sizes: tuple[int, ...]
    worker_counts: tuple[int, ...]
    runs: int
    sweep_runs: int


FULL = Effort(frame_count=100, batch_sizes=(1, 4, 8), worker_counts=(1, 2, 4, 8), runs=5, sweep_runs=3)
QUICK = Effort(frame_count=24, batch_sizes=(1, 4), worker_counts=(1, 2), runs=3, sweep_runs=1)


@dataclass(frozen=True)
class BenchOptions:
    """What to compare.

    Attributes:
        character: the folder; None for the demo's, which is made once and kept.
        model: the ONNX file; None for the character's own.
        frames: how many output frames; None for the default.
        batches: frames in a batch, ascending; the largest is used outside the sweep.
        workers: compositing threads, ascending; outside the sweep the largest that has a core for each.
        ways: those of `FAMILIES` to compare; None for all that can run here.
        stage: "all", or one of `BENCH_STAGES`.
        runs: timed passes of each way and stage.
        quick: do less where nothing is asked for.
    """

    character: Path | None = None
    model: Path | None = None
    frames: int | None = None
    batches: tuple[int, ...] | None = None
    workers: tuple[int, ...] | None = None
    ways: tuple[str, ...] | None = None
    stage: str = "all"
    runs: int | None = None
    quick: bool = False

    @property
    def effort(self) -> Effort:
        """What holds where nothing is asked for."""
        return QUICK if self.quick else FULL

    @property
    def bench_stages(self) -> tuple[BenchStage, ...]:
        """What to time."""
        return tuple(stage for stage in BENCH_STAGES if self.stage in ("all", stage))

    def command(self, folder: Path) -> str:
        """The command that measures the same, naming files but no folder of this machine.

        Args:
            folder: the character's.
        """
        words = ["gpupipe bench", *([folder.name] if self.character else [])]
        for name in ("model", "frames", "batches", "workers", "ways", "stage", "runs"):
            value = getattr(self, name)
            if value not in (None, "all"):
                shown = value.name if isinstance(value, Path) else value
                words.append(f"--{name} {','.join(map(str, shown)) if isinstance(shown, tuple) else shown}")
        return " ".join([*words, *(["--quick"] if self.quick else [])])


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `gpupipe bench`."""
    effort = f"[default: {FULL.frame_count}, {QUICK.frame_count} with --quick]"
    add = parser.add_argument
    add("character", type=Path, nargs="?", metavar="CHARACTER", help="the character's folder [default: the demo's]")
    add("--model", type=Path, metavar="M.onnx", help="lip-sync model [default: the character's own]")
    add("--frames", type=_positive, metavar="N", help=f"output frames {effort}")
    add("--batches", type=_numbers, metavar="B,…", help="frames in a batch, for the sweep; elsewhere the largest")
    add("--workers", type=_numbers, metavar="W,…", help="compositing threads, for the sweep; elsewhere one a core")
    add("--ways", type=_ways, metavar="WAY,…", help=f"ways to compare, of {', '.join(FAMILIES)} [default: all]")
    add("--stage", choices=("all", *BENCH_STAGES), default="all", help="what to time")
    add("--runs", type=_positive, metavar="N", help="timed passes of each")
    add("--quick", action="store_true", help="less of everything: a minute on two cores")
    add("--json", type=Path, metavar="FILE", help="write what was measured")
    add("--html", type=Path, metavar="FILE", help="write it as a page with plots")


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} is less than 1")
    return number


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(sorted({_positive(part) for part in text.split(",")}))


def _ways(text: str) -> tuple[str, ...]:
    names = tuple(text.split(","))
    for name in names:
        if name not in FAMILIES:
            raise argparse.ArgumentTypeError(f"{name!r} is none of {', '.join(FAMILIES)}")
    return names
