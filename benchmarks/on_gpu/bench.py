"""What is measured, and on what; and what the GPU can do at most."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from kernel_scene import face_rects

from gpupipe.colour import PixelFormat
from gpupipe.compose.frames import FrameSpec
from gpupipe.errors import GpupipeError, reason
from gpupipe.geometry import CropLayout
from gpupipe.gpu.device import Device
from gpupipe.gpu.limits import limits_of
from gpupipe.gpu.timer import Timer
from gpupipe.machine import cpu_count
from gpupipe.model import rates
from gpupipe.model.cost import ModelFloor, model_cost, moved_bytes
from gpupipe.model.rates import Arithmetic
from gpupipe.model.runtime import Provider, probe_provider
from on_gpu.table import Row, Subject, missing, without_paths

Size = tuple[int, int]


class Variant(NamedTuple):
    """A way to run the model.

    Attributes:
        provider: which.
        file: the type of the file's numbers.
        arithmetic: in which it multiplies.
        options: of `ModelOptions`.
    """

    provider: Provider
    file: str
    arithmetic: Arithmetic
    options: Mapping[str, Any] = {}

    @property
    def name(self) -> str:
        """For people: "cuda tf32"."""
        return " ".join((self.provider, *self.options.values()))


VARIANTS = (
    Variant("cpu", "float32", "float32"),
    Variant("cuda", "float32", "float32"),
    Variant("cuda", "float32", "tf32", {"precision": "tf32"}),
    Variant("cuda", "float16", "float16", {"precision": "fp16"}),
    Variant("tensorrt", "float32", "tf32"),  # with or without being told to, wherever the GPU can
    Variant("tensorrt", "float16", "float16", {"precision": "fp16"}),
)


@dataclass(frozen=True)
class Settings:
    """How much is measured.

    Attributes:
        sizes: of the body, width and height.
        batches: frames in a batch.
        providers: of the models.
        runs, warm_up: of everything that is timed.
        most_seconds: of one row, but for its first runs.
        flush_bytes: more than the GPU's caches hold.
        busy_ms: longer than it takes to queue a launch.
        rendered: frames of a render.
    """

    sizes: Sequence[Size] = ((1280, 720), (1920, 1080))
    batches: Sequence[int] = (1, 4, 8, 16, 32)
    providers: Sequence[Provider] = ("cpu", "cuda", "tensorrt")
    runs: int = 30
    warm_up: int = 3
    most_seconds: float = 3.0
    flush_bytes: int = 256_000_000
    busy_ms: float = 2.0
    rendered: int = 250


QUICK = Settings(
    ((96, 64), (160, 96)), (1, 2), runs=2, warm_up=1, most_seconds=1.0, flush_bytes=1 << 16, busy_ms=0.1, rendered=12
)
"""A try-out: everything once or twice, and small."""


class Bench:
    """What is measured. What the GPU can do is measured when it is made.

    Args:
        gpu: opened.
        settings: how much.
        layout: of the crops.
        models: the ONNX file of each type ("float32", "float16") that there is; at least one.
        say: told what is going on.

    Attributes:
        notes: what could not be measured of the GPU, and why.
    """

    def __init__(
        self,
        gpu: Device,
        settings: Settings,
        layout: CropLayout,
        models: Mapping[str, Path],
        say: Callable[[str], None] = lambda line: None,
    ) -> None:
        self.gpu, self.settings, self.layout, self.models, self.say = gpu, settings, layout, models, say
        self.timer = Timer(
            gpu,
            runs=settings.runs,
            warm_up=settings.warm_up,
            most_seconds=settings.most_seconds,
            busy_ms=settings.busy_ms,
            flush_bytes=settings.flush_bytes,
        )
        self.limits = limits_of(gpu.index)
        self.notes: list[str] = []
        say("what the GPU can do")
        self.nothing_seconds = self.timer.seconds(lambda: None, gpu.compute_stream, cold=True)
        self.rates = {name: rate for name, rate in rates.device_rates(gpu, "cpu").items() if rate is not None}

    @cached_property
    def problems(self) -> dict[Provider, str | None]:
        """Why a provider does not open; None for one that does."""
        return {provider: probe_provider(provider) for provider in self.settings.providers}

    @property
    def best(self) -> Variant:
        """What runs the model where only one way is asked for."""
        exact = [each for each in VARIANTS if each.file in self.models and each.arithmetic == each.file]
        on_gpu = [each for each in exact if each.provider == "cuda" and self.problems.get("cuda", "") is None]
        return (on_gpu or [Variant("cpu", next(iter(self.models)), "float32")])[0]

    @cached_property
    def cost(self) -> dict[str, int]:
        """What a frame costs the model, whatever the type of its numbers."""
        return model_cost(next(iter(self.models.values())), self.layout)

    @cached_property
    def host_rates(self) -> dict[str, float]:
        """Of this machine's CPU."""
        return rates.host_rates(cpu_count())

    @cached_property
    def flops(self) -> dict[str, float]:
        """Operations a second of the GPU's matrix products: "float32", "tf32", "float16", if it has them."""
        found: dict[str, float] = {}
        kinds: tuple[Arithmetic, ...] = ("float32", "tf32", "float16")
        for kind in kinds if self.problems.get("cuda", "") is None else ():
            try:
                found[kind] = rates.device_matrix_rate(self.gpu, kind)
            except Exception as error:  # then there is nothing to compare with, but much to measure
                self.notes.append(without_paths(f"no rate of {kind} matrix products: {reason(error)}"))
        return found

    def model_floor(self, variant: Variant, batch: int) -> ModelFloor:
        """The least that the model takes, by its multiplications and by the bytes that it moves.

        Args:
            variant: how it is run.
            batch: frames of a run; on the CPU each frame is one.
        """
        file, on_cpu = self.models[variant.file], variant.provider == "cpu"
        cost = self.cost | {"weight_bytes": file.stat().st_size}
        moved = moved_bytes(cost, np.dtype(variant.file).itemsize, 1 if on_cpu else batch)
        if on_cpu:
            rate, bandwidth = (self.host_rates[name] for name in ("flops_per_second", "threads_copy_bytes_per_second"))
            return ModelFloor.of(cost["macs"], moved, rate, bandwidth)
        return ModelFloor.of(
            cost["macs"], moved, self.flops.get(variant.arithmetic), self.rates["copy_bytes_per_second"]
        )

    def model_seconds(self, variant: Variant, batch: int) -> float | None:
        """The larger of the model's two floors; None where one of them is not known."""
        floor = self.model_floor(variant, batch)
        return None if floor.operations is None or floor.ms is None else floor.ms / 1e3

    def spec(self, size: Size, pixel_format: PixelFormat) -> FrameSpec:
        """Of a character with a frame for each place of the largest batch."""
        rects = face_rects(max(self.settings.batches), *size)
        return FrameSpec(self.layout, pixel_format, *size, rects)

    def attempt(self, subject: Subject, work: Callable[[], Row]) -> Row:
        """A row; or, if it cannot be had, one that says why."""
        (row,) = self.attempts(subject, lambda: iter((work(),)))
        return row

    def attempts(self, subject: Subject, work: Callable[[], Iterator[Row]]) -> Iterator[Row]:
        """Rows; where they end too early, the last one says why. What else is measured goes on."""
        self.say(" ".join(str(each) for each in subject if each is not None))
        try:
            yield from work()
        except GpupipeError as error:
            yield missing(subject, error.on_command_line())
        except Exception as error:  # this program's fault, or a library's: the other rows are wanted all the same
            yield missing(subject, f"{type(error).__name__}: {reason(error)}")


def text_of(size: Size) -> str:
    """A size for people: 1280x720."""
    return "x".join(map(str, size))
