"""Characters, speeches and surfaces of noise on a device, and batches of theirs, which must equal the reference."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import reference
from numpy.typing import NDArray

from gpupipe.compose.device_frames import DeviceFrames, DeviceTable
from gpupipe.compose.device_speech import DeviceSpeech
from gpupipe.compose.frames import FrameSpec
from gpupipe.compose.gpu import GpuCompositor, GpuSlot
from gpupipe.compose.protocol import Drawing
from gpupipe.compose.surface import Surface, SurfaceFormat
from gpupipe.compose.table import device_shape
from gpupipe.gpu.device import Device
from gpupipe.gpu.types import PitchedRows
from gpupipe.speech.rows import SpeechRows

Array = NDArray[Any]


def noise(rng: np.random.Generator, *shape: int) -> NDArray[np.uint8]:
    return rng.integers(0, 256, shape, dtype=np.uint8)


class Character:
    """Noise in every buffer of a character, on the host and on a device.

    Attributes:
        body, crops, recorded: as they are decoded, all frames.
        frames: the same on the device.
    """

    def __init__(self, device: Device, spec: FrameSpec, seed: int) -> None:
        rng = np.random.default_rng(seed)
        crop, size = spec.layout.crop_size, spec.layout.model_size
        self.spec = spec
        self.body = noise(rng, spec.count, *spec.format.shape)
        self.crops = noise(rng, spec.count, crop, crop, 3)
        self.recorded = noise(rng, spec.count, size, size, 6) if spec.recorded else None
        self.frames = DeviceFrames.load(device, spec, self.body, self.crops, self.recorded)

    def visual(self, source: int) -> NDArray[np.float32]:
        if self.recorded is None:
            return reference.visual_input(self.crops[source], self.spec.layout)
        planes = self.recorded[source].transpose(2, 0, 1)
        return np.ascontiguousarray(planes.astype(np.float32) / np.float32(255))

    def finished(self, source: int, prediction: Array) -> NDArray[np.uint8]:
        spec = self.spec
        given = (prediction, self.crops[source], self.body[source], spec.rects[source], spec.layout)
        if spec.pixel_format == "nv12":
            return reference.composite_nv12(*given, spec.colour)
        return reference.composite_bgr24(*given)


class Speech:
    """A speech on the host, and on a device."""

    def __init__(self, device: Device, features: NDArray[np.float32], *, growing: bool = False) -> None:
        self.features = features
        self.rows = SpeechRows() if growing else SpeechRows(features)
        if growing:
            self.rows.append(features)
        self.device = DeviceSpeech(device, self.rows)

    def grow(self, features: NDArray[np.float32]) -> None:
        self.rows.append(features)
        self.features = np.concatenate([self.features, features])


def features(rng: np.random.Generator, rows: int) -> NDArray[np.float32]:
    return rng.standard_normal((rows, 512)).astype(np.float32)


class Shot(NamedTuple):
    """A frame to be drawn."""

    character: Character
    source: int
    speech: Speech
    row: int
    fraction: int = 0
    on_host: bool = True
    given: NDArray[np.float32] | None = None

    def drawing(self, device: Device) -> Drawing[DeviceTable, DeviceSpeech]:
        surface = new_surface(device, self.character.spec.format, on_host=self.on_host)
        place = self.speech.device, self.row, self.fraction
        return Drawing(self.character.frames, self.source, *place, surface, self.given)

    def seen(self) -> NDArray[np.float32]:
        return self.character.visual(self.source) if self.given is None else self.given


def new_surface(device: Device, format: SurfaceFormat, *, on_host: bool = True) -> Surface:
    host = device.pinned(format.shape, np.uint8) if on_host else None
    return Surface(format, host, device.empty(device_shape(format), np.uint8))


def pixels(device: Device, surface: Surface) -> NDArray[np.uint8]:
    """A surface's frame, which is complete; of one on the device alone, a copy."""
    if surface.host is not None:
        return surface.host
    assert surface.device is not None
    format = surface.format
    host = device.pinned(format.shape, np.uint8)
    rows, pitch = device_shape(format)
    layout = PitchedRows(rows=rows, width=format.row_bytes, source_pitch=pitch, target_pitch=format.row_bytes)
    device.copy(host, surface.device, device.copy_stream, rows=layout)
    device.synchronize()
    return host


def on_host(device: Device, array: Any) -> Array:
    """The contents of a slot's buffer, once what is queued is done."""
    if isinstance(array, np.ndarray):
        return array.copy()
    device.compute_stream.synchronize()
    host = device.pinned(array.shape, array.dtype)
    device.copy(host, array, device.copy_stream)
    device.synchronize()
    return host


def put(device: Device, to: Any, values: Array) -> None:
    """Write predictions to the first places, as a model would: on the host, or on the compute stream."""
    if isinstance(to, np.ndarray):
        to[: len(values)] = values
    else:
        staging = device.pinned(values.shape, values.dtype)
        staging[...] = values
        device.copy(to[: len(values)], staging, device.compute_stream)
        device.compute_stream.synchronize()


def predictions(rng: np.random.Generator, count: int, size: int, dtype: Any, *, strange: bool = True) -> Array:
    """Values in and around 0 to 1; `strange` puts infinities and NaN in some frames."""
    p = rng.uniform(-0.2, 1.2, (count, 3, size, size)).astype(dtype)
    k = np.arange(256, dtype=np.float32) / np.float32(255)
    p.reshape(-1)[: len(k)] = k[: p.size].astype(dtype)
    if strange:
        p.reshape(-1)[rng.integers(0, p.size, 8)] = [np.inf, -np.inf, -0.0, 1.0, 1e-8, 0.999, 6e4, -6e4]
        for frame in rng.choice(count, (count + 1) // 2, replace=False):
            p[frame].reshape(-1)[rng.integers(0, p[frame].size)] = np.nan
    return p


def check_batch(
    device: Device, compositor: GpuCompositor, slot: GpuSlot, shots: Sequence[Shot], prediction: Array
) -> None:
    """One batch through a slot; every byte of its inputs, frames and status must be the reference's."""
    dtype = compositor.kind.dtype
    drawings = [shot.drawing(device) for shot in shots]
    compositor.prepare(slot, drawings)
    compositor.ready(slot)
    visual, audio = on_host(device, slot.visual), on_host(device, slot.audio)
    for i, shot in enumerate(shots):
        want = shot.seen().astype(dtype)
        assert visual[i].tobytes() == want.tobytes(), f"visual {i}"
        window = reference.speech_window(shot.speech.features, shot.row, shot.fraction).astype(dtype)
        assert audio[i].tobytes() == window.tobytes(), f"audio {i}"
        defined = np.empty((16, 512), dtype)
        shot.speech.rows.window(shot.row, shot.fraction, defined)
        assert audio[i].tobytes() == defined.tobytes(), f"audio {i}"
    put(device, slot.prediction, prediction)
    compositor.paste(slot)
    has_nan = compositor.finish(slot)
    assert has_nan.dtype == np.bool_
    assert has_nan.tolist() == [bool(np.isnan(p).any()) for p in prediction]
    for i, (shot, drawing) in enumerate(zip(shots, drawings, strict=True)):
        want, rect = shot.character.finished(shot.source, prediction[i]), shot.character.spec.rects[shot.source]
        assert np.array_equal(pixels(device, drawing.surface), want), f"frame {i}, {rect}"
