"""Jobs on an engine: many at a time, each with its own end; what stays open between them; closing in any state."""

from __future__ import annotations

import errno
import functools
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import small
from engine_scene import PEOPLE, SECONDS, Person, assert_at_rest, eventually, finished, make_person, planned

from gpupipe.engine import order
from gpupipe.errors import (
    Cancelled,
    EngineClosed,
    GpupipeError,
    HostMemoryError,
    InferenceError,
    OptionError,
    OutputError,
    PackageError,
)
from gpupipe.media import images, video
from gpupipe.media.encode import VideoWriter
from gpupipe.media.video import read_frames
from gpupipe.model import model as models
from gpupipe.model import runtime
from gpupipe.render import image_output
from gpupipe.render.engine import Engine
from gpupipe.render.job import Job
from gpupipe.render.render import render
from gpupipe.render.stats import Progress
from gpupipe.speech.rows import SpeechRows

ANNA, BERT, CARL, DORA = PEOPLE
LOSSLESS: dict[str, Any] = {"crf": 0, "preset": "ultrafast", "encoder_threads": 1}

pytestmark = pytest.mark.timeout(120)


@pytest.fixture
def engine() -> Iterator[Engine]:
    threads = threading.active_count()
    with Engine(device="cpu", workers=2, parallel=3) as opened:
        yield opened
    assert threading.active_count() == threads


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """How many videos have been decoded, and models opened."""
    counts = {"decoded": 0, "opened": 0}
    read, open_model = video.read_frames, runtime.open_session

    def reading(*arguments: Any) -> Any:
        counts["decoded"] += 1
        return read(*arguments)

    def opening(*arguments: Any) -> Any:
        counts["opened"] += 1
        return open_model(*arguments)

    monkeypatch.setattr(order, "read_frames", reading)
    monkeypatch.setattr(models, "open_session", opening)
    return counts


class Gate:
    """A progress that lets a render go on only when it is told to."""

    def __init__(self) -> None:
        self.reached, self.open = threading.Event(), threading.Event()
        self.done: list[int] = []

    def __call__(self, progress: Progress) -> None:
        self.done.append(progress.done)
        self.reached.set()
        assert self.open.wait(SECONDS)


def ended(job: Job) -> BaseException | None:
    """What ended a job."""
    try:
        job.result(SECONDS)
    except BaseException as error:
        return error
    return None


def holds(path: Path, person: Person, features: Any) -> bool:
    """Whether a lossless video holds the frames that it must."""
    got = [frame.tobytes() for frame in read_frames(path, "nv12")]
    return got == [finished(person, "nv12", features, index) for index in range(len(got))] and bool(got)


def test_a_second_render_opens_and_decodes_nothing(engine: Engine, counted: dict[str, int], tmp_path: Path) -> None:
    anna = engine.load(ANNA.path)
    assert counted == {"decoded": 2, "opened": 1}
    for number in range(3):
        features = small.features(20, seed=number)
        engine.render(anna, tmp_path / f"{number}.mp4", features=features, **LOSSLESS)
        assert holds(tmp_path / f"{number}.mp4", ANNA, features)
        assert len(list(engine.frames(ANNA.path, features=features))) == 20
    # Bert has a copy of Anna's model.
    engine.render(BERT.path, tmp_path / "bert.mp4", features=small.features(5), **LOSSLESS)
    assert counted == {"decoded": 4, "opened": 1}
    engine.render(CARL.path, tmp_path / "carl.mp4", features=small.features(5), **LOSSLESS)
    assert counted == {"decoded": 6, "opened": 2}
    # Images are bgr24, and so are the frames they are made of.
    engine.render(anna, f"{tmp_path}/images/", features=small.features(5))
    assert counted == {"decoded": 8, "opened": 2}
    engine.render(anna, tmp_path / "again.mp4", features=small.features(5))
    assert counted == {"decoded": 8, "opened": 2}


def test_many_jobs_at_a_time_give_what_each_gives_alone(engine: Engine, tmp_path: Path) -> None:
    wanted: dict[str, bytes] = {}
    jobs: list[Job] = []
    for number in range(8):
        person, name = PEOPLE[number % 4], f"{number}.mp4"
        features = small.features(10 + number, seed=number)
        options: dict[str, Any] = {"features": features, "segment_frames": 4 + number, "batch": 2 + number % 2}
        jobs.append(engine.submit(person.path, tmp_path / name, **options))
        render(person.path, tmp_path / f"alone {name}", device="cpu", **options)
        wanted[name] = (tmp_path / f"alone {name}").read_bytes()
    for job, (name, content) in zip(jobs, wanted.items(), strict=True):
        assert job.result(SECONDS).output == str(tmp_path / name)
        assert job.done
        assert job.progress is not None
        assert job.progress.done == job.progress.total
        assert (tmp_path / name).read_bytes() == content


def test_each_ends_as_it_must_and_the_others_do_not_care(
    engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """NaN, a model that fails, a full disk (video and images), a listener that raises, one that is called off, and an
    output that there is already; beside jobs that are fine."""
    mux, write_image = VideoWriter._mux, images.write_image

    def full(path: Path) -> None:
        if "full" in str(path) and "2" in str(path):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    def muxing(writer: VideoWriter, picture: Any) -> None:
        full(writer.path)
        mux(writer, picture)

    def writing_image(path: Path, *arguments: Any, **more: Any) -> None:
        full(path)
        write_image(path, *arguments, **more)

    monkeypatch.setattr(VideoWriter, "_mux", muxing)
    monkeypatch.setattr(image_output, "write_image", writing_image)

    def raising(progress: Progress) -> None:
        if progress.done == 3:
            raise ZeroDivisionError("the listener's")

    nan, failing = (small.features(30, seed=1) for _ in range(2))
    nan[9, 0], failing[12, 0] = -0.5, 1.5
    (tmp_path / "there.mp4").write_bytes(b"a film")
    gate = Gate()
    fine = small.features(40, seed=2)
    jobs = {
        "fine": engine.submit(ANNA.path, tmp_path / "fine.mp4", features=fine, **LOSSLESS),
        "nan": engine.submit(ANNA.path, tmp_path / "nan.mp4", features=nan),
        "failing": engine.submit(ANNA.path, tmp_path / "failing.mp4", features=failing),
        "full": engine.submit(BERT.path, tmp_path / "full.mp4", features=fine, segment_frames=5),
        "images": engine.submit(BERT.path, f"{tmp_path}/full images/", features=fine),
        "raising": engine.submit(ANNA.path, tmp_path / "raising.mp4", features=fine, progress=raising),
        "called off": engine.submit(ANNA.path, tmp_path / "off.mp4", features=fine, progress=gate),
        "there": engine.submit(ANNA.path, tmp_path / "there.mp4", features=fine),
        "not there": engine.submit(tmp_path / "nobody", tmp_path / "nobody.mp4", features=fine),
        "too": engine.submit(BERT.path, tmp_path / "too.mp4", features=fine, **LOSSLESS),
    }
    assert gate.reached.wait(SECONDS)
    jobs["called off"].cancel()
    gate.open.set()
    errors = {name: ended(job) for name, job in jobs.items()}
    assert {name: type(error) for name, error in errors.items() if error is not None} == {
        "nan": InferenceError,
        "failing": InferenceError,
        "full": OutputError,
        "images": OutputError,
        "raising": ZeroDivisionError,
        "called off": Cancelled,
        "there": OutputError,
        "not there": PackageError,
    }
    said = {name: str(error) for name, error in errors.items()}
    assert "output frame 9: the model gave NaN" in said["nan"]
    assert "output frame 12: the model failed" in said["failing"]
    for name, output in (("full", "full.mp4"), ("images", "full images")):
        assert said[name].startswith(f"{tmp_path / output}: cannot be written: No space left on device")
    assert said["called off"] == f"{tmp_path / 'off.mp4'}: the render was cancelled"
    assert holds(tmp_path / "fine.mp4", ANNA, fine)
    assert holds(tmp_path / "too.mp4", BERT, fine)
    assert (tmp_path / "there.mp4").read_bytes() == b"a film"
    kept = [path.name for path in tmp_path.iterdir() if path.suffix != ".parts"]
    assert sorted(kept) == ["fine.mp4", "there.mp4", "too.mp4"]
    pool = engine.holdings._pool
    assert_at_rest(engine, sum(map(len, pool._free.values())))
    engine.render(ANNA.path, tmp_path / "after.mp4", features=fine, **LOSSLESS)
    assert holds(tmp_path / "after.mp4", ANNA, fine)


def test_what_made_one_batch_fail_is_not_there_for_the_next(tmp_path: Path) -> None:
    """A model that takes whole batches sees the places that a batch leaves free, too."""
    folder = make_person(tmp_path / "anna", ANNA)
    small.write_model(folder / "checkpoint" / "model_best.onnx", batch=4)
    bad = small.features(8)
    bad[[1, 2, 3], 0] = 1.5
    with Engine(device="cpu") as engine:
        for _ in range(4):
            with pytest.raises(InferenceError, match="output frame 1: the model failed"):
                list(engine.frames(folder, features=bad, batch=4))
            assert len(list(engine.frames(folder, features=small.features(5), batch=4))) == 5


def test_jobs_beyond_those_at_a_time_wait(tmp_path: Path) -> None:
    gates = [Gate() for _ in range(4)]
    with Engine(device="cpu", parallel=2) as engine:
        jobs = [
            engine.submit(ANNA.path, tmp_path / f"{number}.mp4", progress=gate) for number, gate in enumerate(gates)
        ]
        assert gates[0].reached.wait(SECONDS)
        assert gates[1].reached.wait(SECONDS)
        time.sleep(0.05)
        assert not gates[2].reached.is_set()
        jobs[3].cancel()  # before it has begun
        with pytest.raises(Cancelled, match="was cancelled"):
            jobs[3].result(SECONDS)
        gates[0].open.set()
        assert gates[2].reached.wait(SECONDS)
        with pytest.raises(TimeoutError):
            jobs[2].result(0.01)
        for gate in gates:
            gate.open.set()
    assert [job.done for job in jobs] == [True] * 4
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0.mp4", "1.mp4", "2.mp4"]
    jobs[0].cancel()  # too late, and nothing
    assert jobs[0].result().frames == ANNA.frames


def test_a_slow_sink_holds_back_its_own_session(engine: Engine, tmp_path: Path) -> None:
    gate = Gate()
    slow = engine.submit(ANNA.path, tmp_path / "slow.mp4", features=small.features(500), progress=gate)
    assert gate.reached.wait(SECONDS)
    for number in range(3):
        engine.render(ANNA.path, tmp_path / f"{number}.mp4", features=small.features(100))
    (session,) = engine._sessions
    eventually(lambda: not session.available, "more frames are drawn than there is room for")
    assert session.started <= 1 + 4 * session.lane.batch
    assert gate.done == [1]
    gate.open.set()
    assert slow.result(SECONDS).frames == 500


def test_leaving_the_block_waits_for_jobs_and_an_error_calls_them_off(tmp_path: Path) -> None:
    features = small.features(60)
    with Engine(device="cpu") as engine:
        jobs = [engine.submit(ANNA.path, tmp_path / f"{number}.mp4", features=features) for number in range(5)]
    assert all(job.result(0).frames == 60 for job in jobs)

    gate = Gate()

    def fail() -> None:
        with Engine(device="cpu") as engine:
            jobs.append(engine.submit(ANNA.path, tmp_path / "5.mp4", features=features, progress=gate))
            jobs.append(engine.submit(ANNA.path, tmp_path / "6.mp4", features=features, progress=gate))
            jobs.append(engine.submit(ANNA.path, tmp_path / "7.mp4", features=features, progress=gate))
            assert gate.reached.wait(SECONDS)
            gate.open.set()
            raise KeyError("the block's")

    with pytest.raises(KeyError, match="the block's"):
        fail()
    assert [type(ended(job)) for job in jobs[5:]] == [Cancelled] * 3
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"{number}.mp4" for number in range(5)]


def uses(engine: Engine, tmp_path: Path) -> list[Callable[[], Any]]:
    return [
        lambda: engine.load(ANNA.path),
        lambda: engine.render(ANNA.path, tmp_path / "late.mp4"),
        lambda: engine.submit(ANNA.path, tmp_path / "late.mp4"),
        lambda: list(engine.frames(ANNA.path)),
        lambda: engine.live(ANNA.path),
    ]


def test_a_closed_engine_says_so(tmp_path: Path) -> None:
    engine = Engine(device="cpu")
    frames = engine.frames(ANNA.path, features=small.features(50))
    next(frames)
    engine.close()
    engine.close()
    with pytest.raises(EngineClosed, match="closed"):
        list(frames)
    for use in uses(engine, tmp_path):
        with pytest.raises(EngineClosed, match="closed"):
            use()
    assert list(tmp_path.iterdir()) == []


def test_surfaces_may_stay_out_longer_than_the_engine_is_open() -> None:
    engine = Engine(device="cpu")
    plan_of = planned(ANNA, "nv12", small.features(20))
    session = engine.open_session(plan_of.order, lambda _: SpeechRows(small.features(20)))
    surfaces = [session.next() for _ in range(3)]
    kept = [surface.host.tobytes() for surface in surfaces if surface is not None and surface.host is not None]
    engine.close()
    assert kept == [finished(ANNA, "nv12", small.features(20), index) for index in range(3)]
    for surface in surfaces:
        assert surface is not None
        surface.release()
    session.close()
    assert not engine._sessions


@pytest.mark.parametrize("wait_ms", [0, 1, 3, 10, 30])
def test_it_is_closed_at_any_moment(tmp_path: Path, wait_ms: int) -> None:
    """While characters are loaded, models opened, frames drawn and files joined, by two threads at once."""
    threads = threading.active_count()
    engine = Engine(device="cpu", parallel=4)
    features = small.features(100)
    jobs = [engine.submit(PEOPLE[n % 4].path, tmp_path / f"{n}.mp4", features=features) for n in range(8)]
    outcomes: list[BaseException | None] = []

    def rendering() -> None:
        try:
            engine.render(ANNA.path, tmp_path / "mine.mp4", features=features)
            outcomes.append(None)
        except GpupipeError as error:
            outcomes.append(error)

    others = [threading.Thread(target=rendering), threading.Thread(target=engine.close)]
    others[0].start()
    time.sleep(wait_ms / 1000)
    others[1].start()
    engine.close()
    for thread in others:
        thread.join(SECONDS)
        assert not thread.is_alive()
    ends = [ended(job) for job in jobs]
    assert all(end is None or isinstance(end, (Cancelled, EngineClosed)) for end in [*ends, *outcomes]), ends
    done = {f"{number}.mp4" for number, end in enumerate(ends) if end is None}
    done |= {"mine.mp4"} if outcomes == [None] else set()
    assert {path.name for path in tmp_path.iterdir()} == done
    eventually(lambda: threading.active_count() == threads, "threads are left")
    assert not engine._sessions
    assert engine.holdings.residents.nbytes == 0


def test_changed_files_are_loaded_anew(engine: Engine, counted: dict[str, int], tmp_path: Path) -> None:
    folder = make_person(tmp_path / "anna", ANNA)
    features = small.features(9)
    before = [frame.tobytes() for frame in engine.frames(folder, features=features)]
    assert [frame.tobytes() for frame in engine.frames(folder, features=features)] == before
    assert counted == {"decoded": 2, "opened": 1}
    make_person(tmp_path / "anna", ANNA, seed=5)
    after = [frame.tobytes() for frame in engine.frames(folder, features=features)]
    assert counted == {"decoded": 4, "opened": 1}
    assert all(one != other for one, other in zip(before, after, strict=True))
    with Engine(device="cpu") as new:
        assert [frame.tobytes() for frame in new.frames(folder, features=features)] == after


def test_characters_leave_beyond_the_cache_and_come_back(counted: dict[str, int]) -> None:
    bert, anna = (n * (pixels * 3 // 2 + 3 * small.CROP_SIZE**2) for n, pixels in ((5, 64 * 48), (7, 96 * 64)))
    with Engine(device="cpu", cache=anna) as engine:  # there is not room for both
        for person, decoded in ((BERT, 2), (BERT, 2), (ANNA, 4), (BERT, 6), (BERT, 6)):
            assert list(engine.frames(person.path, features=small.features(12)))
            assert counted["decoded"] == decoded
        assert engine.holdings.residents.nbytes == bert


def test_a_job_that_does_not_fit_is_told_and_the_others_go_on(tmp_path: Path) -> None:
    with Engine(device="cpu", max_memory=2_000_000) as engine:
        large = make_person(tmp_path / "large", Person("large", (1024, 768), ANNA.fps, 9, (31, 11), 0))
        jobs = [
            engine.submit(path, tmp_path / f"{number}.mp4") for number, path in enumerate((ANNA.path, large, BERT.path))
        ]
        ends = [ended(job) for job in jobs]
    assert [type(end) for end in ends] == [type(None), HostMemoryError, type(None)]
    assert "max_memory" in str(ends[1])


def test_wrong_options_are_told_at_once(engine: Engine, tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="batch"):
        engine.submit(ANNA.path, tmp_path / "a.mp4", batch=0)
    with pytest.raises(TypeError):
        engine.submit(ANNA.path, tmp_path / "a.mp4", device="cpu")  # type: ignore[call-arg]
    assert not engine._jobs


def test_frames_of_several_sessions_share_batches(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of characters of different sizes and rates, which share a model: none waits for the other's batch to end."""
    sizes: list[int] = []
    start = models.Model.start

    def starting(model: Any, bindings: Any, frames: int) -> Any:
        sizes.append(frames)
        return start(model, bindings, frames)

    monkeypatch.setattr(models.Model, "start", starting)
    speeches = [SpeechRows() for _ in range(4)]
    features = small.features(16)
    late = time.monotonic() + 3600  # nobody hurries: batches leave when they are full
    sessions = []
    for person, rows in zip((ANNA, BERT, ANNA, BERT), speeches, strict=True):
        plan = planned(person, "nv12", features, batch=4, inference_threads=4)
        sessions.append(
            engine.open_session(plan.order, functools.partial(lambda rows, _: rows, rows), due=lambda _: late)
        )
    assert len({id(session.lane) for session in sessions}) == 1
    assert sessions[0].frames is sessions[2].frames
    for rows in speeches:
        rows.append(features[:9])  # two frames
    for session in [*sessions, *sessions]:
        surface = session.next()
        assert surface is not None
        surface.release()
    assert sizes == [4, 4]
    for session in sessions:
        session.close()
