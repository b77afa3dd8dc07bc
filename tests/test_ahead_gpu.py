"""ahead on a GPU: a character that is larger than its memory renders to the CPU's bytes, within the budget."""

from __future__ import annotations

import gc
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import small
import unets
from conftest import gives_back
from engine_scene import assert_at_rest, eventually, let_draw, make_person
from test_ahead import FEATURES, FRAME, LONG, again, drawn
from test_feature_cache import RECIPE

from gpupipe.character.folder import Character
from gpupipe.compose.device_memory import FrameMemory, Uploads, place_bytes
from gpupipe.engine import gpu_backend, order
from gpupipe.engine.ahead import FramesAhead
from gpupipe.engine.flight import Flight, Steps
from gpupipe.errors import DeviceError, DeviceMemoryError, EngineClosed, GpupipeError, HostMemoryError, MediaError
from gpupipe.gpu.device import Device, open_device
from gpupipe.media.video import read_frames
from gpupipe.options import ModelOptions
from gpupipe.render.engine import Engine
from gpupipe.render.plan import whole as ordered
from gpupipe.speech.rows import SpeechRows

pytestmark = [pytest.mark.cuda, pytest.mark.timeout(120)]

ON_HOST: dict[str, Any] = {"provider": "cpu", "batch": 4}


@pytest.fixture(scope="module")
def character(tmp_path_factory: pytest.TempPathFactory) -> Character:
    """Of 90 frames, with a keyframe every 30 in the body, every 9 in the crops, and recorded inputs."""
    folder = make_person(tmp_path_factory.mktemp("long") / "long", LONG)
    for name, group in (("full_body_video.mp4", 30), ("crops_328_video.mp4", 9)):
        again(folder / name, group)
    for name, seed in (("rois_320_video.mp4", 5), ("model_inputs_video.mp4", 6)):
        small.write_video(folder / name, small.pictures(small.MODEL_SIZE, small.MODEL_SIZE, 90, seed))
    return Character.load(folder)


@pytest.fixture(scope="module")
def whole(character: Character) -> list[bytes]:
    """What the CPU draws of all frames."""
    with Engine(device="cpu") as engine:
        return drawn(engine, character)


@pytest.fixture
def nothing_is_left() -> Iterator[None]:
    """Neither threads nor device memory."""
    gc.collect()
    threads, before = threading.active_count(), open_device().free_bytes
    yield
    eventually(lambda: threading.active_count() == threads, "threads are left")
    gc.collect()
    assert gives_back(before, open_device().free_bytes)


@pytest.mark.parametrize("bound", [0, 40 * FRAME, 70 * FRAME, 89 * FRAME, 90 * FRAME, "all"])
def test_frames_are_the_cpus_with_every_bound(
    character: Character, whole: list[bytes], bound: Any, nothing_is_left: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken: list[int] = []
    init = FrameMemory.__init__

    def counted(self: FrameMemory, device: Any, spec: Any, count: int) -> None:
        taken.append(count * place_bytes(spec))
        init(self, device, spec, count)

    monkeypatch.setattr(FrameMemory, "__init__", counted)
    with Engine(device="cuda", cache=bound) as engine:
        assert drawn(engine, character, **ON_HOST) == whole
        if isinstance(bound, int) and bound >= 40 * FRAME:
            assert sum(taken) <= bound
        assert (len(taken) == 1) == (bound == "all" or bound >= 90 * FRAME)
        eventually(lambda: not engine._sessions and not engine._handling, "a session is left")


@pytest.mark.parametrize("pixel_format", ["nv12", "bgr24"])
def test_recorded_inputs_and_starts_anywhere(character: Character, pixel_format: str, nothing_is_left: None) -> None:
    """Sessions beside each other, which share what stays, each with slots of its own."""
    options: Any = {"masked_video": True, "pixel_format": pixel_format, "features": FEATURES[:120]}
    starts = (0, 33, 80, 89)
    with Engine(device="cpu") as engine:
        wanted = {start: drawn(engine, character, start_frame=start, **options) for start in starts}
    found: dict[int, list[bytes]] = {}
    with Engine(device="cuda", cache=900_000) as engine:

        def take(start: int) -> None:
            found[start] = drawn(engine, character, start_frame=start, **options, **ON_HOST)

        threads = [threading.Thread(target=take, args=(start,)) for start in starts]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(100)
        assert found == wanted
        assert_at_rest(engine, sum(map(len, engine.holdings._pool._free.values())))


@pytest.mark.parametrize("segments", [None, "5-12"])
def test_segments_drawn_side_by_side(
    character: Character, tmp_path: Path, segments: str | None, nothing_is_left: None
) -> None:
    options: Any = {"features": FEATURES, "segment_frames": 11, "encoders": 3, "segments": segments, **ON_HOST}
    with Engine(device="cpu") as engine, Engine(device="cuda", cache=40 * FRAME) as bounded:
        engine.render(character, tmp_path / "whole.mp4", **options)
        stats = bounded.render(character, tmp_path / "bounded.mp4", **options)
    found = {
        name: [path.read_bytes() for path in sorted(tmp_path.glob(f"{name}*/**/*.mp4"))]
        or [(tmp_path / f"{name}.mp4").read_bytes()]
        for name in ("whole", "bounded")
    }
    assert found["whole"] == found["bounded"]
    assert any("cached frames are kept" in note for note in stats.notes)


def test_the_steady_state_keeps_to_its_budget(
    character: Character, softcuda_counters: Callable[[], dict[str, Any]]
) -> None:
    """Two sessions, there and back again: nothing is allocated, and each frame that is decoded goes up once."""
    rounds, features = 200, small.features(400)
    written: list[int] = []
    batches: list[int] = []
    put, finish = Uploads.put, Steps.finish

    def putting(self: Uploads, place: int, decoded: Any) -> None:
        written.append(place)
        put(self, place, decoded)

    def finishing(steps: Steps, flight: Flight) -> None:
        batches.append(len(flight.tasks))
        finish(steps, flight)

    plan = ordered(character, "nv12", ModelOptions(inference_threads=1, **ON_HOST))
    with Engine(device="cuda", cache=40 * FRAME) as engine, pytest.MonkeyPatch.context() as patch:
        sessions = [engine.open_session(plan, lambda _: SpeechRows(features)) for _ in range(2)]
        patch.setattr(Uploads, "put", putting)
        patch.setattr(Steps, "finish", finishing)
        let_draw(engine, sessions, 30)
        written.clear()
        batches.clear()
        before = softcuda_counters()
        let_draw(engine, sessions, rounds)
        after = softcuda_counters()
        # Decoding goes on: each session may have been in the middle of one when it began.
        decoded = len(written) + len(sessions)
        for session in sessions:
            session.close()
    count, drawn_frames = len(batches), sum(batches)
    grew = {name: after[name] - before[name] for name in after if isinstance(after[name], int)}
    launches = {name: after["launches"][name] - before["launches"].get(name, 0) for name in after["launches"]}
    assert decoded > drawn_frames // 2
    assert sum(launches.values()) == 2 * count
    assert grew["h2d_bytes"] <= 64 * drawn_frames + decoded * FRAME
    assert grew["d2d_bytes"] == 0
    assert (grew["mallocs"], grew["pinned_allocs"], grew["pageable_async_copies"]) == (0, 0, 0)
    # For the finished frames, and, as the model runs on the host, for its inputs; and once for each decoded frame.
    assert grew["syncs"] <= 2 * count + decoded


def test_features_stay_of_frames_that_do_not(
    character: Character, model_on_device: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of every frame, in a slot or not, as on the CPU: each frame's are made once."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    model = tmp_path / "model.onnx"
    onnx.save(unets.unet(RECIPE), str(model))
    options: Any = {"provider": "cuda", "batch": 4, "model": model, "features": FEATURES[:200]}
    with Engine(device="cuda") as engine:
        wanted = np.stack([np.frombuffer(frame, np.uint8) for frame in drawn(engine, character, **options)])
    with Engine(device="cuda", feature_cache="1G", cache=0) as engine:
        plan = ordered(character, "nv12", ModelOptions(provider="cuda", batch=4, model=model, inference_threads=1))
        with engine.open_session(plan, lambda _: SpeechRows()) as session:
            assert any(note.startswith("0 of 90 cached frames are kept") for note in session.notes)
            assert any(note.startswith("features of 90 of 90 frames are kept") for note in session.notes)
            split = session.lane.split
        assert split is not None
        found = np.stack([np.frombuffer(frame, np.uint8) for frame in drawn(engine, character, **options)])
        # The two nets agree with the whole model within rounding: a level.
        assert np.abs(found.astype(np.int16) - wanted).max() <= 1
        assert split.whole_runs == 0
        assert 0 < split.source_runs <= 90


def test_what_does_not_fit_is_decoded_ahead_or_refused(
    character: Character, whole: list[bytes], monkeypatch: pytest.MonkeyPatch, nothing_is_left: None
) -> None:
    """Without a bound all stays if there is room, else what fits in half of it, else nothing; "all" is refused."""
    kept: list[int] = []
    begin, free = FramesAhead.begin, vars(Device)["free_bytes"].fget
    options: Any = {"features": FEATURES[:100], "provider": "cpu", "batch": 2}

    def beginning(self: FramesAhead, *given: Any) -> None:
        kept.append(self._count)
        begin(self, *given)

    monkeypatch.setattr(FramesAhead, "begin", beginning)
    monkeypatch.setattr(gpu_backend, "SPARE_BYTES", 0)
    others = open_device().free_bytes
    for left, partly in ((100_000_000, []), (1_150_000, [True]), (750_000, [True, False])):
        monkeypatch.setattr(
            Device,
            "free_bytes",
            property(lambda self, taken=others - left: free(self) - taken),  # type: ignore[misc]
        )
        with Engine(device="cuda") as engine:
            assert drawn(engine, character, **options) == whole[:100]
        assert [count > 0 for count in kept] == partly
    with (
        Engine(device="cuda", cache="all") as engine,
        pytest.raises(DeviceMemoryError, match=r"body .*batch, cache or"),
    ):
        drawn(engine, character, **options)
    with (
        Engine(device="cpu", cache="all", max_memory=800_000) as engine,
        pytest.raises(HostMemoryError, match=r"cached frames .*a smaller cache"),
    ):
        drawn(engine, character)
    monkeypatch.undo()


def test_a_frame_that_cannot_be_decoded_ends_the_session(
    character: Character, whole: list[bytes], monkeypatch: pytest.MonkeyPatch, nothing_is_left: None
) -> None:
    def read(path: Path, *arguments: Any) -> Iterator[Any]:
        for number, frame in enumerate(read_frames(path, *arguments)):
            if number == 50 and path.name == "full_body_video.mp4":
                raise MediaError("is damaged", file=path, field="frame 50", remedy="write it again")
            yield frame

    monkeypatch.setattr(order, "read_frames", read)
    found: list[bytes] = []
    with Engine(device="cuda", cache=0) as engine:
        with pytest.raises(MediaError, match="frame 50: is damaged"):
            found.extend(frame.tobytes() for frame in engine.frames(character, features=FEATURES, **ON_HOST))
        assert found == whole[:50]
        assert_at_rest(engine, sum(map(len, engine.holdings._pool._free.values())))


@pytest.mark.parametrize("cache", [0, None])
def test_a_device_that_fails_in_an_upload_ends_every_session(
    character: Character, monkeypatch: pytest.MonkeyPatch, cache: int | None, nothing_is_left: None
) -> None:
    """What is decoded ahead, or loaded; sessions of others end too, and the engine takes no more."""
    uploads, wait = iter(range(1 << 30)), Uploads._wait

    def failing(self: Uploads) -> None:
        if next(uploads) == 60:
            raise DeviceError("GPU 0 failed: an error")
        wait(self)

    other = ordered(character, "bgr24", ModelOptions(**ON_HOST))
    with Engine(device="cuda", cache=cache) as engine:
        with engine.open_session(other, lambda _: SpeechRows()) as waiting:
            monkeypatch.setattr(Uploads, "_wait", failing)
            # Who is still opening is told that the engine has stopped.
            with pytest.raises((DeviceError, EngineClosed), match="an error"):
                drawn(engine, character, **ON_HOST)
            with pytest.raises(DeviceError):
                waiting.next()
        with pytest.raises(EngineClosed):
            drawn(engine, character, **ON_HOST)


@pytest.mark.parametrize("launches", [0, 3, 9])
def test_a_device_that_fails_while_frames_are_decoded_ahead(
    character: Character, softcuda_fail_after: Callable[[int], None], launches: int, nothing_is_left: None
) -> None:
    with Engine(device="cuda", cache=0) as engine:
        job = engine.frames(character, features=FEATURES, **ON_HOST)
        next(job)
        softcuda_fail_after(launches)
        with pytest.raises(GpupipeError):
            list(job)
    del job
    softcuda_fail_after(-1)


def test_closing_early_leaves_nothing(character: Character, whole: list[bytes], nothing_is_left: None) -> None:
    plan = ordered(character, "nv12", ModelOptions(inference_threads=1, **ON_HOST))
    with Engine(device="cuda", cache=0) as engine:
        for frames in (0, 1, 20):
            session = engine.open_session(plan, lambda _: SpeechRows(FEATURES))
            for index in range(frames):
                surface = session.next()
                assert surface is not None
                assert surface.host is not None
                assert surface.host.tobytes() == whole[index]
                surface.release()
            session.close()
        engine.load(character, **ON_HOST)  # what stays: nothing
