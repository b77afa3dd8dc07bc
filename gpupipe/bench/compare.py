"""`gpupipe bench`: compositing and whole renders compared on this machine, way against way.

    python -m gpupipe.bench.compare [CHARACTER] [--model M.onnx] [--json FILE] [--html FILE]

Every way's frames are compared with the reference before anything is timed. The ways are timed in turn (A B C A B C),
after a warm-up; what counts are medians with quartiles, and ratios within a run. See `bench_ways` for the ways.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import cv2

from gpupipe import __version__
from gpupipe.bench import floor as bench_floor
from gpupipe.bench import machine_facts as bench_machine
from gpupipe.bench.entrants import STAGES, Entrant, StageName
from gpupipe.bench.gpupipe_way import GpupipeEntrant
from gpupipe.bench.lineup import WAYS, absences, line_up, way_of
from gpupipe.bench.memory import measure_memory
from gpupipe.bench.scene import OPENCV_THREADS, Scene, SceneOptions
from gpupipe.bench.stages import TOLERANCES, Timetable, add_floors, check
from gpupipe.bench.sweep import SWEPT, sweep
from gpupipe.character.folder import MODEL
from gpupipe.errors import OptionError
from gpupipe.machine import cache_folder, cpu_count
from gpupipe.media.encoders import DEFAULTS

SCHEMA = 1
"""Of the JSON; a change that a reader of old files must know of raises it."""

BASES = ("sequential", "tuned-cpu")
"""What every other way is compared with."""

DEMO_FRAMES = 100
SWEEP_FRAMES = 48

Say = Callable[[str], None]


class Effort(NamedTuple):
    """How much is done where nothing is asked for."""

    frames: int
    batches: tuple[int, ...]
    workers: tuple[int, ...]
    runs: int
    sweep_runs: int


FULL = Effort(frames=100, batches=(1, 4, 8), workers=(1, 2, 4, 8), runs=5, sweep_runs=3)
QUICK = Effort(frames=24, batches=(1, 4), workers=(1, 2), runs=3, sweep_runs=1)


@dataclass(frozen=True)
class BenchOptions:
    """What to compare.

    Attributes:
        character: the folder; None for the demo's, which is made once and kept.
        model: the ONNX file; None for the character's own.
        frames: output frames; None for the default.
        batches: frames in a batch; the largest is used outside the sweep.
        workers: compositing threads; outside the sweep the largest that has a core for each.
        ways: those of `WAYS` to compare; None for all that can run here.
        stage: "all", or one of `STAGES`.
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


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `gpupipe bench`."""
    effort = f"[default: {FULL.frames}, {QUICK.frames} with --quick]"
    add = parser.add_argument
    add("character", type=Path, nargs="?", metavar="CHARACTER", help="the character's folder [default: the demo's]")
    add("--model", type=Path, metavar="M.onnx", help="lip-sync model [default: the character's own]")
    add("--frames", type=_positive, metavar="N", help=f"output frames {effort}")
    add("--batches", type=_numbers, metavar="B,…", help="frames in a batch, for the sweep; elsewhere the largest")
    add("--workers", type=_numbers, metavar="W,…", help="compositing threads, for the sweep; elsewhere one a core")
    add("--ways", type=_ways, metavar="WAY,…", help=f"ways to compare, of {', '.join(WAYS)} [default: all]")
    add("--stage", choices=("all", *STAGES), default="all", help="what to time")
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
        if name not in WAYS:
            raise argparse.ArgumentTypeError(f"{name!r} is none of {', '.join(WAYS)}")
    return names


def run(options: BenchOptions, say: Say = lambda line: None) -> dict[str, Any]:
    """Measure.

    Args:
        options: what.
        say: told what is going on, a line at a time.

    Returns:
        JSON values; `gpupipe.report.results` draws them.

    Raises:
        GpupipeError: the character or the model cannot be used, or a way that was asked for cannot run here.
    """
    effort = QUICK if options.quick else FULL
    folder = options.character or _demo(say)
    batches, workers = options.batches or effort.batches, options.workers or effort.workers
    fitting = [count for count in workers if count <= cpu_count()]
    scene = Scene(
        SceneOptions(
            character=folder,
            model=options.model or folder / MODEL,
            frames=options.frames or effort.frames,
            batch=max(batches),
            workers=max(fitting, default=min(workers)),
        )
    )
    runs = options.runs or effort.runs
    stages: tuple[StageName, ...] = tuple(s for s in STAGES if options.stage in ("all", s))
    cv2.setNumThreads(OPENCV_THREADS)
    entrants, absent = _picked(scene, options.ways)
    machine = bench_machine.facts()
    with ExitStack() as closing, tempfile.TemporaryDirectory() as work:
        checked = {}
        for entrant in entrants:
            say(f"{entrant.name}: loading, and comparing its frames with the reference")
            entrant.open()
            closing.callback(entrant.close)
            checked[entrant.name] = check(entrant, stages)
        table = Timetable(entrants, checked, runs, Path(work), say=say)
        timed = {stage: table.time(stage, BASES) for stage in stages}
        say("measuring what this machine can do at best")
        floor = _floor(scene, entrants, timed)
        closing.close()
        swept = []
        ranked = {name for name, row in timed.get("render", {}).items() if row["rank"]}
        names = [name for name in SWEPT if name in ranked]
        if names and len(batches) * len(workers) > 1:
            short = scene.varied(frames=min(scene.frames, SWEEP_FRAMES), batch=1, workers=1)
            sweep_runs = min(runs, effort.sweep_runs)
            swept = sweep(short, names, batches, workers, runs=sweep_runs, folder=Path(work), say=say)
    memory = {}
    for entrant in entrants:
        if options.stage == "all" and "render" in entrant.stages:
            say(f"{entrant.name}: memory, in a process of its own")
            memory[entrant.name] = measure_memory(scene.options, entrant.name)
    return {
        "schema": SCHEMA,
        "gpupipe": __version__,
        "character": _character(scene) | ({} if options.character else {"name": "demo"}),
        "settings": _settings(scene, runs, entrants) | {"command": _command(options, folder)},
        "machine": machine | {"load_at_end": bench_machine.load()},
        "ways": {
            entrant.name: {
                "about": entrant.about,
                "pixel_format": entrant.pixel_format,
                "meaningless": entrant.meaningless,
                "notes": list(entrant.notes),
            }
            for entrant in entrants
        },
        "absent": absent,
        "stages": timed,
        "floor": floor,
        "sweep": swept,
        "memory": memory,
    }


def _demo(say: Say) -> Path:
    """The demo's character, made on the first call."""
    folder = cache_folder() / f"demo-{__version__}-{DEMO_FRAMES}"
    if not (folder / MODEL).is_file():
        from gpupipe.demo import make_demo

        say(f"making the demo's character in {folder}")
        make_demo(folder, frames=DEMO_FRAMES)
    return folder


def _picked(scene: Scene, ways: Sequence[str] | None) -> tuple[list[Entrant], dict[str, str]]:
    absent = absences()
    for way in ways or ():
        if way in absent:
            raise OptionError(f"{way} cannot run here: {absent[way]}", field="--ways", remedy="leave it out")
    wanted = WAYS if ways is None else ways
    return [entrant for entrant in line_up(scene) if way_of(entrant.name) in wanted], (
        {way: reason for way, reason in absent.items() if way in wanted}
    )


def _floor(scene: Scene, entrants: Sequence[Entrant], timed: dict[StageName, dict[str, Any]]) -> dict[str, Any]:
    """Measure what the machine can do, and add the floors to the rows."""
    cost = bench_floor.model_cost(scene.options.model, scene.layout)
    host = bench_floor.host_rates(scene.threads)
    jobs = {entrant.name: entrant.job for entrant in entrants if isinstance(entrant, GpupipeEntrant)}
    on_gpu = {name: job.backend.provider for name, job in jobs.items() if job.backend.gpu is not None}
    gpu = bench_floor.device_rates(next(iter(on_gpu.values()))) if on_gpu else None
    floors = {
        entrant.name: bench_floor.floors(
            scene, entrant.pixel_format, host, gpu if entrant.name in on_gpu else None, cost["macs"]
        )
        for entrant in entrants
    }
    for stage, rows in timed.items():
        add_floors(rows, {name: found[stage] for name, found in floors.items()})
    return {
        "host": host,
        "device": gpu,
        "model": cost,
        "bytes_a_frame": {name: bench_floor.stage_bytes(scene, name) for name in ("nv12", "bgr24")},
    }


def _character(scene: Scene) -> dict[str, Any]:
    info = scene.body_info
    return {
        "name": scene.options.character.resolve().name,
        "model": scene.options.model.name,
        "frames_filmed": scene.character.count,
        "width": info.width,
        "height": info.height,
        "model_size": scene.layout.model_size,
        "rectangle": [round(sum(r.width for r in scene.rects) / len(scene.rects)),
                      round(sum(r.height for r in scene.rects) / len(scene.rects))],
        "matrix": info.colour.matrix,
        "range": info.colour.range,
    }  # fmt: skip


def _settings(scene: Scene, runs: int, entrants: Sequence[Entrant]) -> dict[str, Any]:
    encoder = scene.output.encoder
    crf, preset = DEFAULTS[encoder.encoder]
    return {
        "frames": scene.frames,
        "runs": runs,
        "batch": scene.batch,
        "workers": scene.workers,
        "opencv_threads": OPENCV_THREADS,
        "model_threads": scene.threads,
        "encoder": {**asdict(encoder), "crf": crf, "preset": preset, "segment_frames": scene.output.segment_frames},
        "tolerance": {stage: tolerance._asdict() for stage, tolerance in TOLERANCES.items()},
        "included": {
            "compose": "the model's inputs, pasting, and handing the frame over in the encoder's pixel format",
            "infer": "the model alone, on inputs that are ready",
            "encode": "finished frames to a finished mp4, conversion to the encoder's pixel format included",
            "render": "speech features to a finished mp4; loading (decoding, caching, opening the model) is not "
            "counted for any way",
        },
    }


def _command(options: BenchOptions, folder: Path) -> str:
    words = ["gpupipe bench", *([folder.name] if options.character else [])]
    for name in ("model", "frames", "batches", "workers", "ways", "stage", "runs"):
        value = getattr(options, name)
        if value not in (None, "all"):
            shown = value.name if isinstance(value, Path) else value
            words.append(f"--{name} {','.join(map(str, shown)) if isinstance(shown, tuple) else shown}")
    return " ".join([*words, *(["--quick"] if options.quick else [])])
