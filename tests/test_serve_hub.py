"""Talks, without a network: the pictures of a render, in time, and who may come in."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from gpupipe.serve.conversation import Conversation
from gpupipe.serve.costs import Costs
from gpupipe.serve.hub import Hub
from gpupipe.serve.limits import ServeLimits
from gpupipe.serve.loading import LOADING
from gpupipe.serve.order import Output, TalkOrder
from gpupipe.serve.refusals import BadRequest, NotFound, Refused, Silent, TooLarge
from gpupipe.serve.seats import Seats
from gpupipe.serve.webrtc.utterance import Pixels


@pytest.fixture(scope="module")
def hub(folder: Path) -> Iterator[Hub]:
    with Hub(folder, ["cpu"], {}, {}, limits=ServeLimits(seconds=20)) as hub:
        yield hub


def test_the_pictures_are_those_of_a_render(hub: Hub, folder: Path, pcm: NDArray[np.float32]) -> None:
    wanted = list(hub.engines[0].frames(folder / "anna", audio=folder / "anna" / "aud.wav", start_frame=4))
    with hub.open(TalkOrder("anna", "nv12", realtime=False, start_frame=4)) as talk:
        for start in range(0, len(pcm), 700):
            talk.push(pcm[start : start + 700])
        talk.finish()
        got = [(picture.index, picture.pixels.copy()) for picture in talk]
    assert [index for index, _ in got] == list(range(len(wanted)))
    assert all(np.array_equal(pixels, frame) for (_, pixels), frame in zip(got, wanted, strict=True))
    assert hub.talks == []


def test_a_picture_that_is_passed_over_is_repeated(hub: Hub, pcm: NDArray[np.float32]) -> None:
    """Nobody takes pictures for a while: those that cannot be in time stand still, and the number stays right."""
    with hub.open(TalkOrder("anna", "nv12")) as talk:
        talk.push(pcm)
        talk.finish()
        pictures = iter(talk)
        first = next(pictures)
        talk.excused = True
        time.sleep(1.2)
        before, count = first.pixels.copy(), 1
        for picture in pictures:
            assert picture.index == count
            if picture.repeats:
                assert np.array_equal(picture.pixels, before)
            before, count = picture.pixels.copy(), count + 1
        assert talk.dropped > 0
        assert talk.behind == 0
        assert count == 30


def test_what_cannot_be_had(hub: Hub, pcm: NDArray[np.float32]) -> None:
    for name in ("nobody", "../anna", "anna/..", "", "a" * 1000, "anna\0"):
        with pytest.raises(NotFound, match="no such character"):
            hub.open(TalkOrder(name, "nv12"))
    with hub.open(TalkOrder("anna", "nv12")) as talk:
        with pytest.raises(TooLarge, match="longer than 20 s"):
            talk.push(np.zeros(16_000 * 21, np.float32))
        with pytest.raises(BadRequest, match="NaN"):
            talk.push(np.full(10, np.nan, np.float32))
        talk.push(pcm)
        talk.finish()
        with pytest.raises(BadRequest, match="finished"):
            talk.push(pcm)


def test_who_would_make_others_late_is_refused(hub: Hub) -> None:
    hub.load("anna")
    talks = []

    def fill() -> None:
        for _ in range(1000):
            talks.append(hub.open(TalkOrder("anna", "nv12")))

    try:
        with pytest.raises(Refused, match="late") as refused:
            fill()
        assert refused.value.retry_after > 0
        assert hub.load_share() <= 0.85
        # Who has time may come in all the same.
        hub.open(TalkOrder("anna", "nv12", realtime=False)).close()
    finally:
        for talk in talks:
            talk.close()
    hub.open(TalkOrder("anna", "nv12")).close()


def test_talks_of_who_is_there_do_not_wait_for_who_is_loaded(hub: Hub) -> None:
    hub.load("anna")
    order, gate = TalkOrder("anna", "nv12", realtime=False), threading.Event()

    async def opened() -> None:
        await (await Conversation.open(hub, order, lambda _: Pixels())).aclose()

    async def run() -> None:
        stuck = [hub.loading.submit(gate.wait, 60) for _ in range(LOADING)]
        try:
            await opened()
            assert hub.unload("anna")
            waits = [asyncio.create_task(opened()) for _ in range(10)]
            while hub.waiting()["loading"] < len(waits):
                await asyncio.sleep(0.01)
            assert hub.waiting()["opening"] == 0
            assert not any(each.done() for each in stuck)
        finally:
            gate.set()
        await asyncio.gather(*waits)

    asyncio.run(run())
    assert hub.holders("anna") == [0]
    assert hub.talks == []


def test_what_a_held_place_takes_follows_what_is_measured(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gpupipe.serve.seats.WATCH_SECONDS", 0.0)
    costs = Costs()
    costs.drawn("anna", None, 0.001)
    seats = Seats(hub.engines, costs, hub.limits, 0.85)
    seat = seats.take(TalkOrder("anna", "webrtc"), hub.characters.get("anna"))
    assert seat.demand is not None
    before = seat.demand.cores
    costs.drawn("anna", None, 0.003, 1000)
    assert seats.watch()
    assert seat.demand.cores == pytest.approx(before + 25 * 0.002)


def test_nothing_is_loaded_for_who_is_refused(folder: Path) -> None:
    with Hub(folder, ["cpu"], {}, {}, limits=ServeLimits(sessions=1)) as hub:
        with hub.guest("anna"), pytest.raises(Refused, match="1 talks are under way"):
            hub.open(TalkOrder("anna", "nv12"))
        hub.seats.refuse_all()
        with pytest.raises(Refused, match="shut down"):
            hub.reserve(TalkOrder("anna", "webrtc"))
        assert hub.holders("anna") == []
        assert hub.costs.cores("anna") is None


def test_who_says_nothing_is_sent_away(hub: Hub) -> None:
    with hub.open(TalkOrder("anna", "nv12")) as talk:
        talk.check(time.monotonic() + 31)
        with pytest.raises(Silent, match="no sound"):
            talk.push(np.zeros(10, np.float32))
        with pytest.raises(Silent, match="no sound"):
            list(talk)


@pytest.mark.parametrize("output", ["nv12", "webrtc"])
def test_who_takes_nothing_is_sent_away_but_for_a_peer(hub: Hub, pcm: NDArray[np.float32], output: Output) -> None:
    """A peer's speech may wait for as long as the one before it lasts."""
    with hub.open(TalkOrder("anna", output, realtime=False)) as talk:
        talk.push(pcm)
        talk.finish()
        pictures = iter(talk)
        next(pictures)
        talk.check(time.monotonic() + 31)
        if output == "webrtc":
            assert [picture.index for picture in pictures] == list(range(1, 30))
        else:
            with pytest.raises(Silent, match="no picture was taken for 30 s"):
                list(pictures)


def test_talks_end_with_the_server(folder: Path, pcm: NDArray[np.float32]) -> None:
    hub = Hub(folder, ["cpu"], {}, {})
    talk = hub.open(TalkOrder("anna", "nv12"))
    talk.push(pcm)
    closing = threading.Thread(target=hub.close, args=(0.2,))
    closing.start()
    with pytest.raises(Refused, match="shut down"):
        list(talk)
    closing.join(30)
    assert not closing.is_alive()
    with pytest.raises(Refused, match="shut down"):
        hub.open(TalkOrder("anna", "nv12"))
