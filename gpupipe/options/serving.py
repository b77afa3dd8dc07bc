"""The options of a server: what it listens on, and what its clients may take."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from gpupipe import errors
from gpupipe.options.declare import Checked, declared, option

if TYPE_CHECKING:
    from pathlib import Path

MAX_PORT = 65535

MOST_LOAD: Final = 0.65
"""Of the time there is: what realtime talks may take together. On two cores frames came late from 0.7 on: the rest of a
process's threads, which Python lets run one at a time, is not counted (benchmarks/results/serve-nv12.json)."""


@dataclass(frozen=True)
class ServeOptions(Checked):
    """What a server listens on, and what its clients may take; of `gpupipe serve`."""

    host: str = option(
        "127.0.0.1", "the address to listen on; 0.0.0.0 and :: are all there are", metavar="ADDRESS", kind="text"
    )
    port: int = option(8500, "of HTTP; 0 takes a free one", metavar="N", most=MAX_PORT)
    grpc_port: int = option(8501, "of gRPC; 0 takes a free one", metavar="N", most=MAX_PORT)
    token_file: Path | str | None = option(
        None,
        "who shows one of the tokens in this file, one a line, may ask",
        kind="path",
        metavar="FILE",
        unset="everybody may",
    )
    insecure: bool = option(False, "listen beyond this machine without tokens")
    cors: str | None = option(
        None,
        "the origin of web pages elsewhere that may ask, such as https://example.com, or *",
        kind="text",
        metavar="ORIGIN",
        unset="none",
    )
    replicas: str | None = option(
        None,
        "put a router before so many servers on this machine, which it starts; or before those at these addresses, "
        "such as http://a:8500,http://b:8500=b:8501 (of HTTP, and of gRPC where it is not port 8501 of the same host)",
        kind="text",
        metavar="N|URL,...",
        unset="none: one server, without a router",
    )
    ray: str | None = option(
        None,
        "put a router before servers on the nodes of a Ray cluster, which it starts: one a GPU, or a share of the CPU "
        "cores, or as many as --replicas says; auto, HOST:PORT or ray://HOST:PORT, without an address a Ray that is "
        "started on this machine and stopped at the end",
        kind="text",
        metavar="ADDRESS",
        unset="none",
        bare="local",
    )
    ray_cores: int | None = option(
        None,
        "CPU cores of each server on a cluster, where frames are composited on the CPU",
        kind="number",
        metavar="N",
        least=1,
        unset="4, or what the node has",
    )
    jobs: Path | str | None = option(
        None, "take jobs, and keep them and their outputs in this folder", kind="path", metavar="FOLDER", unset="none"
    )
    max_jobs: int = option(1000, "the most jobs that wait or are under way", metavar="N", least=1)
    job_hours: int = option(24, "hours for which a finished job's output is kept", metavar="H", least=1)
    max_sessions: int = option(256, "the most talks at a time, realtime or not", metavar="N", least=1)
    max_connections: int = option(4096, "the most HTTP connections at a time", metavar="N", least=1)
    max_seconds: int = option(3600, "the longest speech", metavar="S", least=1)
    max_upload: int = option(
        256_000_000, "the largest sound that is uploaded, such as 256M", kind="bytes", metavar="SIZE", least=1
    )
    idle: int = option(
        30, "seconds after which a client that sends, or takes, nothing is sent away", metavar="S", least=1
    )
    most_load: float = option(
        MOST_LOAD,
        "the share of the device's and the processor's time that realtime talks may take together; 1 lets everybody in",
        kind="share",
        metavar="SHARE",
    )
    grace: int = option(30, "seconds that talks have to end in when the server is told to", metavar="S")


for _said in declared(ServeOptions).values():
    errors.PYTHON_SPELLINGS.update(_said.python_spellings)
