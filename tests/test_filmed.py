"""filmed: a character as it was filmed, from where the engine keeps it, or decoded ahead."""

from __future__ import annotations

import numpy as np
import pytest
from engine_scene import LARGE, PEOPLE

from gpupipe.engine.order import SessionOrder
from gpupipe.errors import EngineClosed
from gpupipe.geometry import frame_at
from gpupipe.media.video import read_frames
from gpupipe.options import ModelOptions
from gpupipe.render.engine import Engine
from gpupipe.render.plan import whole

pytestmark = pytest.mark.timeout(120)

PERSON = LARGE


def order() -> SessionOrder:
    return whole(PERSON.character, "nv12", ModelOptions())


def assert_ping_pong(engine: Engine) -> None:
    """Every frame of both ways, from somewhere in the middle, is the body video's."""
    wanted = list(read_frames(PERSON.path / "full_body_video.mp4", "nv12"))[: PERSON.character.count]
    with engine.filmed(order()) as filmed:
        assert filmed.period == len(wanted)
        for position in range(len(wanted) // 2, 3 * len(wanted)):
            assert np.array_equal(filmed.read(position), wanted[frame_at(position, len(wanted))])
            assert filmed.rect(position) == PERSON.character.rects[frame_at(position, len(wanted))].within(
                PERSON.character.body.width, PERSON.character.body.height
            )


def test_frames_that_are_kept_stay_while_somebody_shows_them() -> None:
    with Engine(device="cpu") as engine:
        engine.load(PERSON.character)
        with engine.filmed(order()) as filmed:
            engine.holdings.residents.make_room(lambda: True)  # of all that nobody uses
            assert engine.holds(PERSON.character)
            assert filmed.read(0).any()
        engine.holdings.residents.make_room(lambda: True)
        assert not engine.holds(PERSON.character)


def test_in_host_memory() -> None:
    with Engine(device="cpu") as engine:
        engine.load(PERSON.character)
        assert_ping_pong(engine)


def test_decoded_ahead() -> None:
    with Engine(device="cpu") as engine:
        assert_ping_pong(engine)
        assert engine.holdings.residents.nbytes == 0


@pytest.mark.cuda
def test_on_a_device() -> None:
    with Engine(device="cuda") as engine:
        engine.load(PERSON.character, provider="cpu")
        assert_ping_pong(engine)


def test_it_ends_with_the_engine() -> None:
    engine = Engine(device="cpu")
    kept, ahead = engine.filmed(order()), engine.filmed(whole(PEOPLE[1].character, "nv12", ModelOptions()))
    ahead.read(3)
    engine.close()
    for each in (kept, ahead):
        with pytest.raises(EngineClosed, match="closed"):
            each.read(0)
        each.close()
