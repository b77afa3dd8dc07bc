"""A speech on a device: every window's address leads to the rows that it is defined to have."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import reference
from conftest import gives_back, on_softcuda
from gpu_scene import Character, Shot, Speech, check_batch, features, on_host, predictions
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from gpupipe.compose import device_speech
from gpupipe.compose.device_speech import DeviceSpeech
from gpupipe.compose.frames import FrameSpec
from gpupipe.compose.gpu import GpuCompositor
from gpupipe.compose.protocol import BatchKind
from gpupipe.geometry import CropLayout, Rect
from gpupipe.gpu.device import Device, open_device
from gpupipe.speech.rows import SpeechRows

pytestmark = pytest.mark.cuda


@pytest.fixture(scope="module")
def device() -> Device:
    return open_device()


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of 40 rows, uploaded 3 at a time, and 10 before they are needed."""
    monkeypatch.setattr(device_speech, "BLOCK", 40)
    monkeypatch.setattr(device_speech, "AHEAD", 10)
    monkeypatch.setattr(device_speech, "PIECE", 3)


def window_at(device: Device, address: int) -> NDArray[np.float32]:
    """What a kernel queued on the compute stream now would read there: 17 rows."""
    import cupy

    device.compute_stream.synchronize()
    memory = cupy.cuda.UnownedMemory(address, 17 * 512 * 4, None, device.index)
    rows: NDArray[np.float32] = cupy.ndarray((17, 512), np.float32, cupy.cuda.MemoryPointer(memory, 0)).get()
    return rows


def expected(rows: NDArray[np.float32], row: int) -> NDArray[np.float32]:
    """Rows `row` - 8 … `row` + 8; zeros outside."""
    window = np.zeros((17, 512), np.float32)
    for k in range(17):
        if 0 <= row - 8 + k < len(rows):
            window[k] = rows[row - 8 + k]
    return window


@pytest.mark.parametrize("count", [0, 1, 16, 17, 130])
def test_every_window_of_a_whole_speech(device: Device, count: int) -> None:
    rows = features(np.random.default_rng(count), count)
    speech = DeviceSpeech(device, SpeechRows(rows))
    for row in [*range(-40, count + 40), -(10**9), 10**9]:
        assert np.array_equal(window_at(device, speech.window(row)), expected(rows, row)), row
    speech.close()


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=st.lists(st.tuples(st.integers(0, 30), st.integers(-20, 20)), max_size=25), late=st.integers(0, 90))
def test_every_window_of_a_growing_speech(
    device: Device, small_blocks: None, steps: list[tuple[int, int]], late: int
) -> None:
    """Rows come in any number, before the first window too; frames follow, near or far behind, and rows behind them
    are let go of."""
    rng = np.random.default_rng(late)
    rows, have, forgotten = SpeechRows(), features(rng, late), -100
    rows.append(have)
    speech = DeviceSpeech(device, rows)
    shown = 0
    for more, further in steps:
        new = features(rng, more)
        rows.append(new)
        have = np.concatenate([have, new])
        shown += abs(further)
        for row in (shown, shown - 20 + further, shown + 1):
            if row >= forgotten:
                assert np.array_equal(window_at(device, speech.window(row)), expected(have, row)), row
        forgotten = max(forgotten, shown - 30)
        speech.forget(forgotten)
        assert np.array_equal(window_at(device, speech.window(forgotten)), expected(have, forgotten))
    speech.update()
    rows.finish()
    for row in range(max(forgotten, len(have) - 20), len(have) + 20):
        assert np.array_equal(window_at(device, speech.window(row)), expected(have, row)), row
    speech.close()


def test_what_is_forgotten_is_gone(device: Device, small_blocks: None) -> None:
    speech = Speech(device, features(np.random.default_rng(0), 200), growing=True).device
    assert speech.window(100)
    speech.forget(100)
    assert speech.window(100)
    with pytest.raises(IndexError, match="row 20 of the speech has been forgotten; 100 is the first one kept"):
        speech.window(20)
    speech.close()


def test_memory_is_bounded_however_long_the_speech(device: Device, softcuda_counters: Callable[[], Any]) -> None:
    """Allocations while the first blocks are made, and then none; 2048 bytes up a row, and no wait. All rows have come
    before the first frame, or a second's at a time."""
    new = features(np.random.default_rng(0), 25)
    for ready in (0, 200):
        before, rows = device.free_bytes, SpeechRows()
        for _ in range(ready):
            rows.append(new)
        speech = DeviceSpeech(device, rows)
        steady: dict[str, Any] = {}
        for second in range(200):
            if not ready:
                rows.append(new)
            speech.window(25 * second + 8)
            speech.forget(25 * second - 250)
            device.compute_stream.synchronize()  # as each batch does in the end
            if second == 100:
                steady = softcuda_counters()
        counted = softcuda_counters()
        assert counted["mallocs"] == steady["mallocs"]
        assert counted["pinned_allocs"] == steady["pinned_allocs"]
        assert counted["syncs"] - steady["syncs"] == 99
        assert counted["pageable_async_copies"] == steady["pageable_async_copies"]
        up = counted["h2d_bytes"] - steady["h2d_bytes"]
        assert up <= 99 * 25 * 2048 * 1.04 + (512 + 96) * 2048
        assert before - device.free_bytes <= sum(DeviceSpeech.bytes_wanted(SpeechRows()).values())
        speech.close()
        assert gives_back(before, device.free_bytes)


def test_a_speech_takes_what_it_says(device: Device) -> None:
    before = device.free_bytes
    rows = SpeechRows(np.ones((75, 512), np.float32))
    speech = DeviceSpeech(device, rows)
    if on_softcuda():
        assert before - device.free_bytes == sum(DeviceSpeech.bytes_wanted(rows).values()) == (75 + 34) * 2048
    speech.close()
    assert gives_back(before, device.free_bytes)


def test_batches_of_speeches_that_grow_meanwhile(device: Device, small_blocks: None) -> None:
    """`prepare` uploads what has come, over many blocks that are used again."""
    layout, rng = CropLayout(16), np.random.default_rng(1)
    character = Character(device, FrameSpec(layout, "bgr24", 8, 8, (Rect(0, 0, 8, 8),)), seed=0)
    compositor = GpuCompositor(device, BatchKind(layout, "bgr24", np.dtype(np.float16), 3))
    compositor.admit(character.frames)
    slots = [compositor.new_slot() for _ in range(2)]
    speeches = [Speech(device, features(rng, 9 + i), growing=True) for i in range(3)]
    for turn in range(90):
        shots = []
        for i, speech in enumerate(speeches):
            speech.grow(features(rng, (turn + i) % 4))
            row = len(speech.features) - 9
            shots.append(Shot(character, 0, speech, row, 21845 * i))
        check_batch(device, compositor, slots[turn % 2], shots, predictions(rng, 3, 16, np.float16))
        for shot in shots:
            shot.speech.device.forget(shot.row)
    compositor.close()


def test_a_block_is_filled_anew_only_when_it_has_been_read(device: Device, small_blocks: None) -> None:
    """A batch is queued, not waited for, and the block that it reads is let go of and taken by other rows."""
    layout, rng = CropLayout(16), np.random.default_rng(2)
    character = Character(device, FrameSpec(layout, "bgr24", 8, 8, (Rect(0, 0, 8, 8),)), seed=0)
    compositor = GpuCompositor(device, BatchKind(layout, "bgr24", np.dtype(np.float32), 1))
    compositor.admit(character.frames)
    slot, speech = compositor.new_slot(), Speech(device, features(rng, 30), growing=True)
    compositor.prepare(slot, [Shot(character, 0, speech, 12).drawing(device)])
    speech.grow(features(rng, 90))
    for row in (60, 110):
        speech.device.forget(row)
        speech.device.window(row)
    device.wait_for_queued(device.upload_stream)
    window = on_host(device, slot.audio)[0]
    assert window.tobytes() == reference.speech_window(speech.features, 12).tobytes()
    compositor.close()
    speech.device.close()
