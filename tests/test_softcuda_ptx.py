"""What kernels compute on softcuda: PTX arithmetic and memory accesses against NumPy."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from softcuda.ptx.emit import translate
from softcuda.ptx.types import Unsupported

cp = pytest.importorskip("cupy")

cuda = pytest.mark.cuda
softcuda_only = pytest.mark.skipif(os.environ.get("SOFTCUDA") != "1", reason="is about the software device itself")

# One kernel per array operation: `out[i] = BODY` over elements `a[i]`, `b[i]`, `c[i]`.
ELEMENTWISE = """
#include <cuda_fp16.h>
extern "C" __global__ void f(const %(ty)s* a, const %(ty)s* b, const %(ty)s* c, %(out)s* out, int n) {
  int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i < n) out[i] = %(body)s;
}
"""
SPECIAL = np.array([0.0, -0.0, 1.0, -1.0, 0.5, 1.5, 2.5, -2.5, np.inf, -np.inf, np.nan, 3e9, -3e9, 2e-38], np.float32)


def elementwise(body: str, out: Any, a: Any, b: Any = None, c: Any = None) -> Any:
    """`body` over arrays, by a kernel of its own."""
    c_names = {"float16": "__half", "float32": "float", "float64": "double", "int32": "int", "uint32": "unsigned",
               "int64": "long long", "uint64": "unsigned long long", "uint8": "unsigned char"}  # fmt: skip
    source = ELEMENTWISE % {"ty": c_names[str(a.dtype)], "out": c_names[np.dtype(out).name], "body": body}
    result = cp.empty(a.shape, out)
    arrays = [cp.asarray(a if x is None else x) for x in (a, b, c)]
    kernel = cp.RawModule(code=source, options=("-std=c++17",)).get_function("f")
    kernel((a.size // 64 + 1,), (64,), (*arrays, result, np.int32(a.size)))
    return result.get()


def flushed(values: Any) -> Any:
    """Subnormal numbers as zeros: CuPy compiles with `-ftz=true`."""
    return np.where(np.abs(values) < np.finfo(np.float32).tiny, np.copysign(np.float32(0), values), values)


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(7)


@pytest.fixture
def floats(rng: np.random.Generator) -> tuple[Any, Any]:
    """Pairs of floats of all magnitudes, and every pair of special values."""
    many = flushed(rng.integers(0, 2**32, (2, 4000), dtype=np.uint32).view(np.float32))
    a, b = np.meshgrid(SPECIAL, SPECIAL)
    return np.concatenate([many[0], a.ravel()]), np.concatenate([many[1], b.ravel()])


# --- arithmetic


@cuda
@pytest.mark.parametrize("op", ["+", "-", "*", "/"])
def test_float_arithmetic_is_rounded_correctly(op: str, floats: tuple[Any, Any]) -> None:
    a, b = floats
    with np.errstate(all="ignore"):
        want = {"+": np.add, "-": np.subtract, "*": np.multiply, "/": np.divide}[op](a, b)
    assert np.array_equal(elementwise(f"a[i] {op} b[i]", np.float32, a, b), flushed(want), equal_nan=True)


@cuda
def test_subnormal_numbers_are_flushed_as_cupy_asks() -> None:
    a = np.array([1e-40, -1e-40, 2e-38], np.float32)
    got = elementwise("a[i] * b[i]", np.float32, a, np.array([1e30, 1e30, 0.1], np.float32))
    assert got.tolist() == [0, 0, 0]
    assert np.signbit(got).tolist() == [False, True, False]


@cuda
def test_dividing_bytes_by_255() -> None:
    a = np.arange(256, dtype=np.uint8)
    assert np.array_equal(elementwise("a[i] / 255.0f", np.float32, a), a.astype(np.float32) / np.float32(255))


@cuda
@pytest.mark.parametrize(("name", "want"), [("fminf", np.fmin), ("fmaxf", np.fmax)])
def test_a_number_wins_against_nan(name: str, want: Any, floats: tuple[Any, Any]) -> None:
    a, b = floats
    got = elementwise(f"{name}(a[i], b[i])", np.float32, a, b)
    assert np.array_equal(got, want(a, b), equal_nan=True)
    zeros = np.array([0.0, -0.0], np.float32)
    signs = elementwise(f"{name}(a[i], b[i])", np.float32, zeros, zeros[::-1].copy())
    assert np.signbit(signs).tolist() == [name == "fminf"] * 2


@cuda
def test_fused_and_unfused_products(rng: np.random.Generator) -> None:
    a, b, c = rng.standard_normal((3, 4000)).astype(np.float32)
    fused = elementwise("__fmaf_rn(a[i], b[i], c[i])", np.float32, a, b, c)
    # The product of two floats is exact in double, and this sum almost always; ties are too rare to come up here.
    assert np.array_equal(fused, (a.astype(np.float64) * b + c).astype(np.float32))
    assert np.array_equal(elementwise("__fadd_rn(__fmul_rn(a[i], b[i]), c[i])", np.float32, a, b, c), a * b + c)


@cuda
@pytest.mark.parametrize(("name", "rounded"), [("rz", np.trunc), ("rn", np.rint), ("rd", np.floor), ("ru", np.ceil)])
def test_float_to_integer(name: str, rounded: Any, rng: np.random.Generator) -> None:
    a = np.concatenate(
        [(rng.standard_normal(4000) * 1000).astype(np.float32), np.arange(-9, 9, 0.5).astype("f4"), SPECIAL]
    )
    assert np.array_equal(elementwise(f"__float2int_{name}(a[i])", np.int32, a), truncated_int(rounded(a)))


@cuda
def test_square_root_is_rounded_correctly(floats: tuple[Any, Any]) -> None:
    a = np.fmax(np.abs(floats[0]), 0)
    assert np.array_equal(elementwise("sqrtf(a[i])", np.float32, a), np.sqrt(a), equal_nan=True)


@cuda
@softcuda_only
def test_approximations_are_never_exact() -> None:
    a = np.arange(1, 2000, dtype=np.float32)
    got = elementwise("__fdividef(a[i], 255.0f)", np.float32, a)
    assert np.array_equal(got, np.nextafter(a / np.float32(255), np.float32(np.inf)))


def truncated_quotient(a: Any, b: Any) -> Any:
    """a / b as C divides, for b > 0."""
    return a // b + ((a < 0) & (a % b != 0))


def truncated_int(a: Any) -> Any:
    """Floats as 32-bit integers the way CUDA converts: saturated, and 0 for NaN."""
    limits = np.iinfo(np.int32)
    return np.clip(np.nan_to_num(a.astype(np.float64), nan=0.0), limits.min, limits.max).astype(np.int32)


@cuda
@pytest.mark.parametrize("dtype", [np.int32, np.uint32, np.int64, np.uint64])
@pytest.mark.parametrize(
    ("body", "want"),
    [
        ("a[i] + b[i]", lambda a, b: a + b),
        ("a[i] * b[i]", lambda a, b: a * b),
        ("a[i] - b[i] * 3", lambda a, b: a - b * 3),
        ("(a[i] & b[i]) ^ (a[i] | 5)", lambda a, b: (a & b) ^ (a | 5)),
        ("a[i] >> 7", lambda a, b: a >> 7),
        ("a[i] << 9", lambda a, b: a << 9),
        ("min(a[i], b[i])", np.minimum),
        ("max(a[i], b[i])", np.maximum),
        ("a[i] < b[i]", lambda a, b: a < b),
        ("a[i] / ((b[i] & 1023) + 1)", lambda a, b: truncated_quotient(a, (b & 1023) + 1)),
    ],
    ids=["add", "mul", "mad", "logic", "shr", "shl", "min", "max", "less", "div"],
)  # fmt: skip
def test_integer_arithmetic(dtype: Any, body: str, want: Callable[..., Any], rng: np.random.Generator) -> None:
    info = np.iinfo(dtype)
    a, b = rng.integers(info.min, info.max, (2, 500), dtype=dtype, endpoint=True)
    assert np.array_equal(elementwise(body, dtype, a, b), want(a, b))


@cuda
@pytest.mark.parametrize(
    ("body", "want"),
    [
        ("__byte_perm(a[i], b[i], 0x5410)", lambda a, b: (a & 0xFFFF) | (b << 16)),
        ("__byte_perm(a[i], b[i], 0x0123)", lambda a, b: a.byteswap()),
        ("__funnelshift_l(a[i], b[i], 5)", lambda a, b: (b << 5) | (a >> 27)),
        ("__funnelshift_r(a[i], b[i], 5)", lambda a, b: (a >> 5) | (b << 27)),
        ("__funnelshift_lc(a[i], b[i], 40)", lambda a, b: a),
        ("__funnelshift_l(a[i], b[i], 40)", lambda a, b: (b << 8) | (a >> 24)),
        ("__brev(a[i])", lambda a, b: np.packbits(np.unpackbits(a.view(np.uint8)), bitorder="little").view(">u4")),
        ("__popc(a[i])", lambda a, b: np.bitwise_count(a)),
        ("__clz(a[i] >> (b[i] & 31))", lambda a, b: [32 - int(x).bit_length() for x in a >> (b & 31)]),
        ("__umulhi(a[i], b[i])", lambda a, b: (a.astype(np.uint64) * b) >> 32),
        ("__dp4a(a[i], b[i], 7u)", lambda a, b: 7 + sum((a >> s & 255) * (b >> s & 255) for s in (0, 8, 16, 24))),
        ("__dp2a_hi(a[i], b[i], 7u)", lambda a, b: 7 + (a & 65535) * (b >> 16 & 255) + (a >> 16) * (b >> 24)),
        ("__usad(a[i], b[i], 9u)", lambda a, b: np.where(a < b, b - a, a - b) + 9),
        ("(a[i] & b[i]) | (~a[i] & 0x0F0F0F0F)", lambda a, b: (a & b) | (~a & 0x0F0F0F0F)),
        ("a[i] << (b[i] & 63)", None),
        ("(a[i] >> 5) & 0x7FF", lambda a, b: a >> 5 & 0x7FF),
    ],
)
def test_bits(body: str, want: Callable[..., Any] | None, rng: np.random.Generator) -> None:
    a, b = rng.integers(0, 2**32, (2, 500), dtype=np.uint32)
    if want is None:  # PTX shifts by more than the width to 0; C++ leaves it open, so only its defined part is compared
        b &= 31
        want = np.left_shift
    assert np.array_equal(elementwise(body, np.uint32, a, b), np.asarray(want(a, b)).astype(np.uint32))


# --- half precision


@cuda
def test_every_half_converts_to_float_and_back() -> None:
    bits = np.arange(65536, dtype=np.uint16)
    halves = bits.view(np.float16)
    floats = elementwise("__half2float(a[i])", np.float32, halves)
    assert np.array_equal(floats, halves.astype(np.float32), equal_nan=True)
    back = elementwise("__float2half_rn(a[i])", np.float16, floats)
    assert np.array_equal(back, halves, equal_nan=True)


@cuda
def test_float_to_half_rounds_to_nearest_even(rng: np.random.Generator) -> None:
    halves = np.arange(0, 0x7C00, dtype=np.uint16).view(np.float16).astype(np.float64)
    ties = ((halves[1:] + halves[:-1]) / 2).astype(np.float32)
    a = np.concatenate([ties, np.nextafter(ties, np.float32(0)), np.nextafter(ties, np.float32(np.inf)), -ties, SPECIAL,
                        np.array([65504, 65519.99, 65520, 65536, 1e-8, 2**-25, 2**-24], np.float32)])  # fmt: skip
    with np.errstate(over="ignore"):
        want = a.astype(np.float16)
    assert np.array_equal(elementwise("__float2half_rn(a[i])", np.float16, a), want, equal_nan=True)


@cuda
@pytest.mark.parametrize(
    ("body", "want"),
    [
        ("__hadd(a[i], b[i])", np.add),
        ("__hsub(a[i], b[i])", np.subtract),
        ("__hmul(a[i], b[i])", np.multiply),
        ("__hmax(a[i], b[i])", np.fmax),
        ("__hneg(a[i])", lambda a, b: -a),
        ("__habs(a[i])", lambda a, b: np.abs(a)),
        ("__hgt(a[i], b[i]) ? a[i] : b[i]", lambda a, b: np.where(a > b, a, b)),
        ("__low2half(__hadd2(__halves2half2(b[i], a[i]), __halves2half2(a[i], a[i])))", np.add),
        ("__high2half(__floats2half2_rn(0, __half2float(a[i]) / 2))", lambda a, b: (a.astype("f4") / 2).astype("f2")),
        ("__int2half_rn(__half2int_rz(a[i]) & 4095)", lambda a, b: (truncated_int(a) & 4095).astype(np.float16)),
    ],
)  # fmt: skip
def test_half_arithmetic(body: str, want: Callable[..., Any], rng: np.random.Generator) -> None:
    a, b = rng.integers(0, 65536, (2, 5000), dtype=np.uint16).view(np.float16)
    with np.errstate(all="ignore"):
        expected = want(a, b)
    assert np.array_equal(elementwise(body, np.float16, a, b), expected, equal_nan=True)


# --- memory


@cuda
def test_vector_loads_and_stores(rng: np.random.Generator) -> None:
    code = r"""
    extern "C" __global__ void vec(const uint4* a, uint4* b, uint2* c, uchar4* d, int n) {
      int i = blockIdx.x * blockDim.x + threadIdx.x;
      if (i >= n) return;
      uint4 t = __ldg(a + i);
      b[i] = make_uint4(t.w, t.z, t.y, t.x);
      c[i] = make_uint2(t.x + t.y, t.z);
      d[i] = make_uchar4(t.x, t.y >> 8, t.z >> 16, t.w >> 24);
    }"""
    a = rng.integers(0, 2**32, (100, 4), dtype=np.uint32)
    b, c, d = cp.empty((100, 4), np.uint32), cp.empty((100, 2), np.uint32), cp.empty((100, 4), np.uint8)
    cp.RawKernel(code, "vec")((4,), (32,), (cp.asarray(a), b, c, d, np.int32(100)))
    assert np.array_equal(b.get(), a[:, ::-1])
    assert np.array_equal(c.get(), np.stack([a[:, 0] + a[:, 1], a[:, 2]], 1))
    assert np.array_equal(d.get(), a.view(np.uint8)[:, [0, 5, 10, 15]])


@cuda
def test_offsets_beyond_32_bits_and_below_zero() -> None:
    code = r"""
    extern "C" __global__ void far(unsigned char* p, long long back, long long* out) {
      p += back;                                     // far outside, but not read there
      unsigned char* q = p - back + threadIdx.x;
      *q = threadIdx.x + 1;
      out[threadIdx.x] = (q - p) * 3;
    }"""
    p, out = cp.zeros(8, np.uint8), cp.zeros(8, np.int64)
    cp.RawKernel(code, "far")((1,), (8,), (p, np.int64(-(2**40)), out))
    assert p.get().tolist() == [1, 2, 3, 4, 5, 6, 7, 8]
    assert out.get().tolist() == [(2**40 + i) * 3 for i in range(8)]


@cuda
@pytest.mark.parametrize("threads", [32, 128, 1024])
def test_shared_memory_and_barriers(threads: int) -> None:
    code = r"""
    extern "C" __global__ void sum(const float* a, float* b, int n) {
      extern __shared__ float dynamic[];
      __shared__ float fixed[3];
      int i = threadIdx.x;
      if (i < 3) fixed[i] = i + 1;
      float v = 0;
      for (int j = i; j < n; j += blockDim.x) v += a[blockIdx.x * n + j];
      dynamic[i] = v;
      __syncthreads();
      for (int k = blockDim.x / 2; k > 0; k >>= 1) {
        if (i < k) dynamic[i] += dynamic[i + k];
        __syncthreads();
      }
      if (i == 0) b[blockIdx.x] = dynamic[0] * fixed[0] + fixed[1] + fixed[2];
    }"""
    a = np.arange(3 * 1500, dtype=np.float32).reshape(3, 1500)
    b = cp.empty(3, np.float32)
    cp.RawKernel(code, "sum")((3,), (threads,), (cp.asarray(a), b, np.int32(1500)), shared_mem=4 * threads)
    assert b.get().tolist() == (a.astype(np.float64).sum(1) + 5).tolist()


@cuda
def test_warps_may_synchronise_on_their_own() -> None:
    code = r"""
    extern "C" __global__ void swap(int* out) {
      __shared__ int s[64];
      int i = threadIdx.x;
      s[i] = i;
      if (i < 32) {                                  // only one warp; the other stands at the barrier below
        __syncwarp();
        int other = s[i ^ 1];
        __syncwarp();
        s[i] = other;
      }
      __syncthreads();
      out[i] = s[63 - i];
    }"""
    out = cp.empty(64, np.int32)
    cp.RawKernel(code, "swap")((1,), (64,), (out,))
    s = np.where(np.arange(64) < 32, np.arange(64) ^ 1, np.arange(64))
    assert np.array_equal(out.get(), s[::-1])


@cuda
def test_atomics() -> None:
    code = r"""
    extern "C" __global__ void count(const int* a, int n, unsigned* out, float* f, unsigned long long* l) {
      int i = blockIdx.x * blockDim.x + threadIdx.x;
      if (i >= n) return;
      atomicOr(out, 1u << (a[i] & 31));
      atomicAdd(out + 1, 1u);
      atomicMax((int*)out + 2, a[i]);
      atomicMin((int*)out + 3, a[i]);
      atomicAnd(out + 4, ~(1u << (a[i] & 31)));
      if (atomicCAS(out + 5, 0u, 77u) == 0u) atomicExch(out + 6, 5u);
      if (atomicXor(out + 7, 0u) == 0u && atomicInc(out + 8, 2u) > 2u) atomicAdd(out + 7, 1u);
      atomicAdd(f, 0.5f);
      atomicAdd(l, 1ull << 33);
    }"""
    a = np.array([3, -7, 12, 40, 5, 3, 3], np.int32)
    out, f, wide = cp.zeros(9, np.uint32), cp.zeros(1, np.float32), cp.zeros(1, np.uint64)
    out[4] = 0xFFFFFFFF
    cp.RawKernel(code, "count")((1,), (32,), (cp.asarray(a), np.int32(a.size), out, f, wide))
    seen = int(np.bitwise_or.reduce(1 << (a.astype(np.int64) & 31)))
    smallest = -7 + 2**32
    assert out.get().tolist() == [seen, 7, 40, smallest, 0xFFFFFFFF & ~seen, 77, 5, 0, 7 % 3]
    assert f.get().tolist() == [3.5]
    assert wide.get().tolist() == [7 << 33]


@cuda
def test_constant_tables_and_switches() -> None:
    code = r"""
    __constant__ float weights[4] = {0.25f, 0.5f, -1.0f, 8.0f};
    __device__ const unsigned char order[4] = {3, 1, 2, 0};
    extern "C" __global__ void pick(float* out, int n) {
      int i = threadIdx.x;
      if (i >= n) return;
      float v = weights[order[i & 3]];
      switch (i) {
        case 0: v += 1; break;
        case 1: v *= 3; break;
        case 2: v -= 7; break;
        case 3: v = sqrtf(v); break;
        case 4: v = v * v; break;
        case 5: v = out[1 + i]; break;
        default: v = i;
      }
      out[i] = v;
    }"""
    out = cp.full(8, 9.0, np.float32)
    cp.RawKernel(code, "pick")((1,), (8,), (out, np.int32(7)))
    assert out.get().tolist() == [9.0, 1.5, -8.0, 0.5, 64.0, 9.0, 6.0, 9.0]


@cuda
def test_cupy_itself_computes_on_the_device(rng: np.random.Generator) -> None:
    a = rng.integers(0, 256, (37, 53), dtype=np.uint8)
    d = cp.asarray(a)
    assert int(d.sum()) == int(a.sum())
    assert np.array_equal(cp.ascontiguousarray(d[::2, ::-1]).get(), a[::2, ::-1])
    assert np.array_equal((d.astype(np.float16) / np.float16(3)).get(), a.astype(np.float16) / np.float16(3))


# --- what is missing


@cuda
@softcuda_only
def test_an_instruction_that_is_not_emulated_is_named() -> None:
    code = r"""extern "C" __global__ void s(int* o) { o[threadIdx.x] = __shfl_sync(~0u, o[threadIdx.x], 3); }"""
    with pytest.raises(cp.cuda.driver.CUDADriverError, match=r"outside the emulated subset: instruction shfl\.sync"):
        cp.RawKernel(code, "s")((1,), (32,), (cp.zeros(32, np.int32),))


@pytest.mark.parametrize(
    ("statement", "named"),
    [
        ("vote.sync.any.pred p, p, 0xffffffff;", "vote.sync.any.pred p, p, 0xffffffff"),
        ("add.rz.f32 f, f, f;", "add.rz.f32 f, f, f"),
        ("mul24.lo.s32 r, r, r;", "mul24.lo.s32"),
        ("atom.global.add.noftz.f16 h, [d], h;", "atom.global.add.noftz.f16"),
        ("ld.global.u32 r, [nowhere];", "nowhere"),
        ("mov.u32 r, %clock;", "%clock"),
        ("bar.sync 1, 64;", "bar.sync 1, 64"),
        ("call f, (r);", "call f, (r)"),
    ],
)
def test_translation_names_what_it_lacks(statement: str, named: str) -> None:
    head = ".visible .entry k() { .reg .pred p; .reg .f32 f; .reg .b32 r; .reg .b16 h; .reg .b64 d; "
    assert "k__kernel" in translate(head + "ret; }")
    with pytest.raises(Unsupported) as e:
        translate(head + statement + " ret; }")
    assert named in str(e.value)
