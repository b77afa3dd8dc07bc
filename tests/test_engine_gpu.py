"""The engine on a CUDA device: the bytes that each session has alone, within the budget, and nothing left behind."""

from __future__ import annotations

import functools
import gc
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import small
from conftest import gives_back
from engine_scene import LARGE, PEOPLE, SECONDS, eventually, finished, let_draw, planned
from hypothesis import HealthCheck, given, settings
from test_engine import INTERLEAVED, Wish, run, surfaces

from gpupipe.engine import order
from gpupipe.engine.flight import Flight, Steps
from gpupipe.errors import DeviceError, EngineClosed, GpupipeError
from gpupipe.gpu.device import open_device
from gpupipe.model import model
from gpupipe.render.engine import Engine
from gpupipe.speech.rows import SpeechRows

__all__ = ["surfaces"]

pytestmark = [pytest.mark.cuda, pytest.mark.timeout(120)]

ON_HOST: dict[str, Any] = {"provider": "cpu", "inference_threads": 2}
ON_DEVICE: dict[str, Any] = {"provider": "cuda"}


def free_bytes() -> int:
    """Free bytes of device memory, once what tests before have left as garbage is collected."""
    gc.collect()
    return open_device().free_bytes


def interleaved(surfaces: list[object], options: dict[str, Any]) -> None:
    with Engine(device="cuda") as engine:

        @settings(max_examples=20, deadline=None, suppress_health_check=list(HealthCheck))
        @given(**INTERLEAVED)
        def any_interleaving(chosen: list[Wish], steps: Any) -> None:
            run(engine, surfaces, options, chosen, steps)

        any_interleaving()


def test_any_interleaving_gives_each_session_the_bytes_that_it_has_alone(surfaces: list[object]) -> None:
    before = free_bytes()
    interleaved(surfaces, ON_HOST)
    assert gives_back(before, open_device().free_bytes)


def test_any_interleaving_with_the_model_on_the_device(surfaces: list[object], model_on_device: list[int]) -> None:
    before = free_bytes()
    interleaved(surfaces, ON_DEVICE)
    assert gives_back(before, open_device().free_bytes)


@pytest.mark.parametrize("options", [ON_HOST, ON_DEVICE], ids=["model on the host", "model on the device"])
def test_the_steady_state_keeps_to_its_budget(
    options: dict[str, Any], model_on_device: list[int], softcuda_counters: Callable[[], dict[str, Any]]
) -> None:
    """8 sessions of 3 characters of different sizes, whose frames share batches: what 40 batches cost."""
    batch, rounds = 8, 40
    features = small.features(25 * rounds)
    people = [PEOPLE[number % 2] for number in range(5)] + [LARGE] * 3
    with Engine(device="cuda", parallel=8) as engine:
        plans = [planned(person, "nv12", features, batch=batch, **options) for person in people]
        sessions = [engine.open_session(plan.order, lambda _: SpeechRows(features)) for plan in plans]
        assert len({id(session.lane) for session in sessions}) == 1
        assert len({id(session.frames) for session in sessions}) == 3

        drawn = functools.partial(let_draw, engine, sessions)
        drawn(20)
        runs: list[list[int]] = []
        finish = Steps.finish

        def finishing(steps: Steps, flight: Flight) -> None:
            runs.append([task.drawing.surface.format.nbytes for task in flight.tasks])
            finish(steps, flight)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Steps, "finish", finishing)
            before = softcuda_counters()
            drawn(rounds)
            after = softcuda_counters()
        for session in sessions:
            session.close()
    frames, batches, pixels = sum(map(len, runs)), len(runs), sum(map(sum, runs))
    assert abs(frames - rounds * len(sessions)) < batch
    assert batches <= frames / batch + 4, "batches are not filled from all sessions"
    grew = {name: after[name] - before[name] for name in after if isinstance(after[name], int)}
    launches = {name: after["launches"][name] - before["launches"].get(name, 0) for name in after["launches"]}
    assert sum(launches.values()) == 2 * batches
    assert sorted(launches.values())[-2:] == [batches, batches]
    assert grew["h2d_bytes"] <= 64 * frames
    assert 0 <= grew["d2h_bytes"] - pixels <= 64 * batches
    assert (grew["mallocs"], grew["pinned_allocs"], grew["pageable_async_copies"]) == (0, 0, 0)
    # One for the finished frames; where the model runs on the host, one for its inputs. (Where it is on the device, the
    # stand-in for a GPU's provider waits once for each run.)
    assert grew["syncs"] <= 2 * batches


def test_a_second_render_uploads_its_features_only(
    softcuda_counters: Callable[[], dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: Any) -> Any:
        raise AssertionError("decoded or opened again")

    rows = 40
    with Engine(device="cuda") as engine:
        for person in PEOPLE[:2]:
            assert list(engine.frames(person.path, features=small.features(rows), **ON_HOST))
        monkeypatch.setattr(order, "read_frames", never)
        monkeypatch.setattr(model, "open_session", never)
        for person in PEOPLE[:2]:
            before = softcuda_counters()
            frames = len(list(engine.frames(person.path, features=small.features(rows, seed=9), **ON_HOST)))
            after = softcuda_counters()
            grew = {name: after[name] - before[name] for name in after if isinstance(after[name], int)}
            assert grew["h2d_bytes"] <= rows * 512 * 4 + 64 * frames
            # The block of its speech, and the staging of it.
            assert grew["mallocs"] == 1
            assert grew["pinned_allocs"] <= 1
            assert grew["pageable_async_copies"] == 0


def test_a_speech_that_goes_on_and_on_takes_no_more_memory() -> None:
    """Rows that no frame hears any more are let go of; 40 s, and five minutes."""
    speech = SpeechRows()
    with Engine(device="cuda") as engine:
        plan = planned(PEOPLE[0], "nv12", small.features(7500), batch=5, **ON_HOST)
        with engine.open_session(plan.order, lambda _: speech) as session:
            gpu = open_device()
            levels = []
            for begin in range(0, 7500, 500):
                features = small.features(500, seed=begin)
                speech.append(features)
                for _ in range(500 if begin else 492):
                    surface = session.next()
                    assert surface is not None
                    surface.release()
                levels.append(gpu.free_bytes)
    assert all(gives_back(levels[2], level) for level in levels[2:])


def watched(work: Callable[[], None]) -> None:
    """Do something in a thread; fail if it does not come to an end."""
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(SECONDS)
    assert not thread.is_alive(), "it hangs"


@pytest.mark.parametrize("options", [ON_HOST, ON_DEVICE], ids=["model on the host", "model on the device"])
@pytest.mark.parametrize("launches", [0, 1, 2, 7, 24])
def test_a_device_that_fails_ends_every_session_and_a_new_engine_works(
    options: dict[str, Any],
    launches: int,
    model_on_device: list[int],
    softcuda_fail_after: Callable[[int], None],
    tmp_path: Path,
) -> None:
    features = small.features(400)
    threads, before = threading.active_count(), free_bytes()
    engine = Engine(device="cuda", parallel=2)
    for person in PEOPLE[:3]:
        engine.load(person.path, **options)
    ends: dict[str, BaseException | None] = {}
    began = threading.Barrier(4)

    def taking(name: str, work: Callable[[], None]) -> threading.Thread:
        def run() -> None:
            began.wait(SECONDS)
            try:
                work()
                ends[name] = None
            except BaseException as error:
                ends[name] = error

        thread = threading.Thread(target=run, daemon=True)
        thread.start()
        return thread

    def frames() -> None:
        for _ in engine.frames(PEOPLE[0].path, features=features, **options):
            pass

    def rendering() -> None:
        engine.render(PEOPLE[1].path, tmp_path / "mine.mp4", features=features, **options)

    def live() -> None:
        rows = SpeechRows()
        plan = planned(PEOPLE[2], "nv12", features, **options)
        with engine.open_session(plan.order, lambda _: rows, due=lambda index: index / 25) as session:
            rows.append(features[:100])  # and no more: it waits
            for surface in session:
                surface.release()

    takers = [taking(work.__name__, work) for work in (frames, rendering, live)]
    jobs = [engine.submit(PEOPLE[0].path, tmp_path / f"{n}.mp4", features=features, **options) for n in range(4)]
    softcuda_fail_after(launches)
    began.wait(SECONDS)
    for thread in takers:
        thread.join(SECONDS)
        assert not thread.is_alive(), "it hangs"
    for number, job in enumerate(jobs):
        try:
            job.result(SECONDS)
            ends[f"job {number}"] = None
        except GpupipeError as error:
            ends[f"job {number}"] = error
    # Whoever came too late is told that the engine has stopped.
    assert all(isinstance(end, (DeviceError, EngineClosed)) for end in ends.values()), ends
    assert any(type(end) is DeviceError for end in ends.values()), ends
    assert list(tmp_path.iterdir()) == []
    with pytest.raises((EngineClosed, DeviceError)):
        list(engine.frames(PEOPLE[0].path, **options))
    watched(engine.close)
    eventually(lambda: threading.active_count() == threads, "threads are left")

    softcuda_fail_after(-1)
    with Engine(device="cuda") as new:
        got = [frame.tobytes() for frame in new.frames(PEOPLE[1].path, features=features[:30], **options)]
    assert got == [finished(PEOPLE[1], "nv12", features[:30], index) for index in range(36)]
    ends.clear()
    del takers, jobs
    assert gives_back(before, free_bytes())


def test_renders_one_after_the_other_leave_no_device_memory_behind(tmp_path: Path) -> None:
    before = free_bytes()
    with Engine(device="cuda") as engine:
        levels = []
        for number in range(8):
            person = PEOPLE[number % 4]
            engine.render(person.path, tmp_path / f"{number}.mp4", features=small.features(20), **ON_HOST)
            levels.append(open_device().free_bytes)
        assert all(gives_back(levels[3], level) for level in levels[4:7])
    assert gives_back(before, open_device().free_bytes)
