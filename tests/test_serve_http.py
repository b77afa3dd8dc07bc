"""The HTTP side of a server, asked over the loopback."""

from __future__ import annotations

import re
import shutil
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from numpy.typing import NDArray
from serving import Counted, served
from starlette.applications import Starlette
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from gpupipe.media.sound import decode_sound, read_pcm
from gpupipe.media.video import read_frames
from gpupipe.render.verify import verify
from gpupipe.serve.http.app import application
from gpupipe.serve.hub import Hub
from gpupipe.serve.jobs import Jobs
from gpupipe.serve.limits import ServeLimits
from gpupipe.serve.tokens import Tokens

TOKEN = "a-token-of-a-test-0001"
LIMITS = ServeLimits(seconds=20, upload_bytes=2_000_000, idle_seconds=1.5)


@pytest.fixture(scope="module")
def folder(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One more, that cannot be used."""
    found = tmp_path_factory.mktemp("broken") / "served"
    shutil.copytree(folder, found)
    (found / "broken").mkdir()
    (found / "broken" / "full_body_video.mp4").write_bytes(b"no video")
    return found


@pytest.fixture(scope="module")
def hub(folder: Path) -> Iterator[Hub]:
    with Hub(folder, ["cpu"], {}, {}, limits=LIMITS) as hub:
        hub.load("anna")
        yield hub


@pytest.fixture(scope="module")
def counted() -> Counted:
    return Counted()


@pytest.fixture(scope="module")
def app(hub: Hub, counted: Counted, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Starlette]:
    jobs = Jobs(hub, tmp_path_factory.mktemp("jobs"))
    jobs.start()
    yield application(hub, Tokens(()), jobs, metrics=counted, cors=["https://example.org"])
    jobs.close()


@pytest.fixture(scope="module")
def port(app: Starlette) -> Iterator[int]:
    with served(app, LIMITS.idle_seconds) as port:
        yield port


@pytest.fixture(scope="module")
def client(port: int) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=30) as client:
        yield client


@pytest.fixture(scope="module")
def wav(folder: Path) -> bytes:
    return (folder / "anna" / "aud.wav").read_bytes()


def ended(hub: Hub, seconds: float = 10.0) -> bool:
    """Whether no talk is left, before long."""
    end = time.monotonic() + seconds
    while hub.talks and time.monotonic() < end:
        time.sleep(0.02)
    return not hub.talks


def luma(frames: Any) -> NDArray[np.float64]:
    return np.stack([frame[:192].astype(np.float64) for frame in frames])


def test_characters(client: httpx.Client) -> None:
    anna = {"id": "anna", "width": 320, "height": 192, "fps": 25.0, "frames": 30}
    every = client.get("/v1/characters").json()
    assert every["characters"] == [anna]
    assert [each["id"] for each in every["broken"]] == ["broken"]
    assert "/" not in every["broken"][0]["error"].split(";")[0]
    assert client.get("/v1/characters/anna").json() == anna
    picture = client.get("/v1/characters/anna/picture")
    assert picture.headers["content-type"] == "image/jpeg"
    assert picture.content[:3] == b"\xff\xd8\xff"
    for name in ("nobody", "..", "%2e%2e", "anna%2f..", "x" * 300):
        assert client.get(f"/v1/characters/{name}").status_code == 404


def test_what_is_the_servers_own_fault_is_in_its_log_alone(
    client: httpx.Client, caplog: pytest.LogCaptureFixture
) -> None:
    answer = client.get("/v1/characters/broken")
    assert (answer.status_code, answer.json()) == (500, {"error": "the server failed; see its log"})
    (logged,) = [each for each in caplog.records if each.levelname == "ERROR"]
    assert "full_body_video.mp4: cannot be opened as a video" in logged.message
    assert "path=/v1/characters/broken" in logged.message


@pytest.mark.parametrize("query", ["", "?realtime=1&delay=0.8", "?start_frame=7"])
def test_a_video_while_it_is_rendered(
    client: httpx.Client, hub: Hub, folder: Path, wav: bytes, tmp_path: Path, query: str
) -> None:
    times = []
    path = tmp_path / "answer.mp4"
    with client.stream("POST", f"/v1/characters/anna/video{query}", content=wav) as answer, path.open("wb") as file:
        assert answer.status_code == 200
        assert answer.headers["content-type"] == 'video/mp4; codecs="avc1.64000c,mp4a.40.2"'
        number = int(answer.headers["gpupipe-talk"])
        for piece in answer.iter_raw():
            times.append(time.monotonic())
            file.write(piece)
    assert number > 0
    found = verify(path)
    assert (found.problems, found.frames, found.width, found.height) == ([], 30, 320, 192)
    assert len(times) > 1
    # The pictures are those of a render, within what x264 loses; the sound is where it was.
    start = 7 if "start_frame" in query else 0
    wanted = luma(hub.engines[0].frames(folder / "anna", audio=folder / "anna" / "aud.wav", start_frame=start))
    if "realtime" not in query:  # where one may have been passed over
        assert np.abs(luma(read_frames(path, "nv12")) - wanted).mean(axis=(1, 2)).max() < 2.5
    heard = np.concatenate(list(read_pcm(path)))
    said = np.concatenate(list(read_pcm(folder / "anna" / "aud.wav")))
    count = min(len(heard), len(said))
    spectrum = np.fft.irfft(np.fft.rfft(heard[:count]) * np.conj(np.fft.rfft(said[:count])))
    assert min(int(np.argmax(spectrum)), count - int(np.argmax(spectrum))) <= 16  # a millisecond
    assert ended(hub)


def test_other_sounds(client: httpx.Client, folder: Path, tmp_path: Path) -> None:
    """What is no wav at 16 kHz: a video's stereo sound in AAC, of a body whose length is not said."""
    answer = client.post("/v1/characters/anna/video", content=(folder / "anna" / "aud.wav").read_bytes())
    again = client.post("/v1/characters/anna/video", content=iter([answer.content[:5000], answer.content[5000:]]))
    path = tmp_path / "again.mp4"
    path.write_bytes(again.content)
    found = verify(path)
    assert (found.problems, found.frames) == ([], 31)  # the sound of a video lasts until its packet's end
    assert sum(chunk.shape[1] for chunk in decode_sound(path, rate=48_000, layout="mono")) >= 1.2 * 48_000


def test_what_cannot_be_had(client: httpx.Client, hub: Hub, wav: bytes) -> None:
    def post(path: str, body: Any = b"", **more: Any) -> tuple[int, str]:
        answer = client.post(path, content=body, **more)
        assert list(answer.json()) == ["error"]
        assert str(Path(__file__).parent) not in answer.text
        return answer.status_code, answer.json()["error"]

    video = "/v1/characters/anna/video"
    assert post("/v1/characters/nobody/video", wav) == (
        404, "character: no such character (got 'nobody'); see the list of characters",
    )  # fmt: skip
    assert post(video) == (400, "body: is empty; send a sound file's bytes")
    status, error = post(video, b"no sound at all" * 100)
    assert (status, error.startswith("body: cannot be opened as a media file")) == (400, True)
    status, error = post(video, wav[:3000])
    assert (status, "cut off" in error) == (400, True)
    quiet = wav[:44] + bytes(2000)
    assert post(video, quiet)[0] == 400  # shorter than it says, and than a window
    assert post(f"{video}?realtime=2", wav)[0] == 400
    assert post(f"{video}?speed=2", wav) == (
        400, "query: no such field (got 'speed'); there are: realtime, delay, start_frame",
    )  # fmt: skip
    assert post(f"{video}?start_frame=-1", wav)[0] == 400
    assert post(f"{video}?delay=nan", wav)[0] == 400
    assert post(f"{video}?realtime=1&realtime=0", wav)[0] == 400
    assert post(video, wav, headers={"content-type": "multipart/form-data; boundary=x"})[0] == 400
    assert post("/v1/nothing")[0] == 404
    assert client.put(video, content=wav).status_code == 405
    assert hub.talks == []


def test_bodies_are_limited(client: httpx.Client, hub: Hub, port: int) -> None:
    silence = b"\0" * 500_000
    answer = client.post("/v1/characters/anna/video", content=iter([silence] * 5))
    assert answer.status_code == 413
    head = b"POST /v1/characters/anna/video HTTP/1.1\r\nHost: x\r\nContent-Length: 2000001\r\n\r\n"
    assert talk_to(port, head).startswith(b"HTTP/1.1 413 ")
    # 25 s of a sound are more than 20, however small the file.
    rate = 8000
    header = b"RIFF" + (36 + 25 * rate).to_bytes(4, "little") + b"WAVEfmt " + (16).to_bytes(4, "little")
    header += b"\1\0\1\0" + rate.to_bytes(4, "little") * 2 + b"\1\0\x08\0data" + (25 * rate).to_bytes(4, "little")
    answer = client.post("/v1/characters/anna/video", content=header + b"\x80" * 25 * rate)
    assert (answer.status_code, "longer than 20 s" in answer.text) == (413, True)
    assert hub.talks == []


def talk_to(port: int, data: bytes, *, then: bytes = b"", pause: float = 0.2) -> bytes:
    """What comes back for bytes, until the server closes."""
    with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
        connection.sendall(data)
        if then:
            time.sleep(pause)
            connection.sendall(then)
        found = b""
        try:
            while piece := connection.recv(65536):
                found += piece
        except ConnectionResetError:
            pass
        return found


def test_who_is_too_slow_is_sent_away(port: int) -> None:
    """A head that never ends, a body that never comes, and one that comes byte by byte."""
    post = b"POST /v1/characters/anna/video HTTP/1.1\r\nHost: x\r\nContent-Length: 100000\r\n\r\n"
    began = time.monotonic()
    results: dict[str, bytes] = {}

    def trickle() -> bytes:
        with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
            connection.sendall(post)
            connection.settimeout(0.1)
            found = b""
            while time.monotonic() - began < 8:
                try:
                    connection.sendall(b"x")
                    if not (piece := connection.recv(65536)):
                        break
                    found += piece
                except TimeoutError:
                    continue
                except OSError:
                    break
            return found

    cases = {
        "nothing": lambda: talk_to(port, b""),
        "head": lambda: talk_to(port, b"GET / HTTP/1.1\r\n", then=b"X-A: b\r\n"),
        "body": lambda: talk_to(port, post, then=b"RIFF"),
        "trickle": trickle,
    }
    threads = [
        threading.Thread(target=lambda name=name, case=case: results.update({name: case()}))
        for name, case in cases.items()
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(15)
    assert (results["nothing"], results["head"]) == (b"", b"")
    assert results["body"].startswith(b"HTTP/1.1 408 ")
    assert results["trickle"].startswith(b"HTTP/1.1 408 ")
    assert talk_to(port, b"GET / HTTP/1.1\r\nX: " + b"a" * 100_000).startswith(b"HTTP/1.1 400 ")


def test_a_head_has_an_end_however_it_comes() -> None:
    """All of it at once, with the end and with what is behind it."""
    few, many = b"X: " + b"a" * 60_000, b"\r\n".join([b"X: " + b"a" * 1_000] * 100)
    with served(Response("ok"), 10.0) as port:

        def asked(line: bytes, headers: bytes) -> bytes:
            return talk_to(port, line + b" HTTP/1.1\r\nHost: x\r\nConnection: close\r\n" + headers + b"\r\n\r\n")

        assert asked(b"GET /", few).startswith(b"HTTP/1.1 200 ")
        for line, headers in ((b"GET /", few + b"a" * 40_000), (b"GET /", many), (b"GET /" + b"a" * 100_000, b"A: b")):
            answer = asked(line, headers)
            assert answer.startswith(b"HTTP/1.1 400 ")
            assert answer.endswith(b"The request's head is too large.")
        body = b"Content-Length: 200000\r\n\r\n" + bytes(200_000)
        assert asked(b"POST /", body).startswith(b"HTTP/1.1 200 ")


def test_a_client_that_vanishes_ends_its_talk(hub: Hub, port: int, wav: bytes) -> None:
    head = f"POST /v1/characters/anna/video?realtime=1 HTTP/1.1\r\nHost: x\r\nContent-Length: {len(wav)}\r\n\r\n"
    with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
        connection.sendall(head.encode() + wav)
        assert connection.recv(12) == b"HTTP/1.1 200"
    assert ended(hub)
    with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
        connection.sendall(head.encode() + wav[:5000])
    assert ended(hub)


def test_a_client_that_does_not_read_is_sent_away() -> None:
    """Whatever the system would keep for it goes too."""

    async def endless(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        sent = 0
        while sent < 64_000_000 and not gone.is_set():
            await send({"type": "http.response.body", "body": bytes(65_536), "more_body": True})
            sent += 65_536
        gone.set()

    gone = threading.Event()
    with served(endless, 0.5) as port, socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.connect(("127.0.0.1", port))
        connection.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        time.sleep(1.0)
        connection.settimeout(10)
        got = 0

        def read_on() -> None:
            nonlocal got
            while piece := connection.recv(65_536):
                got += len(piece)

        with pytest.raises(ConnectionResetError):
            read_on()
        assert got < 1_000_000
        gone.set()


@pytest.mark.parametrize("piece", [b"a" * 65_536, b"x: " + b"a" * 1_000 + b"\r\n"])
def test_headers_behind_a_body_have_an_end(piece: bytes) -> None:
    """One endless one, or any number of them; before the answer, and behind it."""
    with served(Response("ok"), 10.0) as port, socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
        connection.sendall(b"GET / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n")

        def send() -> None:
            for _ in range(20_000_000 // len(piece)):
                connection.sendall(piece)

        with pytest.raises(ConnectionError):
            send()


def test_a_request_that_never_ends_is_sent_away_once_it_is_answered() -> None:
    """Though a piece of it comes again and again."""
    with served(Response("ok"), 0.4) as port, socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
        connection.sendall(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n")
        assert connection.recv(12) == b"HTTP/1.1 200"

        def trickle() -> None:
            for _ in range(40):
                connection.sendall(b"x")
                time.sleep(0.05)

        with pytest.raises(ConnectionError):
            trickle()


def test_an_answer_that_fails_breaks_off(hub: Hub, port: int, wav: bytes) -> None:
    speech = wav[:40] + (len(wav[44:]) * 12).to_bytes(4, "little") + wav[44:] * 12
    head = f"POST /v1/characters/anna/video HTTP/1.1\r\nHost: x\r\nContent-Length: {len(speech)}\r\n\r\n"
    with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
        connection.sendall(head.encode() + speech)
        found = connection.recv(65536)
        assert found.startswith(b"HTTP/1.1 200")
        for talk in hub.talks:
            talk.close()
        while piece := connection.recv(65536):
            found += piece
    assert not found.endswith(b"0\r\n\r\n")
    assert ended(hub)


def test_tokens(hub: Hub, counted: Counted) -> None:
    with served(application(hub, Tokens((TOKEN,)), None, metrics=counted)) as port:
        root = f"http://127.0.0.1:{port}"
        for path in ("/v1/characters", "/v1/status", "/v1/nothing", "/metrics", "/metrics%0A", "/v1"):
            for shown in ({}, {"authorization": "Bearer wrong-wrong-wrong-1"}, {"authorization": TOKEN}):
                answer = httpx.get(root + path, headers=shown)
                assert (answer.status_code, answer.headers["www-authenticate"]) == (401, "Bearer")
            answer = httpx.get(root + path, headers={"authorization": f"Bearer {TOKEN}"})
            assert answer.status_code == (404 if path in ("/v1/nothing", "/v1") else 200)
        assert all(httpx.get(root + path).status_code == 200 for path in ("/healthz", "/readyz", "/", "/openapi.json"))
        assert httpx.get(root + "/v1/jobs", headers={"authorization": f"Bearer {TOKEN}"}).status_code == 404
        told = httpx.get(root + "/openapi.json").json()
        assert (told["security"], told["paths"]["/healthz"]["get"]["security"]) == ([{"token": []}], [])


def test_pages_of_others_may_not_ask(client: httpx.Client) -> None:
    host = client.base_url.netloc.decode()
    answer = client.get("/v1/characters", headers={"origin": "https://evil.example"})
    assert answer.status_code == 403
    assert "access-control-allow-origin" not in answer.headers
    assert client.get("/v1/characters", headers={"origin": f"http://{host}"}).status_code == 200
    answer = client.get("/v1/characters", headers={"origin": "https://example.org"})
    assert answer.headers["access-control-allow-origin"] == "https://example.org"
    asked = {"origin": "https://example.org", "access-control-request-method": "POST"}
    assert client.options("/v1/characters", headers=asked).status_code == 204
    assert client.options("/v1/characters", headers=asked | {"origin": "https://evil.example"}).status_code == 403


def test_the_page(client: httpx.Client) -> None:
    page = client.get("/")
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    assert "default-src 'none'" in page.headers["content-security-policy"]
    assert "unsafe" not in page.headers["content-security-policy"]
    assert not re.search(r"<script>|<style>|style=| on\w+=", page.text)  # which the policy would leave out
    assert not re.search(r"https?://", page.text)
    for name in set(re.findall(r'(?:src|href)="(/[^"]+)"', page.text)) - {"/webrtc.js"}:
        assert client.get(name).status_code == 200
    for script in ("/page.js", "/player.js", "/api.js"):
        answer = client.get(script)
        assert answer.headers["content-type"] == "text/javascript; charset=utf-8"
        assert all(client.get(name).status_code == 200 for name in re.findall(r'from "(/[^"]+)"', answer.text))
    for asked in ("/index.html", "/../gpupipe/serve/hub.py", "/%2e%2e/hub.py", "/page/"):
        assert client.get(asked).status_code == 404


def test_what_is_counted_and_told(hub: Hub) -> None:
    counted = Counted()
    with (
        served(application(hub, Tokens(()), None, metrics=counted)) as port,
        httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=30) as client,
    ):
        client.get("/v1/characters/anna")
        client.get("/v1/characters/somebody-else")
        client.get("/some/thing")
        assert client.get("/metrics").text == "gpupipe_info 1\n"
        assert client.get("/healthz").json() == {"status": "ok"}
        assert client.get("/readyz").json() == {"status": "ready"}
    # A request is counted when all of its answer is sent: once the server has ended.
    assert counted.seen == {
        ("http", "GET /v1/characters/{id}", "200"): 1,
        ("http", "GET /v1/characters/{id}", "404"): 1,
        ("http", "other", "404"): 1,
        ("http", "GET /metrics", "200"): 1,
        ("http", "GET /healthz", "200"): 1,
        ("http", "GET /readyz", "200"): 1,
    }


def fits(value: Any, schema: dict[str, Any], schemas: dict[str, Any]) -> None:
    """JSON Schema, as much of it as is used: else it fails."""
    if "$ref" in schema:
        fits(value, schemas[schema["$ref"].removeprefix("#/components/schemas/")], schemas)
        return
    known = {"type", "properties", "required", "additionalProperties", "items", "enum", "minimum", "description"}
    assert schema.keys() <= known
    types = {"object": dict, "array": list, "string": str, "boolean": bool, "null": type(None), "integer": int}
    wanted = [schema["type"]] if isinstance(schema["type"], str) else schema["type"]
    numbers = (int, float)
    assert any(isinstance(value, numbers if kind == "number" else types[kind]) for kind in wanted), (value, schema)
    assert "enum" not in schema or value in schema["enum"]
    assert "minimum" not in schema or value is None or value >= schema["minimum"]
    if isinstance(value, dict):
        assert set(schema["required"]) <= value.keys()
        assert schema.get("additionalProperties", True) or value.keys() <= schema["properties"].keys()
        for name, each in value.items():
            if name in schema.get("properties", {}):
                fits(each, schema["properties"][name], schemas)
    if isinstance(value, list):
        for each in value:
            fits(each, schema["items"], schemas)


def test_no_route_is_left_out(hub: Hub, counted: Counted) -> None:
    extra = [Route("/v1/secrets", lambda _: Response())]
    with pytest.raises(ValueError, match="GET /v1/secrets is not described"):
        application(hub, Tokens(()), None, metrics=counted, extra=extra)


def test_the_interface_is_told_and_kept(client: httpx.Client, app: Starlette, hub: Hub, wav: bytes) -> None:
    told = client.get("/openapi.json").json()
    schemas = told["components"]["schemas"]
    routes = {
        (route.path, method.lower())  # type: ignore[attr-defined]
        for route in app.routes
        for method in route.methods - {"HEAD"}  # type: ignore[attr-defined]
        if "." not in route.path.replace("openapi.json", "") and route.path != "/"  # type: ignore[attr-defined]
    }
    assert routes == {(path, method) for path, found in told["paths"].items() for method in found}

    def checked(method: str, path: str, asked: str, **more: Any) -> httpx.Response:
        answer = client.request(method, asked, **more)
        found = told["paths"][path][method.lower()]["responses"][str(answer.status_code)]
        kinds = found.get("content", {})
        kind = answer.headers.get("content-type", "").partition(";")[0]
        assert (kind in kinds) or (not kinds and not answer.content)
        if kind == "application/json":
            fits(answer.json(), kinds[kind]["schema"], schemas)
        return answer

    with client.stream("POST", "/v1/characters/anna/video", content=wav):
        assert checked("GET", "/v1/status", "/v1/status").json()["sessions"] == 1
    for path in ("/v1/characters", "/healthz", "/readyz", "/metrics", "/openapi.json", "/v1/jobs"):
        assert checked("GET", path, path).status_code == 200
    checked("GET", "/v1/characters/{id}", "/v1/characters/anna")
    checked("GET", "/v1/characters/{id}", "/v1/characters/nobody")
    checked("GET", "/v1/characters/{id}/picture", "/v1/characters/anna/picture")
    checked("POST", "/v1/characters/{id}/video", "/v1/characters/anna/video", content=b"")
    job = checked("POST", "/v1/jobs", "/v1/jobs?character=anna", content=wav)
    assert job.status_code == 202
    where = job.headers["location"]
    end = time.monotonic() + 30
    while checked("GET", "/v1/jobs/{id}", where).json()["status"] != "done" and time.monotonic() < end:
        time.sleep(0.05)
    assert checked("GET", "/v1/jobs/{id}/video", f"{where}/video").status_code == 200
    assert checked("DELETE", "/v1/jobs/{id}", where).status_code == 204
    assert checked("DELETE", "/v1/jobs/{id}", where).status_code == 404
