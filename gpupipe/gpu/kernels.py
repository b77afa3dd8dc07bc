"""Find the CUDA kernels, compile them for a device when first needed, and launch them on the caller's stream.

A kernel is compiled once for each device and number type (float32 or float16) and kept. What each computes, and the
shape of every buffer, stands at the head of its file in `kernels/`.
"""

from __future__ import annotations

import re
import threading
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from gpupipe.colour import FRACTION_BITS, PixelFormat
from gpupipe.errors import KernelError
from gpupipe.geometry import BORDER, SPEECH_BEFORE, SPEECH_ROWS, SPEECH_SHAPE, SPEECH_WIDTH, CropLayout, Rect
from gpupipe.options import MAX_BATCH

NAMES = ("prepare", "paste_bgr24", "paste_nv12")
"""The kernels, each in the file of its name."""

ALIGNMENT = 16
"""Bytes to which rows of body frames and finished frames are padded on the device."""

THREADS = 256
CHUNKS_A_THREAD = 8
CHUNKS_A_BLOCK = THREADS * CHUNKS_A_THREAD
"""16-byte vectors that a block copies or scans."""

_REINSTALL = "install gpupipe again"
_memo: dict[tuple[str, int, bool, Path], Any] = {}
_lock = threading.Lock()


@cache
def folder() -> Path:
    """Where the `.cu` files are: package data in an installed wheel, beside the source in an editable install."""
    here = Path(__file__).resolve().parents[1]
    for candidate in (here / "_kernels", here.parent / "kernels"):
        if candidate.is_dir():
            return candidate
    raise KernelError("no such folder; the installation is incomplete", file=here / "_kernels", remedy=_REINSTALL)


def source(name: str) -> str:
    """The text of kernel `name` with its includes in place, and `#line` directives that name the files.

    Raises:
        KernelError: a file is missing.
    """
    return _expand(folder() / f"{name}.cu", set())


def _expand(path: Path, seen: set[Path]) -> str:
    seen.add(path)
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise KernelError(f"cannot be read: {error.strerror}", file=path, remedy=_REINSTALL) from error
    out = [f'#line 1 "{path.name}"']
    for number, line in enumerate(lines, 1):
        # CuPy's cache of compiled kernels is keyed by this text alone, so it must hold every included file.
        include = re.fullmatch(r'\s*#include\s+"([^"]+)"\s*', line)
        if include is None:
            out.append("" if line.strip() == "#pragma once" else line)
            continue
        if (other := path.parent / include[1]) not in seen:
            out.append(_expand(other, seen))
        out.append(f'#line {number + 1} "{path.name}"')
    return "\n".join(out)


def options(dtype: DTypeLike) -> tuple[str, ...]:
    """The compiler's options for a model that reads and writes `dtype`, float32 or float16.

    Without `--fmad=false` a multiplication and the addition after it may be rounded once instead of twice.
    """
    if np.dtype(dtype) not in (np.float32, np.float16):
        raise KernelError("the kernels work on float32 and float16", field="dtype", value=str(np.dtype(dtype)))
    return (
        "-std=c++17",
        "--fmad=false",
        f"-DGPUPIPE_FLOAT16={int(np.dtype(dtype) == np.float16)}",
        f"-DSPEECH_ROWS={SPEECH_ROWS}",
        f"-DSPEECH_WIDTH={SPEECH_WIDTH}",
        f"-DSPEECH_BEFORE={SPEECH_BEFORE}",
        f"-DFRACTION_BITS={FRACTION_BITS}",
        f"-DTHREADS={THREADS}",
        f"-DCHUNKS_A_THREAD={CHUNKS_A_THREAD}",
    )


def load(name: str, dtype: DTypeLike) -> Any:
    """The compiled `cupy.RawKernel` of `name` for the current device, from memory after the first time.

    Raises:
        KernelError: a file is missing, or does not compile; names file and line.
    """
    import cupy

    key = (name, cupy.cuda.runtime.getDevice(), np.dtype(dtype) == np.float16, folder())
    with _lock:
        if key not in _memo:
            module = cupy.RawModule(code=source(name), options=options(dtype))
            try:
                _memo[key] = module.get_function(name)
            except cupy.cuda.compiler.CompileException as error:
                raise _compile_error(name, error.get_message()) from error
            except (cupy.cuda.driver.CUDADriverError, RuntimeError, ImportError, OSError) as error:
                raise KernelError(
                    f"cannot be compiled or loaded: {error}",
                    file=folder() / f"{name}.cu",
                    remedy="see `gpupipe doctor`; NVRTC comes with pip install 'gpupipe[cuda]'",
                ) from error
        return _memo[key]


def compile_offline(name: str, dtype: DTypeLike, capability: int, *, cubin: bool = False) -> bytes:
    """Compile kernel `name` for compute capability `capability` (86 for 8.6). Needs no GPU.

    Returns:
        PTX text, or with `cubin` the machine code, an ELF file.

    Raises:
        KernelError: a file is missing, or does not compile; names file and line.
    """
    from cupy.cuda import compiler

    kind = "cubin" if cubin else "ptx"
    program = compiler._NVRTCProgram(source(name), f"{name}.cu", method=kind)
    arch = f"--gpu-architecture={'sm' if cubin else 'compute'}_{capability}"
    try:
        code, _ = program.compile((*options(dtype), arch))
    except compiler.CompileException as error:
        raise _compile_error(name, error.get_message()) from error
    if cubin:  # CuPy takes the last byte of the file for the end of a string.
        return bytes(code) + b"\0"
    return code.encode() if isinstance(code, str) else bytes(code)


def _compile_error(name: str, log: str) -> KernelError:
    first = re.search(r"^(\S+?)\((\d+)\): (?:catastrophic )?error:? ?(.*)$", log, re.M)
    if first is None:
        lines = [line for line in log.splitlines() if line.strip()]
        return KernelError(f"does not compile: {lines[0] if lines else 'no log'}", file=folder() / f"{name}.cu")
    return KernelError(f"does not compile: {first[3]}", file=f"{folder() / first[1]}:{first[2]}", remedy=_REINSTALL)


def pitch(row_bytes: int) -> int:
    """Bytes from one row of a frame on the device to the next: rows start at multiples of 16 bytes."""
    return -(-row_bytes // ALIGNMENT) * ALIGNMENT


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


def _check(name: str, array: Any, dtype: DTypeLike, shape: tuple[int, ...], device: int) -> None:
    if array.dtype != np.dtype(dtype) or array.shape != shape:
        raise ValueError(f"{name} must be {np.dtype(dtype)} {list(shape)} (got {array.dtype} {list(array.shape)})")
    if not array.flags.c_contiguous:
        raise ValueError(f"{name} must be C-contiguous (got strides {array.strides})")
    if array.data.ptr % ALIGNMENT:
        raise ValueError(f"{name} must be aligned to {ALIGNMENT} bytes (got address {array.data.ptr:#x})")
    if array.device.id != device:
        raise ValueError(f"{name} must be on GPU {device} (got GPU {array.device.id})")


def _common(index: Any, status: Any, device: int) -> int:
    batch: int = index.shape[0]
    if not 1 <= batch <= MAX_BATCH:
        raise ValueError(f"a batch has 1 to {MAX_BATCH} frames (got {batch})")
    _check("index", index, np.int32, (batch, 2), device)
    _check("status", status, np.uint32, (-(-batch // 32),), device)
    return batch


def _matrix(rows: NDArray[np.int32]) -> Any:
    """The colour matrix as the kernel's parameter: a structure, passed by value."""
    structure = np.zeros((), np.dtype([("weights", np.int32, (3, 4))]))
    structure["weights"] = rows
    return structure[()]


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
    crops: Any,
    recorded: Any | None,
    speech: Any,
    index: Any,
    visual: Any,
    audio: Any,
    status: Any,
    *,
    layout: CropLayout,
    stream: Any,
) -> None:
    """Queue `visual = [roi, masked] / 255`, `audio = speech rows i - 8 … i + 7`, `status = 0`. One launch.

    Args:
        crops: uint8 `[N, 3, C, C]`; like all arrays, a CuPy array, C-contiguous, on the current device.
        recorded: uint8 `[N, 6, S, S]` to take `visual` from instead, or None.
        speech: float32 `[rows, 512]`.
        index: int32 `[B, 2]`: cached frame and row of speech of each output frame.
        visual: float32 or float16 `[B, 6, S, S]`, written.
        audio: `[B, 32, 16, 16]`, like `visual`, written.
        status: uint32 `[ceil(B / 32)]`, written.
        layout: of the crops; S is a multiple of 4.
        stream: the `cupy.cuda.Stream` to launch on.

    Raises:
        ValueError: an array has another shape, dtype, layout or device.
        KernelError: the kernel does not compile, or cannot work on S.
    """
    check_layout(layout)
    size, crop, device = layout.model_size, layout.crop_size, visual.device.id
    batch = _common(index, status, device)
    _check("visual", visual, visual.dtype, (batch, 6, size, size), device)
    _check("audio", audio, visual.dtype, (batch, *SPEECH_SHAPE), device)
    _check("crops", crops, np.uint8, (crops.shape[0], 3, crop, crop), device)
    _check("speech", speech, np.float32, (speech.shape[0], SPEECH_WIDTH), device)
    if recorded is not None:
        _check("recorded", recorded, np.uint8, (crops.shape[0], 6, size, size), device)
    pixel_blocks = -(-size * (size // 4) // THREADS)
    speech_blocks = -(-SPEECH_ROWS * SPEECH_WIDTH // (4 * THREADS))
    load("prepare", visual.dtype)(
        (pixel_blocks + speech_blocks, batch),
        (THREADS,),
        (
            *(crops, recorded if recorded is not None else np.uintp(0), speech, index, visual, audio, status),
            *map(np.int32, (size, BORDER, *layout.mask, speech.shape[0], pixel_blocks)),
        ),
        stream=stream,
    )


def paste(
    prediction: Any,
    crops: Any,
    body: Any,
    placements: Any,
    taps: Any,
    matrix: NDArray[np.int32],
    index: Any,
    frames: Any,
    status: Any,
    *,
    pixel_format: PixelFormat,
    layout: CropLayout,
    width: int,
    height: int,
    draw_threads: int,
    stream: Any,
) -> None:
    """Queue `frames = body with resize(u8(trunc(clip(prediction, 0, 1) · 255)) in crop) over it`. One launch.

    Args:
        prediction: float32 or float16 `[B, 3, S, S]`; like all, a CuPy array, C-contiguous, on the current device.
        crops: uint8 `[N, 3, C, C]`.
        body: uint8 `[N, rows, pitch(row bytes)]`: `height` rows of bgr24, `height * 3 // 2` rows of nv12.
        placements: int32 `[N, 8]`: x1, y1, x2, y2, first x tap, first y tap, 0, 0.
        taps: uint32 `[T, 2]`: i0 + (i1 << 16), w0 + (w1 << 16).
        matrix: int32 `[3, 4]` on the host, `Colour.from_bgr`; used with nv12.
        index: int32 `[B, 2]`: cached frame and row of speech of each output frame.
        frames: uint8 `[B, rows, pitch(row bytes)]`, written.
        status: uint32 `[ceil(B / 32)]`: bit b is set if `prediction[b]` holds a NaN.
        pixel_format: of `body` and `frames`.
        layout: of the crops; S is a multiple of 4.
        width: of a frame, pixels.
        height: of a frame, pixels.
        draw_threads: the most that `draw_threads` gives for a frame of the batch.
        stream: the `cupy.cuda.Stream` to launch on.

    Raises:
        ValueError: an array has another shape, dtype, layout or device.
        KernelError: the kernel does not compile, or cannot work on S.
    """
    check_layout(layout)
    size, crop, device = layout.model_size, layout.crop_size, prediction.device.id
    nv12 = pixel_format == "nv12"
    rows, line = (height * 3 // 2, pitch(width)) if nv12 else (height, pitch(3 * width))
    batch, cached = _common(index, status, device), crops.shape[0]
    _check("prediction", prediction, prediction.dtype, (batch, 3, size, size), device)
    _check("crops", crops, np.uint8, (cached, 3, crop, crop), device)
    _check("body", body, np.uint8, (cached, rows, line), device)
    _check("frames", frames, np.uint8, (batch, rows, line), device)
    _check("placements", placements, np.int32, (cached, 8), device)
    _check("taps", taps, np.uint32, (taps.shape[0], 2), device)
    draw_blocks = -(-draw_threads // THREADS)
    scan_blocks = -(-3 * size * size * prediction.dtype.itemsize // (16 * CHUNKS_A_BLOCK))
    copy_blocks = -(-rows * (line // 16) // CHUNKS_A_BLOCK)
    load(f"paste_{pixel_format}", prediction.dtype)(
        (draw_blocks + scan_blocks + copy_blocks, batch),
        (THREADS,),
        (
            *(prediction, crops, body, placements, taps, index, frames, status),
            *map(np.int32, (size, BORDER, width, height, line, draw_blocks, scan_blocks)),
            *([_matrix(matrix)] if nv12 else []),
        ),
        stream=stream,
    )
