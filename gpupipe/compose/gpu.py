"""The compositor on the GPU: each step is a launch or a copy, queued on the device's streams.

    compute stream   the table up · prepare · (the model) · paste
    copy stream                                                 └ finished frames and status down

Only `finish` waits, once a batch; `ready` waits too where the model runs on the host.

A slot's buffers are reused without further ordering, because the steps of a slot are called in order: `finish` has
waited for the copies, which follow the paste and so everything queued for the slot before it.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final
from weakref import WeakSet

import numpy as np
from numpy.typing import NDArray

from gpupipe.colour import matrices
from gpupipe.compose.device_frames import DeviceTable
from gpupipe.compose.device_given import GivenInputs
from gpupipe.compose.device_speech import DeviceSpeech
from gpupipe.compose.protocol import BatchKind, Drawing
from gpupipe.compose.surface import SurfaceFormat
from gpupipe.compose.table import ROW, Rows, device_shape
from gpupipe.errors import DeviceError
from gpupipe.gpu import kernels, launch
from gpupipe.gpu.clock import GpuClock, Marks
from gpupipe.gpu.device import Device
from gpupipe.gpu.types import Array, DeviceArray, Event, PitchedRows
from gpupipe.model.signature import model_shapes
from gpupipe.options import MAX_BATCH
from gpupipe.trace import PASTE, PREPARE

GpuDrawing = Drawing[DeviceTable, DeviceSpeech]

KEPT_ROWS: Final = 250
"""Rows of a growing speech that stay behind its latest frame: 10 seconds. A batch that failed may be drawn again."""


@dataclass
class GpuSlot:
    """The buffers of one batch; see `protocol.Slot`.

    Attributes:
        visual: a CuPy array where the model runs on the device, else a NumPy array in page-locked memory that the
            kernels address in place; like `audio` and `prediction`.
        marks: when its steps ran: those that the compositor marks, and the model's, for who runs it to mark if it
            runs on the compute stream.

    The names with an underscore are the compositor's: what the kernels are given, the batch under way, and the events
    between its steps.
    """

    visual: Array
    audio: Array
    prediction: Array
    marks: Marks
    _visual: DeviceArray
    _audio: DeviceArray
    _prediction: DeviceArray
    _table: DeviceArray
    _host_table: NDArray[np.uint8]
    _rows: Rows
    _status: DeviceArray
    _host_status: NDArray[np.uint32]
    _prepared: Event
    _copied: Event
    _given: GivenInputs
    _frames: tuple[GpuDrawing, ...] = ()
    _filled: int = 0
    _under_way: bool = False


class GpuCompositor:
    """Draws finished frames on a GPU; a `protocol.Compositor[GpuSlot, DeviceTable, DeviceSpeech]`.

    Surfaces must have a device side, uint8 `device_shape(format)`; what has a host side too is copied there. `prepare`
    uploads the rows that the speeches of its frames have gained, and lets go of those `KEPT_ROWS` behind them.

    Args:
        device: where to draw.
        kind: of the batches.
        model_on_device: whether the model reads and writes device memory, on `device.compute_stream`.

    Raises:
        DeviceMemoryError: the GPU's memory does not suffice.
        KernelError: a kernel is missing, does not compile, or cannot work on crops of this size.
    """

    def __init__(self, device: Device, kind: BatchKind, *, model_on_device: bool = True) -> None:
        if not 1 <= kind.batch <= MAX_BATCH:
            raise ValueError(f"batch must be 1 to {MAX_BATCH} (got {kind.batch})")
        launch.check_layout(kind.layout)
        self.device = device
        self.kind = kind
        self.model_on_device = model_on_device
        self.clock = GpuClock(device)
        self._slots: list[GpuSlot] = []
        self._admitted: WeakSet[DeviceTable] = WeakSet()
        self._draw_blocks = self._copy_blocks = 0
        with device.use():
            for name in ("prepare", f"paste_{kind.pixel_format}"):
                kernels.load(name, kind.dtype)
        # In memory, not among the kernel's parameters: those a thread can index only by a copy of its own.
        self._matrices = device.upload(matrices())

    @staticmethod
    def bytes_wanted(kind: BatchKind, *, slots: int, model_on_device: bool = True) -> dict[str, int]:
        """Bytes of device memory that a compositor with `slots` slots takes, by name; without frames, speeches and
        surfaces."""
        shapes = model_shapes(kind.layout, kind.batch)
        model = sum(int(np.prod(shape)) for shape in shapes) * kind.dtype.itemsize if model_on_device else 0
        slot = model + kind.batch * ROW.itemsize + launch.status_words(kind.batch) * np.dtype(np.uint32).itemsize
        return {"slots": slots * slot, "matrices": matrices().nbytes}

    def admit(self, frames: DeviceTable) -> None:
        """Let launches have the blocks that the frames of a character need; they never have fewer again.

        Raises:
            ValueError: the frames are not of this kind, or on another device.
        """
        spec, kind = frames.spec, self.kind
        if (spec.layout, spec.pixel_format) != (kind.layout, kind.pixel_format):
            raise ValueError(
                f"frames must have {kind.layout} and {kind.pixel_format} (got {spec.layout} and {spec.pixel_format})"
            )
        if frames.device.index != self.device.index:
            raise ValueError(f"frames must be on GPU {self.device.index} (got GPU {frames.device.index})")
        self._draw_blocks = max(self._draw_blocks, frames.draw_blocks)
        self._copy_blocks = max(self._copy_blocks, frames.copy_blocks)
        self._admitted.add(frames)

    def new_slot(self) -> GpuSlot:
        """Allocate the buffers of one batch, on the device and page-locked on the host."""
        device, batch, stream = self.device, self.kind.batch, self.device.compute_stream
        table = device.empty((batch, ROW.itemsize), np.uint8, "a slot")
        host_table = device.pinned((batch, ROW.itemsize), np.uint8, "a slot")
        status = device.empty((launch.status_words(batch),), np.uint32, "a slot")
        host_table[...] = 0
        device.clear(table, stream)
        (visual, on_visual), (audio, on_audio), (prediction, on_prediction) = map(
            self._model_buffer, model_shapes(self.kind.layout, batch)
        )
        slot = GpuSlot(
            visual=visual,
            audio=audio,
            prediction=prediction,
            marks=self.clock.marks(),
            _visual=on_visual,
            _audio=on_audio,
            _prediction=on_prediction,
            _table=table,
            _host_table=host_table,
            _rows=host_table.view(ROW)[:, 0],
            _status=status,
            _host_status=device.pinned(status.shape, np.uint32, "a slot"),
            _prepared=device.event(),
            _copied=device.event(),
            _given=GivenInputs(device, visual.shape, self.kind.dtype),
        )
        self._slots.append(slot)
        return slot

    def prepare(self, slot: GpuSlot, frames: Sequence[GpuDrawing]) -> None:
        """Queue the upload of the table, and the filling of the model's inputs.

        Raises:
            IndexError: a source is not cached, or not there, or a row of speech has been forgotten.
            ValueError: a batch of no frames or too many, frames that were not admitted, or a surface that does not fit.
        """
        device, stream, count = self.device, self.device.compute_stream, len(frames)
        if slot._under_way:
            # The batch before was given up; its table may still be on its way.
            device.wait(slot._prepared)
        self._fill(slot._rows, frames)
        filled, slot._filled = slot._filled, count
        slot._frames, slot._under_way = tuple(frames), True
        with device.use():
            slot.marks.begin(PREPARE)
            device.copy(slot._table[:count], slot._host_table[:count], stream)
            if count < filled:  # places that the last batch had and this one has not become empty
                device.clear(slot._table[count:filled], stream)
            self.launch_prepare(slot)
            slot._given.copy(slot._visual, frames)
            slot.marks.end(PREPARE)
            device.record(slot._prepared, stream)

    def clear(self, slot: GpuSlot) -> None:
        """Queue it, or do it where the model's inputs are on the host."""
        for array in (slot.visual, slot.audio):
            if isinstance(array, np.ndarray):
                array.fill(0)
            else:
                self.device.clear(array, self.device.compute_stream)

    def ready(self, slot: GpuSlot) -> None:
        """Wait for the inputs where the model runs on the host; on the device its stream keeps the order."""
        if not self.model_on_device:
            self.device.wait(slot._prepared)

    def paste(self, slot: GpuSlot) -> None:
        """Queue the drawing of the predictions, and the copy to the host of the frames that are wanted there."""
        device, stream = self.device, self.device.copy_stream
        with device.use():
            slot.marks.begin(PASTE)
            self.launch_paste(slot)
            # The mark is what the copies wait for: a later event could still be to come when they have arrived.
            device.stream_waits_for(stream, slot.marks.end(PASTE))
            for frame in slot._frames:
                surface = frame.surface
                if surface.host is not None and surface.device is not None:
                    device.copy(surface.host, surface.device, stream, rows=_to_host(surface.format))
            device.copy(slot._host_status, slot._status, stream)
            device.record(slot._copied, stream)

    def launch_prepare(self, slot: GpuSlot) -> None:
        """Queue the kernel of `prepare` and nothing else, for the batch that `prepare` was given last.

        The device must be the current one.
        """
        stream = self.device.compute_stream
        launch.prepare(slot._table, slot._visual, slot._audio, slot._status, layout=self.kind.layout, stream=stream)

    def launch_paste(self, slot: GpuSlot) -> None:
        """Queue the kernel of `paste` and nothing else, likewise."""
        launch.paste(
            slot._prediction,
            slot._table,
            self._matrices,
            slot._status,
            pixel_format=self.kind.pixel_format,
            layout=self.kind.layout,
            draw_blocks=self._draw_blocks,
            copy_blocks=self._copy_blocks,
            stream=self.device.compute_stream,
        )

    def finish(self, slot: GpuSlot) -> NDArray[np.bool_]:
        """Wait for the copies to the host, the last thing queued for the slot: the one wait of a batch."""
        self.device.wait(slot._copied)
        bits = np.unpackbits(slot._host_status.view(np.uint8), count=len(slot._frames), bitorder="little")
        slot._frames, slot._under_way = (), False
        return bits.astype(np.bool_)

    def close(self) -> None:
        """Wait for what is queued, and release every buffer."""
        # A GPU that has failed has said so where its result was waited for: that error is the one to show.
        with suppress(DeviceError):
            self.device.synchronize()
        for slot in self._slots:
            vars(slot).clear()
        self._slots.clear()
        vars(self).pop("_matrices", None)

    def _fill(self, rows: Rows, frames: Sequence[GpuDrawing]) -> None:
        """Write the first rows of a slot's table."""
        if not 1 <= len(frames) <= self.kind.batch:
            raise ValueError(f"a batch has 1 to {self.kind.batch} frames (got {len(frames)})")
        outputs, speeches, fractions, behind = [], [], [], dict[DeviceSpeech, int]()
        for place, (cached, source, speech, row, fraction, surface, _) in enumerate(frames):
            if cached not in self._admitted:
                raise ValueError("a character's frames must be admitted before they are drawn")
            # The kernels read, and write, where these say.
            if not 0 <= source < len(cached.rows):
                raise IndexError(f"source must be 0 to {len(cached.rows) - 1} (got {source})")
            if surface.device is None or surface.format != cached.format:
                raise ValueError(f"a surface must be on the device, and {cached.format} (got {surface})")
            rows[place] = cached.rows[source]
            if not rows["crop"][place]:
                raise IndexError(f"frame {source} is not there")
            outputs.append(surface.device.data.ptr)
            speeches.append(speech.window(row))
            fractions.append(fraction)
            behind[speech] = min(row, behind.get(speech, row))
        for name, told in ("output", outputs), ("speech", speeches), ("fraction", fractions):
            rows[name][: len(frames)] = told
        for speech, row in behind.items():
            speech.forget(row - KEPT_ROWS)

    def _model_buffer(self, shape: tuple[int, ...]) -> tuple[Array, DeviceArray]:
        """A buffer of zeros, as the model addresses it and as the kernels do."""
        if self.model_on_device:
            array = self.device.empty(shape, self.kind.dtype, "a slot")
            self.device.clear(array, self.device.compute_stream)
            return array, array
        host: NDArray[Any] = self.device.pinned(shape, self.kind.dtype, "a slot")
        host[...] = 0
        return host, self.device.mapped(host)


@lru_cache
def _to_host(format: SurfaceFormat) -> PitchedRows:
    rows, pitch = device_shape(format)
    return PitchedRows(rows=rows, width=format.row_bytes, source_pitch=pitch, target_pitch=format.row_bytes)
