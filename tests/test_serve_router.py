"""A router before servers on the loopback: who is sent where, and what comes back."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from aiortc import RTCConfiguration, RTCPeerConnection
from grpc_scene import method
from hypothesis import given
from hypothesis import strategies as st
from router_scene import AUTHORIZATION, END, TOKEN, Client, Scene, config

from gpupipe.cli import main
from gpupipe.errors import OptionError
from gpupipe.options import EngineKeywords, ServeOptions
from gpupipe.serve.grpc import avatar_pb2 as pb
from gpupipe.serve.grpc import monolithic_pb2 as go
from gpupipe.serve.grpc.server import AVATAR, MONOLITHIC
from gpupipe.serve.refusals import Gone
from gpupipe.serve.router.pick import State, turns
from gpupipe.serve.router.places import arguments_of, check_only_its_own, devices_of, places_of
from gpupipe.serve.router.route import route
from gpupipe.serve.router.upstream import Exchange, Unreachable
from gpupipe.serve.server import serve

# Who is sent where


def state(number: int, load: float = 0.0, *, room: bool = True, holds: str = "", sessions: int = 0) -> State:
    return State(number, load, sessions, room, frozenset(holds.split()))


def first(below: int) -> int:
    return 0


def test_the_less_loaded_of_two_that_hold_the_character_comes_first() -> None:
    states = [state(0, 0.1), state(1, 0.5, holds="anna"), state(2, 0.4, holds="anna ben"), state(3, 0.2)]
    assert turns(states, "anna", first) == (2, 1, 0, 3)
    assert turns(states, "ben", first) == (2, 0, 1, 3)
    assert turns(states, "carl", first)[0] == 0
    assert turns([], "anna", first) == ()


def test_who_holds_the_character_and_has_no_room_comes_last() -> None:
    states = [state(0, 0.8), state(1, 0.1, room=False, holds="anna"), state(2, 0.9), state(3, 0.0, room=False)]
    assert turns(states, "anna", first) == (0, 2, 3, 1)


def test_of_equal_loads_the_fewer_sessions_win() -> None:
    assert turns([state(0, sessions=3), state(1, sessions=2)], "anna", first) == (1, 0)


@given(
    st.lists(st.tuples(st.floats(0, 1), st.booleans(), st.booleans()), max_size=12),
    st.randoms(use_true_random=False),
)
def test_all_that_have_room_are_tried_before_two_that_have_none(
    rows: list[tuple[float, bool, bool]], random: Any
) -> None:
    states = [state(i, load, room=room, holds="anna" * held) for i, (load, room, held) in enumerate(rows)]
    order = turns(states, "anna", random.randrange)
    free = {each.number for each in states if each.room}
    assert set(order[: len(free)]) == free
    assert len(order) == len(set(order)) == len(free) + min(2, len(states) - len(free))
    if any(each.holds for each in states if each.room):
        assert states[order[0]].holds


# What is said of the replicas


@pytest.mark.parametrize("text", ["0", "257", "https://a:1", "http://a", "a:8500", "http://a:1=b", "http://a:1/x", ","])
def test_what_replicas_cannot_be(text: str) -> None:
    with pytest.raises(OptionError, match=r"^replicas: "):
        places_of(text)


def test_options_reach_the_replicas_or_are_refused() -> None:
    options = ServeOptions(most_load=0.5, grace=7, insecure=True, port=9, replicas="2", jobs="kept")
    engine: EngineKeywords = {"device": "cuda:1", "workers": None, "cache": 1 << 30}
    told = "--insecure --most-load 0.5 --grace 7 --device cuda:1 --cache 1073741824 --batch 4"
    assert " ".join(arguments_of(options, engine, {"batch": 4})) == told
    with pytest.raises(OptionError, match=r"^most_load: a router of servers elsewhere does not draw .got 0.5."):
        check_only_its_own(ServeOptions(most_load=0.5), {}, {})
    with pytest.raises(OptionError, match=r"^batch: a router of servers elsewhere"):
        check_only_its_own(ServeOptions(), {"device": "auto"}, {"batch": 4})
    with pytest.raises(OptionError, match="2 devices for 3 replicas"):
        devices_of("cuda:0,cuda:1", 3)


def test_where_the_characters_are_must_be_said_once(capsys: pytest.CaptureFixture[str], folder: Path) -> None:
    missing = "error: CHARACTERS/: is missing; give a folder of character folders\n"
    for given_ in (["serve"], ["serve", "--replicas", "2", "--port", "0"]):
        assert main(given_) == 1
        assert capsys.readouterr().err == missing
    assert main(["serve", str(folder), "--replicas", "http://127.0.0.1:1", "--port", "0"]) == 1
    assert capsys.readouterr().err.startswith("error: CHARACTERS/: servers elsewhere have characters of their own")


# What goes through


@pytest.fixture(scope="module")
def clients(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Client, Client, Client]]:
    """Of the router, and of its two servers; the second has the character loaded."""
    kept = tmp_path_factory.mktemp("kept")
    (kept / "tokens").write_text(TOKEN)
    scene, found = Scene(), list[Client]()
    try:
        servers = [
            scene.start(
                serve,
                folder,
                ServeOptions(
                    port=0, grpc_port=0, max_sessions=1, token_file=kept / "tokens", jobs=kept / str(number), grace=1
                ),
            )
            for number in range(2)
        ]
        found = [Client(where) for where in servers]
        with found[1].talk():
            pass
        found[1].until("sessions", 0)
        replicas = ",".join(f"http://127.0.0.1:{where.port}=127.0.0.1:{where.grpc_port}" for where in servers)
        options = ServeOptions(port=0, grpc_port=0, replicas=replicas, token_file=kept / "tokens", grace=1)
        found.insert(0, Client(scene.start(route, None, options)))
        yield found[0], found[1], found[2]
    finally:
        for each in found:
            each.close()
        scene.close()


def test_a_session_goes_to_who_holds_its_character_then_to_who_has_room(
    clients: tuple[Client, Client, Client], folder: Path
) -> None:
    router, one, two = clients
    wav = (folder / "anna" / "aud.wav").read_bytes()
    assert router.status()["loaded"] == ["anna"]
    with router.talk():
        assert (one.status()["sessions"], two.status()["sessions"]) == (0, 1)
        with router.talk():
            assert (one.status()["sessions"], two.status()["sessions"]) == (1, 1)
            with pytest.raises(grpc.RpcError) as refused:
                list(router.speak(config()))
            assert refused.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
            assert refused.value.details() == "no replica has room for one more talk; ask again later"
            assert dict(refused.value.trailing_metadata())["retry-after"] == "5"
            answer = router.http.post("/v1/characters/anna/video", content=wav)
            assert answer.status_code == 503
            assert answer.headers["retry-after"] == "5"
            router.until("room", False)
            assert router.http.get("/readyz").status_code == 200  # it is full, and not ending
            assert len({talk["number"] for talk in router.status()["talks"]}) == 2
    router.until("room", True)
    assert 'gpupipe_refusals_total{reason="room"} 2.0' in router.http.get("/metrics").text


def test_what_is_said_is_what_the_server_says(clients: tuple[Client, Client, Client], folder: Path) -> None:
    router, _, two = clients
    for each in (router, two):
        each.until("sessions", 0)
    wav = (folder / "anna" / "aud.wav").read_bytes()
    pcm = wav[44 : 44 + 32_000]
    speech = [config(), *(pb.SpeakRequest(audio=pcm[at : at + 7001]) for at in range(0, len(pcm), 7001)), END]
    direct = [each.SerializeToString() for each in two.speak(*speech)][1:]  # without the header, which has a number
    assert len(direct) == 26
    two.until("sessions", 0)
    assert [each.SerializeToString() for each in router.speak(*speech)][1:] == direct
    router.until("sessions", 0)
    answers = []
    for each in (router, two):
        answers.append(each.http.post("/v1/characters/anna/video", content=wav))
        each.until("sessions", 0)
        two.until("sessions", 0)
    assert answers[0].status_code == answers[1].status_code == 200
    assert answers[0].content == answers[1].content
    assert answers[0].headers["content-type"] == answers[1].headers["content-type"]


def test_errors_are_the_servers_own(clients: tuple[Client, Client, Client]) -> None:
    router, _, two = clients
    for path in ("/v1/characters/nobody", "/v1/nothing", "/v1/jobs/none", "/v1/talks/1-none", "/v1/jobs/7-none"):
        assert router.http.get(path).status_code == 404, path
    for path in ("/v1/characters", "/v1/characters/anna", "/v1/characters/anna/picture"):
        assert router.http.get(path).content == two.http.get(path).content
        assert router.http.head(path).headers["content-length"] == two.http.head(path).headers["content-length"]
    assert router.http.get("/v1/jobs/1-none").json() == {"error": "job: no such job (got '1-none')"}
    wrong = router.http.post("/v1/characters/anna/video?delay=99", content=b"no sound")
    assert (wrong.status_code, list(wrong.json())) == (400, ["error"])
    assert wrong.json()["error"].startswith("delay: ")
    with pytest.raises(grpc.RpcError) as missing:
        list(router.speak(config("nobody")))
    assert missing.value.code() == grpc.StatusCode.NOT_FOUND
    with pytest.raises(grpc.RpcError) as late:
        list(router.speak(END))
    assert late.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert router.http.get("/v1/status", headers={"authorization": "Bearer wrong"}).status_code == 401
    assert router.http.get("/openapi.json").json()["paths"].keys() >= {"/v1/jobs/{id}", "/v1/talks/{talk}"}


def test_jobs_and_models_are_those_of_all(clients: tuple[Client, Client, Client], folder: Path) -> None:
    router, one, two = clients
    wav = (folder / "anna" / "aud.wav").read_bytes()
    taken = router.http.post("/v1/jobs?character=anna&frames=2", content=wav)
    assert taken.status_code == 202
    name = taken.json()["id"]
    number, _, own = name.partition("-")
    assert taken.headers["location"] == f"/v1/jobs/{name}"
    assert (one, two)[int(number)].http.get(f"/v1/jobs/{own}").status_code == 200
    assert [job["id"] for job in router.http.get("/v1/jobs").json()["jobs"]] == [name]
    until = time.monotonic() + 20
    while router.http.get(f"/v1/jobs/{name}").json()["status"] != "done":
        assert time.monotonic() < until
        time.sleep(0.05)
    video = router.http.get(f"/v1/jobs/{name}/video", headers={"range": "bytes=4-7"})
    assert (video.status_code, video.content) == (206, b"ftyp")
    assert router.http.delete(f"/v1/jobs/{name}").status_code == 204
    assert router.http.get("/v1/jobs").json() == {"jobs": []}

    def ask(name: str, request: Any) -> Any:
        return method(router.grpc, MONOLITHIC, name)(request, metadata=AUTHORIZATION, timeout=30)

    assert ask("LoadModel", go.LoadModelRequest(model_id="anna")).success
    assert [model.loaded for model in ask("ListModels", go.ListModelsRequest()).models] == [True]
    assert ask("Health", go.HealthRequest()).healthy
    drawn = ask("InferBatchComposite", go.CompositeBatchRequest(model_id="anna", batch_size=1, raw_audio=bytes(32_000)))
    assert drawn.success, drawn.error
    assert drawn.composited_frames[0][:2] == b"\xff\xd8"
    characters = method(router.grpc, AVATAR, "ListCharacters")(pb.ListCharactersRequest(), metadata=AUTHORIZATION)
    assert [(each.name, each.loaded) for each in characters.characters] == [("anna", True)]


def test_a_peer_finds_its_replica_by_its_talk(clients: tuple[Client, Client, Client]) -> None:
    router, *_ = clients

    async def offered() -> str:
        connection = RTCPeerConnection(RTCConfiguration([]))
        for kind in ("video", "audio"):
            connection.addTransceiver(kind, direction="recvonly")
        await connection.setLocalDescription(await connection.createOffer())
        sdp = str(connection.localDescription.sdp)
        await connection.close()
        return sdp

    answer = router.http.post("/v1/characters/anna/offer", json={"type": "offer", "sdp": asyncio.run(offered())})
    assert answer.status_code == 200, answer.text
    talk = answer.json()["talk"]
    assert talk[:2] in ("0-", "1-")
    assert router.http.get(f"/v1/talks/{talk}").json()["character"] == "anna"
    assert router.http.post(f"/v1/talks/{talk}/audio?rate=1", content=iter([b"12", b"34"])).status_code == 400
    assert router.http.delete(f"/v1/talks/{talk}").status_code == 204


def test_an_answer_that_breaks_off_does_so_for_the_client() -> None:
    async def false(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        if b"/dies" not in head:
            writer.write(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n")
        writer.close()

    async def look() -> None:
        async with await asyncio.start_server(false, "127.0.0.1", 0) as server:
            port = server.sockets[0].getsockname()[1]
            async with Exchange("127.0.0.1", port, "GET", b"/") as exchange:
                body = exchange.body()
                assert await anext(body) == b"abc"
                assert exchange.status == 200
                with pytest.raises(Gone, match="ended in the middle"):
                    await anext(body)
            async with Exchange("127.0.0.1", port, "GET", b"/dies") as exchange:
                with pytest.raises(Gone, match="ended in the middle"):
                    await exchange.begin()
        with pytest.raises(Unreachable, match="cannot be reached"):
            async with Exchange("127.0.0.1", port, "GET", b"/"):
                pass

    asyncio.run(look())


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="a process is killed")
def test_a_replica_that_dies_ends_its_own_sessions_and_no_others(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And is started again."""
    kept: dict[int, Any] = {}
    monkeypatch.setattr("gpupipe.serve.router.kept.AGAIN_SECONDS", (0.1, 1.0))
    start = asyncio.create_subprocess_exec

    async def noted(*command: Any, **more: Any) -> Any:
        process = await start(*command, **more)
        kept[process.pid] = process
        return process

    monkeypatch.setattr("gpupipe.serve.router.local.asyncio.create_subprocess_exec", noted)
    scene, client = Scene(), None
    try:
        options = ServeOptions(port=0, grpc_port=0, replicas="2", max_sessions=1, grace=1)
        client = Client(scene.start(route, folder, options), None)
        with client.talk() as one, client.talk() as two:
            client.until("sessions", 2)
            dying, _ = kept
            if hasattr(os, "sched_getaffinity") and len(os.sched_getaffinity(0)) > 1:
                cores, others = (os.sched_getaffinity(pid) for pid in kept)
                assert cores | others == os.sched_getaffinity(0)
                assert not cores & others
            os.kill(dying, signal.SIGKILL)
            until = time.monotonic() + 20
            while one.is_active() and two.is_active() and time.monotonic() < until:
                time.sleep(0.02)
            ended = [call for call in (one, two) if not call.is_active()]
            assert [call.code() for call in ended] == [grpc.StatusCode.UNAVAILABLE]
            assert "the replica has ended in the middle" in (ended[0].details())
            for replicas in (1, 2):  # it is left out, and started again
                client.until("most_sessions", replicas)
            with client.talk():
                assert one.is_active() != two.is_active()
        assert len(kept) == 3
    finally:
        if client is not None:
            client.close()
        scene.close()
    assert all(process.returncode is not None for process in kept.values())
