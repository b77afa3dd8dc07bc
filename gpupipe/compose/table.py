"""The table of a batch: what the kernels are told of each frame, in a row of 64 bytes, uploaded once a batch.

This is the one home of the rows' layout. `kernels/table.cuh` has the same as a C structure, and
`tests/test_kernels.py` compares the two.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from gpupipe.compose.frames import FrameSpec
from gpupipe.compose.surface import SurfaceFormat
from gpupipe.geometry import resize_taps
from gpupipe.gpu.kernels import ROW_BYTES
from gpupipe.gpu.launch import pitch

ROW: Final = np.dtype(
    [
        ("crop", np.uint64),
        ("body", np.uint64),
        ("output", np.uint64),
        ("speech", np.uint64),
        ("x_taps", np.uint64),
        ("y_taps", np.uint64),
        ("x1", np.int16),
        ("y1", np.int16),
        ("x2", np.int16),
        ("y2", np.int16),
        ("width", np.uint16),
        ("height", np.uint16),
        ("flags", np.uint16),
        ("fraction", np.uint16),
    ]
)
"""A row. The first six are addresses:

- crop: uint8 `[3, C, C]`, with the recorded inputs, if any, right behind it: uint8 `[6, S, S]`. 0 for an empty place.
- body: uint8 `[rows, pitch]`; like crop, of a `DeviceFrames`.
- output: uint8 `[rows, pitch]`, of a surface.
- speech: the first row of the frame's window, float32 `[17, 512]`, of a `DeviceSpeech`.
- x_taps, y_taps: uint32 `[x2 - x1, 2]` and `[y2 - y1, 2]`: i0 + (i1 << 16), w0 + (w1 << 16) of `geometry.Taps`.

The others say where the crop goes (body pixels), the body's size in pixels, the flags `RECORDED` and the number of the
colour matrix from bit `MATRIX_SHIFT` on (`Colour.matrix_number`), and the frame's time past the window's own row, in
1/65536 of a row.
"""
assert ROW.itemsize == ROW_BYTES

RECORDED: Final = 1
MATRIX_SHIFT: Final = 1

_TAP_BYTES: Final = 2 * np.dtype(np.uint32).itemsize

LARGEST_COORDINATE: Final = 1 << 13
"""Of a rectangle, in either direction: what a row has room for, and less than what a character may have."""

Rows = NDArray[np.void]
"""An array of `ROW`."""


def device_shape(format: SurfaceFormat) -> tuple[int, int]:
    """`[rows, pitch]`: the shape of one frame on the device, uint8."""
    return format.rows, pitch(format.row_bytes)


def resize_tables(spec: FrameSpec) -> tuple[NDArray[np.uint32], NDArray[np.int64]]:
    """How each crop is resized to its rectangle.

    Returns:
        Taps uint32 `[T, 2]`, as the kernels take them; and the first tap of each frame along x and y, int64 `[N, 2]`.
        Rectangles of one width, or one height, share their taps.
    """
    first: dict[tuple[int, bool], int] = {}
    parts: list[NDArray[np.uint32]] = []
    places = np.zeros((spec.count, 2), np.int64)
    size = 0
    for place, rect in zip(places, spec.rects, strict=True):
        for axis, key in enumerate(((rect.width, True), (rect.height, False))):
            if key not in first:
                taps = resize_taps(spec.layout.crop_size, key[0], clamp_weights=key[1])
                i0, i1, w0, w1 = (column.astype(np.uint32) for column in taps)
                parts.append(np.stack([i0 | i1 << 16, w0 | w1 << 16], axis=1))
                first[key], size = size, size + key[0]
            place[axis] = first[key]
    return np.concatenate(parts) if parts else np.zeros((0, 2), np.uint32), places


def taps_bytes(spec: FrameSpec) -> int:
    """Bytes of the taps that `resize_tables` gives."""
    sides = {rect.width for rect in spec.rects}, {rect.height for rect in spec.rects}
    return sum(map(sum, sides)) * _TAP_BYTES


def frame_rows(
    spec: FrameSpec, *, crop: int, crop_bytes: int, body: int, taps: int, first_taps: NDArray[np.int64]
) -> Rows:
    """The rows of a character's cached frames, without what is a batch's own: output, speech and fraction.

    Args:
        spec: of the frames.
        crop: address of the first frame's crop.
        crop_bytes: from one crop to the next.
        body: address of the first body frame; the next follow, each `device_shape` large.
        taps: address of the taps.
        first_taps: of each frame, as `resize_tables` gives them.

    Returns:
        `ROW` `[N]`.

    Raises:
        ValueError: a rectangle or the body is beyond what a row can say.
    """
    rects = np.array(spec.rects, np.int64).reshape(-1, 4)
    largest = int(np.abs(rects).max(initial=0))
    if largest > LARGEST_COORDINATE:
        raise ValueError(f"rectangles must lie within {LARGEST_COORDINATE} pixels (got {largest})")
    frame_bytes = int(np.prod(device_shape(spec.format)))
    if max(spec.width, spec.height) > np.iinfo(np.uint16).max or frame_bytes > np.iinfo(np.int32).max:
        raise ValueError(f"a body must have less than 2 GiB, and 65536 pixels a side (got {spec.width}x{spec.height})")
    number = np.arange(spec.count, dtype=np.uint64)
    rows = np.zeros(spec.count, ROW)
    rows["crop"] = crop + number * np.uint64(crop_bytes)
    rows["body"] = body + number * np.uint64(frame_bytes)
    rows["x_taps"], rows["y_taps"] = taps + _TAP_BYTES * first_taps.T
    for field, column in zip(("x1", "y1", "x2", "y2"), rects.T, strict=True):
        rows[field] = column
    rows["width"], rows["height"] = spec.width, spec.height
    rows["flags"] = spec.recorded * RECORDED | spec.colour.matrix_number << MATRIX_SHIFT
    return rows
