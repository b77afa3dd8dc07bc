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

static __device__ __forceinline__ void store4(Real* to, float a, float b, float c, float d) {
    *reinterpret_cast<uint2*>(to) = make_uint2(to_real(a) | to_real(b) << 16, to_real(c) | to_real(d) << 16);
}

// Whether either of two float16 is a NaN: all exponent bits set, and a fraction.
static __device__ __forceinline__ bool any_nan(u32 two) {
    return (two << 17) > 0xf8000000u || (two & 0x7fff0000u) > 0x7c000000u;
}
#else
typedef float Real;

static __device__ __forceinline__ float to_float(Real value) { return value; }

static __device__ __forceinline__ void store4(Real* to, float a, float b, float c, float d) {
    *reinterpret_cast<float4*>(to) = make_float4(a, b, c, d);
}

static __device__ __forceinline__ bool any_nan(u32 one) { return (one & 0x7fffffffu) > 0x7f800000u; }
#endif

// Values in a 16-byte vector.
#define REALS_IN_16_BYTES (16 / (int)sizeof(Real))
