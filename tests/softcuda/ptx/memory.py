"""Loads, stores, atomics, and the addresses they need."""

from __future__ import annotations

from itertools import count

from .operands import Instruction, Operands
from .source import split_operands
from .types import C_TYPE, WIDTH, is_float, is_half

SPACES = ("param", "global", "shared", "local", "const")
ATOMIC = {
    "add": "old + value",
    "min": "std::min(old, value)",
    "max": "std::max(old, value)",
    "exch": "value",
    "and": "old & value",
    "or": "old | value",
    "xor": "old ^ value",
    "inc": "old >= value ? 0 : old + 1",
    "dec": "old == 0 || old > value ? value : old - 1",
    "cas": "old == value ? other : old",
}


class Memory:
    """Translates what touches memory; numbers the loads and stores for the profile."""

    def __init__(self, operands: Operands) -> None:
        self._operands = operands
        self._numbers = count()
        self.instructions = 0
        self.table = {
            "ld": self.load,
            "ldu": self.load,
            "st": self.store,
            "atom": self.atomic,
            "red": self.atomic,
            "cvta": self.convert_address,
        }

    def load(self, i: Instruction) -> str:
        """ld, ld.v2, ld.v4."""
        space = i.choose(SPACES, "generic")
        size = WIDTH[i.type] // 8
        targets = _elements(i.operands[0])
        loads = (
            self._operands.write(target, i.type, f"load<{C_TYPE[i.type]}>(address + {n * size})")
            for n, target in enumerate(targets)
        )
        return self._access(i, i.operands[1], space, size * len(targets), " ".join(loads), store=False)

    def store(self, i: Instruction) -> str:
        """st, st.v2, st.v4."""
        space = i.choose(SPACES, "generic")
        size = WIDTH[i.type] // 8
        sources = _elements(i.operands[1])
        stores = (
            f"store<{C_TYPE[i.type]}>(address + {n * size}, {self._operands.read(source, i.type)});"
            for n, source in enumerate(sources)
        )
        return self._access(i, i.operands[0], space, size * len(sources), " ".join(stores), store=True)

    def atomic(self, i: Instruction) -> str:
        """atom and red. Threads run one at a time, so reading, changing and writing is atomic."""
        operation = i.choose(ATOMIC)
        if not operation or is_half(i.type) or i.has("v2", "v4"):
            raise i.unsupported()
        target, address, *values = i.operands if i.opcode == "atom" else ["_", *i.operands]
        # Bits are bits: only arithmetic minds whether they are a float.
        ty = i.type if operation in ("add", "min", "max") or not is_float(i.type) else f"b{WIDTH[i.type]}"
        c = C_TYPE[ty]
        read = [self._operands.read(v, ty) for v in values]
        other = f"const {c} other = {read[1]}; " if operation == "cas" else ""
        change = (
            f"const {c} old = load<{c}>(address), value = {read[0]}; {other}"
            f"store<{c}>(address, static_cast<{c}>({ATOMIC[operation]})); {self._operands.write(target, ty, 'old')}"
        )
        space = i.choose(("global", "shared"), "generic")
        return self._access(i, address, space, WIDTH[ty] // 8, change, store=True)

    def convert_address(self, i: Instruction) -> str:
        """cvta: only shared memory has addresses of its own here, counted from 0."""
        value = self._operands.read(i.operands[1], "u64")
        if i.has("shared"):
            value += f" {'-' if i.has('to') else '+'} reinterpret_cast<uint64_t>(t.shared)"
        return self._operands.write(i.operands[0], "u64", value)

    def _access(self, i: Instruction, operand: str, space: str, size: int, body: str, *, store: bool) -> str:
        checks = f"aligned<{size}>(t, address);"
        if space in ("global", "generic"):
            number = next(self._numbers)
            self.instructions = number + 1
            flag = "true" if store else "false"
            checks += f" if (Profiled) t.device->access(t, {number}, address, {size}, {flag});"
        return f"{{ const uint64_t address = {self._operands.address(operand, space)}; {checks} {body} }}"


def _elements(operand: str) -> list[str]:
    return split_operands(operand.strip("{}")) if operand.startswith("{") else [operand]
