"""Small people for an engine to draw, what each of their frames must be, and whether an engine is at rest."""

from __future__ import annotations

import atexit
import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import reference
import small
from numpy.typing import NDArray

from gpupipe.character.folder import Character
from gpupipe.colour import PixelFormat
from gpupipe.engine.session import Session
from gpupipe.geometry import frame_at, speech_position
from gpupipe.media.encode import VideoWriter
from gpupipe.media.video import read_frames
from gpupipe.options import ModelOptions, SpeechOptions
from gpupipe.render.engine import Engine
from gpupipe.render.plan import Plan

Features = NDArray[np.float32]

SECONDS = 60
"""How long anything is waited for that takes no time to speak of."""


@dataclass(frozen=True)
class Person:
    """A character: its folder, and how it differs from the others."""

    name: str
    size: tuple[int, int]
    fps: Fraction
    frames: int
    corner: tuple[int, int]
    model: int

    @property
    def path(self) -> Path:
        """The folder, made when it is first asked for."""
        return _folders() / self.name

    @property
    def character(self) -> Character:
        """The character, loaded."""
        return _character(self)

    @property
    def model_path(self) -> Path:
        """Its model, by the path of its own folder."""
        return self.character.model_path


# Two of them have copies of one model file, and two of another, which computes the same.
PEOPLE = (
    Person("anna", (96, 64), Fraction(25), 7, (31, 11), 0),
    Person("bert", (64, 48), Fraction(30), 5, (-6, 8), 0),
    Person("carl", (128, 80), Fraction(50), 6, (70, 41), 1),
    Person("dora", (80, 112), Fraction(25), 1, (40, 90), 1),
)
LARGE = Person("large", (160, 96), Fraction(25), 4, (60, 30), 0)


@cache
def _folders() -> Path:
    folder = Path(tempfile.mkdtemp(prefix="gpupipe-people-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    for person in (*PEOPLE, LARGE):
        make_person(folder / person.name, person)
    return folder


def make_person(folder: Path, person: Person, seed: int = 0) -> Path:
    """Write a person's folder."""
    seed += sum(person.name.encode())
    crop = small.CROP_SIZE
    for name, (width, height) in (("full_body_video.mp4", person.size), ("crops_328_video.mp4", (crop, crop))):
        folder.mkdir(parents=True, exist_ok=True)
        with VideoWriter(folder / name, width=width, height=height, fps=person.fps, pixel_format="bgr24") as writer:
            for picture in small.pictures(width, height, person.frames, seed):
                writer.write(picture)
    x, y = person.corner
    small.write_rectangles(
        folder, [[x + k % 3, y + k % 2, x + 25 + 2 * k, y + 21 + 3 * (k % 4)] for k in range(person.frames)]
    )
    np.save(folder / "aud_ave.npy", small.features(person.frames))
    path = folder / "checkpoint" / "model_best.onnx"
    small.write_model(path)
    if person.model:
        model = onnx.load(str(path))
        model.doc_string = f"model {person.model}"
        path.write_bytes(model.SerializeToString())
    return folder


@cache
def _character(person: Person) -> Character:
    return Character.load(person.path)


@cache
def _decoded(person: Person, pixel_format: PixelFormat) -> tuple[list[Any], list[Any]]:
    character = person.character
    bodies = list(read_frames(character.body.path, pixel_format, character.count))
    return bodies, list(read_frames(character.crops.path, "bgr24", character.count))


def heard(person: Person, features: Features, index: int) -> np.float32:
    """The number that the small model hears at an output frame: the first of the row at its time."""
    row, fraction = speech_position(index, person.fps)
    return np.float32(reference.speech_window(features, row, fraction).reshape(16, 512)[8, 0])


def finished(person: Person, pixel_format: PixelFormat, features: Features, index: int, start: int = 0) -> bytes:
    """The bytes of an output frame, by the plain algorithm and the small model in NumPy."""
    source = frame_at(index + start, person.character.count)
    return _finished(person, pixel_format, source, heard(person, features, index))


@cache
def _finished(person: Person, pixel_format: PixelFormat, source: int, value: np.float32) -> bytes:
    character = person.character
    layout, colour = character.layout, character.body.colour
    bodies, crops = _decoded(person, pixel_format)
    roi = reference.visual_input(crops[source], layout)[:3]
    prediction = (roi + np.sqrt(value)) * np.float32(0.5)
    given = (prediction, crops[source], bodies[source], character.rects[source], layout)
    if pixel_format == "nv12":
        return reference.composite_nv12(*given, colour).tobytes()
    return reference.composite_bgr24(*given).tobytes()


def first_wrong(person: Person, features: Features, total: int) -> int | None:
    """The first output frame for which the small model gives NaN or fails."""
    return next((index for index in range(total) if not 0 <= heard(person, features, index) < 1), None)


def planned(person: Person, pixel_format: PixelFormat, features: Features, start: int = 0, **model: Any) -> Plan:
    """What a session of a whole speech draws."""
    speech = SpeechOptions(features=features, start_frame=start)
    return Plan.make(person.character, pixel_format, ModelOptions(**model), speech, sound=False)


def eventually(true: Callable[[], bool], what: str) -> None:
    """Wait until something is true that is about to be."""
    end = time.monotonic() + SECONDS
    while not true():
        assert time.monotonic() < end, what
        time.sleep(0.0005)


def assert_at_rest(engine: Engine, surfaces_made: int) -> None:
    """Nothing of any session is left: every slot and every surface is back, and nobody uses what is kept."""
    eventually(
        lambda: engine.timetable.idle and not engine._sessions and not engine._handling,
        "batches or sessions are under way",
    )
    holdings = engine.holdings
    for entry in holdings._lanes._entries.values():
        assert entry.users == 0
        lane = entry.opened.result()
        assert len(lane.free) == lane.slots
    assert not holdings.residents._retired
    assert [each.users for each in holdings.residents._kept.values()] == [0] * len(holdings.residents._kept)
    assert sum(map(len, holdings._pool._free.values())) == surfaces_made
    assert not engine._scheduler._seen


def let_draw(engine: Engine, sessions: Sequence[Session], frames: int) -> None:
    """Take so many frames of every session of a lane, and wait until the device is at rest.

    As many are drawn meanwhile, but for less than a batch: what does not fill one may wait.
    """
    for _ in range(frames):
        for session in sessions:
            surface = session.next()
            assert surface is not None
            surface.release()

    def waiting() -> bool:
        batch, some = sessions[0].lane.batch, [session for session in sessions if session.available]
        return sum(each.available for each in some) < batch and all(each.stock >= batch for each in some)

    eventually(lambda: engine.timetable.idle and waiting(), "frames that could be drawn are not")
    eventually(lambda: engine.timetable.idle, "the device has no rest")
