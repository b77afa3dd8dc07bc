"""The model, whole batches, and whole renders."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
from kernel_scene import KernelScene
from numpy.typing import NDArray

from gpupipe.character.folder import Character
from gpupipe.compose.protocol import BatchKind
from gpupipe.compose.traffic import least_bytes
from gpupipe.engine.gpu_backend import GpuBackend
from gpupipe.engine.lane import SLOTS, Lane, slots_of
from gpupipe.geometry import SPEECH_WIDTH
from gpupipe.model.cost import ModelFloor
from gpupipe.model.model import Bindings
from gpupipe.options import BATCH, ModelOptions, SpeechOptions
from gpupipe.render.engine import Engine
from gpupipe.render.plan import Plan
from gpupipe.render.stats import RenderStats
from gpupipe.render.write import opened_session
from gpupipe.trace import COMPOSITE, INFER, Trace
from on_gpu.bench import VARIANTS, Bench, Variant, text_of
from on_gpu.table import Least, Row, Subject, missing, timed

PASSES = 4
"""How often each slot is used in one timed run of whole batches."""

ENCODERS = ("libx264", "h264_nvenc")
RENDERS = 3
"""Timed renders of each kind, after one that opens everything."""


def models(bench: Bench) -> Iterator[Row]:
    """The model alone, and whole batches: prepared, predicted, pasted, copied to the host, three under way."""
    with ExitStack() as stack:
        scenes = [
            stack.enter_context(closing(KernelScene(bench.gpu, bench.spec(size, "nv12"))))
            for size in bench.settings.sizes
        ]
        for variant in VARIANTS:
            if variant.provider not in bench.settings.providers:
                continue
            subject = Subject("model", variant.name, variant.file)
            problem = bench.problems[variant.provider]
            if problem is None and variant.file not in bench.models:
                problem = f"there is no {variant.file} file of this model"
            if problem is not None:
                yield missing(subject, problem)
                continue
            for batch in bench.settings.batches:
                yield from _opened(bench, variant, subject._replace(batch=batch), scenes)


def _opened(bench: Bench, variant: Variant, subject: Subject, scenes: Sequence[KernelScene]) -> Iterator[Row]:
    """The rows of one opened model."""
    with ExitStack() as stack:
        lanes: list[Lane] = []

        def alone() -> Row:
            lane, notes = _lane(bench, variant, subject)
            stack.callback(lane.close)
            lanes.append(lane)
            least = Least(bench.model_seconds(variant, lane.batch))
            told = (*notes, _floors(bench.model_floor(variant, lane.batch)))
            seconds = _model_seconds(bench, lane, lane.free[0].bindings)
            return timed(subject, seconds, lane.batch, least=least, notes=told)

        def node_by_node() -> Row:
            (lane,) = lanes
            buffers = lane.free[0].buffers
            bindings = lane.model.bind(buffers.visual, buffers.audio, buffers.prediction)
            least = Least(bench.model_seconds(variant, lane.batch))
            return timed(named, _model_seconds(bench, lane, bindings), lane.batch, least=least)

        yield bench.attempt(subject, alone)
        if lanes and lanes[0].model.graphs:
            named = subject._replace(name=f"{subject.name}, no graph")
            yield bench.attempt(named, node_by_node)
        for lane in lanes:
            for scene in scenes:
                named = subject._replace(part="batch", frame=text_of((scene.spec.width, scene.spec.height)))
                yield bench.attempt(named, partial(_batches, bench, variant, named, lane, scene))


def _lane(bench: Bench, variant: Variant, subject: Subject) -> tuple[Lane, tuple[str, ...]]:
    """A lane as an engine opens it, and what is to be said of its model."""
    assert subject.batch is not None
    backend = GpuBackend(bench.gpu)
    options = ModelOptions(provider=variant.provider, batch=subject.batch, **variant.options)
    model, notes = backend.open_model(bench.models[variant.file], options)
    try:
        kind = BatchKind(bench.layout, "nv12", model.dtype, subject.batch)
        backend.warm_up(model, kind)
        backend.require(backend.lane_bytes(kind, model, slots_of(model, kind.batch)))
        lane = Lane(model, backend.compositor(kind, model), model.close)
        backend.capture(model, [slot.bindings for slot in lane.free])
        return lane, (*notes, *model.notes)
    except BaseException:
        model.close()
        raise


def _floors(floor: ModelFloor) -> str:
    """Both floors, of which the larger is the least."""
    told = {"operations": floor.operations, "bytes": floor.bytes}
    return "at least, ms a frame: " + ", ".join(
        f"{name} {'not known' if ms is None else f'{ms:.4f}'}" for name, ms in told.items()
    )


def _model_seconds(bench: Bench, lane: Lane, bindings: Bindings) -> list[float]:
    def work() -> None:
        lane.model.run(bindings, lane.batch)

    if lane.model.provider == "cpu":
        return bench.timer.host_seconds(work)
    return bench.timer.seconds(work, bench.gpu.compute_stream)


def _batches(bench: Bench, variant: Variant, subject: Subject, lane: Lane, scene: KernelScene) -> Row:
    """Whole batches through a lane, as an engine takes them: each slot again as soon as its batch is finished."""
    gpu, batch, compositor = bench.gpu, lane.batch, lane.compositor
    compositor.admit(scene.frames)
    flights = [(slot, scene.drawings(batch, to_host=True)) for slot in lane.free[:SLOTS]]

    def work() -> None:
        for number in range(PASSES * len(flights)):
            slot, drawings = flights[number % len(flights)]
            if number >= len(flights):
                compositor.finish(slot.buffers)
            compositor.prepare(slot.buffers, drawings)
            compositor.ready(slot.buffers)
            lane.model.run(slot.bindings, batch)
            compositor.paste(slot.buffers)
        for slot, _ in flights:
            compositor.finish(slot.buffers)

    if variant.provider == "cpu":
        seconds = bench.timer.host_seconds(work)
    else:
        seconds = bench.timer.seconds(work, gpu.compute_stream, until=gpu.copy_stream)
    frames = PASSES * len(flights) * batch
    drawn = sum(least_bytes(name, scene.spec, lane.kind.dtype, range(batch)) for name in ("prepare", "paste_nv12"))
    least = batch_least(drawn, scene.spec.format.nbytes, bench.model_seconds(variant, batch), bench.rates)
    return timed(subject, seconds, frames, least=least)


def batch_least(drawn: float, to_host: float, model: float | None, rates: dict[str, float]) -> Least:
    """The least seconds that a frame takes: kernels and model one after the other, the copy to the host beside them.

    Args:
        drawn: bytes that the kernels must move.
        to_host: bytes of a finished frame.
        model: seconds, or None if they are not known.
        rates: `device_rates`.
    """
    copied = to_host / rates["to_host_bytes_per_second"]
    if model is None:
        return Least()
    return Least(max(drawn / rates["copy_bytes_per_second"] + model, copied))


class _Renders(NamedTuple):
    """What every session and render is given."""

    bench: Bench
    engine: Engine
    variant: Variant
    features: NDArray[np.float32]
    folder: Path

    def session(self, subject: Subject, character: Character) -> Row:
        variant, model = self.variant, self.bench.models[self.variant.file]
        options = ModelOptions(model=model, provider=variant.provider, batch=subject.batch or 1)
        plan = Plan.make(character, "nv12", options, SpeechOptions(features=self.features), sound=False)
        traces: list[Trace] = []

        def work() -> float:
            traces.append(Trace())
            with opened_session(self.engine, plan, traces[-1]) as session:
                began = time.perf_counter()
                for surface in session:
                    surface.release()
                return time.perf_counter() - began

        seconds = _few(work)
        told = {"prepare and paste": traces[-1].mean_ms(*COMPOSITE), "model": traces[-1].mean_ms(INFER)}
        return self._row(subject, seconds, plan.total, told)

    def render(self, subject: Subject, character: Character, encoder: str) -> Row:
        told: list[RenderStats] = []

        def work() -> float:
            stats = self.engine.render(
                character,
                self.folder / "out.mp4",
                model=self.bench.models[self.variant.file],
                provider=self.variant.provider,
                batch=subject.batch or 1,
                features=self.features,
                encoder=encoder,
                sound=False,
                overwrite=True,
            )
            told.append(stats)
            return stats.total_seconds

        seconds = _few(work)
        stages = {name: times.mean_ms for name, times in told[-1].stages.items()}
        return self._row(subject, seconds, told[-1].frames, stages)

    def _row(self, subject: Subject, seconds: list[float], frames: int, stages: dict[str, float]) -> Row:
        least = self.bench.model_seconds(self.variant, subject.batch or 1)
        notes = "ms a frame: " + ", ".join(f"{name} {ms:.4f}" for name, ms in stages.items())
        return timed(subject, seconds, frames, least=Least(least), notes=[notes])


def renders(bench: Bench, characters: Sequence[Character], folder: Path) -> Iterator[Row]:
    """Sessions of an engine whose frames nobody keeps, in every batch size; and videos, in the usual one."""
    variant, batches = bench.best, bench.settings.batches
    features = np.random.default_rng(0).random((bench.settings.rendered, SPEECH_WIDTH), np.float32)
    usual = min(batches, key=lambda batch: abs(batch - BATCH))
    with Engine(device=f"cuda:{bench.gpu.index}") as engine:
        given = _Renders(bench, engine, variant, features, folder)
        for character in characters:
            frame = text_of((character.body.width, character.body.height))
            for batch in batches:
                subject = Subject("engine", f"{variant.name}, session", variant.file, frame, batch)
                yield bench.attempt(subject, partial(given.session, subject, character))
            for encoder in ENCODERS:
                subject = Subject("render", f"{variant.name}, {encoder}", variant.file, frame, usual)
                yield bench.attempt(subject, partial(given.render, subject, character, encoder))


def _few(work: Callable[[], float]) -> list[float]:
    """Seconds of a few runs, after one that opens what they need."""
    return [work() for _ in range(1 + RENDERS)][1:]
