"""Streams, events, kernels and counters of several software CUDA devices in one process."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import pytest
from test_softcuda_devices import COMMON, run

pytest.importorskip("cupy")

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(os.environ.get("SOFTCUDA") != "1", reason="is about the software device itself"),
]


def test_kernels_run_on_the_current_device_only() -> None:
    run(r"""
foreign = on(1, lambda: Stream(non_blocking=True))
said = refused(nothing.kernel, (1,), (1,), (), stream=foreign)
assert "INVALID_HANDLE: kernel nothing launched with device 0 current, on a stream of device 1" in said
first = nothing.kernel  # CuPy loads a module for each device
with Device(1):
    said = refused(first, (1,), (1,), ())
    assert "INVALID_HANDLE: kernel nothing launched with device 1 current, from a module of device 0" in said
    nothing.kernel((1,), (1,), (), stream=foreign)
foreign.synchronize()  # with device 0 current, which is allowed

module = cp.cuda.function.Module()
module.load(cp.cuda.compiler.compile_using_nvrtc('extern "C" __global__ void gone() {}')[0])
handle = module.get_function("gone").ptr
del module
assert "INVALID_HANDLE" in refused(driver.launchKernel, handle, 1, 1, 1, 1, 1, 1, 0, 0, 0, 0)
""")


def test_the_default_stream_is_each_devices_own() -> None:
    run(r"""
hosts = [pinned(4), pinned(4)]
for i in (0, 1):
    with Device(i):
        x = cp.zeros(4, np.int32)
        Device(i).synchronize()
        add((1,), (4,), (x, np.int32(i + 5)))
        x.data.copy_to_host_async(hosts[i].ctypes.data, 16, Stream.null)
assert [h.tolist() for h in hosts] == [[0] * 4, [0] * 4]
Device(1).synchronize()
assert [h.tolist() for h in hosts] == [[0] * 4, [6] * 4]
assert on(1, lambda: Stream.null.done)
assert not on(0, lambda: Stream.null.done)
Device(0).synchronize()
assert hosts[0].tolist() == [5] * 4

# Blocking streams are ordered with the default stream of their own device.
blocking = on(1, Stream)
x = on(0, cp.zeros, 4, np.int32)
x.data.copy_to_host_async(hosts[0].ctypes.data, 16, Stream.null)
with Device(1), blocking:
    nothing((1,), (1,), ())
blocking.synchronize()
assert hosts[0].tolist() == [5] * 4
""")


def test_events_order_streams_of_several_devices() -> None:
    run(r"""
streams = [on(i, lambda: Stream(non_blocking=True)) for i in (0, 1)]
events = [on(i, lambda: Event()) for i in (0, 1)]
with Device(1), streams[1]:
    target = cp.zeros(4, np.int32)
with Device(0), streams[0]:
    source = cp.full(4, 9, np.int32)
    events[0].record(streams[0])
streams[1].wait_event(events[0])
runtime.memcpyPeerAsync(target.data.ptr, 1, source.data.ptr, 0, 16, streams[1].ptr)
events[1].record(streams[1])  # of device 1 both, whatever is current
assert not events[1].done
events[1].synchronize()
assert target.get(stream=streams[1]).tolist() == [9] * 4

Handle = "cudaErrorInvalidResourceHandle"
assert Handle in refused(events[0].record, streams[1])
assert Handle in refused(events[1].record, Stream.null)
on(1, events[1].record, Stream.null)
assert Handle in refused(cp.cuda.get_elapsed_time, *events)
assert events[0].done  # the recordings that were refused changed nothing
""")


def test_a_graph_is_replayed_on_its_device() -> None:
    run(r"""
with Device(1):
    stream = Stream(non_blocking=True)
    x = cp.zeros(4, np.int32)
    add.kernel
    Device().synchronize()
    with stream:
        stream.begin_capture()
        add((1,), (4,), (x, np.int32(2)))
        graph = stream.end_capture()
graph.launch(stream)
graph.launch(stream)
assert x.get(stream=stream).tolist() == [4] * 4
""")


# --- counters


def test_stats_of_each_device(softcuda_stats: Callable[..., dict[str, Any]]) -> None:
    program = (
        COMMON
        + r"""
a, b = on(0, cp.cuda.alloc, 1000), on(1, cp.cuda.alloc, 600)
streams = [on(i, lambda: Stream(non_blocking=True)) for i in (0, 1)]
with Device(1):
    cp.cuda.set_pinned_memory_allocator(None)
    host = cp.cuda.alloc_pinned_memory(1000)
    nothing.kernel((1,), (1,), (), stream=streams[1])
nothing.kernel((1,), (1,), (), stream=streams[0])
nothing.kernel((1,), (1,), (), stream=streams[0])
runtime.memcpyAsync(a.ptr, host.ptr, 1000, 1, streams[0].ptr)
runtime.memcpyPeerAsync(b.ptr, 1, a.ptr, 0, 500, streams[1].ptr)
runtime.memcpyAsync(host.ptr, b.ptr, 200, 2, streams[1].ptr)
streams[1].synchronize()
on(1, Device().synchronize)
streams[0].synchronize()
"""
    )
    none = dict.fromkeys(("h2d_bytes", "d2h_bytes", "d2d_bytes", "pinned_allocs", "pageable_async_copies"), 0)
    stats = softcuda_stats(program, env={"SOFTCUDA_DEVICES": "2"})
    first, second = stats.pop("devices")
    assert first == none | {"h2d_bytes": 1000, "mallocs": 1, "syncs": 2, "peak_bytes": 1000, "launches": {"nothing": 2}}
    assert second == none | {"d2d_bytes": 500, "d2h_bytes": 200, "pinned_allocs": 1, "mallocs": 1, "syncs": 1,
                             "peak_bytes": 600, "launches": {"nothing": 1}}  # fmt: skip
    assert stats.pop("profile") == {}
    assert stats.pop("launches") == {"nothing": 3}
    assert stats == {key: first[key] + second[key] for key in stats}


def test_what_breaks_a_capture() -> None:
    """As documented for cudaThreadExchangeStreamCaptureMode, and for streams that are captured."""
    run(r"""
import ctypes, threading
runtime = cp.cuda.runtime
stream = Stream(non_blocking=True)

def captured(mode, work):
    runtime.streamBeginCapture(stream.ptr, mode)
    said = []
    thread = threading.Thread(target=lambda: said.append(refused(work)))
    thread.start()
    thread.join()
    try:
        runtime.streamEndCapture(stream.ptr)
        return said[0], ""
    except runtime.CUDARuntimeError as error:
        return said[0], str(error)

def refused(work):
    try:
        work()
        return ""
    except runtime.CUDARuntimeError as error:
        return str(error)

def exchanged(work):
    mode = ctypes.c_int(1)
    ctypes.CDLL("libcuda.so.1").cuThreadExchangeStreamCaptureMode(ctypes.byref(mode))
    assert mode.value == 0
    work()

allocate = lambda: cp.cuda.Memory(256)
broken = ("cudaErrorStreamCaptureUnsupported", "cudaErrorStreamCaptureInvalidated")
for said, wanted in zip(captured(runtime.streamCaptureModeGlobal, allocate), broken):
    assert wanted in said, said
assert captured(runtime.streamCaptureModeGlobal, lambda: exchanged(allocate)) == ("", "")
assert captured(runtime.streamCaptureModeThreadLocal, allocate) == ("", "")
for waits in (runtime.deviceSynchronize, lambda: exchanged(runtime.deviceSynchronize), stream.synchronize):
    for said, wanted in zip(captured(runtime.streamCaptureModeThreadLocal, waits), broken):
        assert wanted in said, said
""")
