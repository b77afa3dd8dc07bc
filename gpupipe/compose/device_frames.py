"""A character's frames in device memory, and the rows of the kernels' table that tell of them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from gpupipe.compose.decoding import Decoding, Frame, Kept
from gpupipe.compose.device_memory import FrameMemory, Uploads, crop_bytes, place_bytes
from gpupipe.compose.frames import FrameSpec
from gpupipe.compose.table import Rows, device_shape, frame_rows, resize_tables, taps_bytes
from gpupipe.gpu.device import Device
from gpupipe.gpu.launch import check_layout, copy_blocks, draw_blocks, draw_threads
from gpupipe.gpu.types import DeviceArray, PitchedRows, Stream


class DeviceTable:
    """What the kernels are told of a character's frames. Uploads how each crop is resized, once.

    Args:
        device: where the frames are.
        spec: of the frames.
        memory: where they lie, one behind the other.

    Attributes:
        device: where they are.
        spec: what is told of.
        format: of body frames and finished frames.
        rows: the row of each frame in the kernels' table, `table.ROW` `[N]`, on the host.
        draw_blocks, copy_blocks: the most blocks that drawing, and copying, one of the frames takes.

    Raises:
        KernelError: the kernels cannot work on crops of this size.
        DeviceMemoryError: the GPU's memory does not suffice.
    """

    def __init__(self, device: Device, spec: FrameSpec, memory: FrameMemory) -> None:
        check_layout(spec.layout)
        self.device, self.spec, self.format = device, spec, spec.format
        taps, first_taps = resize_tables(spec)
        self._taps: DeviceArray | None = device.upload(taps) if len(taps) else None
        body, crop = memory.addresses
        self.rows: Rows = frame_rows(
            spec,
            crop=crop,
            crop_bytes=crop_bytes(spec),
            body=body,
            taps=0 if self._taps is None else self._taps.data.ptr,
            first_taps=first_taps,
        )
        threads = (draw_threads(rect, spec.width, spec.height, spec.pixel_format) for rect in spec.rects)
        self.draw_blocks = draw_blocks(max(threads, default=0))
        self.copy_blocks = copy_blocks(*device_shape(spec.format))


class DeviceFrames(DeviceTable, Decoding):
    """A character's frames in device memory, all of which stay; made by `load` or `loading`."""

    def __init__(self, device: Device, spec: FrameSpec) -> None:
        self._memory = FrameMemory(device, spec, spec.count)
        DeviceTable.__init__(self, device, spec, self._memory)
        Decoding.__init__(self, spec.count)
        # Kept until it is closed: to free page-locked memory may wait for all that is queued.
        self._uploads = [Uploads(self._memory, body=body, crops=not body) for body in (True, False)]

    @property
    def cache_bytes(self) -> int:
        """Bytes of the frames, without what rows are padded with."""
        return self.spec.cache_bytes

    @classmethod
    def load(
        cls,
        device: Device,
        spec: FrameSpec,
        body: Iterable[Frame],
        crops: Iterable[Frame],
        recorded: Iterable[Frame] | None = None,
        *,
        others: Mapping[str, int] | None = None,
    ) -> DeviceFrames:
        """Upload decoded frames, all of which are there when it returns; see `loading`.

        Raises:
            GpupipeError: a frame cannot be decoded, or the device has failed.
        """
        frames = cls.loading(device, spec, body, crops, recorded, others=others)
        try:
            frames.wait()
        except BaseException:
            frames.close()
            raise
        return frames

    @classmethod
    def loading(
        cls,
        device: Device,
        spec: FrameSpec,
        body: Iterable[Frame],
        crops: Iterable[Frame],
        recorded: Iterable[Frame] | None = None,
        *,
        others: Mapping[str, int] | None = None,
    ) -> DeviceFrames:
        """Begin to upload decoded frames, the body in one thread and the rest in another; the memory is taken at once.

        Args:
            device: where to.
            spec: what is kept.
            body: `spec.count` frames as in `spec.format.shape`.
            crops: as many, uint8 `[C, C, 3]` bgr24.
            recorded: as many recorded inputs, uint8 `[S, S, 6]`, if `spec.recorded`.
            others: bytes that will be wanted besides, by name (`GpuCompositor.bytes_wanted`); they must fit too.

        Raises:
            DeviceMemoryError: the frames do not fit; nothing is allocated then.
            KernelError: the kernels cannot work on crops of this size.
        """
        if (recorded is not None) != spec.recorded:
            raise ValueError("recorded inputs must be given if, and only if, the spec has them")
        check_layout(spec.layout)
        device.require(bytes_wanted(spec) | dict(others or {}))
        frames = cls(device, spec)
        bodies, rest = frames._uploads
        sources = [crops] if recorded is None else [crops, recorded]
        frames._begin(Kept([body], bodies.put_body), Kept(sources, rest.put_crops))
        return frames

    def download(self, source: int, target: NDArray[np.uint8], stream: Stream) -> None:
        """Copy a body frame to the host, and wait for it.

        Args:
            source: which.
            target: uint8 `[*format.shape]`, made by `Device.pinned`.
            stream: on which it is copied.
        """
        rows, pitch = device_shape(self.format)
        width = self.format.row_bytes
        shape = PitchedRows(rows=rows, width=width, source_pitch=pitch, target_pitch=width)
        self.device.copy(target, self._memory.body[source], stream, rows=shape)
        self.device.wait_for_queued(stream)

    def close(self) -> None:
        """Stop decoding, and release the device memory, once what has been queued with it is done."""
        super().close()
        self._memory.close()
        self._uploads.clear()
        self._taps = None


class DeviceRing(DeviceTable):
    """Slots for cached frames that do not stay, behind the first ones, which do; a `protocol.Ring`.

    The row of a frame that is in no slot has no crop: it cannot be drawn.

    Args:
        kept: the frames that stay.
        spec: of all.
        slots: how many.

    Attributes:
        slots: how many.

    Raises:
        DeviceMemoryError: the GPU's memory does not suffice.
    """

    def __init__(self, kept: DeviceFrames, spec: FrameSpec, slots: int) -> None:
        self.slots, self._kept = slots, kept
        self._memory = FrameMemory(kept.device, spec, slots)
        super().__init__(kept.device, spec, self._memory)
        self._uploads = Uploads(self._memory, body=True, crops=True)
        self._places = self.rows[:slots].copy()
        self.rows[: kept.spec.count] = kept.rows
        self.rows["crop"][kept.spec.count :] = 0

    @property
    def cache_bytes(self) -> int:
        """Bytes of what is kept, and of the slots, without what rows are padded with."""
        return self._kept.cache_bytes + self.slots * (self.spec.cache_bytes // self.spec.count)

    def write(self, slot: int, source: int, decoded: Sequence[Frame]) -> None:
        """See `protocol.Ring`."""
        self._uploads.put(slot, decoded)
        for part in ("body", "crop"):
            self.rows[part][source] = self._places[part][slot]

    def forget(self, source: int) -> None:
        """See `protocol.Ring`."""
        self.rows["crop"][source] = 0

    def close(self) -> None:
        """See `protocol.Ring`."""
        self._memory.close()
        self._taps = None
        vars(self).pop("_uploads", None)


def bytes_wanted(spec: FrameSpec) -> dict[str, int]:
    """Bytes of device memory that `DeviceFrames.load` takes, by name."""
    planes = spec.count * int(np.prod(spec.crop_shape))
    return {
        "body frames": spec.count * int(np.prod(device_shape(spec.format))),
        "crops": planes,
        "recorded inputs": spec.count * crop_bytes(spec) - planes,
        "tables": taps_bytes(spec),
    }


def ring_bytes_wanted(spec: FrameSpec, slots: int) -> dict[str, int]:
    """Bytes of device memory that a `DeviceRing` takes besides the frames that stay, by name."""
    return {"frames decoded ahead": slots * place_bytes(spec) + taps_bytes(spec)}
