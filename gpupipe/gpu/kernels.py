"""Find the CUDA kernels, and compile them for a device when first needed; `launch` launches them.

A kernel is compiled once for each device and number type (float32 or float16) and kept. What each computes, and the
shape of every buffer, stands at the head of its file in `kernels/`.
"""

from __future__ import annotations

import re
import threading
from functools import cache
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import DTypeLike

from gpupipe.colour import FRACTION_BITS
from gpupipe.errors import KernelError, reason
from gpupipe.geometry import SPEECH_ROWS, SPEECH_STEPS, SPEECH_WIDTH
from gpupipe.gpu.types import Kernel

NAMES = ("prepare", "paste_bgr24", "paste_nv12", "gather")
"""The kernels, each in the file of its name."""

THREADS: Final = 256
"""Threads of a block, of every kernel."""
BLOCKS_A_MULTIPROCESSOR: Final = 4
"""Blocks that the registers of a multiprocessor must suffice for at a time: 64 registers a thread."""
CHUNKS_A_THREAD: Final = 8
CHUNKS_A_BLOCK: Final = THREADS * CHUNKS_A_THREAD
"""16-byte vectors that a block copies or scans."""
ROW_BYTES: Final = 64
"""Bytes of a row of a batch's table: what is uploaded for each frame."""
GATHER_PLACES: Final = 128
GATHER_TENSORS: Final = 64
"""Frames and tensors of one launch of `gather`: what has room among a kernel's parameters, 4 KB."""

_REINSTALL = "install gpupipe again"
_memo: dict[tuple[str, int, bool, Path], Kernel] = {}
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
        raise KernelError(f"cannot be read: {reason(error)}", file=path, remedy=_REINSTALL) from error
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
        f"-DSPEECH_STEPS={SPEECH_STEPS}",
        f"-DFRACTION_BITS={FRACTION_BITS}",
        f"-DROW_BYTES={ROW_BYTES}",
        f"-DTHREADS={THREADS}",
        f"-DBLOCKS_A_MULTIPROCESSOR={BLOCKS_A_MULTIPROCESSOR}",
        f"-DCHUNKS_A_THREAD={CHUNKS_A_THREAD}",
        f"-DGATHER_PLACES={GATHER_PLACES}",
        f"-DGATHER_TENSORS={GATHER_TENSORS}",
    )


def load(name: str, dtype: DTypeLike) -> Kernel:
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
