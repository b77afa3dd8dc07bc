"""Facts about this process and this machine, from the standard library alone; the one home of them.

What cannot be found out is None, or 0 where a number is added up.
"""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess
import sys
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path

PACKAGES = (
    "gpupipe",
    "numpy",
    "av",
    "opencv-python-headless",
    "opencv-python",
    "onnxruntime",
    "onnxruntime-gpu",
    "cupy-cuda12x",
    "cupy-cuda13x",
)
"""The packages whose versions matter to a report."""


@cache
def package_version(package: str) -> str | None:
    """The installed version of a package, or None: of what this process has loaded, whatever is installed later."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def peak_rss_bytes() -> int:
    """The most memory that this process has held resident so far, bytes; 0 where the system does not say."""
    # Not getrusage: on Linux its maximum is inherited from the process that started this one.
    peak = _kilobytes(Path("/proc/self/status")).get("VmHWM")
    if peak is not None:
        return peak
    if sys.platform == "win32":
        return _windows_memory()[1]
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def rss_bytes() -> int:
    """The memory that this process holds resident now, bytes; 0 where the system does not say."""
    now = _kilobytes(Path("/proc/self/status")).get("VmRSS")
    if now is not None:
        return now
    if sys.platform == "win32":
        return _windows_memory()[0]
    told = _told("ps", "-o", "rss=", "-p", str(os.getpid()))
    return int(told) * 1024 if told and told.isdecimal() else 0


def release_free_memory() -> None:
    """Give memory that is allocated no more back to the system, where the C library keeps it (glibc).

    Opening a model leaves some 80 MB of freed parser memory, which nothing later fits into.
    """
    if sys.platform == "linux":
        import ctypes

        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc's own; musl has none
        if trim is not None:
            trim(0)


def memory_total_bytes() -> int | None:
    """The machine's memory."""
    if sys.platform == "win32":
        return _windows_total_and_available()[0]
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError):
        return None


def memory_available_bytes() -> int | None:
    """The memory that this process can still take without the system's swapping or ending it.

    On Linux the least of what the kernel thinks available (MemAvailable) and of what is left to the process's control
    groups, version 1 or 2, up to the root: a container has less than its machine.
    """
    if sys.platform == "win32":
        return _windows_total_and_available()[1]
    if sys.platform == "darwin":
        return _vm_stat_available(_told("vm_stat") or "")
    found = [_kilobytes(Path("/proc/meminfo")).get("MemAvailable"), *_cgroup_available()]
    return min((size for size in found if size is not None), default=None)


def _cgroup_available(
    groups: Path = Path("/proc/self/cgroup"), mounted: Path = Path("/sys/fs/cgroup")
) -> Iterator[int]:
    """What is left of every limit on the memory of this process's control groups.

    A group's usage counts the pages of files that were read, of which the kernel takes back the inactive ones before
    it ends anything (https://docs.kernel.org/admin-guide/cgroup-v2.html, "Memory Interface Files"). In version 1
    `inactive_file` is without the groups inside a group, and `total_inactive_file` with them.
    """
    try:
        lines = groups.read_text("utf-8").splitlines()
    except OSError:
        return
    for line in lines:
        number, controllers, path = line.split(":", 2)
        if number == "0" and not controllers:
            base, limit, usage, inactive = mounted, "memory.max", "memory.current", "inactive_file"
        elif "memory" in controllers.split(","):
            base, limit, usage = mounted / "memory", "memory.limit_in_bytes", "memory.usage_in_bytes"
            inactive = "total_inactive_file"
        else:
            continue
        # In a container the path may be the machine's, and what is mounted the container's own: its root is tried too.
        group = base / path.lstrip("/")
        for folder in (group, *(parent for parent in group.parents if parent.is_relative_to(base))):
            try:
                most = (folder / limit).read_text("ascii").strip()
                used = int((folder / usage).read_text("ascii"))
                stat = dict(entry.split(" ", 1) for entry in (folder / "memory.stat").read_text("ascii").splitlines())
            except (OSError, ValueError):
                continue
            if most != "max":
                yield max(0, int(most) - used + int(stat.get(inactive, 0)))


def _vm_stat_available(told: str) -> int | None:
    """What macOS can give without writing anything out: free, inactive and purgeable pages."""
    lines = told.splitlines()
    sizes = [int(word) for word in lines[0].split() if word.isdecimal()] if lines else []
    pages = {name: text.strip(" .") for name, _, text in (line.partition(":") for line in lines[1:])}
    kinds = [pages.get(f"Pages {kind}", "") for kind in ("free", "inactive", "speculative", "purgeable")]
    return sizes[0] * sum(int(kind) for kind in kinds if kind.isdecimal()) if sizes and kinds[0] else None


def _kilobytes(path: Path) -> Mapping[str, int]:
    """The sizes in a file of Linux's that names them, `VmRSS:  1234 kB`, in bytes; none where there is no such file."""
    try:
        lines = path.read_text("utf-8").splitlines()
    except OSError:
        return {}
    named = (line.partition(":") for line in lines if line.endswith(" kB"))
    return {name: int(text.split()[0]) * 1024 for name, _, text in named}


def _told(*command: str) -> str | None:
    """What a program of the system's prints; None if there is none, or it fails."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def _windows_memory() -> tuple[int, int]:
    """The process's resident memory, now and at most."""
    if sys.platform != "win32":
        return 0, 0
    import ctypes
    from ctypes import wintypes

    class Counters(ctypes.Structure):
        _fields_ = (
            ("cb", wintypes.DWORD),
            ("PageFaultCount", wintypes.DWORD),
            ("PeakWorkingSetSize", ctypes.c_size_t),
            ("WorkingSetSize", ctypes.c_size_t),
            *((f"rest{number}", ctypes.c_size_t) for number in range(6)),
        )

    counters = Counters(cb=ctypes.sizeof(Counters))
    ctypes.windll.psapi.GetProcessMemoryInfo(
        wintypes.HANDLE(ctypes.windll.kernel32.GetCurrentProcess()), ctypes.byref(counters), counters.cb
    )
    return int(counters.WorkingSetSize), int(counters.PeakWorkingSetSize)


def _windows_total_and_available() -> tuple[int | None, int | None]:
    """The machine's memory, and what of it is free."""
    if sys.platform != "win32":
        return None, None
    import ctypes
    from ctypes import wintypes

    class Status(ctypes.Structure):  # MEMORYSTATUSEX
        _fields_ = (
            ("dwLength", wintypes.DWORD),
            ("dwMemoryLoad", wintypes.DWORD),
            ("ullTotalPhys", ctypes.c_ulonglong),
            ("ullAvailPhys", ctypes.c_ulonglong),
            *((f"rest{number}", ctypes.c_ulonglong) for number in range(5)),
        )

    status = Status(dwLength=ctypes.sizeof(Status))
    if not ctypes.windll.kernel32.GlobalMemoryStatusEx(ctypes.byref(status)):
        return None, None
    return int(status.ullTotalPhys), int(status.ullAvailPhys)


def cpu_count() -> int:
    """CPU cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def cpu_name() -> str:
    """What the processor calls itself."""
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def cpu_mhz() -> float | None:
    """The fastest core's clock now, where Linux tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
    except OSError:
        return None
    clocks = [float(line.split(":")[1]) for line in lines if line.startswith("cpu MHz")]
    return round(max(clocks)) if clocks else None


def load() -> float | None:
    """Processes that ran or wanted to over the last minute, on average."""
    return round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None


def cache_folder() -> Path:
    """Where this user's caches go, by the system's own rule; not made yet."""
    if sys.platform == "win32":
        base = os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local"
    elif sys.platform == "darwin":
        base = Path.home() / "Library" / "Caches"
    else:
        base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "gpupipe"


def megabytes(number: float) -> str:
    """A number of bytes for people: `1234.5 MB`."""
    return f"{number / 1e6:.1f} MB"
