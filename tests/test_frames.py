"""frames: those that are there are drawn while the others are decoded, and what ends that."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import small
from engine_scene import PEOPLE, assert_at_rest, eventually, finished, make_person, planned

import gpupipe
from gpupipe.character.folder import Character
from gpupipe.compose.device_frames import DeviceFrames
from gpupipe.compose.device_memory import Uploads
from gpupipe.compose.frames import FrameSpec, HostFrames
from gpupipe.compose.surface import Surface
from gpupipe.engine import order
from gpupipe.engine.session import Session
from gpupipe.errors import EngineClosed, MediaError
from gpupipe.geometry import CropLayout, Rect
from gpupipe.gpu.device import open_device
from gpupipe.media.video import read_frames
from gpupipe.options import ModelOptions, SpeechOptions
from gpupipe.render.engine import Engine
from gpupipe.render.plan import Plan
from gpupipe.speech.rows import SpeechRows

SECONDS = 20
ANNA = PEOPLE[0]
FEATURES = small.features(20)

pytestmark = pytest.mark.timeout(60)


def spec(count: int) -> FrameSpec:
    return FrameSpec(CropLayout(32), "bgr24", 4, 2, (Rect(0, 0, 4, 2),) * count)


def pictures(count: int, size: tuple[int, int], fails: str = "") -> Iterator[Any]:
    """Frame k is k everywhere; behind the last comes an error, if there is to be one."""
    for number in range(count):
        yield np.full((*size, 3), number, np.uint8)
    if fails:
        raise MediaError(fails)


def loading(body: Iterator[Any], crops: Iterator[Any], count: int = 6) -> HostFrames:
    return HostFrames.loading(spec(count), body, crops)


def test_every_frame_is_there_after_loading() -> None:
    frames = HostFrames.load(spec(6), pictures(6, (2, 4)), pictures(6, (40, 40)))
    assert (frames.loaded, frames.whole, frames.error, frames.missing_bytes) == (6, True, None, 0)
    for number in range(6):
        assert frames.ready(number)
        assert (frames.body[number] == number).all()
        assert (frames.crops[number] == number).all()


@pytest.mark.parametrize(
    ("bodies", "crops", "loaded", "told"), [(3, 5, 3, "body"), (5, 2, 2, "crop"), (0, 6, 0, "body"), (6, 5, 5, "crop")]
)
def test_what_cannot_be_decoded_is_told_once_those_before_it_are_there(
    bodies: int, crops: int, loaded: int, told: str
) -> None:
    frames = loading(pictures(bodies, (2, 4), "body" * (bodies < 6)), pictures(crops, (40, 40), "crop" * (crops < 6)))
    with pytest.raises(MediaError, match=told):
        frames.wait()
    assert str(frames.error) == told
    assert (frames.loaded, frames.whole) == (loaded, False)
    assert [frames.ready(number) for number in range(6)] == [number < loaded for number in range(6)]


@pytest.mark.cuda
def test_a_frame_is_on_a_gpu_once_its_copies_are_seen_to_have_arrived(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu, arrived, queued = open_device(), threading.Semaphore(0), threading.Semaphore(0)
    wait = Uploads._wait

    def waiting(uploads: Uploads) -> None:
        if uploads._crop.size:  # the thread of the crops
            queued.release()
            assert arrived.acquire(timeout=SECONDS)
        wait(uploads)

    monkeypatch.setattr(Uploads, "_wait", waiting)
    layout = CropLayout(32)
    frames = DeviceFrames.loading(gpu, spec(2), pictures(2, (2, 4)), pictures(2, (layout.crop_size,) * 2))
    told: list[int] = []
    frames.listen(lambda: told.append(frames.loaded))
    for number in range(2):
        assert queued.acquire(timeout=SECONDS)
        assert not frames.ready(number)
        arrived.release()
        eventually(lambda number=number: frames.ready(number), "it does not come")  # type: ignore[misc]
    frames.wait()
    assert told[:2] == [1, 2]
    frames.close()


class Gate:
    """Decodes what it is told to, and says how far it is."""

    def __init__(self, path: Path | None = None) -> None:
        self.allowed = 0
        self.decoded = 0
        self.calls = 0
        self.ended = 0
        self._path, self._changed = path, threading.Condition()

    def allow(self, count: int) -> None:
        with self._changed:
            self.allowed = count
            self._changed.notify_all()

    def read(self, path: Path, *arguments: Any) -> Iterator[Any]:
        self.calls += 1
        try:
            for number, frame in enumerate(read_frames(path, *arguments)):
                if self._path in (None, path):
                    with self._changed:
                        assert self._changed.wait_for(lambda number=number: number < self.allowed, SECONDS)  # type: ignore[misc]
                        self.decoded = number + 1
                yield frame
        finally:
            self.ended += 1


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.cuda)])
def device(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture(params=["body", "crops"])
def gate(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Gate:
    video = getattr(ANNA.character, request.param).path
    gate = Gate(video)
    monkeypatch.setattr(order, "read_frames", gate.read)
    return gate


def opened(engine: Engine, total: int = 20) -> Session:
    plan = planned(ANNA, "nv12", FEATURES[:total], provider="cpu")
    return engine.open_session(plan.order, lambda _: SpeechRows(FEATURES[:total]))


def take(session: Session, *indexes: int) -> None:
    """Take frames, which must be right."""
    for index in indexes:
        surface = session.next()
        assert isinstance(surface, Surface)
        assert surface.index == index
        assert surface.host is not None
        assert surface.host.tobytes() == finished(ANNA, "nv12", FEATURES, index)
        surface.release()


def eventually_stopped(session: Session) -> None:
    decoders = session.frames._decoders
    eventually(lambda: all(decoder.stopped for decoder in decoders), "it is decoded further")


def test_frames_are_drawn_as_soon_as_their_own_are_decoded(gate: Gate, device: str) -> None:
    with Engine(device=device) as engine:
        session = opened(engine)
        for frame in range(7):
            assert session.available == 0
            assert session.expects_more
            gate.allow(frame + 1)
            take(session, frame)
            assert gate.decoded == frame + 1
        take(session, *range(7, 20))  # on the way back nothing is decoded
        assert session.next() is None
        session.close()
        assert gate.calls == 2
        take(other := opened(engine), *range(20))
        other.close()
        assert gate.calls == 2


def test_who_comes_while_frames_are_decoded_shares_them(gate: Gate, device: str) -> None:
    with Engine(device=device) as engine:
        first, second = opened(engine), opened(engine, 3)
        gate.allow(3)
        take(second, 0, 1, 2)
        assert second.next() is None
        second.close()
        take(first, 0, 1, 2)
        gate.allow(7)
        take(first, *range(3, 20))
        first.close()
        assert gate.calls == 2


def test_what_nobody_waits_for_is_decoded_no_further(gate: Gate, device: str) -> None:
    threads = threading.active_count()
    with Engine(device=device) as engine:
        session = opened(engine)
        gate.allow(2)
        take(session, 0, 1)
        closing = threading.Thread(target=session.close)
        closing.start()
        eventually_stopped(session)
        gate.allow(3)  # what was being decoded
        closing.join(SECONDS)
        eventually(lambda: not engine._sessions and not engine._handling, "the session is not over")
        assert (gate.decoded, gate.ended) == (3, 2)
        assert engine.holdings.residents.nbytes == 0
        gate.allow(7)
        take(again := opened(engine), *range(20))
        again.close()
    assert gate.calls == 4
    assert threading.active_count() == threads


def test_an_engine_is_closed_while_frames_are_decoded(gate: Gate, device: str) -> None:
    threads = threading.active_count()
    engine = Engine(device=device)
    session = opened(engine)
    gate.allow(2)
    take(session, 0, 1)
    closing = threading.Thread(target=engine.close)
    closing.start()
    with pytest.raises(EngineClosed):
        session.next()
    eventually_stopped(session)
    gate.allow(3)
    closing.join(SECONDS)
    assert not closing.is_alive()
    assert (gate.decoded, gate.ended) == (3, 2)
    assert threading.active_count() == threads


def test_what_is_not_shown_is_not_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[Any, ...]] = []

    def read(path: Path, *arguments: Any) -> Iterator[Any]:
        asked.append((arguments[1], *(start.first for start in arguments[3:])))
        return read_frames(path, *arguments)

    monkeypatch.setattr(order, "read_frames", read)
    with Engine(device="cpu") as engine:
        for start, rows, shown, decoded in ((3, 2, range(3, 5), 1), (4, 5, range(4, 7), 2), (5, 2, range(5, 7), 2)):
            plan = planned(ANNA, "nv12", FEATURES[:rows], start)
            assert plan.order.spec.numbers == shown
            with engine.open_session(plan.order, lambda _, rows=rows: SpeechRows(FEATURES[:rows])) as session:  # type: ignore[misc]
                for index in range(rows):
                    surface = session.next()
                    assert surface is not None
                    assert surface.host is not None
                    assert surface.host.tobytes() == finished(ANNA, "nv12", FEATURES[:rows], index, start)
                    surface.release()
            assert len(asked) == 2 * decoded  # the last finds its frames among the second's
        assert sorted(asked) == [(5, 3), (5, 3), (7, 4), (7, 4)]
        held = {each.numbers for each in engine.holdings.residents._kept.values()}
        assert held == {range(3, 5), range(4, 7)}
        engine.load(ANNA.character)  # all of them
        assert [each.numbers for each in engine.holdings.residents._kept.values()] == [range(7)]


def test_segments_that_are_not_rendered_are_not_decoded(tmp_path: Path) -> None:
    chosen: Any = {"features": FEATURES, "segment_frames": 2, "device": "cpu", "segments": "4-5"}
    stats = gpupipe.render(ANNA.character, tmp_path / "a.mp4", **chosen)
    frame = 96 * 64 * 3 // 2 + 3 * small.CROP_SIZE**2
    assert stats.cache_bytes == 4 * frame  # outputs 8-11, which show frames 4, 3, 2, 1


def test_load_waits_for_every_frame(gate: Gate, device: str) -> None:
    with Engine(device=device) as engine:
        loaded: list[Character] = []
        waiting = threading.Thread(target=lambda: loaded.append(engine.load(ANNA.character, provider="cpu")))
        waiting.start()
        gate.allow(6)
        eventually(lambda: gate.decoded == 6, "nothing is decoded")
        assert not loaded
        gate.allow(7)
        waiting.join(SECONDS)
        assert loaded == [ANNA.character]


@pytest.mark.parametrize("video", ["full_body_video.mp4", "crops_328_video.mp4"])
def test_a_frame_that_cannot_be_decoded_ends_who_needs_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, video: str, device: str
) -> None:
    broken = True

    def read(path: Path, *arguments: Any) -> Iterator[Any]:
        for number, frame in enumerate(read_frames(path, *arguments)):
            if broken and number == 4 and path.name == video:
                raise MediaError("is damaged", file=path, field="frame 4", remedy="write it again")
            yield frame

    monkeypatch.setattr(order, "read_frames", read)
    character = Character.load(make_person(tmp_path / "anna", ANNA))

    def session(engine: Engine, total: int) -> Session:
        said = SpeechOptions(features=FEATURES[:total])
        plan = Plan.make(character, "nv12", ModelOptions(provider="cpu"), said, sound=False)
        return engine.open_session(plan.order, lambda _: SpeechRows(FEATURES[:total]))

    with Engine(device=device) as engine:
        needing, other = session(engine, 20), session(engine, 4)
        take(needing, 0, 1, 2, 3)
        for _ in range(2):
            with pytest.raises(MediaError, match=rf"{video}: frame 4: is damaged"):
                needing.next()
        assert (needing.available, needing.expects_more) == (0, False)
        take(other, 0, 1, 2, 3)
        assert other.next() is None
        needing.close()
        other.close()
        eventually(lambda: engine.holdings.residents.nbytes == 0, "broken frames are kept")
        with pytest.raises(MediaError, match="frame 4"):
            engine.load(character, provider="cpu")
        broken = False
        take(whole := session(engine, 20), *range(20))
        whole.close()
        assert_at_rest(engine, sum(map(len, engine.holdings._pool._free.values())))
