"""session: which frames can be drawn, finished ones in order, surfaces that come back, and every way to end."""

from __future__ import annotations

import math
import threading
import time
from fractions import Fraction
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

from gpupipe.compose.surface import Surface, SurfaceFormat
from gpupipe.engine.frame_task import FrameTask
from gpupipe.engine.outputs import Outputs
from gpupipe.engine.session import Session
from gpupipe.engine.surfaces import Memory
from gpupipe.errors import Cancelled, InferenceError
from gpupipe.speech.rows import SpeechRows
from gpupipe.trace import Trace

FORMAT = SurfaceFormat("bgr24", 4, 2)
SECONDS = 20

pytestmark = pytest.mark.timeout(60)


class Opened:
    """A session with surfaces of its own, and what its engine is told."""

    def __init__(
        self, speech: SpeechRows, *, surfaces: int = 4, fps: int = 25, total: int | None = None, **more: Any
    ) -> None:
        self.changes = 0
        self.ends: list[Session] = []
        self.memory = [Memory(np.zeros(FORMAT.shape, np.uint8), None) for _ in range(surfaces)]
        self.session = Session(
            lane=cast(Any, SimpleNamespace(batch=2)),
            frames="frames",
            speech=speech,
            placed="speech",
            source=lambda index: index % 3,
            fps=Fraction(fps),
            outputs=Outputs.all() if total is None else Outputs.of(range(total)),
            format=FORMAT,
            trace=Trace(),
            memory=list(self.memory),
            changed=self.changed,
            ended=self.ends.append,
            **more,
        )

    def changed(self, session: Session) -> None:
        assert session is self.session
        self.changes += 1

    def start(self, count: int = 1) -> list[FrameTask[Session]]:
        tasks = [self.session.start() for _ in range(count)]
        assert None not in tasks
        return cast(list[FrameTask[Session]], tasks)

    def draw(self, count: int = 1) -> None:
        """Start frames, and finish them at once."""
        for task in self.start(count):
            self.session.deliver(task)

    def next(self) -> Surface:
        surface = self.session.next()
        assert surface is not None
        return surface


def rows(count: int) -> Any:
    return np.zeros((count, 512), np.float32)


def whole(count: int) -> SpeechRows:
    return SpeechRows(rows(count))


def test_frames_come_in_order_on_surfaces_that_come_back() -> None:
    opened = Opened(whole(9), surfaces=2, total=9)
    session = opened.session
    for index in range(0, 8, 2):
        assert session.available == 2
        assert not session.expects_more  # before one of them is drawn: every surface waits for a frame
        first, second = opened.start(2)
        assert (first.index, second.index) == (index, index + 1)
        assert first.drawing.source == index % 3
        assert (first.drawing.frames, first.drawing.speech) == ("frames", "speech")
        assert (first.drawing.row, first.drawing.fraction) == (index, 0)
        assert session.available == 0
        assert session.start() is None
        for task in (first, second):
            session.deliver(task)
        for each in range(2):
            surface = opened.next()
            assert surface.index == index + each
            assert any(surface.host is memory.host for memory in opened.memory)
            surface.release()
            surface.release()
            assert session.available == min(each + 1, 9 - index - 2)
    opened.draw()
    assert not session.expects_more
    assert opened.next().index == 8
    assert session.next() is None
    assert session.next() is None


def test_a_taker_that_stops_holds_back_its_own_session() -> None:
    opened = Opened(whole(99), surfaces=3)
    opened.draw(3)
    assert opened.session.available == 0  # finished, and not taken
    held = [opened.next() for _ in range(3)]
    assert opened.session.available == 0  # taken, and not released
    before = opened.changes
    held[1].release()
    assert opened.changes == before + 1
    assert opened.session.available == 1


@pytest.mark.parametrize("fps", [25, 30, 50])
def test_frames_of_a_growing_speech_can_be_drawn_once_what_they_hear_is_there(fps: int) -> None:
    speech = SpeechRows()
    opened = Opened(speech, surfaces=100, fps=fps)
    session = opened.session
    assert session.available == 0
    assert session.expects_more
    for count in range(1, 31):
        speech.append(rows(1))
        # Frame i hears rows i·25/fps - 8 to i·25/fps + 7, and one more if that is between two rows.
        wanted = sum(math.ceil(Fraction(index * 25, fps)) + 7 < count for index in range(100))
        assert session.available == wanted, count
        assert session.expects_more
    speech.finish()
    assert session.available == math.ceil(Fraction(30 * fps, 25))
    assert not session.expects_more


def test_a_speech_that_is_finished_meanwhile_gives_no_frames_past_its_end() -> None:
    """Between two questions, every window becomes ready: those past the end too."""

    class Ending(SpeechRows):
        def ready(self, row: int, fraction: int) -> bool:
            if not self.finished:
                self.finish()
            return super().ready(row, fraction)

    speech = Ending()
    speech.append(rows(3))
    opened = Opened(speech, surfaces=8)
    assert opened.session.available == 3


def test_an_empty_speech_has_no_frames() -> None:
    speech = SpeechRows()
    opened = Opened(speech)
    speech.finish()
    assert (opened.session.available, opened.session.expects_more) == (0, False)
    assert opened.session.next() is None


def test_deadlines_are_those_of_the_frames_to_come() -> None:
    opened = Opened(whole(9), due=lambda index: 100.0 + index)
    assert [opened.session.deadline(ahead) for ahead in range(2)] == [100.0, 101.0]
    opened.start(2)
    assert opened.session.deadline(0) == 102.0
    assert Opened(whole(9)).session.deadline(0) == math.inf


def test_deadlines_that_cannot_be_told_end_their_own_session() -> None:
    opened = Opened(whole(9), due=lambda index: [1.0][index])
    assert opened.session.deadline(0) == 1.0
    assert opened.session.deadline(1) == math.inf
    assert opened.session.available == 0
    with pytest.raises(IndexError):
        opened.session.next()


def test_next_waits_for_a_frame() -> None:
    opened = Opened(whole(9))
    got: list[Surface | None] = []
    taker = threading.Thread(target=lambda: got.append(opened.session.next()), daemon=True)
    taker.start()
    time.sleep(0.01)
    assert not got
    opened.draw()
    taker.join(SECONDS)
    assert [surface and surface.index for surface in got] == [0]


def test_frames_before_the_failing_one_are_given_out_and_those_after_it_are_dropped() -> None:
    opened = Opened(whole(9))
    session = opened.session
    tasks = opened.start(4)
    for number, task in enumerate(tasks):
        session.deliver(task, InferenceError("wrong") if number == 2 else None)
    assert (session.available, session.expects_more) == (0, False)
    assert session.start() is None
    for index in range(2):
        surface = opened.next()
        assert surface.index == index
        surface.release()
    for _ in range(2):
        with pytest.raises(InferenceError, match="wrong"):
            session.next()
    assert not opened.ends
    session.close()
    assert opened.ends == [session]


def test_it_is_called_off_with_the_first_reason() -> None:
    opened = Opened(whole(9))
    before = opened.changes
    opened.session.fail(Cancelled("one"))
    opened.session.fail(Cancelled("two"))
    assert opened.changes > before  # the engine must know: others may wait for its frames
    with pytest.raises(Cancelled, match="one"):
        opened.session.next()


def test_closing_gives_everything_back_once_what_is_under_way_is_done() -> None:
    opened = Opened(whole(9))
    session = opened.session
    opened.draw(2)
    taken = opened.next()
    (task,) = opened.start()
    session.close()
    session.close()
    assert not opened.ends
    assert (session.available, session.start()) == (0, None)
    with pytest.raises(Cancelled, match="closed"):
        session.next()
    session.deliver(task)  # dropped
    assert not opened.ends
    taken.release()
    assert opened.ends == [session]
    session.close()
    assert opened.ends == [session]


def test_all_of_its_surfaces_are_back_when_it_ends() -> None:
    back: list[list[Memory]] = []
    opened = Opened(whole(9), surfaces=3)
    opened.session.ended = lambda session: back.append(list(session.memory))
    opened.draw(2)
    opened.session.close()
    assert len(back) == 1
    assert {id(memory.host) for memory in back[0]} == {id(memory.host) for memory in opened.memory}


def test_a_released_surface_holds_no_memory() -> None:
    opened = Opened(whole(9))
    opened.draw()
    surface = opened.next()
    surface.release()
    assert surface.host is None
    assert surface.device is None


def test_it_is_closed_from_another_thread_while_its_taker_waits() -> None:
    opened = Opened(whole(9))
    errors: list[BaseException] = []

    def take() -> None:
        try:
            opened.session.next()
        except Cancelled as error:
            errors.append(error)

    taker = threading.Thread(target=take, daemon=True)
    taker.start()
    opened.session.close()
    taker.join(SECONDS)
    assert len(errors) == 1
