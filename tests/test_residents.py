"""residents: characters loaded once, kept within a budget, and let go of in order."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
import small

from gpupipe.character.folder import Character
from gpupipe.compose.frames import FrameSpec
from gpupipe.engine.residents import Resident, ResidentKey, Residents
from gpupipe.geometry import CropLayout, Rect
from gpupipe.options import ModelOptions
from gpupipe.render.plan import whole
from gpupipe.seen import Seen

SECONDS = 20

pytestmark = pytest.mark.timeout(60)


def key(name: str) -> ResidentKey:
    return ResidentKey((Seen(Path(name), 1, 1),), "nv12", False)


def spec(count: int = 4) -> FrameSpec:
    return FrameSpec(CropLayout(32), "nv12", 16, 8, (Rect(0, 0, 4, 4),) * count)


class Store:
    """Kept frames, which are text, and what was loaded and freed."""

    def __init__(self, budget: int | None = None) -> None:
        self.loaded: list[str] = []
        self.freed: list[str] = []
        self.residents: Residents[str] = Residents(self.freed.append, budget)

    def acquire(self, name: str, count: int = 4) -> Resident[str]:
        def load() -> str:
            self.loaded.append(f"{name} {count}")
            return f"{name} {count}"

        return self.residents.acquire(key(name), spec(count), load)

    def use(self, name: str, count: int = 4) -> None:
        """Acquire, and give back."""
        self.residents.give_back(self.acquire(name, count))


def test_it_is_loaded_once() -> None:
    store = Store()
    first, second = store.acquire("anna"), store.acquire("anna")
    assert first is second
    assert first.frames == "anna 4"
    assert store.loaded == ["anna 4"]
    assert store.residents.nbytes == spec().cache_bytes
    for _ in range(2):
        store.residents.give_back(first)
    assert store.acquire("anna") is first
    assert store.freed == []


def test_fewer_frames_are_taken_from_more() -> None:
    store = Store()
    assert store.acquire("anna", 4) is store.acquire("anna", 2)
    assert store.residents.holds(key("anna"), range(4))
    assert not store.residents.holds(key("anna"), range(5))


def test_when_more_are_needed_the_old_ones_leave_with_their_last_user() -> None:
    store = Store()
    old = store.acquire("anna", 2)
    new = store.acquire("anna", 4)
    assert (old.frames, new.frames) == ("anna 2", "anna 4")
    assert store.residents.nbytes == spec(2).cache_bytes + spec(4).cache_bytes
    assert store.freed == []
    store.residents.give_back(old)
    assert store.freed == ["anna 2"]
    assert store.residents.nbytes == spec(4).cache_bytes
    assert store.acquire("anna", 2) is new
    store.use("bert", 2)
    store.use("bert", 4)
    assert store.freed == ["anna 2", "bert 2"]  # which nobody used any more


def test_beyond_its_budget_the_least_recently_used_leave_first() -> None:
    store = Store(budget=3 * spec().cache_bytes)
    for name in ("anna", "bert", "carl"):
        store.use(name)
    store.use("anna")
    store.use("dora")
    assert store.freed == ["bert 4"]
    held = store.acquire("carl")
    store.use("emil")
    assert store.freed == ["bert 4"]  # carl, who is used, does not count
    store.use("fritz")
    assert store.freed == ["bert 4", "anna 4"]
    store.residents.give_back(held)
    assert store.freed == ["bert 4", "anna 4", "dora 4"]
    store.use("gerd")
    assert store.freed == ["bert 4", "anna 4", "dora 4", "emil 4"]
    assert store.residents.nbytes == 3 * spec().cache_bytes


def test_what_is_used_may_exceed_the_budget_and_leaves_when_it_is_used_no_more() -> None:
    store = Store(budget=spec().cache_bytes)
    first, second = store.acquire("anna"), store.acquire("bert")
    assert store.freed == []
    store.residents.give_back(second)
    assert store.freed == []
    store.residents.give_back(first)
    assert store.freed == ["bert 4"]
    none = Store(budget=0)
    none.use("anna")
    assert none.freed == ["anna 4"]


def test_room_is_made_for_as_long_as_it_is_wanted() -> None:
    store = Store()
    for name in ("anna", "bert", "carl"):
        store.use(name)
    held = store.acquire("anna")
    store.residents.make_room(lambda: len(store.freed) < 1)
    assert store.freed == ["bert 4"]
    store.residents.make_room(lambda: True)
    assert store.freed == ["bert 4", "carl 4"]
    store.residents.give_back(held)
    store.residents.make_room(lambda: False)
    assert store.freed == ["bert 4", "carl 4"]


def test_those_who_ask_while_it_is_loaded_wait_for_it() -> None:
    store, begun, go_on = Store(), threading.Event(), threading.Event()

    def load() -> str:
        begun.set()
        assert go_on.wait(SECONDS)
        store.loaded.append("anna")
        return "anna"

    with ThreadPoolExecutor(5) as pool:
        asking = [pool.submit(store.residents.acquire, key("anna"), spec(), load) for _ in range(4)]
        assert begun.wait(SECONDS)
        store.use("bert")  # nobody waits for what another loads, unless it is the same
        assert not any(each.done() for each in asking)
        store.residents.make_room(lambda: len(store.freed) < 2)  # what is being loaded does not leave
        go_on.set()
        found = [each.result(SECONDS) for each in asking]
    assert len(set(map(id, found))) == 1
    assert found[0].users == 4
    assert store.loaded == ["bert 4", "anna"]
    assert store.freed == ["bert 4"]


def failing(error: Exception) -> Callable[[], str]:
    def load() -> str:
        raise error

    return load


def test_what_fails_to_load_is_loaded_anew_for_the_next() -> None:
    store = Store()
    with pytest.raises(ValueError, match="broken"):
        store.residents.acquire(key("anna"), spec(), failing(ValueError("broken")))
    assert store.residents.nbytes == 0
    assert not store.residents.holds(key("anna"), range(1))
    store.use("anna")
    assert store.loaded == ["anna 4"]


def test_nothing_is_left_of_what_fails_to_load_when_more_is_asked_for_meanwhile() -> None:
    store, begun, go_on = Store(), threading.Event(), threading.Event()

    def load() -> str:
        begun.set()
        assert go_on.wait(SECONDS)
        raise ValueError("broken")

    with ThreadPoolExecutor(1) as pool:
        asking = pool.submit(store.residents.acquire, key("anna"), spec(2), load)
        assert begun.wait(SECONDS)
        more = store.acquire("anna", 4)
        go_on.set()
        with pytest.raises(ValueError, match="broken"):
            asking.result(SECONDS)
    assert store.residents.nbytes == spec(4).cache_bytes
    store.residents.give_back(more)
    assert store.acquire("anna", 4) is more


def test_closing_releases_everything() -> None:
    store = Store()
    store.use("anna")
    store.use("bert", 2)
    store.acquire("bert", 4)
    store.residents.close()
    assert sorted(store.freed) == ["anna 4", "bert 2", "bert 4"]
    assert store.residents.nbytes == 0


def test_a_key_is_that_of_the_files_as_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    character = Character.load(small.small_character(tmp_path / "anna"))
    order = whole(character, "nv12", ModelOptions())
    found = ResidentKey.of(order)
    assert ResidentKey.of(replace(order, spec=replace(order.spec, rects=order.spec.rects[:3]))) == found
    assert ResidentKey.of(whole(character, "bgr24", ModelOptions())) != found
    monkeypatch.chdir(tmp_path)
    assert ResidentKey.of(whole(Character.load("anna"), "nv12", ModelOptions())) == found
    seen = {found}
    for name in ("full_body_video.mp4", "crops_328_video.mp4", small.RECTANGLES):
        path = tmp_path / "anna" / name
        stat = path.stat()
        os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns + 1_000_000))
        seen.add(ResidentKey.of(order))
    assert len(seen) == 4
