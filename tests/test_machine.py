"""Facts about the machine, against the system's own files and made-up ones."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import numpy as np
import pytest

from gpupipe import machine

GB = 10**9


def write_group(folder: Path, *, limit: str, used: int, inactive: int, version: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    names = {1: ("memory.limit_in_bytes", "memory.usage_in_bytes"), 2: ("memory.max", "memory.current")}[version]
    for name, text in zip(names, (limit, str(used)), strict=True):
        (folder / name).write_text(text + "\n")
    stat = f"anon 7\ninactive_file {inactive}\nactive_file 5\n"
    if version == 1:
        stat = f"cache 7\ninactive_file 3\ntotal_cache 9\ntotal_inactive_file {inactive}\n"
    (folder / "memory.stat").write_text(stat)


def left(groups: str, mounted: Path) -> list[int]:
    path = mounted.parent / "self_cgroup"
    path.write_text(groups)
    return list(machine._cgroup_available(path, mounted))


def test_control_groups_of_version_2_up_to_the_root(tmp_path: Path) -> None:
    mounted = tmp_path / "cgroup"
    write_group(mounted / "pod" / "job", limit="max", used=GB, inactive=0, version=2)
    write_group(mounted / "pod", limit=str(4 * GB), used=3 * GB, inactive=GB // 2, version=2)
    assert left("0::/pod/job\n", mounted) == [4 * GB - 3 * GB + GB // 2]
    write_group(mounted / "pod" / "job", limit=str(2 * GB), used=GB, inactive=0, version=2)
    assert left("0::/pod/job\n", mounted) == [GB, 3 * GB // 2]
    write_group(mounted / "pod" / "job", limit=str(GB), used=GB + 4096, inactive=0, version=2)
    assert left("0::/pod/job\n", mounted) == [0, 3 * GB // 2]


def test_control_groups_of_version_1_whose_path_is_the_machines(tmp_path: Path) -> None:
    mounted = tmp_path / "cgroup"
    write_group(mounted / "memory", limit=str(3 * GB), used=GB, inactive=7, version=1)
    groups = "12:cpu,cpuacct:/docker/ab\n4:hugetlb,memory:/docker/ab\n0::/docker/ab\n1:name=systemd:/docker/a:b\n"
    assert left(groups, mounted) == [2 * GB + 7]
    assert left("5:cpu:/\n0::/\n", mounted) == []
    (mounted / "memory" / "memory.stat").unlink()
    assert left(groups, mounted) == []


def test_no_control_groups(tmp_path: Path) -> None:
    assert list(machine._cgroup_available(tmp_path / "none", tmp_path)) == []


@pytest.mark.skipif(sys.platform != "linux", reason="compares with Linux's own files")
def test_memory_is_what_the_system_says() -> None:
    told = {line.split(":")[0]: int(line.split()[1]) * 1024 for line in Path("/proc/meminfo").read_text().splitlines()}
    total, available = machine.memory_total_bytes(), machine.memory_available_bytes()
    assert total == told["MemTotal"]
    assert available is not None
    assert 0 < available <= total
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    assert machine.rss_bytes() == pytest.approx(pages * os.sysconf("SC_PAGE_SIZE"), rel=0.1)


def test_memory_that_is_held() -> None:
    before = machine.rss_bytes()
    held = np.ones(100_000_000, np.uint8)
    assert machine.rss_bytes() - before > 90e6
    assert machine.peak_rss_bytes() >= machine.rss_bytes() - 1e6
    assert held.sum() == 100_000_000


def test_memory_of_macos() -> None:
    told = (
        "Mach Virtual Memory Statistics: (page size of 16384 bytes)\n"
        "Pages free:                               11000.\n"
        "Pages active:                            250000.\n"
        "Pages inactive:                          240000.\n"
        "Pages speculative:                         1000.\n"
        "Pages wired down:                        120000.\n"
        "Pages purgeable:                            500.\n"
        '"Translation faults":                  98765432.\n'
    )
    assert machine._vm_stat_available(told) == 16384 * (11000 + 240000 + 1000 + 500)
    assert machine._vm_stat_available("") is None
    assert machine._vm_stat_available("what?\nis this") is None


def test_the_processor() -> None:
    assert machine.cpu_count() >= 1
    assert machine.cpu_name()
    mhz = machine.cpu_mhz()
    assert mhz is None or 100 < mhz < 20_000
