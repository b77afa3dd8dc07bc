"""Operands of PTX instructions as C++ expressions."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from .types import C_TYPE, WIDTH, Unsupported, is_float

SPECIAL = {
    **{
        f"%{name}.{axis}": f"t.{name}[{i}]"
        for name in ("tid", "ntid", "ctaid", "nctaid")
        for i, axis in enumerate("xyz")
    },
    "%laneid": "(t.index & 31)",
    "%warpid": "(t.index >> 5)",
    "WARP_SZ": "32",
}
FLOAT_BITS = re.compile(r"0(?:[fF](?P<f32>[0-9a-fA-F]{8})|[dD](?P<f64>[0-9a-fA-F]{16}))$")
INTEGER = re.compile(r"(?P<sign>-?)(?P<digits>0[xX][0-9a-fA-F]+|\d+)U?$")
ADDRESS = re.compile(r"\[\s*(?P<base>[%\w$.]+)\s*(?:\+\s*(?P<offset>-?\d+))?\s*\]$")


@dataclass(frozen=True)
class Register:
    """A PTX register, and the C++ variable that is it."""

    type: str
    c: str


@dataclass
class Operands:
    """The names that a kernel's instructions may use.

    `places` gives a C++ expression for the address of each variable and parameter in its own state space: shared
    memory begins at 0, all others are addresses of the host.
    """

    places: dict[str, str] = field(default_factory=dict)
    registers: list[Register] = field(default_factory=list)
    scopes: list[dict[str, Register]] = field(default_factory=lambda: [{}])

    def declare(self, name: str, ty: str) -> None:
        """Add a register to the innermost scope; inline assembly uses a name again with another type."""
        if ty not in C_TYPE:
            raise Unsupported(f"register type .{ty}")
        plain = re.sub(r"\W", "_", name.removeprefix("%"))
        register = Register(ty, f"r{len(self.registers)}_{plain}")
        self.registers.append(register)
        self.scopes[-1][name] = register

    def find(self, name: str) -> Register | None:
        """The register of that name, of the innermost scope that has it."""
        return next((scope[name] for scope in reversed(self.scopes) if name in scope), None)

    def register(self, name: str) -> Register:
        """The register of that name."""
        found = self.find(name)
        if found is None:
            raise Unsupported(f"register {name}")
        return found

    def read(self, op: str, ty: str) -> str:
        """An expression of type `C_TYPE[ty]` for the value of an operand."""
        want = C_TYPE[ty]
        if op.startswith("!"):
            return f"(!{self.register(op[1:]).c})"
        if op in SPECIAL:
            return f"static_cast<{want}>({SPECIAL[op]})"
        if register := self.find(op):
            return _as(register, ty)
        if found := FLOAT_BITS.match(op):
            have, digits = ("f32", found["f32"]) if found["f32"] else ("f64", found["f64"])
            pattern = f"UINT{WIDTH[have]}_C(0x{digits})"
            return f"bits<{want}>({pattern})" if is_float(ty) else pattern
        if found := INTEGER.match(op):
            literal = f"{found['sign']}INT64_C({found['digits']})" if found["sign"] else f"UINT64_C({found['digits']})"
            if is_float(ty):
                return f"bits<{want}>(static_cast<uint{WIDTH[ty]}_t>({literal}))"
            return f"static_cast<{want}>({literal})"
        if op in self.places:
            return f"static_cast<{want}>({self.places[op]})"
        raise Unsupported(f"operand {op}")

    def write(self, op: str, ty: str, expression: str) -> str:
        """A statement that gives a register a value of type `C_TYPE[ty]`; integers are extended to a wider register."""
        value = f"static_cast<{C_TYPE[ty]}>({expression})"
        if op == "_":
            return f"(void){value};"
        register = self.register(op)
        have = C_TYPE[register.type]
        if have == C_TYPE[ty]:
            return f"{register.c} = {value};"
        if is_float(register.type) or is_float(ty):
            if WIDTH[register.type] < WIDTH[ty]:
                raise Unsupported(f"a value of type .{ty} for {op}, which is .{register.type}")
            if is_float(register.type):
                return f"{register.c} = bits<{have}>({value});"
            return f"{register.c} = bits<uint{WIDTH[ty]}_t>({value});"
        return f"{register.c} = static_cast<{have}>({value});"

    def address(self, op: str, space: str) -> str:
        """An expression of type uint64_t for the host's address of `[op]`."""
        found = ADDRESS.match(op)
        if not found:
            raise Unsupported(f"address {op}")
        base = self.read(found["base"], "u64") if found["base"] in self.places else self._pointer(found["base"])
        if space == "shared":
            base = f"reinterpret_cast<uint64_t>(t.shared) + {base}"
        return f"{base} + INT64_C({found['offset'] or 0})"

    def _pointer(self, name: str) -> str:
        register = self.register(name)
        return f"static_cast<uint64_t>({_as(register, f'u{WIDTH[register.type]}')})"


def _as(register: Register, ty: str) -> str:
    want, have = C_TYPE[ty], C_TYPE[register.type]
    if have == want:
        return register.c
    if "pred" in (ty, register.type):
        raise Unsupported(f"a register of type .{register.type} read as .{ty}")
    if not is_float(register.type) and not is_float(ty):
        return f"static_cast<{want}>({register.c})"
    if WIDTH[register.type] == WIDTH[ty]:
        return f"bits<{want}>({register.c})"
    if is_float(ty) and WIDTH[register.type] > WIDTH[ty]:
        return f"bits<{want}>(static_cast<uint{WIDTH[ty]}_t>({register.c}))"
    raise Unsupported(f"a register of type .{register.type} read as .{ty}")


@dataclass(frozen=True)
class Instruction:
    """One instruction: `opcode` and what follows it after dots, and the operands."""

    opcode: str
    modifiers: tuple[str, ...]
    operands: list[str]
    text: str

    @property
    def type(self) -> str:
        """The last type among the modifiers: that of the operands, and of the result unless there are more."""
        return self.types[-1] if self.types else ""

    @property
    def types(self) -> list[str]:
        """All types among the modifiers, in order."""
        return [m for m in self.modifiers if m in C_TYPE]

    def has(self, *modifiers: str) -> bool:
        """Whether any of these modifiers is there."""
        return any(m in self.modifiers for m in modifiers)

    def choose(self, names: Mapping[str, str] | tuple[str, ...], otherwise: str = "") -> str:
        """The modifier that is one of `names`."""
        return next((m for m in self.modifiers if m in names), otherwise)

    def unsupported(self) -> Unsupported:
        """The error that names this instruction."""
        return Unsupported(f"instruction {self.text}")
