"""A lock between processes, and between threads of one."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from gpupipe.errors import OutputError
from gpupipe.filelock import FileLock

HOLDER = """
import sys, pathlib, gpupipe.filelock
with gpupipe.filelock.FileLock(pathlib.Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.readline()
"""


def holder(path: Path) -> subprocess.Popen[str]:
    """A process that holds a lock until it is told to end."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def test_one_process_has_it_at_a_time(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    with holder(path) as process:
        lock = FileLock(path)
        assert lock.acquire(timeout=0.2) is False
        assert lock.holder == process.pid
        process.communicate("\n")
    assert lock.acquire(timeout=5)
    assert lock.holder == os.getpid()
    lock.release()
    lock.release()


def test_who_is_killed_holds_it_no_more(tmp_path: Path) -> None:
    with holder(tmp_path / "lock") as process:
        process.kill()
        process.wait()
        lock = FileLock(tmp_path / "lock")
        assert lock.acquire(timeout=5)
    lock.release()


def test_threads_of_one_process_exclude_each_other(tmp_path: Path) -> None:
    inside, most = 0, 0
    guard = threading.Lock()

    def work() -> None:
        nonlocal inside, most
        for _ in range(5):
            with FileLock(tmp_path / "lock"):
                with guard:
                    inside += 1
                    most = max(most, inside)
                threading.Event().wait(0.002)
                with guard:
                    inside -= 1

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (inside, most) == (0, 1)


def test_a_lock_that_cannot_be_made_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=r"missing.lock: cannot be locked: No such file or directory; use a folder"):
        FileLock(tmp_path / "missing" / "lock").acquire()
