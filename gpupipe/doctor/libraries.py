"""Which files of NVIDIA's libraries this process has loaded."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable
from pathlib import Path

_LIBRARY = (
    r"cuda|nvcuda|cudart|cublasLt|cublas|cudnn(?:_[a-z_]+)?|nvrtc-builtins|nvrtc|nvJitLink|cufft|curand|cusparse|"
    r"nvinfer(?:_[a-z_]+)?|nvonnxparser"
)
_NAMES = re.compile(rf"lib({_LIBRARY})\.so\b.*|({_LIBRARY})(?:64)?(?:[_-].*)?\.dll", re.IGNORECASE)


def loaded_libraries() -> dict[str, list[str]] | None:
    """The files of each library by its name ("cudart", "cudnn_ops"), where the system tells; one each is right."""
    files = loaded_files()
    return None if files is None else by_name(files)


def by_name(files: Iterable[str]) -> dict[str, list[str]]:
    """NVIDIA's libraries among files, by their names without "lib", version and suffix.

    >>> by_name(["/a/libcudart.so.12", "/b/libcudart.so.12.8.90", "/a/libcudnn_ops.so.9", "/usr/lib/libc.so.6"])
    {'cudart': ['/a/libcudart.so.12', '/b/libcudart.so.12.8.90'], 'cudnn_ops': ['/a/libcudnn_ops.so.9']}
    """
    found: dict[str, list[str]] = {}
    for path in sorted(set(files)):
        name = _NAMES.fullmatch(re.split(r"[/\\]", path)[-1])
        if name is not None:
            found.setdefault(name[1] or name[2], []).append(path)
    return found


def loaded_files() -> list[str] | None:
    """The files that are mapped as code, where the system tells (Linux, Windows)."""
    if sys.platform == "win32":
        return _windows_modules()
    try:
        lines = Path("/proc/self/maps").read_text("utf-8", "replace").splitlines()
    except OSError:
        return None
    # address permissions offset device inode path; see proc_pid_maps(5)
    mapped = (line.split(None, 5) for line in lines)
    return sorted({parts[5] for parts in mapped if len(parts) == 6 and "x" in parts[1] and parts[5].startswith("/")})


def _windows_modules() -> list[str]:
    if sys.platform != "win32":
        return []
    import ctypes
    from ctypes import wintypes

    kernel, psapi = ctypes.windll.kernel32, ctypes.windll.psapi
    kernel.GetCurrentProcess.restype = wintypes.HANDLE
    process = wintypes.HANDLE(kernel.GetCurrentProcess())
    modules, wanted = (wintypes.HMODULE * 4096)(), wintypes.DWORD()
    psapi.EnumProcessModules(process, modules, ctypes.sizeof(modules), ctypes.byref(wanted))
    found = []
    for module in modules[: wanted.value // ctypes.sizeof(wintypes.HMODULE)]:
        name = ctypes.create_unicode_buffer(1 << 15)
        if psapi.GetModuleFileNameExW(process, wintypes.HMODULE(module), name, len(name)):
            found.append(name.value)
    return found
