"""Several software CUDA devices in one process: what belongs to which, and what one refuses of another's."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

cp = pytest.importorskip("cupy")

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(os.environ.get("SOFTCUDA") != "1", reason="is about the software device itself"),
]

# What the programs below begin with. `refused` is a call that must fail, and returns what the error says.
COMMON = r"""
import ctypes, threading
import cupy as cp, numpy as np
from cupy.cuda import Device, Event, Stream, driver, runtime

cp.cuda.set_allocator(None)  # each array is an allocation of its own
errors = (runtime.CUDARuntimeError, driver.CUDADriverError)
add = cp.RawKernel('extern "C" __global__ void add(int* x, int n) { atomicAdd(x + threadIdx.x, n); }', "add")
nothing = cp.RawKernel('extern "C" __global__ void nothing() {}', "nothing")

def refused(call, *arguments, **named):
    try:
        call(*arguments, **named)
    except errors as e:
        return str(e)
    raise AssertionError(f"{call} was not refused")

def pinned(n, value=0):
    array = np.frombuffer(cp.cuda.alloc_pinned_memory(4 * n), np.int32, n)
    array[:] = value
    return array

def on(device, call, *arguments, **named):
    with Device(device):
        return call(*arguments, **named)
"""


def run(program: str, devices: int = 2, **env: str) -> None:
    """Run a program with that many devices; it must end well and say nothing."""
    done = subprocess.run(
        [sys.executable, "-c", COMMON + program],
        env=os.environ | {"SOFTCUDA_DEVICES": str(devices)} | env,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode or done.stderr:
        pytest.fail(f"the program ended with exit status {done.returncode}:\n{done.stderr}", pytrace=False)


# --- which devices there are


def test_devices_are_told_apart() -> None:
    run(
        r"""
assert runtime.getDeviceCount() == 3
count = ctypes.c_int()
assert ctypes.CDLL("libcuda.so.1").cuDeviceGetCount(ctypes.byref(count)) == 0 and count.value == 3
properties = [runtime.getDeviceProperties(i) for i in range(3)]
assert [p["name"] for p in properties] == [b"softcuda (CPU) #%d" % i for i in range(3)]
assert len({p["uuid"] for p in properties}) == 3
assert [p["pciBusID"] for p in properties] == [0, 1, 2]
assert [Device.from_pci_bus_id(Device(i).pci_bus_id).id for i in range(3)] == [0, 1, 2]
assert "InvalidDevice" in refused(runtime.deviceGetByPCIBusId, "0000:03:00.0")
for wrong in (-1, 3):
    assert "InvalidDevice" in refused(runtime.setDevice, wrong)
    assert "InvalidDevice" in refused(runtime.getDeviceProperties, wrong)
    assert "InvalidDevice" in refused(runtime.deviceGetAttribute, 16, wrong)
assert runtime.getDevice() == 0
""",
        devices=3,
    )


def test_there_is_one_device_unless_more_are_asked_for() -> None:
    assert cp.cuda.runtime.getDeviceCount() == 1
    assert cp.cuda.runtime.getDeviceProperties(0)["name"] == b"softcuda (CPU)"


def test_the_current_device_and_context_are_the_threads_own() -> None:
    run(r"""
Device(1).use()
seen = []
def look():
    seen.append(runtime.getDevice())
    with Device(1):
        seen.append(runtime.getDevice())
    seen.append(runtime.getDevice())
thread = threading.Thread(target=look)
thread.start()
thread.join()
assert seen == [0, 1, 0]
assert runtime.getDevice() == driver.ctxGetDevice() == 1

contexts = [on(i, driver.ctxGetCurrent) for i in (0, 1)]
assert contexts[0] != contexts[1]
driver.ctxSetCurrent(contexts[0])
assert runtime.getDevice() == driver.ctxGetDevice() == 0
stream = on(1, lambda: Stream(non_blocking=True))
assert driver.streamGetCtx(stream.ptr) == contexts[1]
assert "INVALID_CONTEXT" in refused(driver.ctxSetCurrent, 12345)
""")


def test_threads_work_on_devices_at_once() -> None:
    run(r"""
results = {}
def work(i):
    with Device(i):
        stream = Stream(non_blocking=True)
        with stream:
            x = cp.arange(64, dtype=np.int32) + 1000 * i
            for _ in range(20):
                add((1,), (64,), (x, np.int32(i)))
            results[i] = x.get(stream=stream), x.device.id, runtime.pointerGetAttributes(x.data.ptr).device
threads = [threading.Thread(target=work, args=(i,)) for i in range(3)]
for t in threads: t.start()
for t in threads: t.join()
for i in range(3):
    values, *devices = results[i]
    assert (values == np.arange(64) + 1000 * i + 20 * i).all()
    assert devices == [i, i]
""", devices=3)  # fmt: skip


# --- memory


def test_memory_is_each_devices_own() -> None:
    run(
        r"""
def free(): return [on(i, runtime.memGetInfo)[0] for i in (0, 1)]
assert on(1, runtime.memGetInfo) == (1_000_000, 1_000_000)
a = on(0, cp.empty, 600_000, np.uint8)
b = on(1, cp.empty, 700_000, np.uint8)
assert free() == [400_000, 300_000]
with Device(1):
    assert "out of memory" in refused(cp.empty, 400_000, np.uint8)
    del a  # wherever it is freed
assert free() == [1_000_000, 300_000]

host = on(1, cp.cuda.alloc_pinned_memory, 4096)
attributes = runtime.pointerGetAttributes(host.ptr)
assert (attributes.type, attributes.device) == (runtime.memoryTypeHost, 1)
assert runtime.pointerGetAttributes(b.data.ptr).device == 1
assert runtime.pointerGetAttributes(b.data.ptr).type == runtime.memoryTypeDevice
assert runtime.pointerGetAttributes(np.zeros(9).ctypes.data).device == runtime.cudaInvalidDeviceId
""",
        SOFTCUDA_MEM="1000000",
    )


def test_copies_reach_every_device() -> None:
    run(r"""
source = on(0, cp.arange, 100, dtype=np.int32)
target = on(1, cp.zeros, 100, np.int32)
runtime.memcpyPeer(target.data.ptr, 1, source.data.ptr, 0, 40)
assert on(1, target.get).tolist() == [*range(10), *[0] * 90]
with Device(1):
    stream = Stream(non_blocking=True)
runtime.memcpyPeerAsync(target.data.ptr + 40, 1, source.data.ptr + 40, 0, 40, stream.ptr)
runtime.memcpyAsync(target.data.ptr + 80, source.data.ptr + 80, 320, runtime.memcpyDefault, stream.ptr)
stream.synchronize()
assert (on(1, target.get) == np.arange(100)).all()
runtime.memcpy(source.data.ptr, target.data.ptr + 396, 4, runtime.memcpyDefault)
assert on(0, source.get)[0] == 99

host = pinned(100, 7)  # between the host and a device that is not current, on a stream of that device
runtime.memcpyAsync(target.data.ptr, host.ctypes.data, 400, runtime.memcpyHostToDevice, stream.ptr)
stream.synchronize()
assert (on(1, target.get) == 7).all()
with Device(1):
    there = cp.asarray(source)
    assert there.device.id == 1
    assert there.get().tolist() == [99, *range(1, 100)]

InvalidValue, InvalidDevice = "cudaErrorInvalidValue", "cudaErrorInvalidDevice"
assert InvalidValue in refused(runtime.memcpyPeer, target.data.ptr, 0, source.data.ptr, 0, 4)
assert InvalidValue in refused(runtime.memcpyPeer, target.data.ptr, 1, source.data.ptr, 1, 4)
assert InvalidValue in refused(runtime.memcpyPeer, target.data.ptr, 1, source.data.ptr, 0, 404)
assert InvalidDevice in refused(runtime.memcpyPeer, target.data.ptr, 2, source.data.ptr, 0, 4)
""")


def test_the_default_streams_copy_between_devices_waits_for_both() -> None:
    run(r"""
streams = [on(i, lambda: Stream(non_blocking=True)) for i in (0, 1)]
with Device(0), streams[0]:
    source = cp.full(10, 3, np.int32)
with Device(1), streams[1]:
    target = cp.full(10, 4, np.int32)
runtime.memcpy(target.data.ptr, source.data.ptr, 40, runtime.memcpyDefault)
assert target.get(stream=streams[1]).tolist() == [3] * 10

# A stream's copy waits for nothing but its own stream: here it runs before the memory is written.
with Device(0), streams[0]:
    source = cp.full(10, 5, np.int32)
runtime.memcpyPeerAsync(target.data.ptr, 1, source.data.ptr, 0, 40, streams[1].ptr)
assert (target.get(stream=streams[1]).view(np.uint8) == 0xA5).all()
""")


def test_a_device_does_not_reach_the_memory_of_another() -> None:
    run(r"""
assert [runtime.deviceCanAccessPeer(0, 1), runtime.deviceCanAccessPeer(1, 0)] == [0, 0]
assert "PeerAccessUnsupported" in refused(runtime.deviceEnablePeerAccess, 1)
assert "InvalidDevice" in refused(runtime.deviceEnablePeerAccess, 0)
assert "PeerAccessNotEnabled" in refused(runtime.deviceDisablePeerAccess, 1)
here, there = (on(i, cp.zeros, 4, np.int32) for i in (0, 1))
said = refused(add, (1,), (4,), (there, np.int32(1)))
assert "ILLEGAL_ADDRESS: kernel add on device 0 is given memory of device 1 in its parameter 0" in said
try:
    here + there
    raise AssertionError
except ValueError as e:
    assert "Peer access is unavailable" in str(e)
# CuPy passes arrays to its own kernels as structures.
negative = cp.RawKernel('''struct Array { int* data; long size; };
extern "C" __global__ void negative(int n, Array a) { if (n < a.size) a.data[n] = -1; }''', "negative")
array = np.dtype([("data", "u8"), ("size", "i8")])
negative((1,), (1,), (np.int32(0), np.array((here.data.ptr, 4), array)))
said = refused(negative, (1,), (1,), (np.int32(0), np.array((there.data.ptr, 4), array)))
assert "memory of device 1 in its parameter 1" in said
with Stream.null:
    assert "InvalidValue" in refused(runtime.memset, there.data.ptr, 0, 4)
assert on(0, here.get).tolist() == [-1, 0, 0, 0]
assert on(1, there.get).tolist() == [0, 0, 0, 0]
""")
