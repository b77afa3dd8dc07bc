"""A server in a process of its own, on free ports, and what it tells of itself."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Final

from gpupipe.errors import GpupipeError

STARTING_SECONDS: Final = 120.0

_LISTENS = re.compile(r"listening at (http://\S+?)/ and, for gRPC, at (\S+)")


class ServerProcess:
    """`gpupipe serve` on free ports of the loopback. A context manager, which ends it.

    Args:
        folder: of the characters.
        options: more of the command line's.

    Attributes:
        http: such as http://127.0.0.1:8500.
        grpc: such as 127.0.0.1:8501.
        pid: of the process.

    Raises:
        GpupipeError: it does not start.
    """

    def __init__(self, folder: Path, options: Sequence[str] = ()) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "gpupipe", "serve", str(folder), "--port", "0", "--grpc-port", "0", *options],
            stdout=subprocess.PIPE,
            text=True,
        )
        self.pid = self._process.pid
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if (found := _LISTENS.search(line)) is not None:
                self.http, self.grpc = found[1], found[2]
                return
        raise GpupipeError("the server did not start", remedy="see what it has written")

    def metrics(self) -> dict[str, float]:
        """Its metrics: each sample by its name and labels, as Prometheus is told them."""
        with urllib.request.urlopen(f"{self.http}/metrics", timeout=30) as answer:
            lines = answer.read().decode().splitlines()
        samples = (line.rpartition(" ") for line in lines if line and not line.startswith("#"))
        return {name: float(value) for name, _, value in samples}

    def cpu_seconds(self) -> float:
        """CPU time that it has taken; 0 where the system does not say (only Linux does)."""
        with suppress(OSError):
            fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
            return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
        return 0.0

    def levels(self) -> dict[str, int]:
        """What it holds: memory in bytes, threads, open files; empty where the system does not say."""
        with suppress(OSError):
            status = dict(line.split(":", 1) for line in Path(f"/proc/{self.pid}/status").read_text().splitlines())
            return {
                "rss": int(status["VmRSS"].split()[0]) * 1024,
                "threads": int(status["Threads"]),
                "files": len(list(Path(f"/proc/{self.pid}/fd").iterdir())),
            }
        return {}

    def close(self) -> int:
        """End it, and wait for it; its exit code."""
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
        return self.wait()

    def wait(self) -> int:
        """Wait for its end, a minute at most; its exit code."""
        try:
            return self._process.wait(60)
        except subprocess.TimeoutExpired:
            self._process.kill()
            return self._process.wait()
        finally:
            if self._process.stdout is not None:
                self._process.stdout.close()

    def __enter__(self) -> ServerProcess:
        """Begin a with block, which ends it."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End it."""
        self.close()


def fill(before: dict[str, float], after: dict[str, float]) -> float | None:
    """Share of the places in batches that were filled between two looks at a server's metrics."""

    def more(name: str) -> float:
        return sum(value - before.get(key, 0.0) for key, value in after.items() if key.startswith(name))

    places = more("gpupipe_batch_places_total")
    return more("gpupipe_batch_frames_sum") / places if places else None
