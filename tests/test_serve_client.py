"""`python -m gpupipe.serve.client`: what it writes, and what it says when there is nothing to write."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import av
import numpy as np
import pytest
from grpc_scene import served

from gpupipe.cli.client import main
from gpupipe.media.sound import read_pcm
from gpupipe.serve.client.rpc import Rpc
from gpupipe.serve.hub import Hub

TOKEN = "0123456789abcdef"


@pytest.fixture(scope="module")
def sound(folder: Path) -> Path:
    return folder / "anna" / "aud.wav"


@pytest.fixture(scope="module")
def hub(folder: Path) -> Iterator[Hub]:
    with Hub(folder, ["cpu"], {}, {}) as hub:
        yield hub


@pytest.fixture(scope="module")
def address(hub: Hub) -> Iterator[str]:
    with served(hub, (TOKEN,)) as channel:
        yield channel._channel.target().decode()


@pytest.fixture(autouse=True)
def token(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GPUPIPE_TOKEN", TOKEN)


def frames_of(hub: Hub, folder: Path) -> list[bytes]:
    return [frame.tobytes() for frame in hub.engines[0].frames(folder / "anna", audio=folder / "anna" / "aud.wav")]


def test_over_grpc(
    address: str, hub: Hub, folder: Path, sound: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["list", "--grpc", address]) == 0
    assert capsys.readouterr().out == "anna: 320x192, 25 fps, 30 frames\n"
    to = ["speak", "--grpc", address, "anna", str(sound), "-o"]
    assert main([*to, str(tmp_path / "a.nv12")]) == 0
    assert (tmp_path / "a.nv12").read_bytes() == b"".join(frames_of(hub, folder))
    assert "a.nv12: 30 frames, 0 late, 0 repeated" in capsys.readouterr().out
    assert main([*to, str(tmp_path / "a.h264"), "--realtime", "--start-frame", "3"]) == 0
    with av.open(tmp_path / "a.h264") as container:
        assert len(list(container.decode(video=0))) == 30
    assert main([*to, f"{tmp_path / 'images'}/"]) == 0
    assert [path.name for path in sorted((tmp_path / "images").iterdir())] == [f"frame_{n:04d}.jpg" for n in range(30)]


def test_over_grpc_from_python(address: str, hub: Hub, folder: Path, sound: Path) -> None:
    with Rpc(address, TOKEN) as rpc:
        spoken = rpc.speak("anna", read_pcm(sound), "nv12")
        assert [frame.data for frame in spoken] == frames_of(hub, folder)
        assert (spoken.header.width, spoken.summary.frames) == (320, 30)
        part = rpc.speak("anna", (np.zeros(1600, np.float32) for _ in range(1000)), "nv12")
        next(iter(part))
        part.cancel()


class Server(BaseHTTPRequestHandler):
    """Answers as a server would, and keeps what it was asked."""

    asked: tuple[str, str | None, bytes] = ("", None, b"")
    answer: tuple[int, bytes, int] = (200, b"", 0)

    def do_GET(self) -> None:
        status, data, length = Server.answer
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        Server.asked = self.path, self.headers.get("Authorization"), body
        self.send_response(status)
        self.send_header("Content-Length", str(length or len(data)))
        self.end_headers()
        self.wfile.write(data)

    do_POST = do_GET

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Server) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_over_http(url: str, sound: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    anna = {"id": "anna", "width": 320, "height": 192, "fps": 25.0, "frames": 30}
    Server.answer = 200, json.dumps({"characters": [anna]}).encode(), 0
    assert main(["list", "--url", url]) == 0
    assert capsys.readouterr().out == "anna: 320x192, 25 fps, 30 frames\n"
    assert Server.asked == ("/v1/characters", f"Bearer {TOKEN}", b"")
    Server.answer = 200, bytes(200_000), 0
    to = ["speak", "--url", url, "anna", str(sound), "-o", str(tmp_path / "a.mp4")]
    assert main([*to, "--realtime", "--start-frame", "3"]) == 0
    assert (tmp_path / "a.mp4").read_bytes() == bytes(200_000)
    path = "/v1/characters/anna/video?realtime=true&start_frame=3"
    assert Server.asked == (path, f"Bearer {TOKEN}", sound.read_bytes())
    # What breaks off, or is refused, leaves nothing.
    for Server.answer, words in (
        ((200, bytes(10), 20), "breaks off after 10 of 20 bytes"),
        ((503, b'{"error": "one more talk would make others late"}', 0), "one more talk would make others late (503)"),
        ((500, b"[]", 0), "Internal Server Error (500)"),
    ):
        assert main([*to[:-1], str(tmp_path / "b.mp4")]) == 1
        assert words in capsys.readouterr().err
        assert [path.name for path in tmp_path.iterdir()] == ["a.mp4"]


def test_what_goes_wrong(
    address: str, sound: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "there.h264").touch()
    (tmp_path / "noise.wav").write_bytes(bytes(1000))
    with_sound, grpc_ = [str(sound), "-o"], ["speak", "--grpc", address, "anna"]
    wrong = {
        "--url: is no URL of a server": ["list", "--url", "127.0.0.1"],
        "127.0.0.1:1: failed: Connection refused": ["list", "--url", "http://127.0.0.1:1"],
        "UNAVAILABLE": ["list", "--grpc", "127.0.0.1:1"],
        "no such character (got 'nobody'); see the list of characters (NOT_FOUND)": [
            *["speak", "--grpc", address, "nobody"], *with_sound, str(tmp_path / "a.h264"),
        ],
        "no such file": [*grpc_, str(tmp_path / "none.wav"), "-o", str(tmp_path / "a.h264")],
        "noise.wav": [*grpc_, str(tmp_path / "noise.wav"), "-o", str(tmp_path / "a.h264")],
        "--output: must end in .h264, .hevc, .nv12 or / over gRPC": [*grpc_, *with_sound, str(tmp_path / "a.mp4")],
        "--output: must be an .mp4 over HTTP": ["speak", "anna", *with_sound, str(tmp_path / "a.h264")],
        "there.h264: exists already": [*grpc_, *with_sound, str(tmp_path / "there.h264")],
        "none/a.h264: cannot be written: No such file": [*grpc_, *with_sound, str(tmp_path / "none" / "a.h264")],
    }  # fmt: skip
    for words, arguments in wrong.items():
        assert main(arguments) == 1
        said = capsys.readouterr()
        assert words in said.err
        assert said.err.startswith("error: ")
        assert said.err.count("\n") == 1
    assert main(["list", "--grpc", address, "--token", "another"]) == 1
    assert "a token is needed" in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["noise.wav", "there.h264"]


def test_http_needs_no_grpc(url: str) -> None:
    Server.answer = 200, b'{"characters": []}', 0
    hidden = "import sys; sys.modules['grpc'] = None; from gpupipe.cli.client import main; sys.exit(main(sys.argv[1:]))"
    done = subprocess.run([sys.executable, "-c", hidden, "list", "--url", url], capture_output=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
