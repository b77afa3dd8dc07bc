"""A whole server: where it listens, to whom, and how it ends."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import grpc
import httpx
import numpy as np
import pytest
from numpy.typing import NDArray
from peering import Peer

from gpupipe.cli import main
from gpupipe.errors import OptionError
from gpupipe.options import ServeOptions
from gpupipe.serve.listen import Listening, bound, check_exposure, is_loopback, origins_of
from gpupipe.serve.load.process import ServerProcess
from gpupipe.serve.load.talker import Heard, Said, over_grpc, talk
from gpupipe.serve.router.route import route
from gpupipe.serve.server import serve


def status(url: str, token: str | None = None, headers: dict[str, str] | None = None) -> int:
    headers = (headers or {}) | ({} if token is None else {"authorization": f"Bearer {token}"})
    try:
        with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=30) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code


def run_server(folder: Path, options: ServeOptions, work: Any) -> None:
    """Serve while `work`, in another thread, looks at it."""

    async def both() -> None:
        ending, told = asyncio.Event(), asyncio.get_running_loop().create_future()
        serving = asyncio.create_task(
            serve(folder, options, {"device": "cpu"}, {}, told=told.set_result, ending=ending)
        )
        await asyncio.wait({serving, told}, return_when=asyncio.FIRST_COMPLETED)
        if serving.done():
            await serving
        try:
            await asyncio.to_thread(work, told.result())
        finally:
            ending.set()
            await serving

    asyncio.run(both())


def test_it_listens_and_wants_its_tokens(folder: Path, tmp_path: Path) -> None:
    token = "a" * 20
    (tmp_path / "tokens").write_text(token)

    def look(where: Listening) -> None:
        url = f"http://127.0.0.1:{where.port}"
        assert where.characters == ("anna",)
        assert where.devices == ("cpu",)
        assert [status(f"{url}/{path}") for path in ("healthz", "readyz", "metrics", "v1/characters")] == [
            200,
            200,
            401,
            401,
        ]
        assert status(f"{url}/v1/characters", token) == status(f"{url}/metrics", token) == 200
        assert status(f"{url}/v1/characters", token[:-1]) == 401
        with pytest.raises(OptionError, match=r"port: cannot be listened on: .* use another, or 0 for any"):
            bound("127.0.0.1", where.port)
        channel = grpc.insecure_channel(f"127.0.0.1:{where.grpc_port}")
        with pytest.raises(grpc.RpcError) as refused:
            channel.unary_unary("/gpupipe.v1.Avatar/ListCharacters")(b"", timeout=30)
        assert refused.value.code() == grpc.StatusCode.UNAUTHENTICATED
        channel.close()

    run_server(folder, ServeOptions(port=0, grpc_port=0, token_file=tmp_path / "tokens"), look)


@pytest.mark.skipif(sys.platform == "darwin", reason="it has one IPv4 address of its own")
def test_peers_find_it_where_it_listens(folder: Path) -> None:
    async def candidates(port: int) -> list[str]:
        async with httpx.AsyncClient(base_url=f"http://127.0.0.2:{port}", timeout=60) as client:
            peer = Peer()
            await peer.call(client, "anna")
            await peer.until(1)
            (sdp, talk) = peer.connection.remoteDescription.sdp, peer.talk
            assert (await client.delete(f"/v1/talks/{talk}")).status_code == 204
            await peer.close()
        return [line.split()[4] for line in sdp.splitlines() if line.startswith("a=candidate")]

    def look(where: Listening) -> None:
        assert set(asyncio.run(candidates(where.port))) == {"127.0.0.2"}

    run_server(folder, ServeOptions(host="127.0.0.2", port=0, grpc_port=0), look)


@pytest.mark.parametrize("insecure", [False, True])
def test_a_page_whose_name_leads_here_may_not_ask(folder: Path, insecure: bool) -> None:
    """To a browser it is this server's own, once its name leads to the loopback."""

    def look(where: Listening) -> None:
        url = f"http://127.0.0.1:{where.port}/v1/characters"

        def asked(host: str) -> int:
            return status(url, headers={"host": host, "origin": f"http://{host}"})

        others = [f"evil.example:{where.port}", "evil.example", "127.0.0.1.evil.example", "10.0.0.1", "[fe80::1]:80"]
        assert [asked(host) for host in others] == [200 if insecure else 421] * len(others)
        own = [f"127.0.0.1:{where.port}", "localhost", f"LocalHost.:{where.port}", "[::1]", f"[::1]:{where.port}"]
        assert [asked(host) for host in own] == [200] * len(own)

    run_server(folder, ServeOptions(port=0, grpc_port=0, insecure=insecure), look)


def test_bodies_of_all_routes_are_counted_together(
    folder: Path, monkeypatch: pytest.MonkeyPatch, pcm: NDArray[np.float32]
) -> None:
    monkeypatch.setattr("gpupipe.serve.http.uploads.AT_A_TIME", 1)

    async def says(port: int) -> int:
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=60) as client:
            peer = Peer()
            await peer.call(client, "anna")
            await peer.until(1)
            said = await client.post(f"/v1/talks/{peer.talk}/audio", content=b"sound")
            await peer.close()
            return said.status_code

    def look(where: Listening) -> None:
        with socket.create_connection(("127.0.0.1", where.port)) as other:
            other.sendall(b"POST /v1/characters/anna/video HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n\r\nab")
            assert asyncio.run(says(where.port)) == 503
        assert asyncio.run(says(where.port)) == 400

    run_server(folder, ServeOptions(port=0, grpc_port=0), look)


def test_it_does_not_open_itself_to_strangers_unasked() -> None:
    for host in ("127.0.0.1", "127.8.9.1", "::1", "[::1]", "localhost"):
        assert is_loopback(host)
        check_exposure(ServeOptions(host=host))
    for host in ("0.0.0.0", "::", "192.168.0.1", "example.org", ""):
        assert not is_loopback(host)
    with pytest.raises(OptionError, match=r"^host: other machines could use the server without a token"):
        check_exposure(ServeOptions(host="0.0.0.0"))
    check_exposure(ServeOptions(host="0.0.0.0", insecure=True))
    check_exposure(ServeOptions(host="0.0.0.0", token_file="tokens"))


def test_a_port_in_use_is_told_before_anything_is_opened(folder: Path) -> None:
    with bound("127.0.0.1", 0) as taken:
        done = subprocess.run(
            [sys.executable, "-m", "gpupipe", "serve", folder, "--port", str(taken.getsockname()[1])],
            capture_output=True,
            text=True,
            timeout=120,
        )
    assert done.returncode == 1
    assert done.stderr.startswith("error: --port: cannot be listened on: Address")
    assert len(done.stderr.splitlines()) == 1


async def until_talking(server: ServerProcess, speaking: asyncio.Task[Heard]) -> None:
    while (await asyncio.to_thread(server.metrics)).get('gpupipe_sessions{character="anna",output="nv12"}') != 1:
        assert not speaking.done(), speaking.result()
        await asyncio.sleep(0.1)


def test_without_the_extra_it_says_what_to_install(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("gpupipe.serve.packages.package_version", lambda name: None if name == "aiortc" else "1.0")
    assert main(["serve", str(folder)]) == 1
    told = capsys.readouterr().err
    assert told == "error: gpupipe serve needs aiortc; install what is missing with pip install 'gpupipe[serve]'\n"


@pytest.mark.skipif(sys.platform == "win32", reason="signals are sent")
def test_it_ends_in_good_order(folder: Path, pcm: NDArray[np.float32]) -> None:
    """Told to end, it lets no more in, and the talk that is under way ends by itself."""
    said = Said("anna", "nv12", pcm, 2.5, 25.0)
    with ServerProcess(folder, ["--grace", "20"]) as server:

        async def talks() -> None:
            async with grpc.aio.insecure_channel(server.grpc) as channel:
                speaking = asyncio.create_task(talk(said, over_grpc(channel), time.monotonic()))
                await until_talking(server, speaking)
                os.kill(server.pid, signal.SIGTERM)
                await asyncio.sleep(0.3)
                assert await asyncio.to_thread(status, f"{server.http}/readyz") == 503
                refused = await talk(said, over_grpc(channel), time.monotonic())
                assert "UNAVAILABLE" in (refused.error or "")
                heard = await speaking
                assert heard.error is None
                assert heard.frames == 63  # of 2.5 s at 25 a second, the last not whole

        asyncio.run(talks())
        assert server.wait() == 0


@pytest.mark.skipif(sys.platform == "win32", reason="signals are sent")
def test_a_second_signal_ends_it_at_once(folder: Path, pcm: NDArray[np.float32]) -> None:
    said = Said("anna", "nv12", pcm, 30.0, 25.0)
    with ServerProcess(folder, ["--grace", "60"]) as server:

        async def talks() -> None:
            async with grpc.aio.insecure_channel(server.grpc) as channel:
                speaking = asyncio.create_task(talk(said, over_grpc(channel), time.monotonic()))
                await until_talking(server, speaking)
                for _ in range(2):
                    os.kill(server.pid, signal.SIGTERM)
                    await asyncio.sleep(0.3)
                assert (await speaking).error is not None

        asyncio.run(talks())
        assert server.wait() == 128 + signal.SIGTERM


@pytest.mark.parametrize(
    "named",
    [
        "foo",
        "https://example.org/",
        "https://Example.org",
        "https://example.org:443",
        "https://a,https://b",
        "null",
        "https://a:65536",
    ],
)
def test_a_page_that_no_browser_names_so_is_refused(named: str, tmp_path: Path) -> None:
    """Before anything is opened, of a server and of a router."""
    why = rf"^cors: no origin as browsers send it \(got '{re.escape(named)}'\); give scheme://host"
    options = ServeOptions(cors=named, port=0, grpc_port=0)
    with pytest.raises(OptionError, match=why):
        asyncio.run(serve(tmp_path, options, {}, {}))
    with pytest.raises(OptionError, match=why):
        asyncio.run(route(tmp_path, options, {}, {}))


def test_pages_that_browsers_name() -> None:
    for named in ("*", "https://example.org", "http://localhost:3000", "http://[::1]:8080", "app://page"):
        assert origins_of(ServeOptions(cors=named)) == (named,)
    assert origins_of(ServeOptions()) == ()
