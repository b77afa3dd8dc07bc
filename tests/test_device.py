"""The GPU is opened or refused with a reason; its memory, copies, events and errors."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import gives_back, on_softcuda

from gpupipe.errors import DeviceError, DeviceMemoryError
from gpupipe.gpu import clock, driver
from gpupipe.gpu import device as room
from gpupipe.gpu.device import Device, describe, open_device
from gpupipe.gpu.types import PitchedRows

cuda = pytest.mark.cuda


@pytest.fixture
def device() -> Device:
    return open_device()


def without_cuda(program: str) -> str:
    """What a program prints where no driver and no software device can be found."""
    hidden = ("SOFTCUDA", "PYTHONPATH", "LD_LIBRARY_PATH")
    env = {name: value for name, value in os.environ.items() if not name.startswith(hidden)}
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=env | {"CUDA_VISIBLE_DEVICES": "-1"},
        cwd=Path(__file__).resolve().parents[1],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_no_gpu_says_why_and_what_to_do() -> None:
    pytest.importorskip("cupy")
    said = without_cuda(
        "from gpupipe.gpu.device import open_device, describe\n"
        "from gpupipe.errors import DeviceError\n"
        "try: open_device()\n"
        "except DeviceError as error: print(error.on_command_line())\n"
        "print(describe())"
    )
    message, described = said.splitlines()
    assert ("no NVIDIA driver is installed" in message) or ("finds no usable GPU" in message)
    assert "--device cpu" in message
    assert message.split(";")[0] in described


def test_importing_gpupipe_does_not_import_cupy() -> None:
    rooms = "gpupipe.gpu.device, gpupipe.gpu.kernels, gpupipe.gpu.launch, gpupipe.compose.gpu, gpupipe.gpu.clock"
    assert without_cuda(f"import sys, gpupipe, {rooms}; print('cupy' in sys.modules)").strip() == "False"


def test_without_cupy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cupy", None)
    with pytest.raises(DeviceError, match=r"CuPy is not installed; pip install 'gpupipe\[cuda\]'"):
        open_device()
    described = describe()
    assert "CuPy is not installed" in described["problem"]
    assert described["devices"] == []


@cuda
@pytest.mark.parametrize("index", [-1, 99])
def test_an_index_out_of_range(index: int) -> None:
    with pytest.raises(DeviceError, match=rf"no such GPU .got {index}.; choose one of 0 to \d+"):
        open_device(index)


@cuda
@pytest.mark.parametrize(
    ("driver", "message"),
    [
        (11080, "the NVIDIA driver is too old: it supports CUDA 11.8, CuPy needs CUDA 1[2-9]; update the driver"),
        (0, "no NVIDIA driver is installed .libcuda was not found.; install the driver"),
    ],
)
def test_drivers_that_do_not_do(monkeypatch: pytest.MonkeyPatch, driver: int, message: str) -> None:
    import cupy

    monkeypatch.setattr(cupy.cuda.runtime, "driverGetVersion", lambda: driver)
    with pytest.raises(DeviceError, match=message):
        open_device()
    assert describe()["problem"]


@cuda
def test_describes_the_device(device: Device) -> None:
    described = describe()
    assert described["problem"] is None
    assert described["driver"] == f"{device.driver_version // 1000}.{device.driver_version % 1000 // 10}"
    (first, *_) = described["devices"]
    assert first["name"] == device.name
    assert first["index"] == device.index == 0
    assert first["compute_capability"] == "{}.{}".format(*device.compute_capability)
    assert first["total_bytes"] == device.total_bytes
    assert 0 < first["free_bytes"] <= device.total_bytes


@cuda
def test_streams_do_not_wait_for_the_default_one(device: Device) -> None:
    import cupy

    for stream in (device.compute_stream, device.copy_stream):
        assert stream.ptr != 0
        assert cupy.cuda.runtime.streamGetFlags(stream.ptr) == cupy.cuda.runtime.streamNonBlocking


@cuda
def test_arrays_return_their_bytes(device: Device) -> None:
    before = device.free_bytes
    array = device.empty((3, 5), np.float32)
    assert (array.shape, array.dtype, array.data.ptr % 256) == ((3, 5), np.dtype(np.float32), 0)
    assert device.empty((0, 7), np.uint8).shape == (0, 7)
    if on_softcuda():
        assert before - device.free_bytes == 60
    del array
    assert gives_back(before, device.free_bytes)


@cuda
def test_a_round_trip_with_rows(device: Device) -> None:
    """Rows of 6 bytes, 16 apart on the device; the bytes between them stay as they were."""
    host = device.pinned((4, 6), np.uint8)
    host[...] = np.arange(24).reshape(4, 6)
    there = device.upload(np.full((4, 16), 200, np.uint8))
    back, whole = device.pinned((4, 6), np.uint8), device.pinned((4, 16), np.uint8)
    stream = device.copy_stream
    device.copy(there, host, stream, rows=PitchedRows(rows=4, width=6, source_pitch=6, target_pitch=16))
    device.copy(back, there, stream, rows=PitchedRows(rows=4, width=6, source_pitch=16, target_pitch=6))
    device.copy(whole, there, stream)
    done = device.event()
    device.record(done, stream)
    device.wait(done)
    assert np.array_equal(back, np.arange(24).reshape(4, 6))
    assert np.array_equal(whole[:, :6], back)
    assert (whole[:, 6:] == 200).all()


@cuda
def test_copies_that_do_not_fit(device: Device) -> None:
    small, large = device.pinned((4, 6), np.uint8), device.empty((4, 16), np.uint8)
    with pytest.raises(ValueError, match="target has 24 bytes, source 64"):
        device.copy(small, large, device.copy_stream)
    rows = PitchedRows(rows=4, width=7, source_pitch=16, target_pitch=6)
    with pytest.raises(ValueError, match="does not fit in an array of 24 bytes"):
        device.copy(small, large, device.copy_stream, rows=rows)


@cuda
def test_one_stream_waits_for_another(device: Device) -> None:
    there = device.empty((1000,), np.uint8)
    ones, back = device.pinned((1000,), np.uint8), device.pinned((1000,), np.uint8)
    ones[...] = 1
    device.copy(there, ones, device.compute_stream)
    written, read = device.event(), device.event()
    device.record(written, device.compute_stream)
    device.stream_waits_for(device.copy_stream, written)
    device.copy(back, there, device.copy_stream)
    device.record(read, device.copy_stream)
    device.wait(read)
    assert (back == 1).all()


@cuda
def test_mapped_memory_is_one_memory(device: Device) -> None:
    host = device.pinned((10,), np.float32)
    host[...] = np.arange(10)
    there: Any = device.mapped(host)
    there += 1
    device.synchronize()
    import cupy

    cupy.cuda.Device().synchronize()
    assert np.array_equal(host, np.arange(1, 11))


@cuda
def test_what_fits_and_what_does_not(device: Device) -> None:
    device.require({"frames": device.free_bytes})
    with pytest.raises(DeviceMemoryError, match=r"frames .* MB, slots 1.0 MB\) but .* free on GPU 0") as raised:
        device.require({"frames": device.free_bytes, "slots": 1_000_000, "nothing": 0})
    assert room.WAYS_OUT in raised.value.on_command_line()
    assert "nothing" not in str(raised.value)


@cuda
def test_an_error_that_is_not_about_memory(device: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    import cupy

    class LaunchError(cupy.cuda.runtime.CUDARuntimeError):  # type: ignore[misc]
        status = 719

        def __init__(self) -> None:
            RuntimeError.__init__(self, "cudaErrorLaunchFailure")

    def fail(*_: Any) -> None:
        raise LaunchError

    monkeypatch.setattr(cupy.cuda, "Memory", fail)
    with pytest.raises(DeviceError, match="failed: ") as raised:
        device.empty((1,), np.uint8)
    assert not isinstance(raised.value, DeviceMemoryError)


@cuda
def test_a_host_that_cannot_lock_memory(device: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    import cupy

    def fail(*_: Any) -> None:
        cupy.cuda.Memory(1 << 50)  # what cudaHostAlloc would say, too

    monkeypatch.setattr(cupy.cuda.pinned_memory, "PinnedMemory", fail)
    with pytest.raises(DeviceMemoryError, match=r"the host cannot lock 2.0 MB of memory for finished frames"):
        device.pinned((2_000_000,), np.uint8, "finished frames")


@pytest.mark.cuda
def test_a_fault_on_the_gpu_is_a_device_error(device: Device) -> None:
    cupy = pytest.importorskip("cupy")
    with pytest.raises(DeviceError, match=r"failed: cudaError.*see nvidia-smi"), device.use():
        raise cupy.cuda.runtime.CUDARuntimeError(700)


class Switches:
    """Stands for CuPy: which GPU a thread has made current, and whether it has used one."""

    def __init__(self, current: int, *, used: bool) -> None:
        self.now, self.made = current, [current] if used else []
        self.cuda = self.runtime = self.driver = self

    def getDevice(self) -> int:
        return self.now

    def setDevice(self, index: int) -> None:
        self.now = index
        self.made.append(index)  # since CUDA 12 this makes the context

    def ctxGetCurrent(self) -> int:
        return len(self.made)


@pytest.mark.parametrize(
    ("current", "used", "made", "afterwards"),
    [(0, False, [1], 1), (0, True, [0, 1, 0], 0), (1, True, [1], 1), (1, False, [1], 1)],
)
def test_a_gpu_that_is_not_used_is_left_alone(current: int, used: bool, made: list[int], afterwards: int) -> None:
    cupy: Any = Switches(current, used=used)
    with driver.made_current(cupy, 1):
        assert cupy.now == 1
    assert (cupy.made, cupy.now) == (made, afterwards)
    with driver.made_current(cupy, 1), driver.made_current(cupy, 1):
        assert cupy.now == 1
    assert cupy.now == afterwards


@cuda
def test_marks_are_timed_across_a_new_zero(device: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    """A step's times stay in order, and on the host's clock, when the clock has taken a new zero meanwhile."""
    monkeypatch.setattr(clock, "RESTART_SECONDS", 0.0)
    gpu_clock = clock.GpuClock(device)
    early, late = gpu_clock.marks(), gpu_clock.marks()
    before = time.perf_counter()
    for marks in (early, late):
        marks.begin("infer")
        marks.end("infer")
    device.synchronize()
    after = time.perf_counter()
    (first,) = early.collect()  # takes a new zero, behind the other's events
    (second,) = late.collect()
    for step in (first, second):
        assert step.name == "infer"
        assert before - 0.1 <= step.start <= step.end <= after + 0.1
    assert first.end <= second.start + 0.1
    assert early.collect() == late.collect() == []
