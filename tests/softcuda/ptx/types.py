"""PTX's scalar types, and the C++ types that hold them."""

from __future__ import annotations

# f16 and f16x2 are held as bit patterns; the operations of device/ops.h know what they mean.
C_TYPE = {
    "pred": "bool",
    "b8": "uint8_t",
    "b16": "uint16_t",
    "b32": "uint32_t",
    "b64": "uint64_t",
    "u8": "uint8_t",
    "u16": "uint16_t",
    "u32": "uint32_t",
    "u64": "uint64_t",
    "s8": "int8_t",
    "s16": "int16_t",
    "s32": "int32_t",
    "s64": "int64_t",
    "f16": "uint16_t",
    "f16x2": "uint32_t",
    "f32": "float",
    "f64": "double",
}
WIDTH = {name: 32 if name == "f16x2" else int(name[1:]) for name in C_TYPE if name != "pred"}


class Unsupported(Exception):
    """The PTX uses something that is not emulated; the message names it."""


def is_float(ty: str) -> bool:
    """Whether values of this type are floating-point numbers in C++."""
    return ty in ("f32", "f64")


def is_half(ty: str) -> bool:
    """Whether values of this type are one or two halves."""
    return ty in ("f16", "f16x2")


def wider(ty: str) -> str:
    """The type of a wide product: twice as many bits, of the same kind."""
    return f"{ty[0]}{2 * WIDTH[ty]}"
