"""A character's frames in device memory, and the rows of the kernels' table that tell of them: uploaded once."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import suppress

import numpy as np
from numpy.typing import NDArray

from gpupipe.compose.frames import Frame, FrameSpec
from gpupipe.compose.table import Rows, device_shape, frame_rows, resize_tables
from gpupipe.errors import DeviceError
from gpupipe.gpu.device import Device
from gpupipe.gpu.launch import check_layout, copy_blocks, draw_blocks, draw_threads
from gpupipe.gpu.types import DeviceArray, PitchedRows, Stream

STAGING = 4
"""Frames on their way to the device at a time: one being written by the host, the others being copied."""


class DeviceFrames:
    """A character's frames in device memory; made by `load`.

    Attributes:
        device: where they are.
        spec: what is kept.
        format: of body frames and finished frames.
        rows: the row of each frame in the kernels' table, `table.ROW` `[N]`, on the host.
        draw_blocks, copy_blocks: the most blocks that drawing, and copying, one of the frames takes.
    """

    def __init__(self, device: Device, spec: FrameSpec) -> None:
        self.device = device
        self.spec = spec
        self.format = spec.format
        taps, first_taps = resize_tables(spec)
        self._body = device.empty((spec.count, *device_shape(spec.format)), np.uint8, "body frames")
        self._crops = device.empty((spec.count, _crop_bytes(spec)), np.uint8, "crops")
        self._taps = device.upload(taps)
        self.rows: Rows = frame_rows(
            spec,
            crop=self._crops.data.ptr,
            crop_bytes=_crop_bytes(spec),
            body=self._body.data.ptr,
            taps=self._taps.data.ptr,
            first_taps=first_taps,
        )
        threads = (draw_threads(rect, spec.width, spec.height, spec.pixel_format) for rect in spec.rects)
        self.draw_blocks = draw_blocks(max(threads))
        self.copy_blocks = copy_blocks(*device_shape(spec.format))

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
        """Upload decoded frames, the copy of each beside the decoding of the next.

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
        crop_bytes = int(np.prod(spec.crop_shape))
        try:
            _upload(device, frames._body, body, spec.format.shape, planar=False)
            _upload(device, frames._crops[:, :crop_bytes], crops, spec.crop_shape, planar=True)
            if recorded is not None:
                _upload(device, frames._crops[:, crop_bytes:], recorded, spec.recorded_shape, planar=True)
        except BaseException:
            frames.close()
            raise
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
        self.device.copy(target, self._body[source], stream, rows=shape)
        self.device.wait_for_queued(stream)

    def close(self) -> None:
        """Release the device memory, once what has been queued with it is done."""
        # A GPU that has failed has said so where its result was waited for: that error is the one to show.
        with suppress(DeviceError):
            self.device.wait_for_queued(self.device.compute_stream)
        for name in ("_body", "_crops", "_taps"):
            vars(self).pop(name, None)


def _crop_bytes(spec: FrameSpec) -> int:
    """Bytes of one crop with its recorded inputs, if they are kept, right behind it; both are multiples of 16."""
    return int(np.prod(spec.crop_shape)) + (int(np.prod(spec.recorded_shape)) if spec.recorded else 0)


def bytes_wanted(spec: FrameSpec) -> dict[str, int]:
    """Bytes of device memory that `DeviceFrames.load` takes, by name."""
    planes = spec.count * int(np.prod(spec.crop_shape))
    return {
        "body frames": spec.count * int(np.prod(device_shape(spec.format))),
        "crops": planes,
        "recorded inputs": spec.count * _crop_bytes(spec) - planes,
        "tables": resize_tables(spec)[0].nbytes,
    }


def _upload(
    device: Device, target: DeviceArray, frames: Iterable[Frame], shape: tuple[int, ...], *, planar: bool
) -> None:
    """Fill `target[i]` with the i-th frame, through a ring of pinned buffers."""
    stream = device.upload_stream
    ring = [(device.pinned(shape, np.uint8, "uploading"), device.event()) for _ in range(min(STAGING, len(target)))]
    rows = None
    if not planar:
        width = int(np.prod(shape[1:]))
        rows = PitchedRows(rows=shape[0], width=width, source_pitch=width, target_pitch=target.shape[-1])
    try:
        for i, frame in zip(range(len(target)), frames, strict=True):
            staging, copied = ring[i % len(ring)]
            device.wait(copied)
            np.copyto(staging, frame.transpose(2, 0, 1) if planar else frame)
            device.copy(target[i], staging, stream, rows=rows)
            device.record(copied, stream)
    finally:
        # The staging must outlive the copies from it.
        device.wait_for_queued(stream)
