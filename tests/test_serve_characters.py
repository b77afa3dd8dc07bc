"""A server's characters, whose folders come, change and go while it runs."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import small
from numpy.typing import NDArray
from serving import Counted, served

from gpupipe.character.folder import Character
from gpupipe.render.engine import Engine
from gpupipe.serve.http.app import application
from gpupipe.serve.hub import Hub
from gpupipe.serve.tokens import Tokens


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    small.small_character(tmp_path / "served" / "small")
    return tmp_path / "served"


@pytest.fixture
def hub(folder: Path) -> Iterator[Hub]:
    with Hub(folder, ["cpu"], {}, {}) as hub:
        yield hub


@pytest.fixture
def client(hub: Hub) -> Iterator[httpx.Client]:
    app = application(hub, Tokens(()), None, metrics=Counted())
    with served(app) as port, httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=30) as client:
        yield client


def loaded(client: httpx.Client) -> Any:
    answer = client.get("/v1/status")
    assert answer.status_code == 200
    return answer.json()["loaded"]


@pytest.mark.parametrize("gone", [".", "crops_328_video.mp4"])
def test_one_that_is_removed_is_not_loaded_any_more(hub: Hub, client: httpx.Client, folder: Path, gone: str) -> None:
    hub.engines[0].load(hub.characters.get("small"))
    assert loaded(client) == ["small"]
    path = folder / "small" / gone
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    assert loaded(client) == []
    assert list(hub.characters.known()) == ([] if gone == "." else ["small"])


def test_one_that_no_video_can_show_is_broken(client: httpx.Client, folder: Path) -> None:
    small.make(folder / "odd", size=(95, 63))
    every = client.get("/v1/characters").json()
    assert [each["id"] for each in every["characters"]] == ["small"]
    why = (
        "size: nv12 needs an even width and height (got '95x63'); "
        "write a folder of images in bgr24, or crop the body video"
    )
    assert every["broken"] == [{"id": "odd", "error": why}]
    answer = client.post("/v1/characters/odd/video", content=b"a sound")
    assert (answer.status_code, answer.json()) == (400, {"error": why})
    assert loaded(client) == []
    shutil.rmtree(folder / "odd")
    assert loaded(client) == []
    assert client.get("/v1/characters").json()["broken"] == []


def frames(engine: Engine, character: Character) -> NDArray[np.uint8]:
    return np.stack(list(engine.frames(character, pixel_format="nv12")))


@pytest.mark.parametrize("file", ["cache/crop_rectangles.json", "crops_328_video.mp4", "full_body_video.mp4"])
def test_one_that_is_written_again_is_read_again(hub: Hub, folder: Path, file: str) -> None:
    """Its frames too, whoever still has it as it was; and the old ones are not kept."""
    engine = hub.engines[0]
    old = hub.characters.get("small")
    before = frames(engine, old)
    kept = engine.holdings.residents.nbytes
    if file.endswith("json"):
        small.write_rectangles(folder / "small", [[10, 10, 40, 40]] * small.FRAMES)
    else:
        size = (small.CROP_SIZE,) * 2 if "crops" in file else (small.WIDTH, small.HEIGHT)
        small.write_video(folder / "small" / file, small.pictures(*size, small.FRAMES, seed=7))
    frames(engine, old)  # of a talk that was opened before
    new = frames(engine, hub.characters.get("small"))
    with Engine(device="cpu") as other:
        assert np.array_equal(new, frames(other, Character.load(folder / "small")))
    assert not np.array_equal(new, before)
    # Frames with the old rectangles, which the talk that was opened before has loaded, leave when others want the room.
    assert engine.holdings.residents.nbytes == kept * (2 if file.endswith("json") else 1)
    assert hub.characters.get("small") is hub.characters.get("small")
