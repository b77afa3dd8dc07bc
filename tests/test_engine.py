"""The engine: any interleaving of sessions gives each the bytes that it has alone, and nothing is left of them."""

from __future__ import annotations

import sys
import threading
import time
from collections import Counter, deque
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import small
from engine_scene import PEOPLE, Person, assert_at_rest, eventually, finished, first_wrong, planned
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gpupipe.colour import PixelFormat
from gpupipe.compose.frames import HostFrames
from gpupipe.compose.surface import Surface
from gpupipe.engine.backend import HostBackend
from gpupipe.engine.session import Session
from gpupipe.engine.surfaces import SurfacePool
from gpupipe.errors import Cancelled, EngineClosed, InferenceError
from gpupipe.model.model import Model
from gpupipe.render.engine import Engine
from gpupipe.speech.rows import SpeechRows
from gpupipe.threads import Worker

pytestmark = pytest.mark.timeout(120)


@dataclass(frozen=True)
class Wish:
    """A session of an example.

    Attributes:
        seed, rows: of the features.
        grows: whether they come in pieces.
        wrong: at which row there is what the model gives NaN for (below 0) or fails of (1 and more), and what.
        leaves: after so many frames it is closed, or called off; None: it stays to the end.
        holds: frames that its taker keeps before it releases the first.
        due: seconds for each frame, if it has deadlines.
    """

    person: Person
    pixel_format: PixelFormat
    batch: int
    enters: int
    seed: int
    rows: int
    grows: bool
    wrong: tuple[int, float] | None
    leaves: tuple[int, str] | None
    holds: int
    due: float | None

    @property
    def start(self) -> int:
        """Where in the ping-pong it starts."""
        return self.enters % self.person.frames

    @property
    def features(self) -> Any:
        found = np.random.default_rng(self.seed).random((self.rows, 512), np.float32)
        if self.wrong is not None and self.wrong[0] < self.rows:
            found[self.wrong[0], 0] = self.wrong[1]
        return found


wishes = st.builds(
    Wish,
    person=st.sampled_from(PEOPLE),
    pixel_format=st.sampled_from(["nv12", "bgr24"]),
    batch=st.sampled_from([3, 5]),
    enters=st.integers(0, 6),
    seed=st.integers(0, 3),
    rows=st.integers(1, 24),
    grows=st.booleans(),
    wrong=st.none() | st.tuples(st.integers(0, 24), st.sampled_from([-0.5, 1.5])),
    leaves=st.none() | st.tuples(st.integers(0, 20), st.sampled_from(["closed", "called off"])),
    holds=st.integers(0, 4),
    due=st.none() | st.floats(0.001, 0.05),
)


class Taker:
    """One session, driven step by step."""

    def __init__(self, engine: Engine, wish: Wish, batch: dict[str, Any]) -> None:
        self.wish = wish
        self.features = wish.features
        self.plan = planned(wish.person, wish.pixel_format, self.features, wish.start, batch=wish.batch, **batch)
        self.wrong = first_wrong(wish.person, self.features, self.plan.total)
        self.rows = SpeechRows() if wish.grows else SpeechRows(self.features)
        began = time.monotonic()
        self.session: Session = engine.open_session(
            self.plan.order,
            lambda _: self.rows,
            due=None if wish.due is None else lambda index: began + index * (wish.due or 0),
        )
        self.taken = 0
        self.held: list[Surface] = []
        self.ended = False

    def step(self, amount: int) -> None:
        """Let more of its speech come, and take what is finished then."""
        if not self.rows.finished:
            end = min(len(self.features), self.rows.count + amount)
            self.rows.append(self.features[self.rows.count : end])
            if end == len(self.features):
                self.rows.finish()
        for _ in range(amount):
            self.take()

    def take(self) -> None:
        """The next frame, or the end, unless it takes more speech."""
        if self.ended:
            return
        wish, index = self.wish, self.taken
        if wish.leaves is not None and wish.leaves[0] == index:
            self.leave(wish.leaves[1])
        elif index == self.wrong and self.can_be_drawn(index):
            with pytest.raises(InferenceError) as caught:
                self.session.next()
            assert f"output frame {index}" in str(caught.value)
            assert ("NaN" in str(caught.value)) == (wish.wrong is not None and wish.wrong[1] < 0)
            self.close()
        elif index == self.plan.total and self.rows.finished:
            assert self.session.next() is None
            self.close()
        elif index < self.plan.total and self.can_be_drawn(index):
            surface = self.session.next()
            assert surface is not None
            assert surface.index == index
            assert surface.host is not None
            wanted = finished(wish.person, wish.pixel_format, self.features, index, wish.start)
            assert surface.host.tobytes() == wanted, f"{wish.person.name}, frame {index}"
            self.taken += 1
            self.held.append(surface)
            while len(self.held) > wish.holds:
                self.held.pop(0).release()

    def can_be_drawn(self, index: int) -> bool:
        """Whether what a frame hears has come; known here from the definition of its window, rows i - 8 to i + 7."""
        last = index * 25 / self.wish.person.fps
        return self.rows.finished or np.ceil(float(last)) + 7 < self.rows.count

    def leave(self, how: str) -> None:
        if how == "called off":
            self.session.fail(Cancelled("enough"))
            with pytest.raises((Cancelled, InferenceError)):
                self.drain()
        self.close()

    def drain(self) -> None:
        """Take what had been finished before."""
        while (surface := self.session.next()) is not None:
            surface.release()

    def close(self) -> None:
        self.session.close()
        for surface in self.held:  # which may stay out longer than the session
            surface.release()
        self.held.clear()
        self.ended = True

    def end(self) -> None:
        """Take all that is left."""
        while not self.ended:
            self.step(8)


@pytest.fixture
def surfaces(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """Every surface's memory that is made."""
    made: list[object] = []
    new = SurfacePool._new

    def counted(pool: SurfacePool, format: Any, on_host: bool) -> Any:
        made.append(format)
        return new(pool, format, on_host)

    monkeypatch.setattr(SurfacePool, "_new", counted)
    return made


def run(engine: Engine, surfaces: list[object], options: dict[str, Any], chosen: list[Wish], steps: Any) -> None:
    """Open the sessions of an example when their first steps come, and take the steps."""
    takers: dict[int, Taker] = {}
    try:
        for number, amount in steps:
            number %= len(chosen)
            if number not in takers:
                takers[number] = Taker(engine, chosen[number], options)
            takers[number].step(amount)
        for number, wish in enumerate(chosen):
            if number not in takers:
                takers[number] = Taker(engine, wish, options)
        for taker in takers.values():
            taker.end()
    finally:
        for taker in takers.values():
            taker.close()
    assert_at_rest(engine, len(surfaces))


INTERLEAVED = {
    "chosen": st.lists(wishes, min_size=1, max_size=6),
    "steps": st.lists(st.tuples(st.integers(0, 5), st.integers(1, 9)), max_size=25),
}


@pytest.mark.parametrize("workers", [1, 3])
def test_any_interleaving_gives_each_session_the_bytes_that_it_has_alone(surfaces: list[object], workers: int) -> None:
    before = threading.active_count()
    with Engine(device="cpu", workers=workers) as engine:

        @settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
        @given(**INTERLEAVED)
        def interleaved(chosen: list[Wish], steps: Any) -> None:
            run(engine, surfaces, {"inference_threads": 5}, chosen, steps)

        interleaved()
    assert threading.active_count() == before


def test_who_gives_surfaces_back_one_by_one_gets_full_batches() -> None:
    order = planned(PEOPLE[1], "nv12", small.features(50), batch=4).order
    with Engine(device="cpu") as engine, engine.open_session(order, lambda _: SpeechRows(small.features(50))) as first:
        for surface in first:  # everything is loaded now
            surface.release()
        before = engine.timetable.departed.copy()
        with engine.open_session(order, lambda _: SpeechRows(small.features(50))) as session:
            for surface in session:
                surface.release()
                time.sleep(0.002)  # for a batch to leave
        sizes, (full, rest) = engine.timetable.departed - before, divmod(session.finished, session.lane.batch)
    assert sizes == Counter({session.lane.batch: full, rest: rest > 0})


def test_a_run_that_is_under_way_ends_before_its_buffers_go(monkeypatch: pytest.MonkeyPatch) -> None:
    """The engine fails while a third batch waits behind the second for its turn to be waited for."""
    started: list[int] = []
    ended: list[int] = []
    failed = threading.Event()
    start = Model.start

    def starting(model: Model, bindings: Any, frames: int) -> Any:
        wait, number = start(model, bindings, frames), len(started)
        started.append(number)

        def waiting() -> None:
            if number:
                assert failed.wait(20)
                time.sleep(0.05)
            wait()
            ended.append(number)

        return waiting

    def failing(*_: Any) -> None:
        eventually(lambda: len(started) >= 3, "no third batch")
        failed.set()
        raise ValueError("a fault")

    monkeypatch.setattr(Model, "start", starting)
    monkeypatch.setattr(Session, "deliver", failing)
    order = planned(PEOPLE[1], "nv12", small.features(50)).order
    with Engine(device="cpu") as engine:
        session = engine.open_session(order, lambda _: SpeechRows(small.features(50)))
        with pytest.raises(ValueError, match="a fault"):
            session.next()
    assert set(ended) == set(started)
    assert len(started) >= 3


def test_memory_is_asked_for_while_others_begin_to_load(monkeypatch: pytest.MonkeyPatch) -> None:
    class Loading:
        missing_bytes = 1

    monkeypatch.setattr(HostFrames, "loading", lambda *_: Loading())
    backend, spec = HostBackend(1, None), planned(PEOPLE[0], "nv12", small.features(1)).order.spec
    enough = threading.Event()

    def load() -> None:
        kept = deque[object](maxlen=100)
        while not enough.is_set():
            kept.append(backend.load(spec, ((), (), None)))

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    other = Worker("load", load)
    try:
        other.start()
        assert all(backend.fits({"frames": 0}) for _ in range(500))
    finally:
        enough.set()
        other.wait()
        sys.setswitchinterval(interval)


def test_an_engine_is_closed_by_who_was_interrupted_before_he_could_say_that_he_is_done(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    order = planned(PEOPLE[0], "nv12", small.features(1)).order
    with Engine(device="cpu") as engine:

        def interrupted() -> None:
            raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr(engine, "_handled", interrupted)
            with pytest.raises(KeyboardInterrupt):
                engine.filmed(order)
    with pytest.raises(EngineClosed):
        engine.filmed(order)
