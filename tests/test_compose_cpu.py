"""compose_cpu against the plain algorithm, bit for bit."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import reference
from hypothesis import given, settings
from hypothesis import strategies as st

from gpupipe.character.folder import Character
from gpupipe.colour import Colour, PixelFormat
from gpupipe.compose.cpu import CpuCompositor
from gpupipe.compose.frames import FrameSpec, HostFrames
from gpupipe.geometry import CropLayout, Rect
from gpupipe.media.video import read_frames

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


def make(
    spec: FrameSpec, batch: int, rng: np.random.Generator, dtype: Any = np.float32, workers: int = 1
) -> tuple[CpuCompositor, HostFrames, list[np.ndarray], np.ndarray]:
    """A compositor over random frames, the crops as bgr24, and random features."""
    crops = list(rng.integers(0, 256, (spec.count, spec.layout.crop_size, spec.layout.crop_size, 3), dtype=np.uint8))
    bodies = rng.integers(0, 256, (spec.count, *spec.format.shape), dtype=np.uint8)
    frames = HostFrames.load(spec, bodies, crops)
    features = rng.random((6, 512), dtype=np.float32)
    return CpuCompositor(frames, features, batch=batch, dtype=dtype, workers=workers), frames, crops, features


def wild(rng: np.random.Generator, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    """Predictions between and beyond 0 and 1, with exact multiples of 1/255 among them."""
    values = rng.uniform(-0.1, 1.1, shape).astype(dtype)
    exact = rng.random(shape) < 0.3
    values[exact] = (rng.integers(0, 256, shape)[exact] / np.float32(255)).astype(dtype)
    return values


@settings(max_examples=60, deadline=None)
@given(scenes(even=False), st.integers(1, 5), st.sampled_from([np.float32, np.float16]), st.integers(0, 2**32 - 1))
def test_bgr24_is_the_plain_algorithm(scene: Any, batch: int, dtype: Any, seed: int) -> None:
    layout, width, height, rects = scene
    check(FrameSpec(layout, "bgr24", width, height, rects), batch, dtype, seed)


@settings(max_examples=60, deadline=None)
@given(
    scenes(even=True), COLOURS, st.integers(1, 5), st.sampled_from([np.float32, np.float16]), st.integers(0, 2**32 - 1)
)
def test_nv12_is_the_plain_algorithm(scene: Any, colour: Colour, batch: int, dtype: Any, seed: int) -> None:
    layout, width, height, rects = scene
    check(FrameSpec(layout, "nv12", width, height, rects, colour), batch, dtype, seed)


def check(spec: FrameSpec, batch: int, dtype: Any, seed: int) -> None:
    rng = np.random.default_rng(seed)
    compositor, frames, crops, features = make(spec, batch, rng, dtype, workers=int(rng.integers(1, 3)))
    slot = compositor.new_slot()
    try:
        for _ in range(2):  # a slot is used again and again
            source = rng.integers(0, spec.count, batch).astype(np.int32)
            speech = rng.integers(0, len(features), batch).astype(np.int32)
            compositor.prepare(slot, source, speech)
            compositor.ready(slot)
            slot.prediction[:] = wild(rng, slot.prediction.shape, dtype)
            compositor.paste(slot)
            assert not compositor.finish(slot).any()
            for b, s in enumerate(source.tolist()):
                wanted = reference.visual_input(crops[s], spec.layout).astype(dtype)
                assert np.array_equal(slot.visual[b], wanted)
                assert np.array_equal(slot.audio[b], reference.speech_window(features, int(speech[b])).astype(dtype))
                assert np.array_equal(slot.frames[b], expected(spec, slot.prediction[b], crops[s], frames.body[s], s))
    finally:
        compositor.close()


def expected(spec: FrameSpec, prediction: np.ndarray, crop: np.ndarray, body: np.ndarray, source: int) -> np.ndarray:
    rect = spec.rects[source]
    if spec.pixel_format == "bgr24":
        return reference.composite_bgr24(prediction, crop, body, rect, spec.layout)
    return reference.composite_nv12(prediction, crop, body, rect, spec.layout, spec.colour)


@pytest.mark.parametrize("pixel_format", ["nv12", "bgr24"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e30])
def test_nan_is_told_and_drawn_black_and_infinity_is_clipped(pixel_format: PixelFormat, value: float) -> None:
    spec = FrameSpec(CropLayout(16), pixel_format, 32, 32, (Rect(3, 3, 27, 27),))
    compositor, frames, crops, _ = make(spec, 3, np.random.default_rng(0))
    slot = compositor.new_slot()
    zeros = np.zeros(3, np.int32)
    compositor.prepare(slot, zeros, zeros)
    slot.prediction[:] = 0.5
    slot.prediction[1, 2, 15, 15] = value
    compositor.paste(slot)
    assert compositor.finish(slot).tolist() == [False, bool(np.isnan(value)), False]
    for b in range(3):
        assert np.array_equal(slot.frames[b], expected(spec, slot.prediction[b], crops[0], frames.body[0], 0))


def test_recorded_inputs_are_taken_as_they_are() -> None:
    rng = np.random.default_rng(1)
    spec = FrameSpec(CropLayout(16), "bgr24", 32, 32, (Rect(3, 3, 27, 27),) * 2, recorded=True)
    recorded = rng.integers(0, 256, (2, 16, 16, 6), dtype=np.uint8)
    crops = rng.integers(0, 256, (2, 24, 24, 3), dtype=np.uint8)
    bodies = rng.integers(0, 256, (2, 32, 32, 3), dtype=np.uint8)
    compositor = CpuCompositor(HostFrames.load(spec, bodies, crops, recorded), np.ones((1, 512), np.float32), batch=2)
    slot = compositor.new_slot()
    compositor.prepare(slot, np.array([1, 0], np.int32), np.zeros(2, np.int32))
    wanted = recorded[::-1].transpose(0, 3, 1, 2).astype(np.float32) / np.float32(255)
    assert np.array_equal(slot.visual, wanted)


@pytest.mark.talker
@pytest.mark.parametrize("pixel_format", ["nv12", "bgr24"])
def test_the_filmed_character(talker: Path, pixel_format: PixelFormat) -> None:
    character = Character.load(talker)
    count = 48
    spec = FrameSpec(character.layout, pixel_format, 1280, 720, character.rects[:count], character.body.colour)
    crops = list(read_frames(character.crops.path, "bgr24", count))
    frames = HostFrames.load(spec, read_frames(character.body.path, pixel_format, count), crops)
    compositor = CpuCompositor(frames, np.load(character.features_path), batch=8, workers=2)
    slot = compositor.new_slot()
    rng = np.random.default_rng(2)
    for start in range(0, count, 8):
        source = np.arange(start, start + 8, dtype=np.int32)
        compositor.prepare(slot, source, source)
        slot.prediction[:] = wild(rng, slot.prediction.shape, np.float32)
        compositor.paste(slot)
        for b, s in enumerate(source.tolist()):
            wanted = expected(spec, slot.prediction[b], crops[s], frames.body[s], s)
            assert np.array_equal(slot.frames[b], wanted), f"frame {s}"
    compositor.close()
