"""A router whose replicas live on the nodes of a Ray cluster: the same frames, and what is lost with one."""

from __future__ import annotations

import logging
import os
import re
import signal
import stat
import time
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from numpy.typing import NDArray
from router_scene import END, TOKEN, Client, Scene, config

from gpupipe.cli import main
from gpupipe.cluster.berths import Berth, Berths
from gpupipe.cluster.server import Look, ServerActor, TokenFile, Wanted, _end_with, pinned
from gpupipe.cluster.serving import serve_on_cluster
from gpupipe.cluster.work import Failure
from gpupipe.errors import ClusterError, OptionError
from gpupipe.options import ServeOptions
from gpupipe.render.engine import Engine
from gpupipe.serve.grpc import avatar_pb2 as pb

SECONDS = 60
"""How long anything is waited for."""


# With Ray: two replicas of one core each


@pytest.fixture(scope="module")
def started() -> Iterator[list[logging.LogRecord]]:
    """What is told of each replica that has been started."""
    found: list[logging.LogRecord] = []

    class Kept(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if getattr(record, "event", None) == "replica started":
                found.append(record)

    logger, kept = logging.getLogger("gpupipe.cluster.replicas"), Kept()
    before = logger.level
    logger.setLevel(logging.INFO)
    logger.addHandler(kept)
    yield found
    logger.removeHandler(kept)
    logger.setLevel(before)


@pytest.fixture(scope="module")
def router(
    cluster: str, folder: Path, started: list[logging.LogRecord], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Client]:
    """Of a router on the cluster, whose replicas take one talk each."""
    kept = tmp_path_factory.mktemp("kept")
    (kept / "tokens").write_text(TOKEN)
    options = ServeOptions(
        port=0,
        grpc_port=0,
        ray=cluster,
        ray_cores=1,
        max_sessions=1,
        token_file=kept / "tokens",
        jobs=kept / "jobs",
        grace=1,
    )
    scene, client = Scene(), None
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("gpupipe.serve.router.kept.AGAIN_SECONDS", (0.1, 1.0))
        try:
            client = Client(scene.start(serve_on_cluster, folder, options))
            yield client
        finally:
            if client is not None:
                client.close()
            scene.close()
    assert not list((kept / "jobs").glob(".router-*"))
    for process in processes(started):  # each has ended with the router
        with pytest.raises(ProcessLookupError):
            os.kill(process, 0)


def processes(started: list[logging.LogRecord]) -> list[int]:
    return [fields["pid"] for fields in (getattr(record, "fields", {}) for record in started)]


def test_a_talk_through_the_router_has_the_frames_of_an_engine(
    router: Client, started: list[logging.LogRecord], folder: Path, pcm: NDArray[np.float32]
) -> None:
    data = (pcm * 32768).astype("<i2").tobytes()
    speech = [config(), *(pb.SpeakRequest(audio=data[at : at + 7001]) for at in range(0, len(data), 7001)), END]
    frames = [each.frame.data for each in router.speak(*speech) if each.WhichOneof("response") == "frame"]
    with Engine(device="cpu") as engine:
        expected = [each.tobytes() for each in engine.frames(folder / "anna", audio=folder / "anna" / "aud.wav")]
    assert frames == expected
    assert router.status()["most_sessions"] == len(started) == 2
    # Each has a core of its own, and wants the router's tokens, which nobody reads on its command line.
    if hasattr(os, "sched_getaffinity"):
        cores = [os.sched_getaffinity(process) for process in processes(started)]
        assert [len(each) for each in cores] == [1, 1]
        assert len(set.union(*cores)) == min(2, len(os.sched_getaffinity(0)))
    if Path("/proc/self/cmdline").exists():
        for process in processes(started):
            told = Path(f"/proc/{process}/cmdline").read_text().split("\0")
            assert TOKEN not in told
            assert not Path(told[told.index("--token-file") + 1]).parent.exists()
    assert router.http.get("/v1/status", headers={"authorization": "Bearer wrong"}).status_code == 401
    taken = router.http.post("/v1/jobs?character=anna&frames=2", content=(folder / "anna" / "aud.wav").read_bytes())
    assert taken.status_code == 202
    assert [job["id"] for job in router.http.get("/v1/jobs").json()["jobs"]] == [taken.json()["id"]]


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="a process is killed")
def test_a_replica_that_dies_ends_its_own_session_and_is_started_again(
    router: Client, started: list[logging.LogRecord]
) -> None:
    router.until("sessions", 0)
    with router.talk() as one, router.talk() as two:
        router.until("sessions", 2)
        os.kill(processes(started)[0], signal.SIGKILL)
        until = time.monotonic() + SECONDS
        while one.is_active() and two.is_active() and time.monotonic() < until:
            time.sleep(0.02)
        ended = [call for call in (one, two) if not call.is_active()]
        assert [call.code() for call in ended] == [grpc.StatusCode.UNAVAILABLE]
        for replicas in (1, 2):  # it is left out, and started again
            router.until("most_sessions", replicas)
        with router.talk():
            assert one.is_active() != two.is_active()
    assert len(started) == 3
    router.until("sessions", 0)


# Without Ray


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["--ray"], "CHARACTERS/: is missing; give a folder of character folders, before --ray, which takes what"),
        (
            ["people", "--ray", "--replicas", "http://a:1"],
            "--replicas: servers that run elsewhere are not started on a",
        ),
        (["people", "--ray", "--replicas", "0"], "--replicas: out of range (got '0')"),
        (["people", "--ray", "--device", "cuda:1"], "--device: names a GPU of one machine (got 'cuda:1')"),
        (["people", "--ray", "127.0.0.1:1"], "--ray: no Ray cluster answers: "),
        (["people", "--ray", "--host", "0.0.0.0"], "--host: other machines could use the server without a token"),
        (["people", "--ray-cores", "2"], "--ray-cores: is for engines of a cluster (got 2); give --ray too"),
    ],
)
def test_what_makes_no_sense_on_a_cluster(capsys: pytest.CaptureFixture[str], given: list[str], said: str) -> None:
    assert main(["serve", *given]) == 1
    assert capsys.readouterr().err.startswith(f"error: {said}")


def nodes(*cores: int, gpus: int = 0, address: str = "127.0.0.1") -> list[dict[str, Any]]:
    return [
        {
            "Alive": True,
            "NodeID": f"{number:056x}",
            "NodeManagerAddress": address,
            "Resources": {"CPU": float(each), "GPU": float(gpus)},
        }
        for number, each in enumerate(cores)
    ]


def where(berths: Sequence[Berth]) -> list[tuple[int, int]]:
    """The node and the number there of each place."""
    return [(int(each.share.node_id, 16), each.share.number) for each in berths]


def test_replicas_are_spread_and_find_another_node_when_theirs_is_lost() -> None:
    there = nodes(8, 8, 4)
    assert where(Berths(lambda: there, "cpu", 4, None).first) == [(0, 0), (1, 0), (2, 0), (0, 1), (1, 1)]
    berths = Berths(lambda: there, "auto", 4, 3)
    assert where(berths.first) == [(0, 0), (1, 0), (2, 0)]
    assert [each.parts for each in berths.first] == [2, 2, 1]
    assert where([berths.take(1, 0)]) == [(1, 0)]
    assert where([berths.take(1, 1)]) == [(0, 1)]  # it could not be started where it was
    there[2]["Alive"] = False
    assert where([berths.take(2, 0)]) == [(1, 0)]
    there[1]["Alive"] = False
    with pytest.raises(ClusterError, match=r"^ray: no node has room; start nodes"):
        berths.take(2, 0)
    with pytest.raises(OptionError, match=r"^replicas: the cluster has room for 2 .got '3'.; give fewer"):
        Berths(lambda: there, "cpu", 4, 3)


def test_replicas_of_gpus_do_not_become_others() -> None:
    there = nodes(4, gpus=2)
    berths = Berths(lambda: there, "auto", None, None)
    assert (berths.device, where(berths.first)) == ("cuda", [(0, 0), (0, 1)])
    there[0]["Resources"]["GPU"] = 0.0
    with pytest.raises(ClusterError, match="no node has GPUs"):
        berths.take(0, 0)


def test_nodes_that_strangers_reach_want_tokens(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    there = nodes(4, address="10.0.0.5")
    monkeypatch.setattr("gpupipe.cluster.serving.connected", lambda address: nullcontext(there))
    monkeypatch.setattr("gpupipe.cluster.serving.nodes", lambda: there)
    scene = Scene()
    try:
        with pytest.raises(OptionError, match=r"^ray: other machines could use .*got '10\.0\.0\.5'.*token_file"):
            scene.start(serve_on_cluster, tmp_path, ServeOptions(port=0, grpc_port=0, ray="auto"))
    finally:
        scene.close()


def test_nodes_must_have_the_same_characters(folder: Path, tmp_path: Path) -> None:
    looked = ServerActor().look(Wanted(str(folder), None, "cuda", None))
    assert isinstance(looked, Look)
    assert looked.sizes["anna"]["aud.wav"] == (folder / "anna" / "aud.wav").stat().st_size
    assert looked.facts.keys() >= {"gpupipe", "numpy", "codecs", "cupy-cuda12x"}
    berths = Berths(lambda: nodes(4), "cpu", None, None)
    berths.require_alike("a", looked, looked.facts)
    berths.require_alike("b", looked, looked.facts)
    with pytest.raises(ClusterError, match=r"^b: gpupipe: would not make the same bytes as the router: gpupipe is"):
        berths.require_alike("b", looked, {**looked.facts, "gpupipe": "0"})
    with pytest.raises(ClusterError, match=r"^b: numpy: would not make the same bytes as a: numpy is 0 there"):
        berths.require_alike("b", Look({**looked.facts, "numpy": "0"}, looked.sizes), looked.facts)
    with pytest.raises(ClusterError, match=r"^anna: is on a, and not on b; give all nodes the same characters"):
        berths.require_alike("b", Look(looked.facts, {}), looked.facts)
    other = {"anna": {**looked.sizes["anna"], "aud.wav": 7}}
    with pytest.raises(ClusterError, match=r"^anna: aud\.wav has 7 bytes on b, and \d+ bytes on a"):
        berths.require_alike("b", Look(looked.facts, other), looked.facts)


def test_a_node_that_lacks_something_says_what(folder: Path, tmp_path: Path) -> None:
    actor = ServerActor()
    missing = tmp_path / "nobody"
    for wanted, said in (
        (
            Wanted(str(missing), None, "cpu", None),
            f"{missing}: cannot be read: ",
        ),
        (
            Wanted(str(folder), str(missing), "cpu", None),
            f"{missing}: cannot be read: ",
        ),
        (
            Wanted(str(folder), None, "cpu", (str(missing), "x")),
            f"{tmp_path}: jobs: the folder of jobs is not",
        ),
    ):
        failed = actor.look(wanted)
        assert isinstance(failed, Failure)
        assert str(failed.error()).startswith(said)
    opened = actor.open([str(missing), "--port", "0"], 1, (0, 1, 0), "")
    assert isinstance(opened, Failure)
    assert re.match(rf"a server did not start: {re.escape(str(missing))}: ", str(opened.error()))


def test_an_actor_ends_once_ray_has(monkeypatch: pytest.MonkeyPatch) -> None:
    parents, ended = [1, 7, 7], list[int]()
    monkeypatch.setattr("os.getppid", lambda: parents.pop())
    monkeypatch.setattr("os._exit", ended.append)
    monkeypatch.setattr("gpupipe.cluster.server.POLL_SECONDS", 0.0)
    _end_with(7)
    assert (parents, ended) == ([], [1])


def test_tokens_are_in_a_file_of_the_users_own() -> None:
    with TokenFile(TOKEN) as (flag, name):
        path = Path(name)
        assert (flag, path.read_text()) == ("--token-file", TOKEN)
        if os.name == "posix":
            assert [stat.S_IMODE(each.stat().st_mode) for each in (path, path.parent)] == [0o600, 0o700]
    assert not path.parent.exists()
    with TokenFile("") as none:
        assert none == []


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="the system is not told of cores")
def test_servers_of_a_node_have_cores_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {0, 1, 2, 3, 4, 6, 7})
    assert [pinned(3, number, 2, 0) for number in range(2)] == [{0, 2, 4}, {1, 3, 6}]
    assert [pinned(None, number, 2, 8) for number in range(2)] == [{1, 3, 6, 0}, {2, 4, 7}]
    assert pinned(2, 8, 9, 0) == {1}
