"""Arithmetic, bits, and comparisons."""

from __future__ import annotations

from .operands import Instruction, Operands
from .types import C_TYPE, WIDTH, is_float, is_half, wider

FLOAT = {
    "add": "({0} + {1})",
    "sub": "({0} - {1})",
    "mul": "({0} * {1})",
    "div": "({0} / {1})",
    "fma": "std::fma({0}, {1}, {2})",
    "mad": "std::fma({0}, {1}, {2})",
    "min": "min_number({0}, {1})",
    "max": "max_number({0}, {1})",
    "abs": "std::fabs({0})",
    "neg": "(-{0})",
    "sqrt": "std::sqrt({0})",
    "rcp": "(1 / {0})",
    "rsqrt": "(1 / std::sqrt({0}))",
    "ex2": "std::exp2({0})",
    "lg2": "std::log2({0})",
    "sin": "std::sin({0})",
    "cos": "std::cos({0})",
    "tanh": "std::tanh({0})",
    "copysign": "std::copysign({1}, {0})",
}
HALF = {name: FLOAT[name] for name in ("add", "sub", "mul", "fma", "min", "max", "ex2", "tanh")}
COMPARE = {"eq": "==", "ne": "!=", "lt": "<", "le": "<=", "gt": ">", "ge": ">="}
COMPARE_UNSIGNED = {"lo": "<", "ls": "<=", "hi": ">", "hs": ">="}
COMBINE = {"and": "&&", "or": "||", "xor": "!="}
LOGIC = {"and": "&", "or": "|", "xor": "^"}
# Directed rounding is not emulated; these two do not round.
EXACT = ("min", "max")


class Arithmetic:
    """Translates what computes from registers to registers."""

    def __init__(self, operands: Operands) -> None:
        self._operands = operands
        self.table = {
            **dict.fromkeys((*FLOAT, "rem", "popc", "clz", "brev"), self.arithmetic),
            **dict.fromkeys((*LOGIC, "not", "shl", "shr", "shf", "prmt", "lop3", "bfe", "bfi"), self.bitwise),
            **dict.fromkeys(("dp4a", "dp2a", "sad"), self.sums),
            "setp": self.compare_to_predicate,
            "set": self.compare_to_value,
            "selp": self.select,
        }

    def _read(self, i: Instruction, ty: str) -> list[str]:
        return [self._operands.read(op, ty) for op in i.operands[1:]]

    def _write(self, i: Instruction, ty: str, expression: str) -> str:
        return self._operands.write(i.operands[0], ty, expression)

    def arithmetic(self, i: Instruction) -> str:
        """add, mul, fma and the like, of any type."""
        if is_float(i.type):
            return self._float(i)
        if is_half(i.type):
            return self._half(i)
        return self._integer(i)

    def _float(self, i: Instruction) -> str:
        if i.opcode not in FLOAT or (i.has("rz", "rm", "rp") and i.opcode not in EXACT):
            raise i.unsupported()
        values = self._read(i, i.type)
        if i.has("ftz"):
            values = [f"flush({v})" for v in values]
        result = FLOAT[i.opcode].format(*values)
        if i.has("approx", "full"):
            result = f"approximate({result})"
        if i.has("NaN"):
            result = f"nan_or({values[0]}, {values[1]}, {result})"
        if i.has("ftz"):
            result = f"flush({result})"
        if i.has("sat"):
            result = f"unit_range({result})"
        return self._write(i, i.type, result)

    def _half(self, i: Instruction) -> str:
        values = self._read(i, i.type)
        signs = "0x80008000u" if i.type == "f16x2" else "0x8000u"
        if i.opcode == "neg":
            return self._write(i, i.type, f"{values[0]} ^ {signs}")
        if i.opcode == "abs":
            return self._write(i, i.type, f"{values[0]} & ~{signs}")
        if i.opcode not in HALF or i.has("relu", "xorsign"):
            raise i.unsupported()

        def one(shift: int) -> str:
            lanes = [f"double{{from_half(static_cast<uint16_t>({v} >> {shift}))}}" for v in values]
            result = HALF[i.opcode].format(*lanes)
            if i.has("NaN"):
                result = f"nan_or({lanes[0]}, {lanes[1]}, {result})"
            if i.has("sat"):
                result = f"unit_range({result})"
            return f"to_half({result})"

        pair = f"{one(0)} | uint32_t{{{one(16)}}} << 16" if i.type == "f16x2" else one(0)
        return self._write(i, i.type, pair)

    def _integer(self, i: Instruction) -> str:
        ty = i.type
        values = self._read(i, ty)
        c, unsigned = C_TYPE[ty], f"uint{max(32, WIDTH[ty])}_t"
        if i.has("cc") or (i.has("sat") and i.opcode not in ("add", "sub")):
            raise i.unsupported()
        # Computed without sign, where wrapping around is defined.
        u = [f"static_cast<{unsigned}>({v})" for v in values]
        match i.opcode:
            case "add" | "sub":
                sign = "+" if i.opcode == "add" else "-"
                if i.has("sat"):
                    exact = f"static_cast<__int128>({values[0]}) {sign} {values[1]}"
                    return self._write(i, ty, f"saturate<{c}>({exact})")
                return self._write(i, ty, f"{u[0]} {sign} {u[1]}")
            case "mul" | "mad" if i.has("wide"):
                wide = wider(ty)
                product = f"static_cast<{C_TYPE[wide]}>({values[0]}) * static_cast<{C_TYPE[wide]}>({values[1]})"
                if i.opcode == "mad":
                    product += f" + {self._operands.read(i.operands[3], wide)}"
                return self._write(i, wide, product)
            case "mul" | "mad":
                product = f"mul_hi<{c}>({values[0]}, {values[1]})" if i.has("hi") else f"{u[0]} * {u[1]}"
                if i.opcode == "mad":
                    product = f"static_cast<{unsigned}>({product}) + {u[2]}"
                return self._write(i, ty, product)
            case "min" | "max":
                return self._write(i, ty, f"std::{i.opcode}<{c}>({values[0]}, {values[1]})")
            case "div":
                return self._write(i, ty, f"quotient<{c}>({values[0]}, {values[1]})")
            case "rem":
                return self._write(i, ty, f"remainder<{c}>({values[0]}, {values[1]})")
            case "abs":
                return self._write(i, ty, f"{values[0]} < 0 ? -{u[0]} : {u[0]}")
            case "neg":
                return self._write(i, ty, f"-{u[0]}")
            case "clz":
                call = "__builtin_clzll" if WIDTH[ty] == 64 else "__builtin_clz"
                return self._write(i, "u32", f"{u[0]} ? {call}({u[0]}) : {WIDTH[ty]}")
            case "popc":
                return self._write(i, "u32", f"__builtin_popcountll({u[0]})")
            case "brev" if WIDTH[ty] == 32:
                return self._write(i, "u32", f"reverse_bits({u[0]})")
        raise i.unsupported()

    def bitwise(self, i: Instruction) -> str:
        """Logic, shifts, fields, and the rearranging of bytes."""
        ty = i.type
        ops = i.operands
        read = self._operands.read
        c = C_TYPE[ty]
        if i.opcode in LOGIC:
            return self._write(i, ty, f"{read(ops[1], ty)} {LOGIC[i.opcode]} {read(ops[2], ty)}")
        if i.opcode == "not":
            return self._write(i, ty, f"{'!' if ty == 'pred' else '~'}{read(ops[1], ty)}")
        if i.opcode in ("shl", "shr"):
            name = "shift_left" if i.opcode == "shl" else "shift_right"
            return self._write(i, ty, f"{name}<{c}>({read(ops[1], ty)}, {read(ops[2], 'u32')})")
        if i.opcode == "bfe":
            words = ", ".join(read(op, "u32") for op in ops[2:])
            return self._write(i, ty, f"extract_field<{c}>({read(ops[1], ty)}, {words})")
        words = ", ".join(read(op, "u32") for op in ops[1:4])
        if i.opcode == "shf":
            name = "funnel_left" if i.has("l") else "funnel_right"
            low, high, amount = (read(op, "u32") for op in ops[1:])
            amount = f"{amount} & 31" if i.has("wrap") else f"std::min({amount}, UINT32_C(32))"
            return self._write(i, "u32", f"{name}({low}, {high}, {amount})")
        if i.opcode == "prmt" and i.modifiers == ("b32",):
            return self._write(i, "u32", f"permute({words})")
        if i.opcode == "lop3" and i.modifiers == ("b32",):
            return self._write(i, "u32", f"logic3({words}, {ops[4]})")
        if i.opcode == "bfi" and ty == "b32":
            return self._write(i, "u32", f"insert_field({words}, {read(ops[4], 'u32')})")
        raise i.unsupported()

    def sums(self, i: Instruction) -> str:
        """dp4a, dp2a and sad."""
        read = self._operands.read
        if i.opcode == "sad":
            a, b, c = (read(op, i.type) for op in i.operands[1:])
            return self._write(i, i.type, f"({a} < {b} ? {b} - {a} : {a} - {b}) + {c}")
        a, b, c = (read(op, "u32") for op in i.operands[1:])
        first, second = (("int8_t" if ty == "s32" else "uint8_t") for ty in i.types)
        result = "s32" if "s32" in i.types else "u32"
        if i.opcode == "dp4a":
            return self._write(i, result, f"dot4<{first}, {second}>({a}, {b}, {c})")
        first = first.replace("8", "16")
        half = f"{b} >> 16" if i.has("hi") else b
        return self._write(i, result, f"dot2<{first}, {second}>({a}, {half}, {c})")

    def select(self, i: Instruction) -> str:
        """selp."""
        read = self._operands.read
        yes, no, condition = i.operands[1:]
        return self._write(i, i.type, f"{read(condition, 'pred')} ? {read(yes, i.type)} : {read(no, i.type)}")

    def compare_to_predicate(self, i: Instruction) -> str:
        """setp, with one or two predicates as the result."""
        target, *inverse = i.operands[0].split("|")
        condition = self._condition(i, i.type)
        if not inverse:
            return self._operands.write(target, "pred", condition)
        # With a combination, the second is combined as well, not the first one's opposite.
        opposite = self._condition(i, i.type, negated=True)
        writes = (
            self._operands.write(target, "pred", "condition"),
            self._operands.write(inverse[0], "pred", "opposite"),
        )
        return f"{{ const bool condition = {condition}, opposite = {opposite}; {' '.join(writes)} }}"

    def compare_to_value(self, i: Instruction) -> str:
        """set: all bits, or 1.0, where the comparison holds."""
        result, compared = i.types[0], i.types[-1]
        if is_half(result):
            raise i.unsupported()
        one = "1" if is_float(result) else "-1"
        return self._write(i, result, f"{self._condition(i, compared)} ? {one} : 0")

    def _condition(self, i: Instruction, ty: str, *, negated: bool = False) -> str:
        if ty == "f16x2":
            raise i.unsupported()
        a, b = (self._operands.read(op, ty) for op in i.operands[1:3])
        if ty == "f16":
            a, b = f"from_half({a})", f"from_half({b})"
        elif i.has("ftz"):
            a, b = f"flush({a})", f"flush({b})"
        relation = i.modifiers[0]
        unordered = f"std::isnan({a}) || std::isnan({b})"
        floating = is_float(ty) or ty == "f16"
        if relation in COMPARE:
            condition = f"{a} {COMPARE[relation]} {b}"
            if relation == "ne" and floating:
                condition = f"!({unordered}) && {condition}"
        elif relation in COMPARE_UNSIGNED and not floating:
            condition = f"{a} {COMPARE_UNSIGNED[relation]} {b}"
        elif floating and relation == "num":
            condition = f"!({unordered})"
        elif floating and relation == "nan":
            condition = unordered
        elif floating and relation.removesuffix("u") in COMPARE:
            condition = f"{unordered} || {a} {COMPARE[relation.removesuffix('u')]} {b}"
        else:
            raise i.unsupported()
        condition = f"({condition})"
        if negated:
            condition = f"!{condition}"
        if combine := i.choose(COMBINE):
            condition = f"({condition} {COMBINE[combine]} {self._operands.read(i.operands[3], 'pred')})"
        return condition
