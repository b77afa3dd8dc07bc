"""ahead: a character that is larger than its memory renders to the same bytes, and is decoded no more than it must."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Collection, Iterator
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import pytest
import small
from av.video.frame import PictureType
from engine_scene import Person, assert_at_rest, eventually, make_person

from gpupipe.character.folder import Character
from gpupipe.compose.frames import FrameSpec
from gpupipe.engine import order
from gpupipe.engine.ahead import FramesAhead
from gpupipe.engine.cache_bound import Slots, divided, slots_ahead
from gpupipe.errors import MediaError
from gpupipe.geometry import CropLayout, Rect
from gpupipe.media.video import read_frames
from gpupipe.options import ModelOptions
from gpupipe.render.engine import Engine
from gpupipe.render.plan import whole as ordered
from gpupipe.speech.rows import SpeechRows

pytestmark = pytest.mark.timeout(120)

LONG = Person("long", (64, 48), Fraction(25), 90, (20, 10), 0)
FRAME = 64 * 48 * 3 // 2 + 3 * small.CROP_SIZE**2
FEATURES = small.features(200)


@pytest.fixture(scope="module", params=[7, 30, 250])
def character(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Character:
    """Of 90 frames, with a keyframe every so many in the body; every 9 in the crops."""
    folder = make_person(tmp_path_factory.mktemp("long") / "long", LONG)
    for name, group in (("full_body_video.mp4", request.param), ("crops_328_video.mp4", 9)):
        again(folder / name, group)
    return Character.load(folder)


def again(path: Path, group: int, cuts: Collection[int] = ()) -> None:
    """Encode a video with a keyframe every so many frames, and at cuts."""
    frames = list(read_frames(path, "bgr24"))
    height, width, _ = frames[0].shape
    with av.open(str(path), "w") as container:
        options = {"g": str(group), "bf": "2", "sc_threshold": "0", "forced-idr": "1"}
        stream = container.add_stream("libx264", rate=25, options=options)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for number, pixels in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(pixels, format="bgr24")
            if number in cuts:
                frame.pict_type = PictureType.I
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def drawn(engine: Engine, character: Character, **options: Any) -> list[bytes]:
    given: Any = {"features": FEATURES, "inference_threads": 1} | options
    return [frame.tobytes() for frame in engine.frames(character, **given)]


@pytest.fixture(scope="module")
def whole(character: Character) -> list[bytes]:
    with Engine(device="cpu") as engine:
        return drawn(engine, character)


@pytest.mark.parametrize("bound", [0, 10 * FRAME, 40 * FRAME, 89 * FRAME, 90 * FRAME])
def test_frames_are_the_same_with_every_bound(character: Character, whole: list[bytes], bound: int) -> None:
    threads = threading.active_count()
    with Engine(device="cpu", cache=bound) as engine:
        assert drawn(engine, character) == whole
        assert drawn(engine, character, features=FEATURES[:60]) == whole[:60]
        eventually(lambda: not engine._sessions and not engine._handling, "a session is left")
        assert engine.holdings.residents.nbytes <= bound
    eventually(lambda: threading.active_count() == threads, "threads are left")


def test_sessions_beside_each_other_start_anywhere(character: Character) -> None:
    starts = (0, 33, 80, 89)
    with Engine(device="cpu") as engine:
        wanted = {start: drawn(engine, character, start_frame=start) for start in starts}
    found: dict[int, list[bytes]] = {}
    with Engine(device="cpu", cache=30 * FRAME) as engine:

        def take(start: int) -> None:
            found[start] = drawn(engine, character, start_frame=start)

        threads = [threading.Thread(target=take, args=(start,)) for start in starts]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(100)
        assert found == wanted
        assert_at_rest(engine, sum(map(len, engine.holdings._pool._free.values())))


def test_masked_videos_and_images(character: Character, tmp_path: Path) -> None:
    roi, masked = (small.pictures(small.MODEL_SIZE, small.MODEL_SIZE, 90, seed) for seed in (5, 6))
    small.write_video(character.path / "rois_320_video.mp4", roi)
    small.write_video(character.path / "model_inputs_video.mp4", masked)
    recorded = Character.load(character.path)
    options: Any = {"masked_video": True, "pixel_format": "bgr24"}
    with Engine(device="cpu") as engine, Engine(device="cpu", cache=0) as bounded:
        assert drawn(bounded, recorded, **options) == drawn(engine, recorded, **options)


def test_segments_drawn_side_by_side(character: Character, tmp_path: Path) -> None:
    options: Any = {"features": FEATURES, "segment_frames": 11, "encoders": 3}
    with Engine(device="cpu") as engine, Engine(device="cpu", cache=20 * FRAME) as bounded:
        engine.render(character, tmp_path / "whole.mp4", **options)
        stats = bounded.render(character, tmp_path / "bounded.mp4", **options)
    assert (tmp_path / "whole.mp4").read_bytes() == (tmp_path / "bounded.mp4").read_bytes()
    assert any("cached frames are kept" in note for note in stats.notes)


def test_what_is_kept_and_why_is_told(character: Character, tmp_path: Path) -> None:
    with Engine(device="cpu", cache=40 * FRAME) as engine:
        stats = engine.render(character, tmp_path / "a.mp4", features=FEATURES, inference_threads=1)
        slots = 40 - int(stats.notes[-1].split()[0])
    group = character.body.index.largest_group(range(90)) if character.body.index else 0
    in_pieces = (
        "; backwards 36 of a group at a time, each time from its keyframe: to decode each frame once, of groups of "
    )
    assert stats.notes[-1] == (
        f"{40 - slots} of 90 cached frames are kept, {(40 - slots) * FRAME / 1e6:.1f} MB; "
        f"the others are decoded ahead, {slots} at a time"
        + (f"{in_pieces}up to 90 frames, wants {94 * FRAME / 1e6:.1f} MB" if group == 90 else "")
    )
    # A group, if it fits, or several, and what is under way.
    assert slots == {7: 22, 30: 34, 90: 40}[group]
    assert stats.cache_bytes == 40 * FRAME


def test_what_cannot_be_sought_in_is_told(character: Character, whole: list[bytes], tmp_path: Path) -> None:
    folder = shutil.copytree(character.path, tmp_path / "mkv")
    body = folder / "full_body_video.mp4"
    with av.open(str(character.body.path)) as old, av.open(str(body), "w", format="matroska") as new:
        stream = new.add_stream_from_template(old.streams.video[0])
        for packet in old.demux(video=0):
            if packet.size:
                packet.stream = stream
                new.mux(packet)
    with Engine(device="cpu", cache=0) as engine:
        assert drawn(engine, Character.load(folder), features=FEATURES[:150]) == whole[:150]
        stats = engine.render(folder, tmp_path / "a.mp4", features=FEATURES[:99])
        forwards = engine.render(folder, tmp_path / "b.mp4", features=FEATURES[:9])
    assert stats.notes[-1].endswith("from the beginning of full_body_video.mp4, which cannot be sought in")
    assert forwards.notes[-1].endswith("at a time")


def test_without_a_bound_what_does_not_fit_is_decoded_ahead(
    character: Character, whole: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    kept: list[bool] = []
    begin = FramesAhead.begin

    def beginning(self: FramesAhead, *given: Any) -> None:
        kept.append(self._count + self.frames.slots > 8)  # two for each surface
        begin(self, *given)

    monkeypatch.setattr(FramesAhead, "begin", beginning)
    for memory, partly in ((100_000_000, []), (1_200_000, [True]), (700_000, [True, False])):
        monkeypatch.setattr("gpupipe.engine.backend.memory_available_bytes", lambda memory=memory: memory)
        with Engine(device="cpu", workers=1) as engine:
            assert drawn(engine, character) == whole
        assert kept == partly


def test_each_group_is_decoded_once_forwards_and_in_pieces_backwards(
    character: Character, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoded = {"full_body_video.mp4": 0, "crops_328_video.mp4": 0}
    passed_over = dict(decoded)
    indexes = {info.path.name: info.index for info in (character.body, character.crops)}

    def read(path: Path, *arguments: Any) -> Iterator[Any]:
        index, first = indexes[path.name], arguments[3].first if arguments[3:] else 0
        assert index is not None
        passed_over[path.name] += first - index.keyframe(first)
        for frame in read_frames(path, *arguments):
            decoded[path.name] += 1
            yield frame

    monkeypatch.setattr(order, "read_frames", read)
    largest = max(index.largest_group(range(90)) for index in indexes.values() if index is not None)
    # With slots for the largest group; of one of 90 frames for nearly all, else all would stay.
    with Engine(device="cpu", cache=min(89, largest + 4) * FRAME) as engine:
        drawn(engine, character, features=FEATURES[:179])
    for name in decoded:
        # A run may begin within one of the smaller groups, of 7 or 9 frames.
        assert 90 <= decoded[name] + passed_over[name] <= 179 + 8 * (90 // largest + 1)
        decoded[name] = 0
    with Engine(device="cpu", cache=0) as engine:
        drawn(engine, character, features=FEATURES[:90])
        assert decoded == {"full_body_video.mp4": 90, "crops_328_video.mp4": 90}
        drawn(engine, character, features=FEATURES[:179])
        # There and back: on the way back each frame is given out once, whatever is decoded before it.
        assert 90 + 179 - 20 <= decoded["full_body_video.mp4"] <= 90 + 179 + 20


def test_a_frame_that_cannot_be_decoded_ends_the_session(
    character: Character, whole: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    def read(path: Path, *arguments: Any) -> Iterator[Any]:
        for number, frame in enumerate(read_frames(path, *arguments)):
            if number == 50 and path.name == "full_body_video.mp4":
                raise MediaError("is damaged", file=path, field="frame 50", remedy="write it again")
            yield frame

    monkeypatch.setattr(order, "read_frames", read)
    found: list[bytes] = []
    with Engine(device="cpu", cache=0) as engine:
        with pytest.raises(MediaError, match="frame 50: is damaged"):
            found.extend(frame.tobytes() for frame in engine.frames(character, features=FEATURES))
        assert found == whole[:50]
        assert_at_rest(engine, sum(map(len, engine.holdings._pool._free.values())))


@pytest.mark.parametrize(
    ("room", "group", "kept", "slots"),
    [
        (0, 0, 0, 8),  # there are never fewer slots than two for each surface
        (7, 0, 0, 8),
        (9, 0, 1, 8),
        (99, 0, 91, 8),
        (100, 0, 100, 0),
        (99, 1, 91, 8),  # where nearly all stay, groups that fit in these slots want no more
        (60, 1, 40, 20),  # else several are decoded at once: the root of 7 x 40, and those under way
        (20, 1, 6, 14),  # but they have no more than half of the room
        (20, 30, 0, 20),
        (34, 30, 0, 34),
        (50, 30, 16, 34),
        (99, 100, 0, 99),
        (100, 100, 100, 0),
    ],
)
def test_as_many_stay_as_fit_beside_the_slots(room: int, group: int, kept: int, slots: int) -> None:
    spec = FrameSpec(CropLayout(32), "bgr24", 4, 2, (Rect(0, 0, 4, 2),) * 100)
    found = divided(spec, room, slots_ahead(spec, depth=4, group=group, room=room))
    assert (found.kept.count, found.slots) == (kept, slots)
    assert divided(spec, 5, Slots(2, 9)).slots == 5


@pytest.mark.parametrize("cuts", [range(90), (12, 13, 43, 46, 49)])
def test_groups_of_one_frame_and_as_scene_cuts_make_them(cuts: Collection[int], tmp_path: Path) -> None:
    folder = make_person(tmp_path / "cut", LONG)
    again(folder / "full_body_video.mp4", 250, cuts)
    again(folder / "crops_328_video.mp4", 250, (30, 31, 60))
    character = Character.load(folder)
    assert character.body.index is not None
    assert [number for number, _ in character.body.index.keyframes] == sorted({0, *cuts})
    options: Any = {"features": FEATURES[:150], "start_frame": 60}
    with Engine(device="cpu") as engine:
        wanted = drawn(engine, character, **options)
    for bound in (0, 20 * FRAME, 46 * FRAME):
        with Engine(device="cpu", cache=bound) as engine:
            assert drawn(engine, character, **options) == wanted


def test_sessions_beside_each_other_share_the_bound(character: Character) -> None:
    """What stays, and the slots of both; but for the eight that each has in any case."""
    either = ordered(character, "nv12", ModelOptions(inference_threads=1))
    forwards = replace(either, total=90).needing([range(90)])
    assert (either.backwards, forwards.backwards) == (True, False)
    with Engine(device="cpu", cache=40 * FRAME) as engine:
        for pair in ((either, either), (forwards, either), (either, forwards)):
            first, second = (engine.open_session(plan, lambda _: SpeechRows()) for plan in pair)
            stay, slots = engine.holdings.residents.nbytes // FRAME, [each.frames.slots for each in (first, second)]
            assert stay + slots[0] == 40
            assert slots[1] == 8
            first.close()
            second.close()


def test_speech_that_still_comes(character: Character, whole: list[bytes]) -> None:
    rows = SpeechRows()
    found: list[bytes] = []
    everything = ordered(character, "nv12", ModelOptions(inference_threads=1))
    with Engine(device="cpu", cache=0) as engine, engine.open_session(everything, lambda _: rows) as session:
        for begin in range(0, 200, 25):
            rows.append(FEATURES[begin : begin + 25])
            while len(found) < begin + 25 - 7:  # a frame hears 7 rows after its own
                surface = session.next()
                assert surface is not None
                assert surface.host is not None
                found.append(surface.host.tobytes())
                surface.release()
        assert found == whole[:193]
