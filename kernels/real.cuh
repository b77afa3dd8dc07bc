// The model's number type, and its conversions. GPUPIPE_FLOAT16 says which of the two it is.
//
// float16 values are handled as their bits, so that no CUDA header is needed where the kernels are compiled.
#pragma once

#ifndef GPUPIPE_FLOAT16
#error "define GPUPIPE_FLOAT16 as 0 or 1"
#endif

typedef unsigned char u8;
typedef unsigned int u32;

#if GPUPIPE_FLOAT16
typedef unsigned short Real;

static __device__ __forceinline__ float to_float(Real value) {
    float wide;
    asm("cvt.f32.f16 %0, %1;" : "=f"(wide) : "h"(value));
    return wide;
}

// Rounds to the nearest, ties to even.
static __device__ __forceinline__ u32 to_real(float value) {
    Real narrow;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(narrow) : "f"(value));
    return narrow;
}

// Four neighbouring values in one store. An assignment may become four stores; __stwb becomes one, but a strong one.
static __device__ __forceinline__ void store4(Real* to, float a, float b, float c, float d) {
    asm volatile("st.global.v2.u32 [%0], {%1, %2};" ::"l"(__cvta_generic_to_global(to)),
                 "r"(to_real(a) | to_real(b) << 16), "r"(to_real(c) | to_real(d) << 16)
                 : "memory");
}

// Whether any of eight float16 is a NaN: a magnitude above 0x7c00, to which adding 0x3ff sets the sign bit.
static __device__ __forceinline__ bool any_nan(uint4 v) {
    const u32 magnitude = 0x7fff7fffu, more = 0x03ff03ffu;
    const u32 first = (v.x & magnitude) + more | (v.y & magnitude) + more;
    const u32 second = (v.z & magnitude) + more | (v.w & magnitude) + more;
    return ((first | second) & 0x80008000u) != 0;
}
#else
typedef float Real;

static __device__ __forceinline__ float to_float(Real value) { return value; }

static __device__ __forceinline__ void store4(Real* to, float a, float b, float c, float d) {
    asm volatile("st.global.v4.f32 [%0], {%1, %2, %3, %4};" ::"l"(__cvta_generic_to_global(to)), "f"(a), "f"(b), "f"(c),
                 "f"(d)
                 : "memory");
}

static __device__ __forceinline__ bool unordered(u32 a, u32 b) {
    const float x = __uint_as_float(a), y = __uint_as_float(b);
    return (x != x) | (y != y);  // one instruction, setp.nan
}

static __device__ __forceinline__ bool any_nan(uint4 v) { return unordered(v.x, v.y) | unordered(v.z, v.w); }
#endif

// Values in a 16-byte vector.
#define REALS_IN_16_BYTES (16 / (int)sizeof(Real))
