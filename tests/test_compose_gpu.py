"""The GPU's compositor against a plain NumPy and OpenCV one, bit for bit, and what it moves, launches and waits for."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from gpupipe.colour import Colour
from gpupipe.compose_gpu import GpuCompositor, GpuSlot
from gpupipe.compositor import PixelFormat
from gpupipe.device import Device, open_device
from gpupipe.frame_cache import FrameSpec
from gpupipe.frame_cache_gpu import DeviceFrames
from gpupipe.geometry import CropLayout, Rect

pytestmark = pytest.mark.cuda

Array = NDArray[Any]


# The reference: a frame at a time, in the order in which the text of the contract says it.


def reference_visual(crop: Array, layout: CropLayout, dtype: Any) -> Array:
    roi = crop[:, layout.roi, layout.roi].astype(np.float32) / np.float32(255)
    masked = roi.copy()
    mask = layout.mask
    masked[:, mask.y1 : max(mask.y1, mask.y2), mask.x1 : max(mask.x1, mask.x2)] = 0
    return np.concatenate([roi, masked]).astype(dtype)


def reference_audio(speech: Array, row: int, dtype: Any) -> Array:
    window = np.zeros((16, 512), np.float32)
    for i in range(16):
        if 0 <= row - 8 + i < len(speech):
            window[i] = speech[row - 8 + i]
    return window.reshape(32, 16, 16).astype(dtype)


def reference_paste(prediction: Array, crop: Array, body: Array, source: int, spec: FrameSpec) -> Array:
    """A finished frame: the rectangle drawn over a copy of the body."""
    wide = prediction.astype(np.float32)
    clipped = np.where(np.isnan(wide), np.float32(0), np.clip(wide, np.float32(0), np.float32(1)))
    whole = crop.copy()
    whole[:, spec.layout.roi, spec.layout.roi] = np.trunc(clipped * np.float32(255)).astype(np.uint8)
    rect = spec.rects[source]
    drawn = [cv2.resize(p, (rect.width, rect.height), interpolation=cv2.INTER_LINEAR) for p in whole]
    b, g, r = (plane.astype(np.int64) for plane in drawn)

    width, height = spec.width, spec.height
    covered = np.zeros((height, width), bool)
    pasted = np.zeros((3, height, width), np.int64)
    seen = rect.within(width, height)
    to = np.s_[seen.y1 : seen.y2, seen.x1 : seen.x2]
    of = np.s_[seen.y1 - rect.y1 : seen.y2 - rect.y1, seen.x1 - rect.x1 : seen.x2 - rect.x1]
    covered[to] = True
    if spec.pixel_format == "bgr24":
        for plane, values in zip(pasted, (b, g, r), strict=True):
            plane[to] = values[of]
        return np.where(covered[..., None], pasted.transpose(1, 2, 0), body).astype(np.uint8)

    for plane, (wb, wg, wr, offset) in zip(pasted, spec.colour.from_bgr.tolist(), strict=True):
        plane[to] = np.minimum(255, (wb * b + wg * g + wr * r + offset) >> 14)[of]
    out = body.copy()
    out[:height] = np.where(covered, pasted[0], body[:height])
    chroma = body[height:].reshape(height // 2, width // 2, 2)

    def blocks(plane: Array) -> Array:
        return plane.reshape(height // 2, 2, width // 2, 2).sum(axis=(1, 3))

    for i in range(2):
        kept = chroma[..., i].repeat(2, axis=0).repeat(2, axis=1).astype(np.int64)
        mean = (blocks(np.where(covered, pasted[1 + i], kept)) + 2) >> 2
        out[height:].reshape(chroma.shape)[..., i] = np.where(blocks(covered), mean, chroma[..., i])
    return out


# Characters of noise, and a batch of theirs through the compositor.


@pytest.fixture(scope="module")
def device() -> Device:
    return open_device()


@pytest.fixture(autouse=True)
def no_pool() -> Iterator[None]:
    """Every array is an allocation of its own, and so ends at softcuda's guard page."""
    import cupy

    allocator = cupy.cuda.get_allocator()
    cupy.cuda.set_allocator(None)
    yield
    cupy.cuda.set_allocator(allocator)


def noise(rng: np.random.Generator, *shape: int) -> NDArray[np.uint8]:
    return rng.integers(0, 256, shape, dtype=np.uint8)


class Character:
    """Noise in every buffer of a character."""

    def __init__(self, spec: FrameSpec, seed: int, speech_rows: int = 5) -> None:
        rng = np.random.default_rng(seed)
        self.spec = spec
        self.body = noise(rng, spec.count, *spec.frame_shape)
        self.crops = noise(rng, spec.count, *spec.crop_shape)
        self.recorded = noise(rng, spec.count, *spec.recorded_shape) if spec.recorded else None
        self.speech = rng.standard_normal((speech_rows, 512)).astype(np.float32)
        self.rng = rng

    def load(self, device: Device, **others: Any) -> DeviceFrames:
        recorded = None if self.recorded is None else iter(self.recorded.transpose(0, 2, 3, 1))
        crops = iter(self.crops.transpose(0, 2, 3, 1))
        return DeviceFrames.load(device, self.spec, iter(self.body), crops, recorded, **others)

    def prediction(self, batch: int, dtype: Any, strange: bool) -> Array:
        """A prediction of values in and around 0 to 1; `strange` puts infinities and NaN in some frames."""
        size = self.spec.layout.model_size
        p = self.rng.uniform(-0.2, 1.2, (batch, 3, size, size)).astype(dtype)
        k = np.arange(256, dtype=np.float32) / np.float32(255)
        p.reshape(-1)[: len(k)] = k[: p.size].astype(dtype)
        if strange:
            p.reshape(-1)[self.rng.integers(0, p.size, 8)] = [np.inf, -np.inf, -0.0, 1.0, 1e-8, 0.999, 6e4, -6e4]
            for frame in self.rng.choice(batch, (batch + 1) // 2, replace=False):
                p[frame].reshape(-1)[self.rng.integers(0, p[frame].size)] = np.nan
        return p


def on_host(array: Any) -> Array:
    return array.copy() if isinstance(array, np.ndarray) else array.get()


def put(device: Device, to: Any, values: Array) -> None:
    """Write a prediction as a model would: on the host, or on the compute stream."""
    if isinstance(to, np.ndarray):
        to[...] = values
    else:
        staging = device.pinned(values.shape, values.dtype)
        staging[...] = values
        device.copy(to, staging, device.compute_stream)
        device.compute_stream.synchronize()


def check_batch(
    device: Device,
    compositor: GpuCompositor,
    slot: GpuSlot,
    character: Character,
    source: NDArray[np.int32],
    rows: NDArray[np.int32],
    *,
    strange: bool = True,
) -> None:
    """One batch through a slot; every byte of its inputs, frames and status must be the reference's."""
    spec, dtype = character.spec, compositor.dtype
    compositor.prepare(slot, source, rows)
    compositor.ready(slot)
    if compositor.model_on_device:
        device.compute_stream.synchronize()
    visual, audio = on_host(slot.visual), on_host(slot.audio)
    for i, (s, r) in enumerate(zip(source, rows, strict=True)):
        if character.recorded is None:
            want = reference_visual(character.crops[s], spec.layout, dtype)
        else:
            want = (character.recorded[s].astype(np.float32) / np.float32(255)).astype(dtype)
        assert visual[i].tobytes() == want.tobytes(), f"visual {i}"
        assert audio[i].tobytes() == reference_audio(character.speech, int(r), dtype).tobytes(), f"audio {i}"
    prediction = character.prediction(len(source), dtype, strange)
    put(device, slot.prediction, prediction)
    compositor.paste(slot)
    has_nan = compositor.finish(slot)
    assert has_nan.dtype == np.bool_
    assert has_nan.tolist() == [bool(np.isnan(p).any()) for p in prediction]
    for i, s in enumerate(source):
        want = reference_paste(prediction[i], character.crops[s], character.body[s], int(s), spec)
        assert np.array_equal(slot.frames[i], want), f"frame {i}, {spec.rects[s]}"


@st.composite
def rects(draw: st.DrawFn, width: int, height: int, crop: int) -> Rect:
    """Rectangles that overlap the frame, at least in part; some exactly half or all of the crop's size."""
    sizes = st.integers(1, 2 * max(width, height)) | st.sampled_from([crop // 2, crop])
    w, h = draw(sizes), draw(sizes)
    x, y = draw(st.integers(1 - w, width - 1)), draw(st.integers(1 - h, height - 1))
    return Rect(x, y, x + w, y + h)


@st.composite
def specs(draw: st.DrawFn) -> FrameSpec:
    pixel_format: PixelFormat = draw(st.sampled_from(["nv12", "bgr24"]))
    sizes = st.integers(1, 40) if pixel_format == "bgr24" else st.integers(1, 24).map(lambda n: 2 * n)
    width, height = draw(sizes), draw(sizes)
    layout = CropLayout(4 * draw(st.integers(1, 10)))
    places = draw(st.lists(rects(width, height, layout.crop_size), min_size=1, max_size=4))
    colour = Colour(draw(st.sampled_from([1, 2, 5, 7, 9])), draw(st.integers(0, 2)))
    return FrameSpec(layout, pixel_format, width, height, tuple(places), colour, draw(st.booleans()))


@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    spec=specs(),
    batch=st.integers(1, 9),
    dtype=st.sampled_from([np.float32, np.float16]),
    model_on_device=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_equals_the_reference(
    device: Device, spec: FrameSpec, batch: int, dtype: Any, model_on_device: bool, seed: int
) -> None:
    character = Character(spec, seed)
    frames = character.load(device)
    compositor = GpuCompositor(
        device, frames, character.speech, batch=batch, dtype=dtype, model_on_device=model_on_device
    )
    slot = compositor.new_slot()
    for _ in range(2):
        source = character.rng.integers(0, spec.count, batch, dtype=np.int32)
        rows = character.rng.integers(-10, 15, batch, dtype=np.int32)
        check_batch(device, compositor, slot, character, source, rows)
    compositor.close()
