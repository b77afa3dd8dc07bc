"""Bodies on their way to the disk."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest
from starlette.requests import Request

from gpupipe.serve.http import uploads
from gpupipe.serve.limits import ServeLimits
from gpupipe.serve.refusals import Refused

MB = 1 << 20


def body(pieces: asyncio.Queue[bytes], length: int | None = None) -> Request:
    """A request whose body comes as it is put into a queue; an empty piece ends it."""
    headers = [] if length is None else [(b"content-length", str(length).encode())]

    async def receive() -> dict[str, Any]:
        piece = await pieces.get()
        return {"type": "http.request", "body": piece, "more_body": piece != b""}

    return Request({"type": "http", "method": "POST", "path": "/", "headers": headers}, receive)


def test_the_disk_has_room_for_all_that_may_still_come(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Room for 10 MB, and each body may have 4 MB if it does not say how long it is."""

    def free(folder: Path) -> int:
        return uploads.LEAST_FREE_BYTES + 10 * MB - sum(each.stat().st_size for each in folder.iterdir())

    monkeypatch.setattr(uploads, "_free", free)

    async def run() -> None:
        taken = uploads.Uploads(ServeLimits(upload_bytes=4 * MB))
        queues = [asyncio.Queue[bytes]() for _ in range(2)]
        coming = [asyncio.create_task(taken.take(body(each), tmp_path / str(at))) for at, each in enumerate(queues)]
        queues[0].put_nowait(b"x" * 3 * MB)
        while sum(taken._coming.values()) != (1 + 4) * MB:
            await asyncio.sleep(0.001)
        done: asyncio.Queue[bytes] = asyncio.Queue()
        done.put_nowait(b"y" * 2 * MB)
        done.put_nowait(b"")
        with pytest.raises(Refused, match="disk is nearly full"):
            await taken.take(body(done), tmp_path / "2")
        await taken.take(body(done, 2 * MB), tmp_path / "3")
        for each in queues:
            each.put_nowait(b"z")
            each.put_nowait(b"")
        await asyncio.gather(*coming)
        assert [(tmp_path / name).stat().st_size for name in "013"] == [3 * MB + 1, 1, 2 * MB]
        assert not taken._coming

    asyncio.run(run())


LEFT = """
import asyncio, sys
from pathlib import Path
from gpupipe.serve.http.uploads import Uploads
from gpupipe.serve.limits import ServeLimits

async def run():
    uploads = Uploads(ServeLimits())
    uploads.open()
    folder = uploads._new()
    (folder / "sound").write_bytes(b"x")
    print(folder.parent, flush=True)
    sys.stdin.read()

asyncio.run(run())
"""
"""A server's uploads, of which one is under way until it is killed."""


def test_what_a_killed_server_leaves_goes_with_the_next_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    started = [
        subprocess.Popen(
            [sys.executable, "-c", LEFT],
            env=os.environ | {"TMPDIR": str(tmp_path), "TEMP": str(tmp_path)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(2)
    ]
    try:
        killed, alive = (Path(each.stdout.readline().strip()) for each in started if each.stdout is not None)
        started[0].kill()
        started[0].wait()
        assert list(killed.glob("*/sound"))
        mine = uploads.Uploads(ServeLimits())
        mine.open()
        assert not killed.exists()
        assert len(list(alive.glob("*/sound"))) == 1
        assert len(list(tmp_path.iterdir())) == 2
        shutil.rmtree(mine._new().parent, ignore_errors=True)  # as those do who clear the temporary folder
        assert mine._new().is_dir()
        mine.close()
        assert list(tmp_path.iterdir()) == [alive]
    finally:
        for each in started:
            each.kill()
            each.communicate()
