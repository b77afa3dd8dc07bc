"""Renders on a cluster: who draws what, what is lost and tried again, and the same bytes as on one machine."""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import small
from cluster_scene import FRAMES, OPTIONS, SEGMENTS, Here, by_one_process, character, run_here
from ray_nodes import Nodes

import gpupipe
from gpupipe.character.folder import GpupipeWarning
from gpupipe.cluster.crew import Hand
from gpupipe.cluster.drawing import Drawing
from gpupipe.cluster.job import Asked, ClusterJob
from gpupipe.cluster.node import Node
from gpupipe.cluster.render import render_on_cluster, run_jobs_on_cluster, wanted
from gpupipe.cluster.shares import shares
from gpupipe.cluster.store import Store
from gpupipe.cluster.work import Failure
from gpupipe.engine.shelf import Digests
from gpupipe.errors import ClusterError, DeviceError, GpupipeError, InferenceError, OptionError, OutputError
from gpupipe.media.limits import DEFAULT
from gpupipe.options import JobKeywords
from gpupipe.render.gather import Gathered
from gpupipe.render.jobfile import JobLine
from gpupipe.render.manifest import read_manifest
from gpupipe.render.parts import parts_folder
from gpupipe.render.queue import JobReport
from gpupipe.render.stats import Progress


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return character(tmp_path / "anna")


@pytest.fixture
def whole(folder: Path, tmp_path: Path) -> bytes:
    return by_one_process(folder, tmp_path / "whole.mp4")


# Without Ray: engines in this process


@pytest.mark.parametrize("shared", [True, False])
def test_nodes_make_the_bytes_of_one_machine(folder: Path, tmp_path: Path, whole: bytes, shared: bool) -> None:
    output = tmp_path / "talk.mp4"
    remotes = [Here(number, tmp_path / f"node{number}") for number in range(2)]
    [(error, stats)] = run_here(remotes, [Asked(folder, output, OPTIONS)], shared=shared)
    assert error is None
    assert stats is not None
    assert output.read_bytes() == whole
    assert not parts_folder(output).exists()
    assert sum(node.segments for node in stats.nodes) == SEGMENTS
    assert sum(node.frames for node in stats.nodes) == stats.frames == FRAMES
    asked = [what for remote in remotes for what in remote.asked]
    assert ("deliver" in asked, "seal" in asked, "read" in asked) == (shared, not shared, not shared)
    bundles = [path for remote in remotes for path in remote.root.iterdir() if path.is_dir()]
    assert [path.name.startswith("work-") for path in bundles] == [False] * (0 if shared else len(bundles))


def test_images_come_from_nodes_too(folder: Path, tmp_path: Path) -> None:
    options: JobKeywords = {**OPTIONS, "image_format": "png", "frames": 15}
    gpupipe.render(folder, f"{tmp_path}/whole/", device="cpu", **options)
    [(error, _)] = run_here([Here(0, tmp_path / "node")], [Asked(folder, f"{tmp_path}/talk/", options)], shared=False)
    assert error is None
    assert small.files_in(tmp_path / "talk") == small.files_in(tmp_path / "whole")


def test_what_is_lost_with_an_engine_is_drawn_by_another(folder: Path, tmp_path: Path, whole: bytes) -> None:
    output = tmp_path / "talk.mp4"
    remotes = [Here(number, tmp_path / f"node{number}", dies_at=(3 + 2 * number,)) for number in range(2)]
    [(error, stats)] = run_here(remotes, [Asked(folder, output, OPTIONS)])
    assert error is None
    assert stats is not None
    assert output.read_bytes() == whole
    assert sum(node.segments for node in stats.nodes) == SEGMENTS


def test_a_segment_that_ends_every_engine_is_named_and_the_others_stay(folder: Path, tmp_path: Path) -> None:
    output = tmp_path / "talk.mp4"
    remotes = [Here(number, tmp_path / f"node{number}", dies_at=(7,) * 9) for number in range(2)]
    other = Asked(folder, tmp_path / "other.mp4", {**OPTIONS, "frames": 12})
    (error, _), (none, stats) = run_here(remotes, [Asked(folder, output, OPTIONS), other])
    assert isinstance(error, ClusterError)
    assert "segment 7: its engine was lost 3 times, last so: segment 7" in str(error)
    assert str(output) in str(error)
    assert none is None
    assert stats is not None
    manifest = read_manifest(parts_folder(output))
    assert manifest is not None
    assert manifest.segments
    assert 7 not in manifest.segments


def test_nodes_that_are_not_alike_are_named(folder: Path, tmp_path: Path) -> None:
    remotes = [Here(0, tmp_path / "0"), Here(1, tmp_path / "1", facts={"processor": "another"})]
    with pytest.raises(ClusterError, match=r"^node \d: processor: would not make the same bytes as node \d: .*another"):
        run_here(remotes, [Asked(folder, tmp_path / "talk.mp4", OPTIONS)])
    with pytest.raises(ClusterError, match=r"^node 0: codecs: would not .* the machine that joins them"):
        run_here([Here(0, tmp_path / "0", facts={"codecs": "x"})], [Asked(folder, tmp_path / "talk.mp4", OPTIONS)])


def test_a_node_refuses_what_it_would_draw_otherwise(folder: Path, tmp_path: Path) -> None:
    job = ClusterJob(0, Asked(folder, tmp_path / "talk.mp4", OPTIONS), DEFAULT, Digests().sha256)
    assert job.look()
    assert job.spec is not None
    node = Node({"device": "cpu"}, 1, 1, Store(tmp_path / "node"))
    try:
        wanted = dict(node.begin(job.spec, shared=True).fingerprint) | {"onnxruntime": "0.1"}
        with pytest.raises(ClusterError, match=r"onnxruntime is .* there, and 0\.1 where this was begun"):
            node.draw(job.id, 0, wanted)
        (folder / "crops_328_video.mp4").write_bytes((folder / "crops_328_video.mp4").read_bytes() + bytes(8))
        with pytest.raises(ClusterError, match=r"crops_328_video\.mp4 is \w{12}… there, and \w{12}… where this"):
            node.draw(job.id, 0, dict(node.begin(job.spec, shared=True).fingerprint))
    finally:
        node.close()


def test_without_a_node_left_the_run_ends(folder: Path, tmp_path: Path) -> None:
    gone = Here(0, tmp_path / "0")
    gone.gone = True
    with (
        pytest.warns(GpupipeWarning, match="node 0: draws no more: the node is gone"),
        pytest.raises(ClusterError, match="no engine is left, the last went so: the node is gone"),
    ):
        run_here([gone], [Asked(folder, tmp_path / "talk.mp4", OPTIONS)])


def test_errors_are_those_of_one_machine(folder: Path, tmp_path: Path) -> None:
    features = small.features(FRAMES)
    features[20, 0] = -1
    np.save(folder / "aud_ave.npy", features)
    asked = Asked(folder, tmp_path / "talk.mp4", OPTIONS)
    [(error, _)] = run_here([Here(0, tmp_path / "0")], [asked], shared=False)
    assert isinstance(error, InferenceError)
    assert "frame 20" in str(error)
    (folder / "checkpoint" / "model_best.onnx").write_bytes(b"none")
    [(error, _)] = run_here([Here(0, tmp_path / "0")], [Asked(folder, tmp_path / "b.mp4", OPTIONS)], shared=False)
    assert error is not None
    assert str(folder / "checkpoint" / "model_best.onnx") in str(error)


def test_jobs_stay_with_the_engines_that_hold_their_character(folder: Path, tmp_path: Path) -> None:
    ben = small.small_character(tmp_path / "ben")
    asked = [Asked(who, tmp_path / f"{n}.mp4", {"segment_frames": 6}) for n, who in enumerate([folder, ben] * 3)]
    ended = run_here([Here(0, tmp_path / "0")], asked)
    assert [error for error, _ in ended] == [None] * 6
    for who, outputs in ((folder, (0, 2, 4)), (ben, (1, 3, 5))):
        gpupipe.render(who, tmp_path / "whole.mp4", device="cpu", segment_frames=6, overwrite=True)
        assert {(tmp_path / f"{n}.mp4").read_bytes() for n in outputs} == {(tmp_path / "whole.mp4").read_bytes()}


def test_no_more_engines_than_segments(folder: Path, tmp_path: Path) -> None:
    asked = [Asked(folder, tmp_path / "talk.mp4", {**OPTIONS, "frames": n}) for n in (13, 1, 61)]
    jobs = [ClusterJob(n, each, DEFAULT, Digests().sha256) for n, each in enumerate(asked)]
    assert [wanted(jobs[:count], 9) for count in (0, 1, 2, 3)] == [1, 3, 4, 9]
    missing = ClusterJob(0, Asked(tmp_path / "none", tmp_path / "talk.mp4", OPTIONS), DEFAULT, Digests().sha256)
    assert wanted([missing], 9) == 1


# With Ray


def wait_until(true: Callable[[], bool]) -> None:
    end = time.monotonic() + 60
    while not true():
        assert time.monotonic() < end
        time.sleep(0.02)


def engine_processes() -> set[int]:
    """The processes of the engines that are open."""
    locks = Path(os.environ["XDG_CACHE_HOME"], "gpupipe", "cluster").glob("work-*.lock")
    return {int(lock.read_text("ascii")) for lock in locks}


@pytest.fixture
def engines(nodes: Nodes) -> Callable[[], set[int]]:
    """A function that returns the processes of engines that have been opened in the test."""
    before = engine_processes()
    return lambda: engine_processes() - before


def test_a_worker_is_killed_in_the_middle(
    cluster: str,
    folder: Path,
    tmp_path: Path,
    whole: bytes,
    engines: Callable[[], set[int]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    killed: list[int] = []
    keep = Gathered.keep

    def keep_and_kill(self: Gathered, *given: Any) -> bool:
        if not killed:
            killed.append(min(engines()))
            os.kill(killed[0], signal.SIGTERM if sys.platform == "win32" else signal.SIGKILL)
        return keep(self, *given)

    monkeypatch.setattr(Gathered, "keep", keep_and_kill)
    output, told = tmp_path / "talk.mp4", list[Progress]()
    stats = render_on_cluster(
        folder, output, address=cluster, cores=1, device="cpu", shared=False, progress=told.append, **OPTIONS
    )
    assert killed
    assert output.read_bytes() == whole
    assert not parts_folder(output).exists()
    [node] = stats.nodes
    assert (node.segments, node.frames, stats.frames) == (SEGMENTS, FRAMES, FRAMES)
    assert node.retries >= 1
    assert [at.done for at in told] == sorted({at.done for at in told})


def test_a_node_joins_in_the_middle(
    nodes: Nodes,
    folder: Path,
    tmp_path: Path,
    whole: bytes,
    engines: Callable[[], set[int]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    begun = threading.Event()
    keep = Gathered.keep

    def keep_when_two_draw(self: Gathered, *given: Any) -> bool:
        begun.set()
        wait_until(lambda: len(engines()) == 2)
        return keep(self, *given)

    monkeypatch.setattr(Gathered, "keep", keep_when_two_draw)
    monkeypatch.setattr("gpupipe.cluster.run.LOOK_SECONDS", 0.1)
    output = tmp_path / "talk.mp4"
    with ThreadPoolExecutor(1) as pool:
        render = pool.submit(render_on_cluster, folder, output, address=nodes.address, cores=2, device="cpu", **OPTIONS)
        assert begun.wait(60)
        joined = nodes.add()
        try:
            stats = render.result()
        finally:
            nodes.remove(joined)
    assert output.read_bytes() == whole
    assert len(stats.nodes) == 2
    assert sum(node.segments for node in stats.nodes) == SEGMENTS


@pytest.mark.skipif(sys.platform == "win32", reason="Windows cannot stop a process for a while")
def test_an_engine_that_hangs_delays_nothing(
    nodes: Nodes,
    folder: Path,
    tmp_path: Path,
    whole: bytes,
    engines: Callable[[], set[int]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """One of two that have both been asked to draw; what they had drawn is kept after that."""
    asked, stopped, one_at_a_time = set[str](), list[int](), threading.Lock()
    draw, keep = Drawing.draw, Gathered.keep

    def noted(self: Drawing, hand: Hand, *given: Any) -> bool:
        asked.add(hand.link.name)
        return draw(self, hand, *given)

    def stop_one_and_keep(self: Gathered, *given: Any) -> bool:
        with one_at_a_time:
            if not stopped:
                wait_until(lambda: len(asked) == len(engines()) == 2)
                stopped.append(min(engines()))
                os.kill(stopped[0], signal.SIGSTOP)
        return keep(self, *given)

    monkeypatch.setattr(Drawing, "draw", noted)
    monkeypatch.setattr(Gathered, "keep", stop_one_and_keep)
    monkeypatch.setattr("gpupipe.cluster.ledger.LEAST_SECONDS", 0.0)
    output = tmp_path / "talk.mp4"
    try:
        stats = render_on_cluster(folder, output, address=nodes.address, cores=1, device="cpu", **OPTIONS)
    finally:
        for process in stopped:
            with suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
    assert output.read_bytes() == whole
    [node] = stats.nodes
    assert node.segments == SEGMENTS
    assert node.backups in (1, 2), "what it had begun"
    assert not node.retries


def test_a_driver_is_killed_and_another_goes_on(cluster: str, folder: Path, tmp_path: Path) -> None:
    np.save(folder / "aud_ave.npy", small.features(240))
    output = tmp_path / "talk.mp4"
    options = ["--segment-frames", "6", "--device", "cpu", "--ray", cluster, "--ray-cores", "2", "--quiet"]
    command = [sys.executable, "-m", "gpupipe", "render", str(folder), "-o", str(output), *options]
    driver = subprocess.Popen(command, stderr=subprocess.PIPE)
    end = time.monotonic() + 60
    while (found := read_manifest(parts_folder(output))) is None or len(found.segments) < 3:
        assert driver.poll() is None, driver.communicate()
        assert time.monotonic() < end
        time.sleep(0.02)
    driver.kill()
    driver.communicate()
    with pytest.raises(OutputError, match="was not finished"):
        render_on_cluster(folder, output, address=cluster, cores=2, device="cpu", segment_frames=6)
    stats = render_on_cluster(folder, output, address=cluster, cores=2, device="cpu", segment_frames=6, resume=True)
    assert any(note.endswith("of 240 frames were finished before") for note in stats.notes)
    gpupipe.render(folder, tmp_path / "whole.mp4", device="cpu", segment_frames=6)
    assert output.read_bytes() == (tmp_path / "whole.mp4").read_bytes()


def test_a_batch_whose_engine_is_kept_found_again_and_ends_when_idle(
    cluster: str, folder: Path, tmp_path: Path, whole: bytes
) -> None:
    (tmp_path / "done.mp4").write_bytes(whole)
    outputs = ["a.mp4", "done.mp4", "wrong.mp4", "b.mp4"]
    jobs = [JobLine(n, folder, str(tmp_path / name), {**OPTIONS}) for n, name in enumerate(outputs)]
    jobs[2].options["start_frame"] = 99
    told: list[JobReport] = []
    run_jobs_on_cluster(jobs, {"device": "cpu"}, address=cluster, cores=2, keep_minutes=0.05, told=told.append)
    assert {report.job.line: report.status for report in told} == {0: "done", 1: "skipped", 2: "failed", 3: "done"}
    [wrong] = [report.error for report in told if report.error is not None]
    assert isinstance(wrong, OptionError)
    assert "the character has 12 frames (got 99)" in str(wrong)
    kept = engine_processes()
    assert len(kept) == 1
    render_on_cluster(folder, tmp_path / "c.mp4", address=cluster, cores=2, device="cpu", keep_minutes=0.05, **OPTIONS)
    assert engine_processes() == kept
    assert {(tmp_path / name).read_bytes() for name in ("a.mp4", "b.mp4", "c.mp4")} == {whole}
    end = time.monotonic() + 60
    while engine_processes():
        assert time.monotonic() < end
        time.sleep(0.1)


def test_what_makes_no_sense_on_a_cluster(tmp_path: Path, folder: Path) -> None:
    for address in ("127.0.0.1:1", "ray://127.0.0.1:1", "127.0.0.1:x"):
        with pytest.raises(ClusterError, match=f"ray: no Ray cluster answers: .*{address}"):
            render_on_cluster(folder, tmp_path / "talk.mp4", address=address)
    with pytest.raises(OptionError, match="a Ray that is started for a render ends with it"):
        render_on_cluster(folder, tmp_path / "talk.mp4", keep_minutes=1)
    with pytest.raises(OptionError, match="device: names a GPU of one machine"):
        render_on_cluster(folder, tmp_path / "talk.mp4", device="cuda:1")


# Plain rules


def node_with(**resources: float) -> dict[str, Any]:
    number = f"{len(resources)}{sum(resources.values()):.0f}"
    return {"Alive": True, "NodeID": f"{number:0>56}", "NodeManagerAddress": "10.0.0.1", "Resources": resources}


def test_engines_are_one_a_gpu_or_one_a_share_of_cores() -> None:
    plain, with_gpus = node_with(CPU=10.0), node_with(CPU=16.0, GPU=2.0)
    found = [(share.cores, share.gpus) for share in shares([plain], "auto", None)]
    assert found == [(4, 0), (4, 0)]
    assert [(share.cores, share.gpus) for share in shares([plain], "cpu", 3)] == [(3, 0)] * 3
    assert [(share.cores, share.gpus) for share in shares([plain, with_gpus], "auto", None)] == [(1, 1)] * 2
    assert len(shares([plain, with_gpus], "cpu", 10)) == 2
    assert shares([plain, {**with_gpus, "Alive": False}], "auto", None)[0].gpus == 0
    with pytest.raises(ClusterError, match="no node has GPUs"):
        shares([plain], "cuda", None)


@pytest.mark.parametrize(
    "error",
    [
        InferenceError("gave NaN", file="m.onnx", field="frame 3", value=[1, 2], remedy="look"),
        OptionError("out of range", field="--batch", value=0),
        DeviceError("is gone"),
    ],
)
def test_errors_arrive_as_they_are(error: GpupipeError) -> None:
    failure: Failure = pickle.loads(pickle.dumps(Failure.of(error)))
    assert type(failure.error()) is type(error)
    assert failure.error().on_command_line().replace("'", "") == error.on_command_line()
