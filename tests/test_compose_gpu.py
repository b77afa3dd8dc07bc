"""The GPU's compositor against a plain NumPy and OpenCV one, bit for bit, and what it moves, launches and waits for."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from conftest import gives_back, on_softcuda
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from gpupipe.colour import Colour, PixelFormat
from gpupipe.compose.device_frames import DeviceFrames, bytes_wanted
from gpupipe.compose.frames import FrameSpec
from gpupipe.compose.gpu import GpuCompositor, GpuSlot
from gpupipe.errors import DeviceMemoryError
from gpupipe.geometry import CropLayout, Rect
from gpupipe.gpu.device import Device, open_device

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
        sums: Array = plane.reshape(height // 2, 2, width // 2, 2).sum(axis=(1, 3))
        return sums

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
        self.body = noise(rng, spec.count, *spec.format.shape)
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


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
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


def compositor_of(device: Device, character: Character, **options: Any) -> GpuCompositor:
    return GpuCompositor(device, character.load(device), character.speech, **options)


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("pixel_format", ["nv12", "bgr24"])
@pytest.mark.parametrize("size", [160, 320])
def test_both_families(device: Device, size: int, pixel_format: PixelFormat, dtype: Any) -> None:
    """The real sizes: shrunk, exactly half, unchanged, enlarged, and across each corner."""
    layout = CropLayout(size)
    crop = layout.crop_size
    sizes = [(182, 182), (crop // 2, crop // 2), (crop, crop), (351, 377), (crop // 2, 91), (1, 1)]
    corners = [(-71, -43), (301, -20), (-9, 187), (300, 201)]
    places = [(7 + 3 * i, 5 + i) for i in range(len(sizes))]
    rects = [Rect(x, y, x + w, y + h) for (x, y), (w, h) in zip(places, sizes, strict=True)]
    rects += [Rect(x, y, x + 182, y + 183) for x, y in corners]
    character = Character(FrameSpec(layout, pixel_format, 400, 300, tuple(rects), Colour(1, 1)), seed=size)
    compositor = compositor_of(device, character, batch=len(rects), dtype=dtype)
    source = np.arange(len(rects), dtype=np.int32)
    check_batch(device, compositor, compositor.new_slot(), character, source, source)
    compositor.close()


def test_a_rectangle_outside_draws_nothing(device: Device) -> None:
    rects = (Rect(-20, 0, -4, 8), Rect(32, 4, 40, 12), Rect(3, 16, 9, 22), Rect(0, -9, 5, 0), Rect(2, 2, 9, 9))
    character = Character(FrameSpec(CropLayout(16), "nv12", 32, 16, rects), seed=1)
    compositor = compositor_of(device, character, batch=5)
    source = np.arange(5, dtype=np.int32)
    check_batch(device, compositor, compositor.new_slot(), character, source, source)
    compositor.close()


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("place", [0, 8191, 8192, 3 * 64 * 64 - 1])
def test_one_nan_anywhere_sets_the_frames_bit(device: Device, dtype: Any, place: int) -> None:
    """Also one that no tap reads: the rectangle is a single pixel. Batches have more than one word of bits."""
    character = Character(FrameSpec(CropLayout(64), "bgr24", 6, 5, (Rect(2, 2, 3, 3),)), seed=place)
    compositor = compositor_of(device, character, batch=70, dtype=dtype)
    slot = compositor.new_slot()
    for frames in ([0, 31, 32, 69], [], [33]):
        zeros = np.zeros(70, np.int32)
        compositor.prepare(slot, zeros, zeros)
        prediction = np.ones((70, 3 * 64 * 64), dtype)
        prediction[frames, place] = np.nan
        put(device, slot.prediction, prediction.reshape(slot.prediction.shape))
        compositor.paste(slot)
        assert np.flatnonzero(compositor.finish(slot)).tolist() == frames
    compositor.close()


def test_slots_in_flight_do_not_mix(device: Device) -> None:
    """Three slots pasted before any is finished."""
    rects = tuple(Rect(i, i + 1, i + 20, i + 18) for i in range(6))
    character = Character(FrameSpec(CropLayout(16), "nv12", 48, 32, rects), seed=2)
    compositor = compositor_of(device, character, batch=2, model_on_device=False)
    slots = [compositor.new_slot() for _ in range(3)]
    for turn in range(2):
        sources = [np.array([(2 * i + turn) % 6, (2 * i + 1 + turn) % 6], np.int32) for i in range(3)]
        predictions = [character.prediction(2, np.float32, strange=False) for _ in slots]
        for slot, source, prediction in zip(slots, sources, predictions, strict=True):
            compositor.prepare(slot, source, source)
            compositor.ready(slot)
            slot.prediction[...] = prediction
            compositor.paste(slot)
        for slot, source, prediction in zip(slots, sources, predictions, strict=True):
            assert not compositor.finish(slot).any()
            for i, s in enumerate(source):
                want = reference_paste(prediction[i], character.crops[s], character.body[s], int(s), character.spec)
                assert np.array_equal(slot.frames[i], want)
    compositor.close()


def test_a_source_that_is_not_cached_is_refused(device: Device) -> None:
    character = Character(FrameSpec(CropLayout(16), "bgr24", 8, 8, (Rect(0, 0, 8, 8),)), seed=3)
    compositor = compositor_of(device, character, batch=2)
    slot = compositor.new_slot()
    with pytest.raises(IndexError, match=r"source must be 0 to 0 .got 0 to 1."):
        compositor.prepare(slot, np.array([0, 1], np.int32), np.zeros(2, np.int32))
    compositor.close()


def test_frames_missing_from_a_stream_are_refused(device: Device) -> None:
    character = Character(FrameSpec(CropLayout(16), "bgr24", 8, 8, (Rect(0, 0, 8, 8),) * 7), seed=4)
    before = device.free_bytes
    character.body = character.body[:5]
    with pytest.raises(ValueError, match="shorter"):
        character.load(device)
    assert gives_back(before, device.free_bytes)


@pytest.mark.parametrize("model_on_device", [True, False])
def test_ten_compositors_leave_nothing_behind(device: Device, model_on_device: bool) -> None:
    spec = FrameSpec(CropLayout(32), "nv12", 64, 48, (Rect(8, 8, 40, 40),) * 5, recorded=True)
    options: dict[str, Any] = {"batch": 3, "dtype": np.float16, "model_on_device": model_on_device}
    before = device.free_bytes
    for turn in range(10):
        character = Character(spec, seed=turn)
        wanted = GpuCompositor.bytes_wanted(spec, slots=2, speech_rows=len(character.speech), **options)
        compositor = compositor_of(device, character, **options)
        slots = [compositor.new_slot() for _ in range(2)]
        used = before - device.free_bytes
        if on_softcuda():  # a GPU's driver hands out whole pages
            assert used == sum(wanted.values()) + sum(bytes_wanted(spec).values())
        zeros = np.zeros(3, np.int32)
        for slot in slots:
            compositor.prepare(slot, zeros, zeros)
            compositor.paste(slot)
        compositor.close()
        assert gives_back(before, device.free_bytes)


def test_too_little_memory(device: Device) -> None:
    """Refused before anything is allocated, with both numbers and the ways out."""
    spec = FrameSpec(CropLayout(16), "bgr24", 64, 48, (Rect(8, 8, 40, 40),) * 3)
    character, before = Character(spec, seed=0), device.free_bytes
    with pytest.raises(DeviceMemoryError) as raised:
        character.load(device, others={"slots": device.total_bytes})
    free = f"{before / 1e6:.1f} MB of {device.total_bytes / 1e6:.1f} MB are free on GPU {device.index}"
    text = str(raised.value)
    assert f"the job wants {(sum(bytes_wanted(spec).values()) + device.total_bytes) / 1e6:.1f} MB" in text
    assert free in text
    for way_out in ("nv12", "smaller batch", "fewer frames", "another GPU"):
        assert way_out in text
    assert gives_back(before, device.free_bytes)


# A program that runs batches; what softcuda counts in a long run less a short one is the cost of the steady state.
BATCHES = """
import sys
import numpy as np
from gpupipe.compose.gpu import GpuCompositor
from gpupipe.gpu.device import open_device
from gpupipe.errors import DeviceMemoryError
from gpupipe.compose.frames import FrameSpec
from gpupipe.compose.device_frames import DeviceFrames, bytes_wanted
from gpupipe.geometry import CropLayout, Rect

batches, pixel_format, width, on_device, result = sys.argv[1:]
rng = np.random.default_rng(0)
rects = tuple(Rect(i, 3 * i, i + 37, 3 * i + 31) for i in range(5))
spec = FrameSpec(CropLayout(32), pixel_format, int(width), 48, rects)
device = open_device()
body = [rng.integers(0, 256, spec.format.shape, dtype=np.uint8) for _ in range(5)]
crops = [rng.integers(0, 256, (40, 40, 3), dtype=np.uint8) for _ in range(5)]
frames = DeviceFrames.load(device, spec, body, crops)
speech = rng.random((40, 512), dtype=np.float32)
compositor = GpuCompositor(device, frames, speech, batch=4, model_on_device=on_device == "True")
slots = [compositor.new_slot() for _ in range(3)]
prediction = device.pinned((4, 3, 32, 32), np.float32)
prediction[...] = rng.random(prediction.shape)
for slot in slots:
    device.copy(slot.prediction, prediction, device.compute_stream)
device.compute_stream.synchronize()
kept = []
for i in range(int(batches)):
    slot = slots[i % 3]
    if i >= 3:
        compositor.finish(slot)
        kept.append(slot.frames.copy())
    source = np.arange(i, i + 4, dtype=np.int32)
    compositor.prepare(slot, source % 5, source)
    compositor.ready(slot)
    compositor.paste(slot)
compositor.close()
np.save(result, np.stack(kept))
"""


@pytest.mark.parametrize("on_device", [True, False])
@pytest.mark.parametrize(("pixel_format", "width"), [("nv12", 64), ("bgr24", 62)])
def test_the_budget_of_a_batch(
    softcuda_stats: Any, tmp_path: Path, pixel_format: PixelFormat, width: int, on_device: bool
) -> None:
    """2 launches, the frames and a word of status down, 8 bytes a frame up, 1 wait, and nothing allocated."""
    arguments = (pixel_format, str(width), str(on_device), str(tmp_path / "frames.npy"))
    short, long = (softcuda_stats(BATCHES, str(batches), *arguments) for batches in (6, 26))
    cost = {name: long[name] - short[name] for name in short if isinstance(short[name], int)}
    launches = {name: long["launches"][name] - short["launches"][name] for name in long["launches"]}
    assert launches == {"prepare": 20, f"paste_{pixel_format}": 20}
    frame = FrameSpec(CropLayout(32), pixel_format, width, 48, ()).format.nbytes
    assert cost["d2h_bytes"] == 20 * (4 * frame + 4)
    assert cost["h2d_bytes"] == 20 * 4 * 8
    assert cost["syncs"] == 20 * (1 if on_device else 2)
    assert cost["mallocs"] == cost["pinned_allocs"] == cost["d2d_bytes"] == cost["peak_bytes"] == 0
    assert long["pageable_async_copies"] == 0


def test_order_of_blocks_and_threads_does_not_matter(softcuda_stats: Any, tmp_path: Path) -> None:
    for pixel_format in ("nv12", "bgr24"):
        results = []
        for name, env in (("forward", {}), ("reverse", {"SOFTCUDA_REVERSE": "1"})):
            path = tmp_path / f"{name}-{pixel_format}.npy"
            softcuda_stats(BATCHES, "5", pixel_format, "62", "True", str(path), env=env)
            results.append(np.load(path))
        assert np.array_equal(*results)


def test_memory_that_runs_out_while_allocating(softcuda_stats: Any) -> None:
    """What `require` could not foresee: another program takes the memory in between."""
    program = """
from gpupipe.gpu.device import open_device
from gpupipe.errors import DeviceMemoryError
device = open_device()
assert device.total_bytes == 4000000
try:
    device.empty((5000000,), "u1", "finished frames")
except DeviceMemoryError as error:
    assert "out of memory: finished frames of 5.0 MB does not fit in 4.0 MB free of 4.0 MB" in str(error), error
else:
    raise SystemExit("no error")
"""
    softcuda_stats(program, env={"SOFTCUDA_MEM": "4000000"})
