"""A speech that comes while it is rendered: the frames of the whole speech, each as soon as what it hears is there."""

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from gpupipe.demo import make_demo
from gpupipe.errors import GpupipeError, MediaError
from gpupipe.media.sound import read_pcm
from gpupipe.render.engine import Engine
from gpupipe.speech.windows import samples_of_row

WAIT = 60.0


@pytest.fixture(scope="module")
def person(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A character with an audio encoder, who was filmed saying 40 frames."""
    return make_demo(tmp_path_factory.mktemp("live") / "person", frames=40, size=(320, 192), model_size=160)


@pytest.fixture
def pcm(person: Path) -> NDArray[np.float32]:
    return np.concatenate(list(read_pcm(person / "aud.wav")))


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.cuda)])
def engine(request: pytest.FixtureRequest) -> Iterator[Engine]:
    with Engine(device=request.param) as engine:
        yield engine


def options(engine: Engine) -> dict[str, Any]:
    return {} if engine.device == "cpu" else {"provider": "cpu"}


@pytest.mark.parametrize("chunk", [320, 977, 10**6])
def test_the_frames_are_those_of_the_whole_sound(
    person: Path, pcm: NDArray[np.float32], engine: Engine, chunk: int
) -> None:
    wanted = list(engine.frames(person, audio=person / "aud.wav", start_frame=3, **options(engine)))
    with engine.live(person, start_frame=3, **options(engine)) as speech:

        def speak() -> None:
            for start in range(0, len(pcm), chunk):
                speech.push(pcm[start : start + chunk])
            speech.finish()

        speaking = threading.Thread(target=speak)
        speaking.start()
        got = list(speech)
        speaking.join()
    assert len(got) == len(wanted)
    for frame, other in zip(got, wanted, strict=True):
        np.testing.assert_array_equal(frame, other)


def test_a_frame_comes_once_what_it_hears_is_there(person: Path, pcm: NDArray[np.float32], engine: Engine) -> None:
    """And not before: frame i needs rows to i + 7, and row k so many samples as `samples_of_row` says."""
    with engine.live(person, **options(engine)) as speech:
        done = 0
        frames = iter(speech)
        for index in range(6):
            needed = samples_of_row(index + 7)
            speech.push(pcm[done : needed - 1])
            time.sleep(0.05)
            assert speech.finished == index
            speech.push(pcm[needed - 1 : needed])
            done = needed
            assert next(frames).shape == (288, 320)
            assert speech.finished == index + 1


def test_many_at_a_time(person: Path, pcm: NDArray[np.float32]) -> None:
    """Live ones with deadlines beside one without: everybody gets his own frames."""
    with Engine(device="cpu") as engine:
        whole = [list(engine.frames(person, audio=person / "aud.wav", start_frame=n)) for n in range(3)]
        found: dict[int, list[Any]] = {}

        def talk(number: int) -> None:
            begin = time.monotonic() + 0.5
            due = None if number == 0 else lambda frame: begin + frame / 25
            with engine.live(person, start_frame=number, due=due) as speech:
                taking = threading.Thread(target=lambda: found.update({number: list(speech)}))
                taking.start()
                for start in range(0, len(pcm), 1600):
                    speech.push(pcm[start : start + 1600])
                speech.finish()
                taking.join(WAIT)

        talking = [threading.Thread(target=talk, args=(number,)) for number in range(3)]
        for thread in talking:
            thread.start()
        for thread in talking:
            thread.join(WAIT)
    for number, frames in enumerate(whole):
        np.testing.assert_array_equal(np.stack(found[number]), np.stack(frames))


def test_what_ends_it_early(person: Path, pcm: NDArray[np.float32]) -> None:
    with Engine(device="cpu") as engine:
        with engine.live(person) as speech:
            speech.push(pcm[:1000])
            with pytest.raises(MediaError, match="shorter than one window"):
                speech.finish()
        with engine.live(person) as speech, pytest.raises(MediaError, match="NaN"):
            speech.push(np.full(100, np.nan, np.float32))
        speech = engine.live(person)
        speech.push(pcm)
        next(iter(speech))
        speech.close()
        with pytest.raises(GpupipeError, match="was closed"):
            list(speech)
        assert len(list(engine.frames(person, frames=3))) == 3, "the engine goes on"


def test_frames_that_would_be_late_are_passed_over(person: Path, pcm: NDArray[np.float32], engine: Engine) -> None:
    """Every third one is due before it can be drawn; the others, and the very first, are those of the whole sound."""
    wanted = list(engine.frames(person, audio=person / "aud.wav", **options(engine)))
    began = time.monotonic()

    def due(output: int) -> float:
        return began - 1 if output % 3 == 0 else began + 1e6

    with engine.live(person, due=due, drop_late=True, depth=3, **options(engine)) as speech:
        speech.push(pcm)
        speech.finish()
        got = {}
        while (surface := speech.take()) is not None:
            assert surface.host is not None
            got[surface.index] = surface.host.copy()
            surface.release()
        assert speech.total == len(wanted)
        assert speech.dropped == len(range(3, len(wanted), 3))
    assert list(got) == [index for index in range(len(wanted)) if not index or index % 3]
    assert all(np.array_equal(frame, wanted[index]) for index, frame in got.items())
