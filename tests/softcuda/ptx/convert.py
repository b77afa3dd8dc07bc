"""Conversions between types."""

from __future__ import annotations

from .operands import Instruction, Operands
from .source import split_operands
from .types import C_TYPE, WIDTH, is_float

TO_INTEGRAL = {"rni": "nearbyint", "rzi": "trunc", "rmi": "floor", "rpi": "ceil"}


class Convert:
    """Translates mov and cvt."""

    def __init__(self, operands: Operands) -> None:
        self._operands = operands
        self.table = {"mov": self.move, "cvt": self.convert}

    def move(self, i: Instruction) -> str:
        """mov: a value, an address, or a register taken apart or put together."""
        target, source = i.operands
        ops, ty = self._operands, i.type
        if target.startswith("{"):
            parts = split_operands(target.strip("{}"))
            width = WIDTH[ty] // len(parts)
            writes = (ops.write(part, f"b{width}", f"whole >> {n * width}") for n, part in enumerate(parts))
            return f"{{ const uint{WIDTH[ty]}_t whole = {ops.read(source, f'b{WIDTH[ty]}')}; {' '.join(writes)} }}"
        if source.startswith("{"):
            parts = split_operands(source.strip("{}"))
            width = WIDTH[ty] // len(parts)
            whole = " | ".join(
                f"static_cast<uint{WIDTH[ty]}_t>({ops.read(part, f'b{width}')}) << {n * width}"
                for n, part in enumerate(parts)
            )
            return ops.write(target, f"b{WIDTH[ty]}", whole)
        return ops.write(target, ty, ops.read(source, ty))

    def convert(self, i: Instruction) -> str:
        """cvt."""
        if i.has("pack"):
            return self._pack(i)
        if i.has("rz", "rm", "rp", "rna", "rs", "relu") or len(i.types) != 2:
            raise i.unsupported()
        to, source = i.types
        if to == "f16x2" and source == "f32":
            high, low = (f"to_half({self._operands.read(op, source)})" for op in i.operands[1:])
            return self._operands.write(i.operands[0], to, f"{low} | uint32_t{{{high}}} << 16")
        if "f16x2" in i.types:
            raise i.unsupported()
        value = self._operands.read(i.operands[1], source)
        if source == "f16":
            value, source = f"from_half({value})", "f32"
        elif i.has("ftz") and source == "f32":
            value = f"flush({value})"
        return self._operands.write(i.operands[0], to, self._converted(i, to, source, value))

    def _converted(self, i: Instruction, to: str, source: str, value: str) -> str:
        rounding = i.choose(TO_INTEGRAL)
        if rounding:
            value = f"std::{TO_INTEGRAL[rounding]}({value})"
        to_float = is_float(to) or to == "f16"
        if to_float:
            if i.has("sat"):
                value = f"unit_range({value})"
            if to == "f16":
                return f"to_half({value})"
            if to == "f32" and i.has("ftz"):
                return f"flush(static_cast<float>({value}))"
            return value
        if is_float(source):
            if not rounding:
                raise i.unsupported()
            return f"to_integer<{C_TYPE[to]}>({value})"
        return f"saturate<{C_TYPE[to]}>({value})" if i.has("sat") else value

    def _pack(self, i: Instruction) -> str:
        """cvt.pack.sat.TYPE.s32: two saturated numbers below the low part of a third operand, if there is one."""
        ty = i.modifiers[2]
        read, width = self._operands.read, WIDTH[ty]
        mask = (1 << width) - 1
        saturated = (f"saturate<{C_TYPE[ty]}>({read(op, 's32')})" for op in i.operands[1:3])
        high, low = (f"(static_cast<uint32_t>({s}) & {mask}u)" for s in saturated)
        whole = f"{low} | {high} << {width}"
        if len(i.operands) > 3:
            whole += f" | {read(i.operands[3], 'b32')} << {2 * width}"
        return self._operands.write(i.operands[0], "b32", whole)
