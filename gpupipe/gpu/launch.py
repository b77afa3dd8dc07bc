"""Launch the kernels on the caller's stream, after a look at what they are given.

What differs between the frames of a batch stands in its table (`gpupipe.compose.table` makes it); everything else that
a launch is given, its grid too, is the same for every batch of a kind.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import DTypeLike

from gpupipe.colour import PixelFormat
from gpupipe.errors import KernelError
from gpupipe.geometry import BORDER, SPEECH_ROWS, SPEECH_SHAPE, SPEECH_WIDTH, CropLayout, Rect
from gpupipe.gpu.kernels import CHUNKS_A_BLOCK, GATHER_PLACES, GATHER_TENSORS, ROW_BYTES, THREADS, load
from gpupipe.gpu.types import DeviceArray, Stream
from gpupipe.options import MAX_BATCH

ALIGNMENT = 16
"""Bytes of which every address given to a kernel is a multiple, and so the pitch of a frame."""


GATHER_TABLE: Final = np.dtype(
    [
        ("places", [("block", np.uint64), ("frames", np.uint32), ("row", np.uint32)], GATHER_PLACES),
        ("tensors", [("rows", np.uint64), ("bytes", np.uint32), ("blocks", np.uint32)], GATHER_TENSORS),
    ]
)
"""What `gather` is told of a batch, as `kernels/gather.cu` has it as a C structure: passed by value."""


class Kept(NamedTuple):
    """Where one frame's tensors stay.

    Attributes:
        block: address of a block that holds, for each tensor in turn, uint8 `[frames, bytes]` from a multiple of 256
            on; it begins at such a multiple too.
        frames: how many it is for.
        row: the frame's.
    """

    block: int
    frames: int
    row: int


def pitch(row_bytes: int) -> int:
    """Bytes from one row of a frame on the device to the next: rows start at multiples of 16 bytes."""
    return -(-row_bytes // ALIGNMENT) * ALIGNMENT


def status_words(batch: int) -> int:
    """Words of 32 bits that hold the status of a batch: a bit a frame."""
    return -(-batch // 32)


def draw_threads(rect: Rect, width: int, height: int, pixel_format: PixelFormat) -> int:
    """Threads that draw one rectangle: see `region_of` in `paste.cuh`, whose region this counts.

    One for each four bytes of its rows in bgr24, one for each 2×2 block in nv12.
    """
    seen = rect.within(width, height)
    if seen.empty:
        return 0
    bytes_a_pixel = 1 if pixel_format == "nv12" else 3
    first, end = bytes_a_pixel * seen.x1 // 32 * 32, -(-bytes_a_pixel * seen.x2 // 32) * 32
    columns: int = min(end, pitch(bytes_a_pixel * width)) - first
    if pixel_format == "nv12":
        return columns // 2 * (-(-seen.y2 // 2) - seen.y1 // 2)
    return columns // 4 * seen.height


def draw_blocks(threads: int) -> int:
    """Blocks that draw, for a rectangle that takes `threads` threads (`draw_threads`)."""
    return -(-threads // THREADS)


def copy_blocks(rows: int, row_pitch: int) -> int:
    """Blocks that copy, for a frame of `rows` rows that start `row_pitch` bytes apart."""
    return -(-rows * (row_pitch // ALIGNMENT) // CHUNKS_A_BLOCK)


def check_layout(layout: CropLayout) -> None:
    """Raise `KernelError` for a size that the kernels cannot work on: they move four pixels at a time."""
    if layout.model_size < 4 or layout.model_size % 4:
        raise KernelError(
            "the model's size must be a multiple of 4 pixels on a GPU",
            field="model size",
            value=layout.model_size,
            remedy="use --device cpu",
        )


def prepare(
    table: DeviceArray,
    visual: DeviceArray,
    audio: DeviceArray,
    status: DeviceArray,
    *,
    layout: CropLayout,
    stream: Stream,
) -> None:
    """Queue `visual = [roi, masked] / 255`, `audio = windows of speech`, `status = 0`. One launch.

    Args:
        table: uint8 `[B, 64]`: rows of `gpupipe.compose.table.ROW`; like all arrays C-contiguous, on the current
            device. Of a row are used the crop, the speech, the flags and the fraction.
        visual: float32 or float16 `[B, 6, S, S]`, written.
        audio: `[B, 32, 16, 16]`, like `visual`, written.
        status: uint32 `[ceil(B / 32)]`, written.
        layout: of the crops; S is a multiple of 4.
        stream: the stream to launch on.

    Raises:
        ValueError: an array has another shape, dtype, layout or device.
        KernelError: the kernel does not compile, or cannot work on S.
    """
    check_layout(layout)
    size, device = layout.model_size, visual.device.id
    batch = _check_batch(table, status, device)
    _check("visual", visual, visual.dtype, (batch, 6, size, size), device)
    _check("audio", audio, visual.dtype, (batch, *SPEECH_SHAPE), device)
    pixel_blocks = -(-size * (size // 4) // THREADS)
    speech_blocks = -(-SPEECH_ROWS * SPEECH_WIDTH // (4 * THREADS))
    load("prepare", visual.dtype)(
        (pixel_blocks + speech_blocks, batch),
        (THREADS,),
        (table, visual, audio, status, *map(np.int32, (size, BORDER, *layout.mask, pixel_blocks))),
        stream=stream,
    )


def paste(
    prediction: DeviceArray,
    table: DeviceArray,
    matrices: DeviceArray,
    status: DeviceArray,
    *,
    pixel_format: PixelFormat,
    layout: CropLayout,
    draw_blocks: int,
    copy_blocks: int,
    stream: Stream,
) -> None:
    """Queue `output = body with resize(u8(trunc(clip(prediction, 0, 1) · 255)) in crop) over it`. One launch.

    Args:
        prediction: float32 or float16 `[B, 3, S, S]`; like all arrays C-contiguous, on the current device.
        table: uint8 `[B, 64]`: rows of `gpupipe.compose.table.ROW`. All is used but the speech and the fraction.
        matrices: int32 `[M, 3, 4]`: `colour.matrices`; used with nv12.
        status: uint32 `[ceil(B / 32)]`: bit b is set if `prediction[b]` holds a NaN.
        pixel_format: of bodies and outputs.
        layout: of the crops; S is a multiple of 4.
        draw_blocks: the most that `draw_blocks` gives for a frame of the batch.
        copy_blocks: the most that `copy_blocks` gives for a frame of the batch.
        stream: the stream to launch on.

    Raises:
        ValueError: an array has another shape, dtype, layout or device.
        KernelError: the kernel does not compile, or cannot work on S.
    """
    check_layout(layout)
    size, device, nv12 = layout.model_size, prediction.device.id, pixel_format == "nv12"
    batch = _check_batch(table, status, device)
    _check("prediction", prediction, prediction.dtype, (batch, 3, size, size), device)
    _check("matrices", matrices, np.int32, (matrices.shape[0], 3, 4), device)
    scan_blocks = -(-3 * size * size * prediction.dtype.itemsize // (ALIGNMENT * CHUNKS_A_BLOCK))
    load(f"paste_{pixel_format}", prediction.dtype)(
        (draw_blocks + scan_blocks + copy_blocks, batch),
        (THREADS,),
        (
            *((prediction, table, matrices, status) if nv12 else (prediction, table, status)),
            *map(np.int32, (size, BORDER, draw_blocks, scan_blocks)),
        ),
        stream=stream,
    )


def gather(kept: Sequence[Kept | None], rows: Sequence[DeviceArray], *, back: bool = False, stream: Stream) -> None:
    """Queue `rows[t][b] = tensor t of the frame kept[b]` for each place b that has one; or, back, the other way.

    One launch for every `GATHER_PLACES` places. What it is told goes with the launch: nothing is uploaded.

    Args:
        kept: where the frame of each place stays, on the current device; None for a place to be left alone.
        rows: each tensor of a batch, `[B, ...]` with room for all places, of any type; C-contiguous, likewise.
        back: from the batch's arrays to where the frames stay.
        stream: the stream to launch on.

    Raises:
        ValueError: too many tensors, or an array that has no such places, another layout or another device.
        KernelError: the kernel does not compile.
    """
    if not 1 <= len(rows) <= GATHER_TENSORS:
        raise ValueError(f"a frame has 1 to {GATHER_TENSORS} tensors (got {len(rows)})")
    for array in rows:
        _check("rows", array, array.dtype, (max(len(array), len(kept)), *array.shape[1:]), rows[0].device.id)
    table = np.zeros((), GATHER_TABLE)
    row_bytes = np.array([array.nbytes // len(array) for array in rows], np.uint32)
    tensors = table["tensors"][: len(rows)]
    tensors["rows"], tensors["bytes"] = [array.data.ptr for array in rows], row_bytes
    tensors["blocks"] = -(-row_bytes.astype(np.int64) // (ALIGNMENT * CHUNKS_A_BLOCK))
    for first in range(0, len(kept), GATHER_PLACES):
        part = kept[first : first + GATHER_PLACES]
        table["places"][: len(part)] = [each or (0, 0, 0) for each in part]
        load("gather", np.float32)(  # copies bytes: the same for either type
            (int(tensors["blocks"].sum()), len(part)),
            (THREADS,),
            (table, np.int32(first), np.int32(back)),
            stream=stream,
        )


def _check_batch(table: DeviceArray, status: DeviceArray, device: int) -> int:
    batch = table.shape[0]
    if not 1 <= batch <= MAX_BATCH:
        raise ValueError(f"a batch has 1 to {MAX_BATCH} frames (got {batch})")
    _check("table", table, np.uint8, (batch, ROW_BYTES), device)
    _check("status", status, np.uint32, (status_words(batch),), device)
    return batch


def _check(name: str, array: DeviceArray, dtype: DTypeLike, shape: tuple[int, ...], device: int) -> None:
    if array.dtype != np.dtype(dtype) or array.shape != shape:
        raise ValueError(f"{name} must be {np.dtype(dtype)} {list(shape)} (got {array.dtype} {list(array.shape)})")
    if not array.flags.c_contiguous:
        raise ValueError(f"{name} must be C-contiguous (got strides {array.strides})")
    if array.data.ptr % ALIGNMENT:
        raise ValueError(f"{name} must be aligned to {ALIGNMENT} bytes (got address {array.data.ptr:#x})")
    if array.device.id != device:
        raise ValueError(f"{name} must be on GPU {device} (got GPU {array.device.id})")
