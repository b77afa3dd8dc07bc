"""Renders on a Ray cluster of several nodes on one machine, against one process: bytes, losses, memory, time.

    python benchmarks/cluster.py CHARACTER [--frames 240] [--jobs 50] [--json FILE]

The nodes have one CPU core each, a cache folder each, and talk by way of the loopback. One process renders the
character (with one core, and with all); then the cluster does: with files found in the same folders, and with all files
sent; with an engine killed in the middle; with one that hangs; with a node taken away in the middle; with the one who
asked for it killed, and resumed. Every file must have the bytes of the first. Then many short jobs, after each of which
the object store and the memory of the engines are looked at. On a machine with fewer cores than nodes, a cluster cannot
be faster than one process: what is timed there is what it costs.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

from gpupipe.cluster.render import render_on_cluster, run_jobs_on_cluster
from gpupipe.cluster.starting import start_node
from gpupipe.cluster.stats import ClusterStats
from gpupipe.machine import cpu_count, cpu_name, load
from gpupipe.render.jobfile import JobLine
from gpupipe.render.manifest import read_manifest
from gpupipe.render.parts import parts_folder
from gpupipe.render.queue import JobReport

NODE = {"num_cpus": 1, "object_store_memory": 100 << 20, "include_dashboard": False}
SETTLE_SECONDS = 5.0
"""Within which Ray frees what nobody refers to any more."""
SETTINGS = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # it listens on the loopback only
    "RAY_IGNORE_UNHANDLED_ERRORS": "1",
}
"""Of Ray, which reads them when it is imported."""


class Bench:
    """Renders of one character, and what they are compared with.

    Args:
        character: its folder.
        work: an empty folder.
        frames: of the speech.
        segment_frames: of a segment.
        address: of the cluster.
        caches: the nodes' cache folders.
    """

    def __init__(
        self, character: Path, work: Path, frames: int, segment_frames: int, address: str, caches: list[Path]
    ) -> None:
        self.character, self.work, self.address, self.caches = character, work, address, caches
        self.options = {"frames": frames, "segment_frames": segment_frames}
        self.whole = b""

    def alone(self, *options: str, cores: int | None = None) -> float:
        """Seconds that one process takes, on so many cores."""
        command, output = self._command("alone.mp4", *options)
        pinned = ["taskset", "-c", ",".join(map(str, range(cores)))] if cores else []
        began = time.perf_counter()
        subprocess.run([*pinned, *command], check=True)
        seconds = time.perf_counter() - began
        content = output.read_bytes()
        assert self.whole in (b"", content), "one process makes other bytes"
        self.whole = content
        output.unlink()
        return seconds

    def on_cluster(self, *, shared: bool = True, resume: bool = False, after: Callable[[], None] | None = None) -> Any:
        """What a render on the cluster tells; `after` is called once three segments are there."""
        output = self.work / "cluster.mp4"
        watch = threading.Thread(target=self._wait_and_do, args=(output, after), daemon=True)
        if after is not None:
            watch.start()
        began = time.perf_counter()
        stats = render_on_cluster(
            self.character,
            output,
            address=self.address,
            cores=1,
            device="cpu",
            shared=shared,
            resume=resume,
            **self.options,  # type: ignore[arg-type]
        )
        seconds = time.perf_counter() - began
        if after is not None:
            watch.join()
        return self._checked(output, stats, seconds)

    def resumed(self) -> dict[str, Any]:
        """What is told of a render that goes on with another one, whose process was killed."""
        command, output = self._command("cluster.mp4", "--ray", self.address, "--ray-cores", "1")
        driver = subprocess.Popen(command)
        kept = self._wait_and_do(output, driver.kill)
        driver.wait()
        assert not output.exists(), "it was finished before it was killed"
        found: dict[str, Any] = self.on_cluster(resume=True)
        return {"kept_segments": kept} | found

    def kill_an_engine(self) -> None:
        """End the process of one engine."""
        os.kill(min(self.engines()), signal.SIGKILL)

    def an_engine_hangs(self) -> dict[str, Any]:
        """What is told of a render one of whose engines is stopped in the middle, and answers no more."""
        stopped: list[int] = []

        def stop_one() -> None:
            stopped.append(min(self.engines()))
            os.kill(stopped[0], signal.SIGSTOP)

        try:
            found: dict[str, Any] = self.on_cluster(after=stop_one)
            return found
        finally:
            for process in stopped:
                with suppress(ProcessLookupError):
                    os.kill(process, signal.SIGKILL)

    def engines(self) -> list[int]:
        """The processes of the engines that are open."""
        locks = [lock for cache in self.caches for lock in (cache / "gpupipe" / "cluster").glob("work-*.lock")]
        return [int(text) for lock in locks if (text := lock.read_text("ascii"))]

    def _command(self, name: str, *options: str) -> tuple[list[str], Path]:
        output = self.work / name
        given = [f"--{key.replace('_', '-')}={value}" for key, value in self.options.items()]
        command = [sys.executable, "-m", "gpupipe", "render", str(self.character), "-o", str(output), *given, *options]
        return [*command, "--device", "cpu", "--quiet"], output

    def _wait_and_do(self, output: Path, after: Callable[[], None] | None) -> int:
        while (found := read_manifest(parts_folder(output))) is None or len(found.segments) < 3:
            time.sleep(0.05)
        if after is not None:
            after()
        return len(found.segments)

    def _checked(self, output: Path, stats: ClusterStats, seconds: float) -> dict[str, Any]:
        assert output.read_bytes() == self.whole, "other bytes than one process makes"
        assert [path.name for path in self.work.iterdir()] == [output.name], "something is left behind"
        output.unlink()
        nodes = [
            {
                "engines": n.engines,
                "frames": n.frames,
                "segments": n.segments,
                "seconds": n.seconds,
                "lost": n.retries,
                "backups": n.backups,
            }
            for n in stats.nodes
        ]
        return {
            "same_bytes": True,
            "seconds": round(seconds, 2),
            "drawing_seconds": round(stats.total_seconds, 2),
            "nodes": nodes,
        }


def many_jobs(bench: Bench, count: int) -> dict[str, Any]:
    """The object store and the engines' memory after each of many short jobs."""
    jobs = [
        JobLine(n, bench.character, str(bench.work / f"{n}.mp4"), {"frames": 12, "segment_frames": 6})
        for n in range(count)
    ]
    store: list[int] = []
    memory: list[int] = []

    def told(report: JobReport) -> None:
        assert report.error is None, report.error
        store.append(stored(bench.address))
        memory.append(sum(resident(process) for process in bench.engines()))

    began = time.perf_counter()
    run_jobs_on_cluster(jobs, {"device": "cpu"}, address=bench.address, cores=1, told=told, shared=False)
    seconds = time.perf_counter() - began
    for job in jobs:
        Path(job.output).unlink()
    time.sleep(SETTLE_SECONDS)
    third = count // 3
    return {
        "jobs": count,
        "seconds": round(seconds, 2),
        "object_store_bytes": {
            "most": max(store),
            "first_third": max(store[:third]),
            "last_third": max(store[-third:]),
        },
        "object_store_bytes_left": stored(bench.address),
        "engines_resident_mb": {
            "first_third": max(memory[:third]) // 10**6,
            "last_third": max(memory[-third:]) // 10**6,
        },
    }


def stored(address: str) -> int:
    """Bytes in the object stores of all nodes."""
    api: Any = import_module("ray._private.internal_api")
    state = api.get_state_from_address(address)
    nodes = [node for node in state.node_table() if node["Alive"]]
    replies = [api.get_memory_info_reply(state, node["NodeManagerAddress"], node["NodeManagerPort"]) for node in nodes]
    return sum(reply.store_stats.object_store_bytes_used for reply in replies)


def resident(process: int) -> int:
    """Bytes of memory that a process holds; 0 if it has ended."""
    try:
        return int(Path(f"/proc/{process}/statm").read_text("ascii").split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError):
        return 0


@contextmanager
def cluster_of(count: int, folder: Path) -> Iterator[tuple[Any, list[Path]]]:
    """A cluster of nodes with one core and a cache folder each, which is stopped at the end."""
    os.environ.update(SETTINGS)
    ray: Any = import_module("ray")
    cluster: Any = import_module("ray.cluster_utils").Cluster()
    caches = [folder / f"node{number}" for number in range(count)]
    try:
        for cache in caches:
            cache.mkdir()
            start_node(partial(cluster.add_node, **NODE, env_vars={"XDG_CACHE_HOME": str(cache)}))
        ray.init(address=cluster.address, log_to_driver=False, logging_level="CRITICAL")
        yield cluster, caches
    finally:
        ray.shutdown()
        cluster.shutdown()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("character", type=Path)
    parser.add_argument("--frames", type=int, default=240)
    parser.add_argument("--segment-frames", type=int, default=20)
    parser.add_argument("--nodes", type=int, default=3)
    parser.add_argument("--jobs", type=int, default=50)
    parser.add_argument("--turns", type=int, default=3, help="how often the timed renders are repeated, in turn")
    parser.add_argument("--json", type=Path, help="write the numbers there")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="cluster") as temporary:
        folder, work = Path(temporary), Path(temporary, "work")
        work.mkdir()
        with cluster_of(args.nodes, folder) as (cluster, caches):
            bench = Bench(args.character, work, args.frames, args.segment_frames, cluster.address, caches)
            found: dict[str, Any] = {
                "cpu": cpu_name(),
                "cores": cpu_count(),
                "load_before": load(),
                "character": args.character.name,
                "frames": args.frames,
                "segment_frames": args.segment_frames,
                "nodes": args.nodes,
                "turns": [],
            }
            for _ in range(args.turns):
                one, every = bench.alone(cores=1), bench.alone()
                on_cluster = bench.on_cluster()
                found["turns"].append(
                    {
                        "one_process_one_core_seconds": round(one, 2),
                        "one_process_seconds": round(every, 2),
                        "cluster_seconds": on_cluster["seconds"],
                        "cluster_drawing_seconds": on_cluster["drawing_seconds"],
                        "load": load(),
                    }
                )
                tell(found["turns"][-1])
            for name, done in (
                ("files_sent", lambda: bench.on_cluster(shared=False)),
                ("engine_killed", lambda: bench.on_cluster(shared=False, after=bench.kill_an_engine)),
                ("engine_hangs", bench.an_engine_hangs),
                ("driver_killed_and_resumed", bench.resumed),
                ("many_jobs", lambda: many_jobs(bench, args.jobs)),
                ("node_removed", lambda: bench.on_cluster(after=lambda: remove_a_node(cluster))),
            ):
                found[name] = done()
                tell({name: found[name]})
    if args.json:
        args.json.write_text(json.dumps(found, indent=1) + "\n", "utf-8")


def remove_a_node(cluster: Any) -> None:
    """Take away a node, with all its processes, at once."""
    cluster.remove_node(next(iter(cluster.worker_nodes)), allow_graceful=False)


def tell(what: dict[str, Any]) -> None:
    print(json.dumps(what), flush=True)


if __name__ == "__main__":
    main()
