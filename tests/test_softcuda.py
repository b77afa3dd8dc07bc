"""The software CUDA device: the order of its work, what it refuses, and what it counts."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

cp = pytest.importorskip("cupy")

cuda = pytest.mark.cuda
softcuda_only = pytest.mark.skipif(os.environ.get("SOFTCUDA") != "1", reason="is about the software device itself")


def run_alone(program: str, **env: str) -> subprocess.CompletedProcess[str]:
    """A Python program in a process of its own, for what ends the process."""
    return subprocess.run(
        [sys.executable, "-c", program], env=os.environ | env, capture_output=True, text=True, check=False
    )


# --- order


@cuda
@softcuda_only
def test_work_waits_until_something_waits_for_it() -> None:
    host = np.frombuffer(cp.cuda.alloc_pinned_memory(64), np.uint8, 64)
    host[:] = 1
    stream = cp.cuda.Stream(non_blocking=True)
    with stream:
        source = cp.full(64, 7, np.uint8)
        source.data.copy_to_host_async(host.ctypes.data, 64, stream)
        cp.full(64, 8, np.uint8)
    event = stream.record()
    assert (host == 1).all()
    del source  # frees, and that is no wait either
    cp.cuda.Event().record(cp.cuda.Stream(non_blocking=True))
    assert (host == 1).all()
    assert not event.done
    event.synchronize()
    assert (host == 7).all()
    assert event.done


@cuda
def test_a_stream_waits_for_an_event_of_another() -> None:
    first, second = cp.cuda.Stream(non_blocking=True), cp.cuda.Stream(non_blocking=True)
    x = cp.zeros(4, np.int32)
    cp.cuda.Device().synchronize()
    with first:
        x += 5
        event = first.record()
    second.wait_event(event)
    with second:
        y = x * 2
    second.synchronize()
    assert y.get(stream=second).tolist() == [10] * 4


@cuda
def test_asking_often_enough_sees_the_end() -> None:
    stream = cp.cuda.Stream(non_blocking=True)
    with stream:
        x = cp.ones(4, np.int32)
        x += 1
    for _ in range(10**6):
        if stream.done:
            break
    assert stream.done
    assert x.get(stream=stream).tolist() == [2] * 4


@cuda
def test_host_functions_run_in_order_and_other_threads_go_on() -> None:
    stream = cp.cuda.Stream(non_blocking=True)
    asked, seen = threading.Event(), []
    elsewhere = cp.cuda.Stream(non_blocking=True)

    def ask() -> None:
        asked.set()
        seen.append(elsewhere.done)

    thread = threading.Thread(target=ask)

    def ask_elsewhere(_: object) -> None:
        thread.start()
        thread.join(60)

    stream.launch_host_func(ask_elsewhere, None)
    stream.launch_host_func(seen.append, "last")
    stream.synchronize()
    assert asked.is_set()
    assert seen == [True, "last"]


@cuda
def test_a_graph_repeats_what_was_captured() -> None:
    stream = cp.cuda.Stream(non_blocking=True)
    x = cp.zeros(4, np.int32)
    one = cp.ones(4, np.int32)
    cp.cuda.Device().synchronize()
    with stream:
        cp.add(x, one, out=x)  # compiled before the capture
        stream.begin_capture()
        cp.add(x, one, out=x)
        graph = stream.end_capture()
        graph.launch()
        graph.launch()
    stream.synchronize()
    assert x.get(stream=stream).tolist() == [3] * 4


@cuda
@softcuda_only
def test_reverse_shows_a_kernel_that_depends_on_the_order() -> None:
    program = r"""
import cupy as cp
x = cp.zeros(1, 'i4')
code = 'extern "C" __global__ void last(int* x) { *x = blockIdx.x * 100 + threadIdx.x; }'
cp.RawKernel(code, "last")((3,), (40,), (x,))
print(int(x[0]))
"""
    assert run_alone(program).stdout.split() == ["239"]
    assert run_alone(program, SOFTCUDA_REVERSE="1").stdout.split() == ["0"]


@cuda
@softcuda_only
def test_eager_hides_a_missing_wait() -> None:
    program = r"""
import cupy as cp, numpy as np
host = np.frombuffer(cp.cuda.alloc_pinned_memory(4), np.uint8, 4)
stream = cp.cuda.Stream(non_blocking=True)
with stream:
    cp.full(4, 7, np.uint8).data.copy_to_host_async(host.ctypes.data, 4, stream)
print(host[0])
"""
    assert run_alone(program).stdout.split() == [str(0xA5)]
    assert run_alone(program, SOFTCUDA_EAGER="1").stdout.split() == ["7"]


# --- strictness


@cuda
@softcuda_only
def test_fresh_memory_is_poisoned() -> None:
    pool = cp.cuda.get_allocator()
    cp.cuda.set_allocator(None)
    try:
        assert (cp.empty(1000, np.uint8).get() == 0xA5).all()
    finally:
        cp.cuda.set_allocator(pool)
    pinned = cp.cuda.PinnedMemoryPointer(cp.cuda.PinnedMemory(4096), 0)
    assert (np.frombuffer(pinned, np.uint8, 4096) == 0xA5).all()
    out = cp.empty(64, np.uint8)
    code = r"""extern "C" __global__ void f(unsigned char* o) {
      __shared__ unsigned char s[64];
      o[threadIdx.x] = s[threadIdx.x];
    }"""
    cp.RawKernel(code, "f")((1,), (64,), (out,))
    assert (out.get() == 0xA5).all()


OUTSIDE = r"""
import cupy as cp, numpy as np
cp.cuda.set_allocator(None)
a, out = cp.zeros(512, np.uint8), cp.zeros(1, np.uint8)
k = cp.RawKernel('''extern "C" __global__ void touch(unsigned char* a, unsigned char* o, int at, int write) {
  if (write) a[at] = 1; else *o = a[at];
}''', "touch")
k((1,), (1,), (a, out, np.int32(AT), np.int32(WRITE)))
cp.cuda.Device().synchronize()
"""


@cuda
@softcuda_only
@pytest.mark.parametrize("write", [0, 1])
@pytest.mark.parametrize(
    ("at", "where"),
    [(512, "0 bytes behind the end of an allocation of 512 bytes"), (600, "88 bytes behind the end"),
     (-4096, "4096 bytes before an allocation of 512 bytes")],
)  # fmt: skip
def test_guard_pages_catch_what_is_outside(write: int, at: int, where: str) -> None:
    done = run_alone(OUTSIDE.replace("AT", str(at)).replace("WRITE", str(write)))
    assert done.returncode == -signal.SIGSEGV
    assert "softcuda: kernel touch accessed" in done.stderr
    assert where in done.stderr
    inside = run_alone(OUTSIDE.replace("AT", "511").replace("WRITE", str(write)))
    assert (inside.returncode, inside.stderr) == (0, "")


@cuda
@softcuda_only
@pytest.mark.parametrize(("at", "where"), [(-1, "before"), (1000, "behind")])
def test_writes_between_allocation_and_guard_page_are_found(at: int, where: str) -> None:
    program = OUTSIDE.replace("zeros(512", "zeros(1000").replace("AT", str(at)).replace("WRITE", "1")
    done = run_alone(program)
    assert done.returncode == -signal.SIGABRT
    assert f"something was written {where} an allocation of 1000 bytes, at offset {at}" in done.stderr


@cuda
@softcuda_only
def test_outside_shared_memory_is_outside() -> None:
    program = r"""
import cupy as cp, numpy as np
out = cp.zeros(1, np.float32)
cp.RawKernel('''extern "C" __global__ void f(float* o, int at) {
  __shared__ float s[64]; s[threadIdx.x] = 1; __syncthreads(); *o = s[at]; }''', "f")((1,), (64,), (out, np.int32(64)))
cp.cuda.Device().synchronize()
"""
    assert run_alone(program).returncode == -signal.SIGSEGV
    assert run_alone(program.replace("int32(64)", "int32(63)")).returncode == 0


@cuda
@softcuda_only
@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("*(uint4*)(o + 1) = make_uint4(1, 2, 3, 4);", "misaligned access of 16 bytes"),
        ("if (threadIdx.x < 7) __syncthreads(); else __syncwarp(); o[0] = 1;", "a barrier that other threads"),
        ('asm volatile("trap;");', "trap"),
    ],
)
def test_a_kernel_that_goes_wrong_ends_with_a_message(body: str, message: str) -> None:
    program = f"""
import cupy as cp
code = r'''extern "C" __global__ void wrong(int* o) {{ {body} }}'''
cp.RawKernel(code, "wrong")((1,), (32,), (cp.zeros(64, 'i4'),))
cp.cuda.Device().synchronize()
"""
    done = run_alone(program)
    assert done.returncode == -signal.SIGABRT
    assert message in done.stderr
    assert "in kernel wrong, block (0, 0, 0)" in done.stderr


@cuda
def test_copies_outside_an_allocation_are_refused() -> None:
    pool = cp.cuda.get_allocator()
    cp.cuda.set_allocator(None)
    try:
        a = cp.zeros(100, np.uint8)
        with pytest.raises(cp.cuda.runtime.CUDARuntimeError, match=r"InvalidValue|invalid argument"):
            cp.cuda.runtime.memcpy(a.data.ptr + 50, np.zeros(2**22, np.uint8).ctypes.data, 2**22, 1)
    finally:
        cp.cuda.set_allocator(pool)


@cuda
@pytest.mark.parametrize(
    ("grid", "block", "shared"),
    [((1,), (1025,), 0), ((1, 65536), (1,), 0), ((1,), (1, 1, 65), 0), ((1,), (32,), 200_000), ((1,), (256,), 0)],
)
def test_launches_beyond_the_limits_are_refused(grid: Any, block: Any, shared: int) -> None:
    kernel = cp.RawKernel('extern "C" __global__ void __launch_bounds__(128) bound() {}', "bound")
    kernel((1,), (128,), ())
    with pytest.raises(cp.cuda.driver.CUDADriverError):
        kernel(grid, block, (), shared_mem=shared)


@cuda
@softcuda_only
def test_calls_that_are_not_emulated_say_so() -> None:
    done = run_alone("from cupy.cuda import runtime; runtime.mallocFromPoolAsync(64, 0, 0)")
    assert done.returncode == 1
    assert "softcuda: cudaMallocFromPoolAsync is not emulated" in done.stderr


@cuda
@softcuda_only
def test_memory_runs_out_where_it_is_told_to() -> None:
    program = r"""
import cupy as cp
a = cp.empty(600_000, 'u1')
assert cp.cuda.Device().mem_info[1] == 1_000_000, cp.cuda.Device().mem_info
try:
    cp.empty(600_000, 'u1')
except cp.cuda.memory.OutOfMemoryError:
    print("out of memory")
del a
cp.get_default_memory_pool().free_all_blocks()
cp.empty(900_000, 'u1')
"""
    done = run_alone(program, SOFTCUDA_MEM="1000000")
    assert (done.stdout.strip(), done.returncode) == ("out of memory", 0), done.stderr


# --- counters


@cuda
def test_stats_of_a_known_program(softcuda_stats: Callable[..., dict[str, Any]]) -> None:
    stats = softcuda_stats(r"""
import cupy as cp, numpy as np
from cupy.cuda import runtime
runtime.setDevice(0)
cp.cuda.set_allocator(None)
cp.cuda.set_pinned_memory_allocator(None)
stream = cp.cuda.Stream(non_blocking=True)
pinned = cp.cuda.alloc_pinned_memory(1000)
a, b = cp.cuda.alloc(1000), cp.cuda.alloc(600)
runtime.memcpyAsync(a.ptr, pinned.ptr, 1000, 1, stream.ptr)        # to the device, from pinned memory
runtime.memcpyAsync(b.ptr, a.ptr, 600, 3, stream.ptr)              # on the device
pageable = np.zeros(300, np.uint8)
runtime.memcpyAsync(a.ptr, pageable.ctypes.data, 300, 1, stream.ptr)   # to the device, from pageable memory
runtime.memcpyAsync(pageable.ctypes.data, a.ptr, 200, 2, stream.ptr)   # back
k = cp.RawKernel('extern "C" __global__ void nothing() {}', "nothing")
with stream:
    k((2,), (32,), ())
    k((1,), (32,), ())
stream.synchronize()
stream.record().synchronize()
""")
    assert stats == {
        "h2d_bytes": 1300,
        "d2h_bytes": 200,
        "d2d_bytes": 600,
        "mallocs": 2,
        "pinned_allocs": 1,
        "pageable_async_copies": 2,
        "syncs": 2,
        "peak_bytes": 1600,
        "launches": {"nothing": 2},
        "profile": {},
    }


@cuda
def test_counters_of_this_process(softcuda_counters: Callable[[], dict[str, Any]]) -> None:
    kernel = cp.RawKernel('extern "C" __global__ void once() {}', "once")
    kernel((1,), (1,), ())
    before = softcuda_counters()
    kernel((1,), (1,), ())
    kernel((1,), (1,), ())
    cp.cuda.get_current_stream().synchronize()
    after = softcuda_counters()
    assert after["launches"]["once"] - before["launches"]["once"] == 2
    changed = {key for key in after if after[key] != before[key]}
    assert changed == {"syncs", "launches"}
    assert after["syncs"] - before["syncs"] == 1


@cuda
def test_profile_of_a_known_kernel(softcuda_stats: Callable[..., dict[str, Any]]) -> None:
    # Rows of 48 threads: a full warp and half a one. Each thread reads 4 bytes of 32 apart, and writes 4 in a row.
    stats = softcuda_stats(
        r"""
import cupy as cp
k = cp.RawKernel('''extern "C" __global__ void strided(const int* a, int* b) {
  b[blockIdx.x * 48 + threadIdx.x] = a[threadIdx.x * 8];
}''', "strided")
a, b = cp.zeros(48 * 8, 'i4'), cp.zeros(96, 'i4')
k((2,), (48,), (a, b))
cp.cuda.Device().synchronize()
""",
        env={"SOFTCUDA_PROFILE": "1"},
    )
    profile = stats["profile"]["strided"]
    assert profile.pop("ptx_instructions") % 96 == 0
    assert profile == {
        "threads": 96,
        "requests": 8,  # two warps of each block, once to load and once to store
        "load_bytes": 96 * 4,
        "load_sector_bytes": 96 * 32,
        "load_unique_bytes": 48 * 32,  # both blocks read the same
        "store_bytes": 96 * 4,
        "store_sector_bytes": 96 * 4,
        "store_unique_bytes": 96 * 4,
    }


@cuda
def test_profile_of_a_kernel_with_barriers(softcuda_stats: Callable[..., dict[str, Any]]) -> None:
    stats = softcuda_stats(
        r"""
import cupy as cp
k = cp.RawKernel('''extern "C" __global__ void twice(const float* a, float* b) {
  __shared__ float s[64];
  for (int n = 0; n < 2; n++) {
    s[threadIdx.x] = a[n * 64 + threadIdx.x];
    __syncthreads();
    b[n * 64 + threadIdx.x] = s[63 - threadIdx.x];
    __syncthreads();
  }
}''', "twice")
a, b = cp.zeros(128, 'f4'), cp.zeros(128, 'f4')
k((1,), (64,), (a, b))
cp.cuda.Device().synchronize()
""",
        env={"SOFTCUDA_PROFILE": "1"},
    )
    profile = stats["profile"]["twice"]
    assert (profile["threads"], profile["requests"]) == (64, 8)
    for kind in ("load", "store"):
        assert {profile[f"{kind}_{what}"] for what in ("bytes", "sector_bytes", "unique_bytes")} == {512}
