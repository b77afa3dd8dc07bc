"""`gpupipe bench`: compositing and whole renders compared on this machine, way against way.

    python -m gpupipe.bench [CHARACTER] [--model M.onnx] [--precision fp32,int8] [--json FILE] [--html FILE]

Every way's frames are compared with the reference before anything is timed. The ways are timed in turn (A B C A B C),
after a warm-up; what counts are medians with quartiles, and ratios within a run. See `registry` for the ways. Those
that draw the reference are ranked together; a reduced precision has a class of its own, its quality beside its time.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import cv2

from gpupipe import __version__
from gpupipe.bench import machine_facts as bench_machine
from gpupipe.bench.floor import MachineRates, floors, frame_bytes, model_floor
from gpupipe.bench.gpupipe_way import GpupipeWay
from gpupipe.bench.memory import measure_memory
from gpupipe.bench.options import BenchOptions
from gpupipe.bench.precisions import check_devices, make_files
from gpupipe.bench.registry import FAMILIES, FORMATS, absences, ways_here
from gpupipe.bench.scene import OPENCV_THREADS, Scene, SceneOptions
from gpupipe.bench.stages import TOLERANCES, Timetable, add_floors, check
from gpupipe.bench.sweep import SWEPT, sweep
from gpupipe.bench.way import BenchStage, Way
from gpupipe.character.folder import MODEL
from gpupipe.errors import GpupipeError, OptionError
from gpupipe.machine import cache_folder, cpu_count, load
from gpupipe.media.encoders import DEFAULTS, EncoderOptions
from gpupipe.model.cost import model_cost

SCHEMA = 2
"""Of the JSON; a change that a reader of old files must know of raises it."""

BASES = ("sequential", "tuned-cpu")
"""What every other way is compared with."""

DEMO_FRAMES = 100
SWEEP_FRAMES = 48

Say = Callable[[str], None]


def run(options: BenchOptions, say: Say = lambda line: None) -> dict[str, Any]:
    """Measure.

    Args:
        options: what.
        say: told what is going on, a line at a time.

    Returns:
        JSON values; `gpupipe.report.results` draws them. An interrupt after the comparison ends the sweep, or the
        measuring of memory, and what there is is returned: it is not `complete` then.

    Raises:
        GpupipeError: the character or the model cannot be used, or a way that was asked for cannot run here.
    """
    effort, stages = options.effort, options.bench_stages
    folder = options.character or _demo(say)
    batch_sizes, worker_counts = options.batches or effort.batch_sizes, options.workers or effort.worker_counts
    fitting = [count for count in worker_counts if count <= cpu_count()]
    scene = Scene(
        SceneOptions(
            character=folder,
            model=options.model or folder / MODEL,
            frame_count=options.frames or effort.frame_count,
            batch_size=max(batch_sizes),
            workers=max(fitting, default=min(worker_counts)),
            precisions=options.precision,
            feature_cache=options.feature_cache,
            limits=options.limits,
        )
    )
    if scene.speech_repeats > 1:
        say(f"the speech lasts {scene.speech_frames} frames: it is said {scene.speech_repeats} times, in every way")
    runs = options.runs or effort.runs
    cv2.setNumThreads(OPENCV_THREADS)
    ways, absent = _picked(scene, options.ways)
    check_devices(options.precision, [way.device for way in ways if isinstance(way, GpupipeWay)])
    scene.made = make_files(scene, options.precision, say)
    machine = bench_machine.facts()
    with ExitStack() as closing, tempfile.TemporaryDirectory() as work:
        checked = {}
        for way in list(ways):
            say(f"{way.name}: loading, and comparing its frames with the reference")
            try:
                way.open()
            except GpupipeError as error:
                if not way.optional or way.name in (options.ways or ()):
                    raise
                way.close()
                absent[way.name] = str(error.naming(scene.options.model.name))  # and not its folder
                say(f"{way.name}: left out: {error.brief()}")
                ways.remove(way)
                continue
            closing.callback(way.close)
            checked[way.name] = check(way, stages)
        table = Timetable(ways, checked, runs, Path(work), say=say)
        timed = {stage: table.time(stage, BASES) for stage in stages}
        say("measuring what this machine can do at best")
        floor = _floor(scene, ways, timed)
        closing.close()
        swept: list[dict[str, Any]] = []
        memory: dict[str, Any] = {}
        complete = False
        with suppress(KeyboardInterrupt):  # which costs these two, and not what took most of the time
            ranked = {name for name, row in timed.get("render", {}).items() if row["rank"]}
            names = [name for name in SWEPT if name in ranked]
            if names and len(batch_sizes) * len(worker_counts) > 1:
                short = scene.varied(frame_count=min(scene.frame_count, SWEEP_FRAMES), batch_size=1, workers=1)
                sweep_runs = min(runs, effort.sweep_runs)
                swept = sweep(short, names, batch_sizes, worker_counts, runs=sweep_runs, folder=Path(work), say=say)
            for way in ways if options.stage == "all" else ():
                if "render" in way.stages:
                    memory |= _memory(scene, way, say)
            complete = True
    return {
        "schema": SCHEMA,
        "complete": complete,
        "gpupipe": __version__,
        "character": _character(scene) | ({} if options.character else {"name": "demo"}),
        "settings": _settings(scene, runs, ways) | {"command": options.command(folder)},
        "machine": machine | {"load_at_end": load()},
        "ways": {
            way.name: {
                "about": way.about,
                "pixel_format": way.pixel_format,
                "precision": way.precision,
                "meaningless": way.meaningless,
                "notes": list(way.notes),
            }
            for way in ways
        },
        "absent": absent,
        "precisions": {
            precision: {"bytes": made.path.stat().st_size, "made_now": made.made, "quality": made.quality.as_dict()}
            for precision, made in scene.made.items()
        },
        "stages": timed,
        "floor": floor,
        "sweep": swept,
        "memory": memory,
    }


def _memory(scene: Scene, way: Way, say: Say) -> dict[str, Any]:
    """What one way takes, by its name."""
    say(f"{way.name}: memory, in a process of its own")
    try:
        return {way.name: measure_memory(scene.options, way.name)}
    except GpupipeError as error:
        if not way.optional:
            raise
        # Whether features pay is measured in each process, and may come out otherwise where it is close.
        say(f"{way.name}: memory is left out: {error.brief()}")
        return {}


def _demo(say: Say) -> Path:
    """The demo's character, made on the first call."""
    folder = cache_folder() / f"demo-{__version__}-{DEMO_FRAMES}"
    if not (folder / MODEL).is_file():
        from gpupipe.demo import make_demo

        say(f"making the demo's character in {folder}")
        make_demo(folder, frames=DEMO_FRAMES)
    return folder


def _picked(scene: Scene, families: Sequence[str] | None) -> tuple[list[Way], dict[str, str]]:
    """The ways to compare, and those that cannot run here: an error only if they were asked for by name."""
    absent = absences(families or FAMILIES)
    if families is not None:
        for family, reason in absent.items():
            raise OptionError(f"{family} cannot run here: {reason}", field="--ways", remedy="leave it out")
    return ways_here(scene, families or FAMILIES), absent


def _floor(scene: Scene, ways: Sequence[Way], timed: dict[BenchStage, dict[str, Any]]) -> dict[str, Any]:
    """Measure what the machine can do, and add the floors to the rows."""
    cost = model_cost(scene.options.model, scene.layout)
    rates = MachineRates(scene.threads, next((way.gpu_provider for way in ways if way.gpu_provider), None))
    models = {way.name: model_floor(way, cost, rates) for way in ways}
    found = {way.name: floors(way, rates, models[way.name]) for way in ways}
    for stage, rows in timed.items():
        add_floors(rows, {name: each[stage] for name, each in found.items()})
    return {
        "host": rates.host,
        "device": rates.device,
        "model": cost,
        "model_ms": {name: floor.rounded() for name, floor in models.items()},
        "bytes_a_frame": {name: frame_bytes(scene, name) for name in FORMATS},
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


def _settings(scene: Scene, runs: int, ways: Sequence[Way]) -> dict[str, Any]:
    encoder = EncoderOptions.of(scene.output)
    crf, preset = DEFAULTS[encoder.encoder]
    return {
        "frames": scene.frame_count,
        "speech_frames": scene.speech_frames,
        "speech_repeats": scene.speech_repeats,
        "feature_cache": scene.options.feature_cache,
        "runs": runs,
        "batch": scene.batch_size,
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
