"""A character's frames in device memory, and the tables that the kernels need: uploaded once, by pinned staging."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gpupipe.compose.frames import Frame, FrameSpec
from gpupipe.geometry import Rect, resize_taps
from gpupipe.gpu.device import Copy, Device
from gpupipe.gpu.kernels import check_layout, draw_threads, pitch

STAGING = 4
"""Frames on their way to the device at a time: one being written by the host, the others being copied."""


class DeviceFrames:
    """A character's frames in device memory; made by `load`.

    Attributes:
        device: where they are.
        spec: what the arrays hold.
        body: uint8 `[N, rows, pitch(row bytes)]`, a `cupy.ndarray`; see `kernels.paste`.
        crops: uint8 `[N, 3, C, C]`.
        recorded: uint8 `[N, 6, S, S]` or None.
        placements: int32 `[N, 8]`; see `kernels.paste`.
        taps: uint32 `[T, 2]`; see `kernels.paste`.
        draw_threads: int64 `[N]`, on the host; see `kernels.draw_threads`.
    """

    def __init__(
        self, device: Device, spec: FrameSpec, placements: NDArray[np.int32], taps: NDArray[np.uint32]
    ) -> None:
        self.device = device
        self.spec = spec
        self.body: Any = device.empty(body_shape(spec), np.uint8, "body frames")
        self.crops: Any = device.empty((spec.count, *spec.crop_shape), np.uint8, "crops")
        self.recorded: Any = None
        if spec.recorded:
            self.recorded = device.empty((spec.count, *spec.recorded_shape), np.uint8, "recorded inputs")
        self.placements: Any = device.upload(placements)
        self.taps: Any = device.upload(taps)
        self.draw_threads = np.array(
            [draw_threads(rect, spec.width, spec.height, spec.pixel_format) for rect in spec.rects], np.int64
        )

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
            others: bytes that the job will want besides, by name (`GpuCompositor.bytes_wanted`); they must fit too.

        Raises:
            DeviceMemoryError: the job does not fit; nothing is allocated then.
            KernelError: the kernels cannot work on crops of this size.
        """
        if (recorded is not None) != spec.recorded:
            raise ValueError("recorded inputs must be given if, and only if, the spec has them")
        check_layout(spec.layout)
        placements, taps = tables(spec.rects, spec.layout.crop_size)
        device.require(bytes_wanted(spec, placements.nbytes + taps.nbytes) | dict(others or {}))
        frames = cls(device, spec, placements, taps)
        try:
            _upload(device, frames.body, body, spec.format.shape, planar=False)
            _upload(device, frames.crops, crops, spec.crop_shape, planar=True)
            if recorded is not None:
                _upload(device, frames.recorded, recorded, spec.recorded_shape, planar=True)
        except BaseException:
            frames.close()
            raise
        return frames

    def close(self) -> None:
        """Release the device memory."""
        self.body = self.crops = self.recorded = self.placements = self.taps = None


def body_shape(spec: FrameSpec) -> tuple[int, int, int]:
    """`[N, rows, pitch]`: the shape of the body frames on the device."""
    return (spec.count, *frame_rows(spec))


def frame_rows(spec: FrameSpec) -> tuple[int, int]:
    """(rows, bytes from one to the next) of a frame on the device."""
    rows, *row = spec.format.shape
    return rows, pitch(int(np.prod(row)))


def bytes_wanted(spec: FrameSpec, table_bytes: int | None = None) -> dict[str, int]:
    """Bytes of device memory that `DeviceFrames.load` takes, by name."""
    if table_bytes is None:
        table_bytes = sum(table.nbytes for table in tables(spec.rects, spec.layout.crop_size))
    return {
        "body frames": int(np.prod(body_shape(spec))),
        "crops": spec.count * int(np.prod(spec.crop_shape)),
        "recorded inputs": spec.count * int(np.prod(spec.recorded_shape)) if spec.recorded else 0,
        "tables": table_bytes,
    }


def tables(rects: tuple[Rect, ...], crop_size: int) -> tuple[NDArray[np.int32], NDArray[np.uint32]]:
    """Where each frame's crop goes, and how it is resized.

    Returns:
        placements int32 `[N, 8]` and taps uint32 `[T, 2]`, as `kernels.paste` takes them. Rectangles of one width, or
        one height, share their taps.
    """
    first: dict[tuple[int, bool], int] = {}
    parts: list[NDArray[np.uint32]] = []
    size = 0
    placements = np.zeros((len(rects), 8), np.int32)
    for place, rect in zip(placements, rects, strict=True):
        place[:4] = rect
        for axis, key in enumerate(((rect.width, True), (rect.height, False))):
            if key not in first:
                taps = resize_taps(crop_size, key[0], clamp_weights=key[1])
                i0, i1, w0, w1 = (column.astype(np.uint32) for column in taps)
                parts.append(np.stack([i0 | i1 << 16, w0 | w1 << 16], axis=1))
                first[key], size = size, size + key[0]
            place[4 + axis] = first[key]
    return placements, np.concatenate(parts)


def _upload(device: Device, target: Any, frames: Iterable[Frame], shape: tuple[int, ...], *, planar: bool) -> None:
    """Fill `target[i]` with the i-th frame, through a ring of pinned buffers."""
    stream = device.copy_stream
    ring = [(device.pinned(shape, np.uint8, "uploading"), device.event()) for _ in range(min(STAGING, len(target)))]
    rows = None
    if not planar:
        width = int(np.prod(shape[1:]))
        rows = Copy(rows=shape[0], width=width, source_pitch=width, target_pitch=target.shape[-1])
    try:
        for i, frame in zip(range(len(target)), frames, strict=True):
            staging, copied = ring[i % len(ring)]
            device.wait(copied)
            np.copyto(staging, frame.transpose(2, 0, 1) if planar else frame)
            device.copy(target[i], staging, stream, rows=rows)
            device.record(copied, stream)
    finally:
        # The staging must outlive the copies from it.
        stream.synchronize()
