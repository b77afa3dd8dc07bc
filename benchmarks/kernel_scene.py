"""What the kernels are counted and timed on: frames of noise on a device, and batches of them."""

from __future__ import annotations

from typing import Any

import numpy as np

from gpupipe.compose.device_frames import DeviceFrames
from gpupipe.compose.device_speech import DeviceSpeech
from gpupipe.compose.frames import FrameSpec
from gpupipe.compose.gpu import GpuCompositor, GpuDrawing, GpuSlot
from gpupipe.compose.protocol import BatchKind, Drawing
from gpupipe.compose.surface import Surface
from gpupipe.compose.table import device_shape
from gpupipe.doctor.scenes import put
from gpupipe.geometry import SPEECH_ROWS, SPEECH_WIDTH, CropLayout, Rect
from gpupipe.gpu import launch
from gpupipe.gpu.device import Device
from gpupipe.model.features import ResidentFeatures
from gpupipe.model.nets import TensorSpec
from gpupipe.speech.rows import SpeechRows

WIDTH, HEIGHT, LAYOUT = 1280, 720, CropLayout(320)

FEATURES = ((12, 1), (32, 2), (64, 4), (128, 8), (256, 16), (512, 32))
"""What is kept of a frame where the published model is cut in two (`model/split_file.py`): the channels of each tensor,
and how many times smaller than the model's image its sides are."""


def face_rects(count: int, width: int = WIDTH, height: int = HEIGHT) -> tuple[Rect, ...]:
    """Where a talking head's face is, for want of a real character's rectangles: 182 x 182 pixels of 1280 x 720."""
    found = []
    for i in range(count):
        x, y, side = (532 + i % 4) * width // WIDTH, (210 + i % 3) * height // HEIGHT, 182 * height // HEIGHT
        found.append(Rect(x, y, x + side, y + side))
    return tuple(found)


class KernelScene:
    """A character of noise on a device, and its speech.

    Args:
        device: where.
        spec: of its frames.
    """

    def __init__(self, device: Device, spec: FrameSpec) -> None:
        rng = np.random.default_rng(0)
        self.device, self.spec = device, spec
        body = rng.integers(0, 256, spec.format.shape, dtype=np.uint8)
        crop = rng.integers(0, 256, (spec.layout.crop_size, spec.layout.crop_size, 3), dtype=np.uint8)
        self.frames = DeviceFrames.load(device, spec, [body] * spec.count, [crop] * spec.count)
        rows = rng.random((spec.count + 2 * SPEECH_ROWS, SPEECH_WIDTH), dtype=np.float32)
        self._speech = DeviceSpeech(device, SpeechRows(rows))

    def drawings(self, batch: int, *, to_host: bool = False) -> list[GpuDrawing]:
        """The first frames in order, each with a surface of its own, on the host too if asked for."""
        format = self.spec.format
        found: list[GpuDrawing] = []
        for place in range(batch):
            host = self.device.pinned(format.shape, np.uint8) if to_host else None
            surface = Surface(format, host, self.device.empty(device_shape(format), np.uint8))
            found.append(Drawing(self.frames, place, self._speech, place + SPEECH_ROWS, 0, surface))
        return found

    def prepared(
        self, dtype: np.dtype[Any], batch: int, *, model_on_device: bool = True
    ) -> tuple[GpuCompositor, GpuSlot]:
        """A compositor, and a slot with the first frames, prepared, and with random predictions."""
        kind = BatchKind(self.spec.layout, self.spec.pixel_format, dtype, batch)
        compositor = GpuCompositor(self.device, kind, model_on_device=model_on_device)
        compositor.admit(self.frames)
        slot = compositor.new_slot()
        compositor.prepare(slot, self.drawings(batch))
        compositor.ready(slot)
        random = np.random.default_rng(0).random(slot.prediction.shape, dtype=np.float32)
        put(self.device, slot.prediction, random.astype(dtype))
        return compositor, slot

    def close(self) -> None:
        """Release what is cached."""
        self._speech.close()
        self.frames.close()


def features(layout: CropLayout, dtype: np.dtype[Any]) -> list[TensorSpec]:
    """The tensors that are kept of a frame."""
    found = []
    for channels, smaller in FEATURES:
        side = max(1, layout.model_size // smaller)
        found.append(TensorSpec(f"skip{smaller}", (None, channels, side, side), dtype, "frame"))
    return found


class GatherScene:
    """Features of twice as many frames as a batch has, on a device, every other one of which is gathered.

    Args:
        device: where.
        layout: of the crops.
        dtype: of the features.
        batch: frames.
    """

    def __init__(self, device: Device, layout: CropLayout, dtype: np.dtype[Any], batch: int) -> None:
        specs, self._device = features(layout, dtype), device
        self._kept, self._room = (
            ResidentFeatures.allocate(specs, frames, device.empty) for frames in (2 * batch, batch)
        )
        self._rows = [launch.Kept(self._kept.address, self._kept.frames, 2 * row) for row in range(batch)]

    def launch(self) -> None:
        """Queue the kernel."""
        arrays: Any = self._room.arrays
        with self._device.use():
            launch.gather(self._rows, arrays, stream=self._device.compute_stream)
