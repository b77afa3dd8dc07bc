"""The compositor on the GPU: each step is a launch or a copy, queued on the device's streams.

    compute stream   indexes up · prepare · (the model) · paste
    copy stream                                         └ finished frames and status down

Only `finish` waits, once a batch; `ready` waits too where the model runs on the host.

A slot's buffers are reused without further ordering, because the steps of a slot are called in order: `finish` has
waited for the copy of the frames, which follows the paste and so everything queued for the slot before it.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from gpupipe.compose.device_frames import DeviceFrames, frame_rows
from gpupipe.compose.frames import FrameSpec
from gpupipe.errors import DeviceError
from gpupipe.geometry import SPEECH_SHAPE, SPEECH_WIDTH, CropLayout
from gpupipe.gpu import kernels
from gpupipe.gpu.device import Copy, Device
from gpupipe.options import MAX_BATCH


@dataclass
class GpuSlot:
    """The buffers of one batch; see `compositor.Slot`.

    Attributes:
        visual: a CuPy array where the model runs on the device, else a NumPy array in page-locked memory that the
            kernels address in place; like `audio` and `prediction`.
        frames: in page-locked memory.
        drawn: the event that follows the paste on the compute stream, with timing.

    The names with an underscore are the compositor's: what the kernels are given, and the events between its steps.
    """

    visual: Any
    audio: Any
    prediction: Any
    frames: NDArray[np.uint8]
    drawn: Any
    _visual: Any
    _audio: Any
    _prediction: Any
    _index: Any
    _host_index: NDArray[np.int32]
    _drawn_frames: Any
    _status: Any
    _host_status: NDArray[np.uint32]
    _prepared: Any
    _copied: Any


class GpuCompositor:
    """Draws finished frames on a GPU; see `compositor.Compositor`.

    Args:
        device: where the frames are.
        frames: the character's frames; released by `close`.
        speech: speech features, float32 `[N, 512]`, a NumPy array or a CuPy array on this device.
        batch: frames a batch, B.
        dtype: what the model reads and writes, float32 or float16.
        model_on_device: whether the model reads and writes device memory, on `device.compute_stream`.

    Raises:
        DeviceMemoryError: the GPU's memory does not suffice.
        KernelError: a kernel is missing or does not compile.
    """

    def __init__(
        self,
        device: Device,
        frames: DeviceFrames,
        speech: Any,
        *,
        batch: int,
        dtype: DTypeLike = np.float32,
        model_on_device: bool = True,
    ) -> None:
        if not 1 <= batch <= MAX_BATCH:
            raise ValueError(f"batch must be 1 to {MAX_BATCH} (got {batch})")
        if speech.dtype != np.float32 or speech.ndim != 2 or speech.shape[1] != SPEECH_WIDTH:
            raise ValueError(f"speech must be float32 [N, {SPEECH_WIDTH}] (got {speech.dtype} {list(speech.shape)})")
        self.device = device
        self.frames = frames
        self.spec = frames.spec
        self.batch = batch
        self.dtype = np.dtype(dtype)
        self.model_on_device = model_on_device
        self._slots: list[GpuSlot] = []
        self._rows, self._pitch = frame_rows(self.spec)
        with device.use():
            for name in ("prepare", f"paste_{self.spec.pixel_format}"):
                kernels.load(name, self.dtype)
        self._speech = device.upload(speech, "speech features") if isinstance(speech, np.ndarray) else speech

    @staticmethod
    def bytes_wanted(
        spec: FrameSpec,
        *,
        batch: int,
        slots: int,
        speech_rows: int,
        dtype: DTypeLike = np.float32,
        model_on_device: bool = True,
    ) -> dict[str, int]:
        """Bytes of device memory that a compositor with `slots` slots takes besides its frames, by name."""
        rows, pitch = frame_rows(spec)
        values = 9 * spec.layout.model_size**2 + int(np.prod(SPEECH_SHAPE))
        model = values * np.dtype(dtype).itemsize if model_on_device else 0
        small = batch * 8 + -(-batch // 32) * 4
        return {"slots": slots * (batch * (rows * pitch + model) + small), "speech": speech_rows * SPEECH_WIDTH * 4}

    def new_slot(self) -> GpuSlot:
        """Allocate the buffers of one batch, on the device and page-locked on the host."""
        device, batch = self.device, self.batch
        allocate = device.empty if self.model_on_device else device.pinned
        shapes = model_shapes(self.spec.layout, batch)
        visual, audio, prediction = (allocate(shape, self.dtype, "a slot") for shape in shapes)
        words = -(-batch // 32)
        slot = GpuSlot(
            visual=visual,
            audio=audio,
            prediction=prediction,
            frames=device.pinned((batch, *self.spec.format.shape), np.uint8, "finished frames"),
            drawn=device.event(timing=True),
            _visual=visual if self.model_on_device else device.mapped(visual),
            _audio=audio if self.model_on_device else device.mapped(audio),
            _prediction=prediction if self.model_on_device else device.mapped(prediction),
            _index=device.empty((batch, 2), np.int32, "a slot"),
            _host_index=device.pinned((batch, 2), np.int32, "a slot"),
            _drawn_frames=device.empty((batch, self._rows, self._pitch), np.uint8, "finished frames"),
            _status=device.empty((words,), np.uint32, "a slot"),
            _host_status=device.pinned((words,), np.uint32, "a slot"),
            _prepared=device.event(),
            _copied=device.event(),
        )
        self._slots.append(slot)
        return slot

    def prepare(self, slot: GpuSlot, source: NDArray[np.int32], speech: NDArray[np.int32]) -> None:
        """Queue the upload of the indexes, and the filling of the model's inputs."""
        device, stream = self.device, self.device.compute_stream
        slot._host_index[:, 0] = source
        slot._host_index[:, 1] = speech
        # The kernels read where these say.
        if slot._host_index[:, 0].min() < 0 or slot._host_index[:, 0].max() >= self.spec.count:
            raise IndexError(f"source must be 0 to {self.spec.count - 1} (got {source.min()} to {source.max()})")
        with device.use():
            device.copy(slot._index, slot._host_index, stream)
            kernels.prepare(
                self.frames.crops,
                self.frames.recorded,
                self._speech,
                slot._index,
                slot._visual,
                slot._audio,
                slot._status,
                layout=self.spec.layout,
                stream=stream,
            )
            if not self.model_on_device:
                device.record(slot._prepared, stream)

    def ready(self, slot: GpuSlot) -> None:
        """Wait for the inputs where the model runs on the host; on the device its stream keeps the order."""
        if not self.model_on_device:
            self.device.wait(slot._prepared)

    def paste(self, slot: GpuSlot) -> None:
        """Queue the drawing of the predictions, and the copy of the finished frames to the host."""
        device, frames, spec = self.device, self.frames, self.spec
        with device.use():
            kernels.paste(
                slot._prediction,
                frames.crops,
                frames.body,
                frames.placements,
                frames.taps,
                spec.colour.from_bgr,
                slot._index,
                slot._drawn_frames,
                slot._status,
                pixel_format=spec.pixel_format,
                layout=spec.layout,
                width=spec.width,
                height=spec.height,
                draw_threads=int(frames.draw_threads[slot._host_index[:, 0]].max()),
                stream=device.compute_stream,
            )
            device.record(slot.drawn, device.compute_stream)
            device.order(device.copy_stream, slot.drawn)
            width = spec.format.nbytes // self._rows
            rows = Copy(rows=self.batch * self._rows, width=width, source_pitch=self._pitch, target_pitch=width)
            device.copy(slot.frames, slot._drawn_frames, device.copy_stream, rows=rows)
            device.copy(slot._host_status, slot._status, device.copy_stream)
            device.record(slot._copied, device.copy_stream)

    def finish(self, slot: GpuSlot) -> NDArray[np.bool_]:
        """Wait for the copy of the frames: the one wait of a batch."""
        self.device.wait(slot._copied)
        bits = np.unpackbits(slot._host_status.view(np.uint8), bitorder="little")
        return bits[: self.batch].astype(np.bool_)

    def close(self) -> None:
        """Wait for what is queued, and release every buffer, the frames' too."""
        # A GPU that has failed has said so where its result was waited for: that error is the one to show.
        with suppress(DeviceError):
            self.device.synchronize()
        for slot in self._slots:
            for name in vars(slot):
                setattr(slot, name, None)
        self._slots.clear()
        self._speech = None
        self.frames.close()


def model_shapes(layout: CropLayout, batch: int) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
    """The shapes of `visual`, `audio` and `prediction`: what a model reads and writes for a batch."""
    size = layout.model_size
    return (batch, 6, size, size), (batch, *SPEECH_SHAPE), (batch, 3, size, size)
