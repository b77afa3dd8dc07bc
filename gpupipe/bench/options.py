"""What to compare, and the arguments of `gpupipe bench` that say so."""

from __future__ import annotations

import argparse
from dataclasses import dataclass, fields
from pathlib import Path
from typing import NamedTuple, get_args

from gpupipe.bench.registry import FAMILIES
from gpupipe.bench.way import BENCH_STAGES, BenchStage
from gpupipe.errors import OptionError
from gpupipe.media.limits import DEFAULT, Limits
from gpupipe.options import Precision, read_bytes


class Effort(NamedTuple):
    """How much is done where nothing is asked for."""

    frame_count: int
    batch_sizes: tuple[int, ...]
    worker_counts: tuple[int, ...]
    runs: int
    sweep_runs: int


FULL = Effort(frame_count=100, batch_sizes=(1, 4, 8), worker_counts=(1, 2, 4, 8), runs=5, sweep_runs=3)
QUICK = Effort(frame_count=24, batch_sizes=(1, 4), worker_counts=(1, 2), runs=3, sweep_runs=1)

SWITCHES = ("quick", "isolate")


@dataclass(frozen=True)
class BenchOptions:
    """What to compare.

    Attributes:
        character: the folder; None for the demo's, which is made once and kept.
        model: the ONNX file; None for the character's own.
        frames: how many output frames, the speech repeated if it is shorter; None for the default.
        batches: frames in a batch, ascending; the largest is used outside the sweep.
        workers: compositing threads, ascending; outside the sweep the largest that has a core for each.
        ways: those of `FAMILIES` to compare; None for all that can run here.
        stage: "all", or one of `BENCH_STAGES`.
        precision: those in which gpupipe runs the model, each with a class of its own.
        feature_cache: as `EngineOptions.feature_cache`: other than "off", gpupipe is compared with and without.
        runs: timed passes of each way and stage.
        quick: do less where nothing is asked for.
        max_pixels, max_frames, isolate: what is taken of the character's files, as `EngineOptions` has it.
    """

    character: Path | None = None
    model: Path | None = None
    frames: int | None = None
    batches: tuple[int, ...] | None = None
    workers: tuple[int, ...] | None = None
    ways: tuple[str, ...] | None = None
    stage: str = "all"
    precision: tuple[Precision, ...] = ("fp32",)
    feature_cache: str = "off"
    runs: int | None = None
    quick: bool = False
    max_pixels: int = DEFAULT.max_pixels
    max_frames: int = DEFAULT.max_frames
    isolate: bool = DEFAULT.isolate

    @property
    def limits(self) -> Limits:
        """What is taken of the character's files."""
        return Limits(self.max_pixels, self.max_frames, isolate=self.isolate)

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
        for entry in fields(self):
            value = getattr(self, entry.name)
            if value != entry.default and entry.name not in ("character", *SWITCHES):
                shown = value.name if isinstance(value, Path) else value
                flag = entry.name.replace("_", "-")
                words.append(f"--{flag} {','.join(map(str, shown)) if isinstance(shown, tuple) else shown}")
        return " ".join([*words, *(f"--{name}" for name in SWITCHES if getattr(self, name))])


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `gpupipe bench`."""
    effort = f"[default: {FULL.frame_count}, {QUICK.frame_count} with --quick]"
    add = parser.add_argument
    add("character", type=Path, nargs="?", metavar="CHARACTER", help="the character's folder [default: the demo's]")
    add("--model", type=Path, metavar="M.onnx", help="lip-sync model [default: the character's own]")
    add("--frames", type=_positive, metavar="N", help=f"output frames; shorter speech is repeated {effort}")
    add("--batches", type=_numbers, metavar="B,…", help="frames in a batch, for the sweep; elsewhere the largest")
    add("--workers", type=_numbers, metavar="W,…", help="compositing threads, for the sweep; elsewhere one a core")
    add("--ways", type=_ways, metavar="WAY,…", help=f"ways to compare, of {', '.join(FAMILIES)} [default: all]")
    add("--stage", choices=("all", *BENCH_STAGES), default="all", help="what to time")
    add(
        "--precision",
        type=_precisions,
        metavar="P,…",
        default="fp32",
        help=f"precisions to run the model in, of {', '.join(get_args(Precision))}; each but fp32 is ranked in a class "
        "of its own",
    )
    add(
        "--feature-cache",
        type=_size,
        metavar="SIZE",
        default="off",
        help="also compare gpupipe with what the model makes of each cached frame alone kept in memory up to this "
        "size, such as 4G; auto: where frames are shown often enough",
    )
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


def _precisions(text: str) -> tuple[Precision, ...]:
    names = text.split(",")
    for name in names:
        if name not in get_args(Precision):
            raise argparse.ArgumentTypeError(f"{name!r} is none of {', '.join(get_args(Precision))}")
    return tuple(each for each in get_args(Precision) if each in names)


def _size(text: str) -> str:
    if text not in ("auto", "off"):
        try:
            read_bytes(text)
        except OptionError as error:
            raise argparse.ArgumentTypeError(f"{text!r} is {error.brief()}, auto or off") from error
    return text


def _ways(text: str) -> tuple[str, ...]:
    names = tuple(text.split(","))
    for name in names:
        if name not in FAMILIES:
            raise argparse.ArgumentTypeError(f"{name!r} is none of {', '.join(FAMILIES)}")
    return names
