"""The GPU's compositor against the plain algorithm, bit for bit, and what it moves, launches and waits for."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import gpu_batches
import numpy as np
import pytest
import reference
from conftest import gives_back, on_softcuda
from gpu_scene import Character, Shot, Speech, check_batch, features, new_surface, on_host, pixels, predictions, put
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gpupipe.colour import LUMA_WEIGHTS, Colour, PixelFormat
from gpupipe.compose.device_frames import DeviceFrames, DeviceRing, DeviceTable, bytes_wanted
from gpupipe.compose.device_speech import DeviceSpeech
from gpupipe.compose.frames import FrameSpec
from gpupipe.compose.gpu import GpuCompositor, GpuSlot
from gpupipe.compose.protocol import BatchKind, Compositor
from gpupipe.errors import DeviceMemoryError
from gpupipe.geometry import CropLayout, Rect
from gpupipe.gpu import kernels, launch
from gpupipe.gpu.device import Device, open_device

pytestmark = pytest.mark.cuda

CONTRACT: type[Compositor[GpuSlot, DeviceTable, DeviceSpeech]] = GpuCompositor


@pytest.fixture(scope="module")
def device() -> Device:
    return open_device()


def kind(layout: CropLayout, pixel_format: PixelFormat, batch: int, dtype: Any = np.float32) -> BatchKind:
    return BatchKind(layout, pixel_format, np.dtype(dtype), batch)


def compositor_for(device: Device, kind: BatchKind, *characters: Character, **options: Any) -> GpuCompositor:
    compositor = GpuCompositor(device, kind, **options)
    for character in characters:
        compositor.admit(character.frames)
    return compositor


@pytest.fixture
def silence(device: Device) -> Speech:
    return Speech(device, np.zeros((0, 512), np.float32))


@st.composite
def rects(draw: st.DrawFn, width: int, height: int, crop: int) -> Rect:
    """Rectangles that overlap the frame, at least in part; some exactly half or all of the crop's size."""
    sizes = st.integers(1, 2 * max(width, height)) | st.sampled_from([crop // 2, crop])
    w, h = draw(sizes), draw(sizes)
    x, y = draw(st.integers(1 - w, width - 1)), draw(st.integers(1 - h, height - 1))
    return Rect(x, y, x + w, y + h)


@st.composite
def specs(draw: st.DrawFn, layout: CropLayout, pixel_format: PixelFormat) -> FrameSpec:
    sizes = st.integers(1, 40) if pixel_format == "bgr24" else st.integers(1, 24).map(lambda n: 2 * n)
    width, height = draw(sizes), draw(sizes)
    places = draw(st.lists(rects(width, height, layout.crop_size), min_size=1, max_size=3))
    colour = Colour(draw(st.sampled_from([0, 2, *LUMA_WEIGHTS])), draw(st.integers(0, 2)))
    return FrameSpec(layout, pixel_format, width, height, tuple(places), colour, draw(st.booleans()))


@settings(max_examples=160, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    data=st.data(),
    layout=st.integers(1, 10).map(lambda n: CropLayout(4 * n)),
    pixel_format=st.sampled_from(["nv12", "bgr24"]),
    batch=st.integers(1, 9),
    dtype=st.sampled_from([np.float32, np.float16]),
    model_on_device=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_equals_the_reference(
    device: Device,
    data: st.DataObject,
    layout: CropLayout,
    pixel_format: PixelFormat,
    batch: int,
    dtype: Any,
    model_on_device: bool,
    seed: int,
) -> None:
    """Batches, full or not, of frames of several characters, bodies, matrices and speeches, whole and growing."""
    rng = np.random.default_rng(seed)
    bodies = data.draw(st.lists(specs(layout, pixel_format), min_size=1, max_size=3))
    characters = [Character(device, spec, seed + i) for i, spec in enumerate(bodies)]
    speeches = [Speech(device, features(rng, n), growing=n % 2 == 1) for n in rng.integers(0, 9, 3)]
    compositor = compositor_for(
        device, kind(layout, pixel_format, batch, dtype), *characters, model_on_device=model_on_device
    )
    slot = compositor.new_slot()
    for _ in range(3):
        count = int(rng.integers(1, batch + 1))
        shots = []
        for _ in range(count):
            character, speech = characters[rng.integers(len(characters))], speeches[rng.integers(3)]
            fraction = int(rng.integers(1, 65536) * rng.integers(2))
            row = int(rng.integers(-30, 40))
            source = int(rng.integers(character.spec.count))
            seen = rng.random((6, layout.model_size, layout.model_size), np.float32) if rng.random() < 0.2 else None
            shots.append(Shot(character, source, speech, row, fraction, rng.random() < 0.8, seen))
        check_batch(device, compositor, slot, shots, predictions(rng, count, layout.model_size, dtype))
        for speech in speeches:
            if not speech.rows.finished:
                speech.grow(features(rng, int(rng.integers(0, 3))))
    compositor.close()


@pytest.mark.parametrize("recorded", [False, True])
@pytest.mark.parametrize("pixel_format", ["nv12", "bgr24"])
def test_frames_in_slots(device: Device, pixel_format: PixelFormat, recorded: bool) -> None:
    """Two frames stay and four share two slots: each is drawn with its own rectangle from whichever slot it is in."""
    layout, rng = CropLayout(16), np.random.default_rng(7)
    rects = tuple(Rect(k - 2, 3 - k, 20 + 3 * k, 17 + 2 * k) for k in range(6))
    spec = FrameSpec(layout, pixel_format, 30, 26, rects, Colour(1, 1), recorded)
    character, speech = Character(device, spec, seed=1), Speech(device, features(rng, 9))
    decoded = (character.body, character.crops, *([] if character.recorded is None else [character.recorded]))
    kept = DeviceFrames.load(device, replace(spec, rects=rects[:2]), *(part[:2] for part in decoded))
    character.frames.close()
    ring = DeviceRing(kept, spec, slots=2)
    scene: Any = character
    scene.frames = ring
    compositor = compositor_for(device, kind(layout, pixel_format, 4), character)
    slot, where = compositor.new_slot(), [-1, -1]
    for sources in ((0, 2, 3), (4, 1, 3), (2, 5), (5, 2, 5, 0)):
        for source in sources:
            if source >= 2 and source not in where:
                free = next(number for number, old in enumerate(where) if old not in sources)
                if where[free] >= 0:
                    ring.forget(where[free])
                ring.write(free, source, [part[source] for part in decoded])
                where[free] = source
        shots = [Shot(character, source, speech, source) for source in sources]
        check_batch(device, compositor, slot, shots, predictions(rng, len(shots), layout.model_size, np.float32))
    with pytest.raises(IndexError, match="frame 4 is not there"):
        compositor.prepare(slot, [Shot(character, 4, speech, 0).drawing(device)])
    compositor.close()
    ring.close()
    kept.close()


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("pixel_format", ["nv12", "bgr24"])
@pytest.mark.parametrize("size", [160, 320])
def test_both_families(device: Device, size: int, pixel_format: PixelFormat, dtype: Any) -> None:
    """The real sizes: shrunk, exactly half, unchanged, enlarged, and across each corner."""
    layout, rng = CropLayout(size), np.random.default_rng(size)
    crop = layout.crop_size
    sizes = [(182, 182), (crop // 2, crop // 2), (crop, crop), (351, 377), (crop // 2, 91), (1, 1)]
    corners = [(-71, -43), (301, -20), (-9, 187), (300, 201)]
    places = [(7 + 3 * i, 5 + i) for i in range(len(sizes))]
    rects = [Rect(x, y, x + w, y + h) for (x, y), (w, h) in zip(places, sizes, strict=True)]
    rects += [Rect(x, y, x + 182, y + 183) for x, y in corners]
    character = Character(device, FrameSpec(layout, pixel_format, 400, 300, tuple(rects), Colour(1, 1)), seed=size)
    compositor = compositor_for(device, kind(layout, pixel_format, len(rects), dtype), character)
    speech = Speech(device, features(rng, 14))
    shots = [Shot(character, i, speech, i, 6000 * i) for i in range(len(rects))]
    check_batch(device, compositor, compositor.new_slot(), shots, predictions(rng, len(rects), size, dtype))
    compositor.close()


def test_every_matrix_in_one_batch(device: Device) -> None:
    rng, layout = np.random.default_rng(5), CropLayout(16)
    colours = [Colour(matrix, range_) for matrix in (*LUMA_WEIGHTS, 2, 0) for range_ in (1, 2)]
    spec = [FrameSpec(layout, "nv12", 30, 20, (Rect(3, 2, 27, 17),), colour) for colour in colours]
    characters = [Character(device, each, seed=i) for i, each in enumerate(spec)]
    compositor = compositor_for(device, kind(layout, "nv12", len(colours)), *characters)
    speech = Speech(device, features(rng, 3))
    shots = [Shot(character, 0, speech, 1) for character in characters]
    check_batch(device, compositor, compositor.new_slot(), shots, predictions(rng, len(shots), 16, np.float32))
    compositor.close()


def test_a_rectangle_outside_draws_nothing(device: Device, silence: Speech) -> None:
    rects = (Rect(-20, 0, -4, 8), Rect(32, 4, 40, 12), Rect(3, 16, 9, 22), Rect(0, -9, 5, 0), Rect(2, 2, 9, 9))
    character = Character(device, FrameSpec(CropLayout(16), "nv12", 32, 16, rects), seed=1)
    compositor = compositor_for(device, kind(CropLayout(16), "nv12", 5), character)
    given = predictions(np.random.default_rng(1), 5, 16, np.float32)
    check_batch(device, compositor, compositor.new_slot(), [Shot(character, i, silence, i) for i in range(5)], given)
    compositor.close()


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("place", [0, 8191, 8192, 3 * 64 * 64 - 1])
def test_one_nan_anywhere_sets_the_frames_bit(device: Device, silence: Speech, dtype: Any, place: int) -> None:
    """Also one that no tap reads: the rectangle is a single pixel. Batches have more than one word of bits; a place
    that is empty has none, whatever its prediction holds."""
    layout = CropLayout(64)
    character = Character(device, FrameSpec(layout, "bgr24", 6, 5, (Rect(2, 2, 3, 3),)), seed=place)
    compositor = compositor_for(device, kind(layout, "bgr24", 70, dtype), character)
    slot = compositor.new_slot()
    shot = Shot(character, 0, silence, 0)
    for count, frames in ((70, [0, 31, 32, 69]), (70, []), (70, [33]), (40, [31, 39, 40, 69]), (70, [40])):
        compositor.prepare(slot, [shot.drawing(device) for _ in range(count)])
        prediction = np.ones((70, 3 * 64 * 64), dtype)
        prediction[frames, place] = np.nan
        put(device, slot.prediction, prediction.reshape(70, 3, 64, 64))
        compositor.paste(slot)
        has_nan = compositor.finish(slot)
        assert has_nan.shape == (count,)
        assert np.flatnonzero(has_nan).tolist() == [frame for frame in frames if frame < count]
    compositor.close()


def test_slots_in_flight_do_not_mix(device: Device, silence: Speech) -> None:
    """Three slots pasted before any is finished."""
    rects = tuple(Rect(i, i + 1, i + 20, i + 18) for i in range(6))
    rng, layout = np.random.default_rng(2), CropLayout(16)
    character = Character(device, FrameSpec(layout, "nv12", 48, 32, rects), seed=2)
    compositor = compositor_for(device, kind(layout, "nv12", 2), character, model_on_device=False)
    slots = [compositor.new_slot() for _ in range(3)]
    for turn in range(2):
        sources = [((2 * i + turn) % 6, (2 * i + 1 + turn) % 6) for i in range(3)]
        given = [predictions(rng, 2, 16, np.float32, strange=False) for _ in slots]
        batches = [[Shot(character, s, silence, s).drawing(device) for s in pair] for pair in sources]
        for slot, batch, prediction in zip(slots, batches, given, strict=True):
            compositor.prepare(slot, batch)
            compositor.ready(slot)
            put(device, slot.prediction, prediction)
            compositor.paste(slot)
        for slot, batch, prediction in zip(slots, batches, given, strict=True):
            assert not compositor.finish(slot).any()
            for drawing, each in zip(batch, prediction, strict=True):
                want = character.finished(drawing.source, each)
                assert np.array_equal(pixels(device, drawing.surface), want)
    compositor.close()


def test_batches_of_a_kind_are_the_same_launches(
    device: Device, silence: Speech, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever is in a batch, and however many: as a CUDA graph would want it. The most demanding frame that has been
    admitted says how many blocks there are."""
    layout = CropLayout(16)
    launches: list[tuple[Any, ...]] = []

    def loaded(name: str, dtype: Any) -> Any:
        def called(grid: Any, block: Any, args: Any, *, stream: Any) -> None:
            launches.append((name, grid, *(int(a) if isinstance(a, np.int32) else a.data.ptr for a in args)))
            kernels.load(name, dtype)(grid, block, args, stream=stream)

        return called

    monkeypatch.setattr(launch, "load", loaded)
    sizes = [(400, 300, Rect(10, 20, 330, 290)), (16, 8, Rect(0, 0, 5, 5)), (64, 640, Rect(-2, 5, 20, 9))]
    specs = [FrameSpec(layout, "bgr24", width, height, (rect,)) for width, height, rect in sizes]
    large, small, tall = (Character(device, spec, seed=1) for spec in specs)
    compositor = compositor_for(device, kind(layout, "bgr24", 4), large, small)
    slot = compositor.new_slot()
    for shown in ([large, small], [small], [small, small, small, large], [large]):
        compositor.prepare(slot, [Shot(each, 0, silence, 0).drawing(device) for each in shown])
        compositor.paste(slot)
        compositor.finish(slot)
    assert launches == launches[:2] * 4
    blocks = launches[1][1][0]
    compositor.admit(tall.frames)
    compositor.prepare(slot, [Shot(small, 0, silence, 0).drawing(device)])
    compositor.paste(slot)
    compositor.finish(slot)
    assert launches[-1][1] == (blocks, 4)  # fewer bytes to draw, and to copy, than `large`
    compositor.close()


def test_a_batch_that_was_given_up_does_no_harm(device: Device) -> None:
    """Its slot is prepared again while its table may still be on its way."""
    rng, layout = np.random.default_rng(6), CropLayout(16)
    character = Character(device, FrameSpec(layout, "bgr24", 30, 20, (Rect(3, 2, 27, 17),) * 3), seed=6)
    compositor = compositor_for(device, kind(layout, "bgr24", 3), character)
    slot, speech = compositor.new_slot(), Speech(device, features(rng, 9))
    shots = [Shot(character, i, speech, i) for i in range(3)]
    compositor.prepare(slot, [shot.drawing(device) for shot in shots])
    check_batch(device, compositor, slot, [shots[2]], predictions(rng, 1, 16, np.float32))
    check_batch(device, compositor, slot, shots, predictions(rng, 3, 16, np.float32))
    compositor.close()


@pytest.mark.parametrize("first", ["frames", "speech"])
def test_what_is_closed_is_done_with(device: Device, first: str) -> None:
    """Frames or a speech may be closed while a batch that was given up is queued."""
    rng, layout, before = np.random.default_rng(7), CropLayout(16), device.free_bytes
    character = Character(device, FrameSpec(layout, "bgr24", 30, 20, (Rect(3, 2, 27, 17),)), seed=7)
    compositor, speech = compositor_for(device, kind(layout, "bgr24", 1), character), Speech(device, features(rng, 9))
    slot = compositor.new_slot()
    compositor.prepare(slot, [Shot(character, 0, speech, 0).drawing(device)])
    queued = device.event()
    device.record(queued, device.compute_stream)
    (character.frames if first == "frames" else speech.device).close()
    assert queued.done
    assert on_host(device, slot.visual)[0].tobytes() == character.visual(0).tobytes()
    assert on_host(device, slot.audio)[0].tobytes() == reference.speech_window(speech.features, 0).tobytes()
    compositor.close()
    character.frames.close()
    speech.device.close()
    assert gives_back(before, device.free_bytes)


def test_a_slot_knows_when_its_steps_ran(device: Device, silence: Speech) -> None:
    layout = CropLayout(16)
    character = Character(device, FrameSpec(layout, "bgr24", 8, 8, (Rect(0, 0, 8, 8),)), seed=3)
    compositor = compositor_for(device, kind(layout, "bgr24", 1), character)
    slot = compositor.new_slot()
    for with_model in (True, False):
        compositor.prepare(slot, [Shot(character, 0, silence, 0).drawing(device)])
        if with_model:
            slot.marks.begin("infer")
            slot.marks.end("infer")
        compositor.paste(slot)
        compositor.finish(slot)
        steps = slot.marks.collect()
        assert [step.name for step in steps] == (["prepare", "infer", "paste"] if with_model else ["prepare", "paste"])
        times = [time for step in steps for time in (step.start, step.end)]
        assert times == sorted(times)
        assert slot.marks.collect() == []
    compositor.close()


def test_what_is_refused(device: Device, silence: Speech) -> None:
    layout = CropLayout(16)
    spec = FrameSpec(layout, "bgr24", 8, 8, (Rect(0, 0, 8, 8),))
    character, other = Character(device, spec, seed=3), Character(device, spec, seed=4)
    compositor = compositor_for(device, kind(layout, "bgr24", 2), character)
    slot, drawing = compositor.new_slot(), Shot(character, 0, silence, 0).drawing(device)
    with pytest.raises(IndexError, match=r"source must be 0 to 0 .got 1."):
        compositor.prepare(slot, [drawing, drawing._replace(source=1)])
    with pytest.raises(ValueError, match=r"a batch has 1 to 2 frames .got 3."):
        compositor.prepare(slot, [drawing] * 3)
    with pytest.raises(ValueError, match=r"a batch has 1 to 2 frames .got 0."):
        compositor.prepare(slot, [])
    with pytest.raises(ValueError, match="must be admitted"):
        compositor.prepare(slot, [drawing._replace(frames=other.frames)])
    with pytest.raises(ValueError, match=r"a surface must be on the device, and .*width=8"):
        compositor.prepare(slot, [drawing._replace(surface=new_surface(device, spec.format._replace(width=7)))])
    with pytest.raises(ValueError, match=r"frames must have .*model_size=20.* and bgr24 .got .*model_size=16"):
        GpuCompositor(device, kind(CropLayout(20), "bgr24", 2)).admit(character.frames)
    with pytest.raises(ValueError, match=r"batch must be 1 to 512 .got 513."):
        GpuCompositor(device, kind(layout, "bgr24", 513))
    with pytest.raises(ValueError, match=r"rectangles must lie within 8192 pixels .got 8193."):
        Character(device, FrameSpec(layout, "bgr24", 8, 8, (Rect(-8193, 0, 8, 8),)), seed=3)
    compositor.close()


@pytest.mark.parametrize("count", [5, 8])
def test_frames_that_are_too_few_or_many_are_refused(device: Device, count: int) -> None:
    spec, before = FrameSpec(CropLayout(16), "bgr24", 8, 8, (Rect(0, 0, 8, 8),) * 7), device.free_bytes
    with pytest.raises(ValueError, match="shorter" if count < 7 else "longer"):
        DeviceFrames.load(device, spec, np.zeros((count, 8, 8, 3), np.uint8), np.zeros((7, 24, 24, 3), np.uint8))
    assert gives_back(before, device.free_bytes)


@pytest.mark.parametrize("model_on_device", [True, False])
def test_ten_compositors_leave_nothing_behind(device: Device, model_on_device: bool) -> None:
    layout = CropLayout(32)
    spec = FrameSpec(layout, "nv12", 64, 48, (Rect(8, 8, 40, 40),) * 5, recorded=True)
    of_batches = kind(layout, "nv12", 3, np.float16)
    before = device.free_bytes
    for turn in range(10):
        character, speech = Character(device, spec, seed=turn), Speech(device, np.ones((5, 512), np.float32))
        wanted = GpuCompositor.bytes_wanted(of_batches, slots=2, model_on_device=model_on_device)
        wanted = wanted | bytes_wanted(spec) | DeviceSpeech.bytes_wanted(speech.rows)
        compositor = compositor_for(device, of_batches, character, model_on_device=model_on_device)
        slots = [compositor.new_slot() for _ in range(2)]
        if on_softcuda():  # a GPU's driver hands out whole pages
            assert before - device.free_bytes == sum(wanted.values())
        shots = [Shot(character, 0, speech, 0).drawing(device) for _ in range(3)]
        for slot in slots:
            compositor.prepare(slot, shots)
            compositor.paste(slot)
        compositor.close()
        compositor.close()
        del shots
        character.frames.close()
        speech.device.close()
        assert gives_back(before, device.free_bytes)


def test_too_little_memory(device: Device) -> None:
    """Refused before anything is allocated, with both numbers and the ways out."""
    spec = FrameSpec(CropLayout(16), "bgr24", 64, 48, (Rect(8, 8, 40, 40),) * 3)
    before = device.free_bytes
    with pytest.raises(DeviceMemoryError) as raised:
        DeviceFrames.load(device, spec, [], [], others={"slots": device.total_bytes})
    free = f"{before / 1e6:.1f} MB of {device.total_bytes / 1e6:.1f} MB are free on GPU {device.index}"
    text = str(raised.value)
    assert f"the job wants {(sum(bytes_wanted(spec).values()) + device.total_bytes) / 1e6:.1f} MB" in text
    assert free in text
    for way_out in ("nv12", "smaller batch", "fewer frames", "another GPU"):
        assert way_out in text
    assert gives_back(before, device.free_bytes)


@pytest.mark.parametrize("on_device", [True, False])
@pytest.mark.parametrize("pixel_format", ["nv12", "bgr24"])
@pytest.mark.parametrize("count", [8, 5])
def test_the_budget_of_a_batch(
    softcuda_counters: Callable[[], dict[str, Any]], pixel_format: PixelFormat, count: int, on_device: bool
) -> None:
    """2 launches, the frames and a word of status down, 64 bytes a frame up, 1 wait, and nothing allocated."""
    counted: list[dict[str, Any]] = []
    begun = softcuda_counters()["pageable_async_copies"]
    gpu_batches.run(26, count, pixel_format, on_device, lambda _: counted.append(softcuda_counters()))
    short, long = counted[6], counted[26]
    cost = {name: long[name] - short[name] for name in short if isinstance(short[name], int)}
    launches = {name: number - short["launches"][name] for name, number in long["launches"].items()}
    assert {name: number for name, number in launches.items() if number} == {"prepare": 20, f"paste_{pixel_format}": 20}
    pixel_bytes = {"nv12": 1.5, "bgr24": 3}[pixel_format]
    frames = sum(width * height * pixel_bytes for width, height in (gpu_batches.SIZES[i % 3] for i in range(count)))
    assert cost["d2h_bytes"] == 20 * (frames + 4)
    assert cost["h2d_bytes"] == 20 * count * 64
    assert cost["syncs"] == 20 * (1 if on_device else 2)
    assert cost["mallocs"] == cost["pinned_allocs"] == cost["d2d_bytes"] == cost["peak_bytes"] == 0
    assert long["pageable_async_copies"] == begun


@pytest.mark.parametrize("pixel_format", ["nv12", "bgr24"])
def test_order_of_blocks_and_threads_does_not_matter(
    softcuda_stats: Any, tmp_path: Path, pixel_format: PixelFormat
) -> None:
    results = []
    for name, env in (("forward", {}), ("reverse", {"SOFTCUDA_REVERSE": "1"})):
        path = tmp_path / f"{name}.npy"
        softcuda_stats([sys.executable, gpu_batches.__file__, "5", "7", pixel_format, str(path)], env=env)
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
