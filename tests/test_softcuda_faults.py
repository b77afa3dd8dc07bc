"""A software CUDA device that dies at a kernel launch, as a GPU does of a fault, and what is left of it then."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from test_softcuda_devices import run

cp = pytest.importorskip("cupy")

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(os.environ.get("SOFTCUDA") != "1", reason="is about the software device itself"),
]

FailAfter = Callable[[int], None]


def test_a_device_dies_at_a_launch_that_is_counted_off() -> None:
    run(
        r"""
x, host = cp.zeros(4, np.int32), pinned(4)
stream, event = Stream(non_blocking=True), Event()
blocked = np.zeros(4, np.int32)
add.kernel
Device().synchronize()
add((1,), (4,), (x, np.int32(1)))
Device().synchronize()
add((1,), (4,), (x, np.int32(1)))
x.data.copy_to_host_async(host.ctypes.data, 16, Stream.null)  # still queued when the device dies

Dead = "cudaErrorIllegalAddress: an illegal memory access was encountered"
for _ in range(2):
    assert "CUDA_ERROR_ILLEGAL_ADDRESS" in refused(add, (1,), (4,), (x, np.int32(1)))
    for call in (
        Device().synchronize,
        stream.synchronize,
        event.synchronize,
        lambda: event.record(stream),
        lambda: stream.wait_event(event),
        runtime.eventCreate,
        runtime.streamCreate,
        lambda: stream.launch_host_func(print, None),
        lambda: x.data.copy_to_host(blocked.ctypes.data, 16),
        lambda: x.data.copy_from_host_async(host.ctypes.data, 16, stream),
        lambda: x.data.memset(0, 16),
        lambda: cp.empty(4),
        lambda: cp.cuda.alloc_pinned_memory(1 << 20),
        runtime.memGetInfo,
    ):
        assert Dead in refused(call)
    assert not event.done
    assert not stream.done
    assert runtime.getDevice() == 0
driver_library = ctypes.CDLL("libcuda.so.1")
assert [driver_library.cudaGetLastError() for _ in range(2)] == [700, 700]
assert driver_library.cudaPeekAtLastError() == 700
assert host.tolist() == [0] * 4
del x, stream, event, host
""",
        devices=1,
        SOFTCUDA_FAIL_LAUNCH="2",
    )


def test_the_other_devices_go_on() -> None:
    run(r"""
library = ctypes.CDLL("libcuda.so.1")
streams = [on(i, lambda: Stream(non_blocking=True)) for i in (0, 1)]
arrays = [on(i, cp.zeros, 4, np.int32) for i in (0, 1)]
for i in (0, 1):
    on(i, lambda: add.kernel)
    Device(i).synchronize()
event = on(1, Event)
host = pinned(4)
with Device(1), streams[1]:
    runtime.memcpyAsync(host.ctypes.data, arrays[1].data.ptr, 16, 2, streams[1].ptr)
    event.record(streams[1])
streams[0].wait_event(event)  # of a device that will not come to it
with Device(0), streams[0]:
    add((1,), (4,), (arrays[0], np.int32(1)))
library.softcudaFailAfter(ctypes.c_longlong(1))
with Device(0), streams[0]:
    add((1,), (4,), (arrays[0], np.int32(1)))
with Device(1), streams[1]:
    refused(add, (1,), (4,), (arrays[1], np.int32(1)))
with Device(0), streams[0]:
    add((1,), (4,), (arrays[0], np.int32(1)))
    assert arrays[0].get().tolist() == [3] * 4
assert "IllegalAddress" in refused(streams[1].synchronize)
assert "IllegalAddress" in refused(streams[0].wait_event, event)
peer = (arrays[0].data.ptr, 0, arrays[1].data.ptr, 1, 16)
assert "IllegalAddress" in refused(runtime.memcpyPeer, *peer)
assert "IllegalAddress" in refused(runtime.memcpyPeerAsync, *peer, streams[0].ptr)
runtime.memcpyPeer(arrays[0].data.ptr, 0, arrays[0].data.ptr + 8, 0, 8)
runtime.deviceSynchronize()
""")


def test_callbacks_are_told_and_host_functions_are_not_called() -> None:
    run(r"""
library = ctypes.CDLL("libcuda.so.1")
nothing.kernel
stream, seen = Stream(non_blocking=True), []
stream.launch_host_func(seen.append, "host function")
stream.add_callback(lambda stream, status, what: seen.append((what, status)), "callback")
library.softcudaFailAfter(ctypes.c_longlong(0))
refused(nothing, (1,), (1,), ())
refused(stream.synchronize)
assert seen == [("callback", 700)]
""")


def test_a_thread_that_waits_is_told(softcuda_fail_after: FailAfter) -> None:
    kernel = cp.RawKernel('extern "C" __global__ void nothing() {}', "nothing")
    kernel((1,), (1,), ())
    stream, raised = cp.cuda.Stream(non_blocking=True), []

    def launch() -> None:
        try:
            kernel((1,), (1,), ())
        except cp.cuda.driver.CUDADriverError as e:
            raised.append(str(e))

    thread = threading.Thread(target=launch)

    def let_it_launch(_: object) -> None:
        thread.start()
        thread.join(60)

    softcuda_fail_after(0)
    stream.launch_host_func(let_it_launch, None)  # runs while this thread waits below
    with pytest.raises(cp.cuda.runtime.CUDARuntimeError, match="cudaErrorIllegalAddress"):
        stream.synchronize()
    assert raised == ["CUDA_ERROR_ILLEGAL_ADDRESS: a kernel failed, and device 0 with it"]


def test_healing(softcuda_fail_after: FailAfter, softcuda_counters: Callable[[], dict[str, Any]]) -> None:
    kernel = cp.RawKernel('extern "C" __global__ void inc(int* x) { ++*x; }', "inc")
    x = cp.zeros(1, np.int32)
    before = softcuda_counters()
    softcuda_fail_after(2)
    for _ in range(2):
        kernel((1,), (1,), (x,))
    assert x.get().tolist() == [2]
    for _ in range(2):
        with pytest.raises(cp.cuda.driver.CUDADriverError, match="CUDA_ERROR_ILLEGAL_ADDRESS"):
            kernel((1,), (1,), (x,))
    softcuda_fail_after(-1)
    kernel((1,), (1,), (x,))
    assert x.get().tolist() == [3]
    assert softcuda_counters()["launches"]["inc"] - before["launches"].get("inc", 0) == 3  # those that were taken
    softcuda_fail_after(1)
    softcuda_fail_after(-1)
    for _ in range(3):
        kernel((1,), (1,), (x,))
    assert x.get().tolist() == [6]
