"""The compositor on the CPU against the plain algorithm, bit for bit."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import reference
from hypothesis import given, settings
from hypothesis import strategies as st

from gpupipe.character.folder import Character
from gpupipe.colour import Colour, PixelFormat
from gpupipe.compose.cpu import CpuCompositor, HostDrawing
from gpupipe.compose.frames import FrameSpec, HostFrames
from gpupipe.compose.protocol import BatchKind, Drawing
from gpupipe.compose.surface import Surface
from gpupipe.geometry import CropLayout, Rect
from gpupipe.media.video import read_frames
from gpupipe.speech.rows import SpeechRows

FRACTIONS = (0, 1, 32768, 54613, 65535)
COLOURS = st.builds(Colour, matrix=st.sampled_from([1, 2, 5, 6, 7, 9]), range=st.sampled_from([0, 1, 2]))


@st.composite
def scenes(draw: Any, even: bool) -> tuple[CropLayout, int, int, tuple[Rect, ...]]:
    """A layout, a body size, and rectangles that overlap it."""
    step = 2 if even else 1
    width, height = (draw(st.integers(1, 100)) * step for _ in range(2))
    rects = []
    for _ in range(draw(st.integers(1, 4))):
        x2, y2 = draw(st.integers(1, width + 30)), draw(st.integers(1, height + 30))
        x1, y1 = draw(st.integers(-30, min(x2, width) - 1)), draw(st.integers(-30, min(y2, height) - 1))
        rects.append(Rect(x1, y1, x2, y2))
    return CropLayout(draw(st.sampled_from([320, 160, 16]))), width, height, tuple(rects)


class Person:
    """A character of noise, and a speech of noise."""

    def __init__(self, spec: FrameSpec, rng: np.random.Generator, speech_rows: int = 6) -> None:
        size = spec.layout.crop_size
        self.spec = spec
        self.recorded = np.zeros(0, np.uint8)
        self.crops = list(rng.integers(0, 256, (spec.count, size, size, 3), dtype=np.uint8))
        recorded = None
        if spec.recorded:
            roi = spec.layout.model_size
            recorded = self.recorded = rng.integers(0, 256, (spec.count, roi, roi, 6), dtype=np.uint8)
        bodies = rng.integers(0, 256, (spec.count, *spec.format.shape), dtype=np.uint8)
        self.frames = HostFrames.load(spec, bodies, self.crops, recorded)
        self.features = rng.random((speech_rows, 512), dtype=np.float32)
        self.speech = SpeechRows(self.features)

    def drawing(self, source: int, row: int, fraction: int = 0, given: np.ndarray | None = None) -> HostDrawing:
        """A frame to be drawn on a surface of its own, which holds noise."""
        format = self.spec.format
        surface = Surface(format, np.full(format.shape, 77, np.uint8))
        return Drawing(self.frames, source, self.speech, row, fraction, surface, given)

    def given(self, rng: np.random.Generator) -> np.ndarray | None:
        """Now and then, what the model is to see instead of a crop."""
        size = self.spec.layout.model_size
        return rng.random((6, size, size), np.float32) if rng.random() < 0.3 else None

    def inputs(self, drawing: HostDrawing, dtype: Any) -> np.ndarray:
        """What the model must see of a frame."""
        if drawing.visual is not None:
            return drawing.visual.astype(dtype)
        source = drawing.source
        if self.spec.recorded:
            planes = self.recorded[source].transpose(2, 0, 1)
            return np.asarray(np.divide(planes, np.float32(255), dtype=np.float32), dtype)
        return reference.visual_input(self.crops[source], self.spec.layout).astype(dtype)

    def finished(self, prediction: np.ndarray, source: int) -> np.ndarray:
        """The finished frame."""
        crop, body, rect = self.crops[source], self.frames.body[source], self.spec.rects[source]
        if self.spec.pixel_format == "bgr24":
            return reference.composite_bgr24(prediction, crop, body, rect, self.spec.layout)
        return reference.composite_nv12(prediction, crop, body, rect, self.spec.layout, self.spec.colour)


def compositor_of(people: list[Person], batch: int, dtype: Any = np.float32, workers: int = 1) -> CpuCompositor:
    """A compositor that all of them, alike in layout and pixel format, are admitted to."""
    spec = people[0].spec
    compositor = CpuCompositor(BatchKind(spec.layout, spec.pixel_format, np.dtype(dtype), batch), workers=workers)
    for person in people:
        compositor.admit(person.frames)
    return compositor


def pixels(drawing: HostDrawing) -> np.ndarray:
    host = drawing.surface.host
    assert host is not None
    return host


def wild(rng: np.random.Generator, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    """Predictions between and beyond 0 and 1, with exact multiples of 1/255 among them."""
    values = rng.uniform(-0.1, 1.1, shape).astype(dtype)
    exact = rng.random(shape) < 0.3
    values[exact] = (rng.integers(0, 256, shape)[exact] / np.float32(255)).astype(dtype)
    return values


@settings(max_examples=40, deadline=None)
@given(
    scenes(even=False), scenes(even=False), st.integers(1, 5), st.sampled_from([np.float32, np.float16]),
    st.integers(0, 2**32 - 1),
)  # fmt: skip
def test_bgr24_is_the_plain_algorithm(scene: Any, other: Any, batch: int, dtype: Any, seed: int) -> None:
    layout, width, height, rects = scene
    specs = [FrameSpec(layout, "bgr24", width, height, rects), FrameSpec(layout, "bgr24", *other[1:])]
    check(specs, batch, dtype, seed)


@settings(max_examples=40, deadline=None)
@given(
    scenes(even=True), scenes(even=True), COLOURS, COLOURS, st.integers(1, 5),
    st.sampled_from([np.float32, np.float16]), st.integers(0, 2**32 - 1),
)  # fmt: skip
def test_nv12_is_the_plain_algorithm(
    scene: Any, other: Any, colour: Colour, colour_too: Colour, batch: int, dtype: Any, seed: int
) -> None:
    layout, width, height, rects = scene
    specs = [
        FrameSpec(layout, "nv12", width, height, rects, colour),
        FrameSpec(layout, "nv12", other[1], other[2], other[3], colour_too, recorded=True),
    ]
    check(specs, batch, dtype, seed)


def check(specs: list[FrameSpec], batch: int, dtype: Any, seed: int) -> None:
    """Batches of several people's frames: each frame is what it is alone, whatever lay in the slot before."""
    rng = np.random.default_rng(seed)
    people = [Person(spec, rng) for spec in specs]
    compositor = compositor_of(people, batch, dtype, workers=int(rng.integers(1, 3)))
    slot = compositor.new_slot()
    try:
        for _ in range(2):  # a slot is used again and again
            who = [people[number] for number in rng.integers(0, len(people), int(rng.integers(1, batch + 1)))]
            drawings = [
                person.drawing(
                    int(rng.integers(person.spec.count)),
                    int(rng.integers(-9, 15)),
                    int(rng.choice(FRACTIONS)),
                    person.given(rng),
                )
                for person in who
            ]
            compositor.prepare(slot, drawings)
            compositor.ready(slot)
            slot.prediction[:] = wild(rng, slot.prediction.shape, dtype)
            compositor.paste(slot)
            assert compositor.finish(slot).tolist() == [False] * len(drawings)
            for b, (person, drawing) in enumerate(zip(who, drawings, strict=True)):
                assert np.array_equal(slot.visual[b], person.inputs(drawing, dtype))
                heard = reference.speech_window(person.features, drawing.row, drawing.fraction)
                assert np.array_equal(slot.audio[b], heard.astype(dtype))
                assert np.array_equal(pixels(drawing), person.finished(slot.prediction[b], drawing.source))
    finally:
        compositor.close()


@pytest.mark.parametrize("pixel_format", ["nv12", "bgr24"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e30])
def test_nan_is_told_and_drawn_black_and_infinity_is_clipped(pixel_format: PixelFormat, value: float) -> None:
    spec = FrameSpec(CropLayout(16), pixel_format, 32, 32, (Rect(3, 3, 27, 27),))
    person = Person(spec, np.random.default_rng(0))
    compositor = compositor_of([person], 4)
    slot = compositor.new_slot()
    drawings = [person.drawing(0, 0) for _ in range(3)]
    compositor.prepare(slot, drawings)
    slot.prediction[:] = 0.5
    slot.prediction[1, 2, 15, 15] = value
    compositor.paste(slot)
    assert compositor.finish(slot).tolist() == [False, bool(np.isnan(value)), False]
    for b, drawing in enumerate(drawings):
        assert np.array_equal(pixels(drawing), person.finished(slot.prediction[b], 0))


@pytest.mark.talker
@pytest.mark.parametrize("pixel_format", ["nv12", "bgr24"])
def test_the_filmed_character(talker: Path, pixel_format: PixelFormat) -> None:
    character = Character.load(talker)
    count = 24
    spec = FrameSpec(character.layout, pixel_format, 1280, 720, character.rects[:count], character.body.colour)
    person = Person(spec, np.random.default_rng(1))
    person.crops = list(read_frames(character.crops.path, "bgr24", count))
    person.frames = HostFrames.load(spec, read_frames(character.body.path, pixel_format, count), person.crops)
    compositor = compositor_of([person], 8, workers=2)
    slot = compositor.new_slot()
    rng = np.random.default_rng(2)
    for start in range(0, count, 8):
        drawings = [person.drawing(source, source) for source in range(start, start + 8)]
        compositor.prepare(slot, drawings)
        slot.prediction[:] = wild(rng, slot.prediction.shape, np.float32)
        compositor.paste(slot)
        for b, drawing in enumerate(drawings):
            wanted = person.finished(slot.prediction[b], drawing.source)
            assert np.array_equal(pixels(drawing), wanted), f"frame {drawing.source}"
    compositor.close()
