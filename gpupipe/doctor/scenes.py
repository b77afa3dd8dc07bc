"""Random frames on the host and on the GPU at once, for both compositors to draw."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from gpupipe.colour import Colour, PixelFormat
from gpupipe.compose.cpu import CpuCompositor
from gpupipe.compose.device_frames import DeviceFrames
from gpupipe.compose.device_speech import DeviceSpeech
from gpupipe.compose.frames import FrameSpec, HostFrames
from gpupipe.compose.gpu import GpuCompositor
from gpupipe.compose.protocol import BatchKind, Drawing
from gpupipe.compose.surface import Surface
from gpupipe.compose.table import device_shape
from gpupipe.geometry import SPEECH_STEPS, SPEECH_WIDTH, CropLayout, Rect
from gpupipe.gpu.device import Device
from gpupipe.gpu.types import Array
from gpupipe.speech.rows import SpeechRows

FRAMES = 3
"""Cached frames of a random character."""


class Actor(NamedTuple):
    """A random character with its speech, on both sides."""

    host: HostFrames
    device: DeviceFrames
    rows: SpeechRows
    placed: DeviceSpeech


class Case(NamedTuple):
    """What the frames of a random batch have in common."""

    layout: CropLayout
    pixel_format: PixelFormat
    dtype: Any
    model_on_device: bool

    @property
    def name(self) -> str:
        """For people."""
        where = "device" if self.model_on_device else "mapped"
        return f"{self.pixel_format} {np.dtype(self.dtype)} {self.layout.model_size} {where}"


@dataclass
class Pair:
    """Both compositors for one kind of batch, each with a slot, and actors of different bodies.

    `close` must be called.
    """

    case: Case
    gpu: Device
    rng: np.random.Generator
    batch: int

    def __post_init__(self) -> None:
        """Allocate it all."""
        case = self.case
        kind = BatchKind(case.layout, case.pixel_format, np.dtype(case.dtype), self.batch)
        self.actors = [
            _actor(self.gpu, case, self.rng, size, recorded=recorded, colour=colour)
            for size, recorded, colour in (
                ((64, 48), False, Colour()),
                ((222, 130), True, Colour(matrix=1)),
                ((96, 180), False, Colour(matrix=9, range=2)),
            )
        ]
        self.cpu = CpuCompositor(kind)
        self.on_gpu = GpuCompositor(self.gpu, kind, model_on_device=case.model_on_device)
        for actor in self.actors:
            self.cpu.admit(actor.host)
            self.on_gpu.admit(actor.device)
        self.cpu_slot, self.gpu_slot = self.cpu.new_slot(), self.on_gpu.new_slot()

    def draw(self, count: int) -> dict[str, int]:
        """Draw a mixed batch on both sides.

        Returns:
            How many values differ: of the model's inputs ("prepare"), of finished frames ("paste"), and of what is told
            of NaN ("status").
        """
        ours, theirs = self.drawings(count)
        prediction = self._prediction(count)
        self.cpu.prepare(self.cpu_slot, ours)
        self.on_gpu.prepare(self.gpu_slot, theirs)
        self.on_gpu.ready(self.gpu_slot)
        wrong = {"prepare": 0, "paste": 0, "status": 0}
        for name in ("visual", "audio"):
            given = on_host(self.gpu, getattr(self.gpu_slot, name))[:count]
            wrong["prepare"] += differing(getattr(self.cpu_slot, name)[:count], given)
        self.cpu_slot.prediction[:count] = prediction
        put(self.gpu, self.gpu_slot.prediction[:count], prediction)
        self.cpu.paste(self.cpu_slot)
        self.on_gpu.paste(self.gpu_slot)
        has_nan = self.on_gpu.finish(self.gpu_slot)
        wrong["status"] += differing(self.cpu.finish(self.cpu_slot), has_nan)
        for one, other in zip(ours, theirs, strict=True):
            wrong["paste"] += differing(one.surface.host, other.surface.host)
        return wrong

    def drawings(self, count: int) -> tuple[list[Any], list[Any]]:
        """Random frames to be drawn, for the CPU and for the GPU."""
        ours: list[Any] = []
        theirs: list[Any] = []
        for _ in range(count):
            actor = self.actors[self.rng.integers(len(self.actors))]
            source = int(self.rng.integers(FRAMES))
            row = int(self.rng.integers(-10, actor.rows.count + 10))
            fraction = (0, 1, SPEECH_STEPS // 2, int(self.rng.integers(SPEECH_STEPS)))[self.rng.integers(4)]
            format = actor.host.spec.format
            ours.append(
                Drawing(
                    actor.host, source, actor.rows, row, fraction, Surface(format, np.zeros(format.shape, np.uint8))
                )
            )
            pinned = self.gpu.pinned(format.shape, np.uint8)
            drawn = self.gpu.empty(device_shape(format), np.uint8)
            theirs.append(Drawing(actor.device, source, actor.placed, row, fraction, Surface(format, pinned, drawn)))
        return ours, theirs

    def close(self) -> None:
        """Release it all."""
        self.on_gpu.close()
        self.cpu.close()
        for actor in self.actors:
            actor.placed.close()
            actor.device.close()

    def _prediction(self, count: int) -> NDArray[Any]:
        """Values in and around 0 to 1; infinities, and in some frames a NaN."""
        size = self.case.layout.model_size
        values = self.rng.uniform(-0.2, 1.2, (count, 3, size, size)).astype(self.case.dtype)
        values.reshape(-1)[self.rng.integers(0, values.size, 6)] = [np.inf, -np.inf, -0.0, 1.0, 6e4, 1e-8]
        values[self.rng.integers(count), 0, 0, self.rng.integers(size)] = np.nan
        return values


def _actor(
    gpu: Device, case: Case, rng: np.random.Generator, size: tuple[int, int], *, recorded: bool, colour: Colour
) -> Actor:
    width, height = size
    rects = []
    for _ in range(FRAMES):
        wide, high = int(rng.integers(5, width)), int(rng.integers(5, height))
        x, y = int(rng.integers(1 - wide, width)), int(rng.integers(1 - high, height))  # at least a pixel is inside
        rects.append(Rect(x, y, x + wide, y + high))
    spec = FrameSpec(case.layout, case.pixel_format, width, height, tuple(rects), colour, recorded)

    def noise(*shape: int) -> NDArray[np.uint8]:
        return rng.integers(0, 256, (FRAMES, *shape), np.uint8)

    crop, model = case.layout.crop_size, case.layout.model_size
    decoded = noise(*spec.format.shape), noise(crop, crop, 3), noise(model, model, 6) if recorded else None
    rows = SpeechRows(rng.standard_normal((int(rng.integers(1, 40)), SPEECH_WIDTH)).astype(np.float32))
    return Actor(HostFrames.load(spec, *decoded), DeviceFrames.load(gpu, spec, *decoded), rows, DeviceSpeech(gpu, rows))


def on_host(gpu: Device, array: Array) -> NDArray[Any]:
    """A copy of an array on the host, once all that is queued is done."""
    gpu.synchronize()
    if isinstance(array, np.ndarray):
        return array.copy()
    host = gpu.pinned(array.shape, array.dtype)
    gpu.copy(host, array, gpu.copy_stream)
    gpu.synchronize()
    return host.copy()


def put(gpu: Device, target: Array, values: NDArray[Any]) -> None:
    """Write values into an array on either side, and wait until they are there."""
    if isinstance(target, np.ndarray):
        target[...] = values
        return
    staging = gpu.pinned(values.shape, values.dtype)
    staging[...] = values
    gpu.copy(target, staging, gpu.compute_stream)
    gpu.synchronize()


def differing(one: NDArray[Any] | None, other: NDArray[Any] | None) -> int:
    """How many elements of two arrays differ, bit for bit."""
    assert one is not None
    assert other is not None
    bits = np.dtype(f"u{one.dtype.itemsize}")
    return int(np.count_nonzero(np.ascontiguousarray(one).view(bits) != np.ascontiguousarray(other).view(bits)))
