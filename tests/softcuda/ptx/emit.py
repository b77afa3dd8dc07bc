"""From a PTX file to one C++ file; device/kernel.h says what the device expects in it."""

from __future__ import annotations

import re
from collections.abc import Callable
from itertools import pairwise

from .arithmetic import Arithmetic
from .convert import Convert
from .memory import Memory
from .operands import FLOAT_BITS, INTEGER, Instruction, Operands
from .source import Entry, Kind, Module, Variable, parse, pieces, split_operands, variable
from .types import C_TYPE, WIDTH, Unsupported

# They order memory accesses, which here happen one at a time, or are advice to hardware.
NOTHING_TO_DO = ("membar", "fence", "prefetch", "prefetchu", "applypriority", "discard")
DYNAMIC_SHARED_ALIGN = 16


def translate(ptx: str) -> str:
    """The C++ source for all kernels of a PTX file.

    Raises:
        Unsupported: a kernel uses what is not emulated.
    """
    module = parse(ptx)
    parts = ['#include "ops.h"', "using namespace softcuda;"]
    parts += [_variable(v) for v in module.variables if v.space in ("global", "const")]
    parts += [_Kernel(entry, module).emit() for entry in module.entries]
    return "\n".join(parts) + "\n"


def _variable(v: Variable) -> str:
    """A variable of the module, as an array of integers of its width."""
    values = []
    for item in split_operands((v.value or "").strip().removeprefix("{").removesuffix("}")):
        if found := FLOAT_BITS.match(item):
            values.append(f"0x{found['f32'] or found['f64']}u")
        elif INTEGER.match(item):
            values.append(f"static_cast<uint{WIDTH[v.type]}_t>({item.removesuffix('U')})")
        else:
            raise Unsupported(f"initial value {item} of {v.name}")
    return f"alignas({v.align}) static uint{WIDTH[v.type]}_t {v.name}[{max(v.count, 1)}] = {{{', '.join(values)}}};"


class _Kernel:
    def __init__(self, entry: Entry, module: Module) -> None:
        self._entry = entry
        self._operands = Operands()
        self._memory = Memory(self._operands)
        self._table: dict[str, Callable[[Instruction], str]] = {
            **self._memory.table,
            **Arithmetic(self._operands).table,
            **Convert(self._operands).table,
            **dict.fromkeys(("bra", "brx", "ret", "exit", "trap", "bar", "barrier"), self._control),
            **dict.fromkeys(NOTHING_TO_DO, lambda _: ";"),
        }
        self._lines: list[str] = []
        self._locals: list[str] = []
        self._branch_targets: dict[str, list[str]] = {}
        self._shared_bytes = 0
        self._dynamic: list[Variable] = []
        self._has_barriers = False
        for p in entry.parameters:
            self._operands.places[p.name] = f"reinterpret_cast<uint64_t>(params) + {p.offset}"
        for v in module.variables:
            self._place(v)

    def emit(self) -> str:
        """The body as a function, and the description of the kernel."""
        body = list(pieces(self._entry.body))
        # Jumps go forward as well, so the targets of indexed ones are read first.
        for (kind, label), (_, text) in pairwise(body):
            if kind is Kind.LABEL and text.startswith(".branchtargets"):
                self._branch_targets[label] = split_operands(text.removeprefix(".branchtargets"))
        for kind, text in body:
            match kind:
                case Kind.OPEN:
                    self._operands.scopes.append({})
                case Kind.CLOSE:
                    self._operands.scopes.pop()
                case Kind.LABEL:
                    if text not in self._branch_targets:
                        self._lines.append(f"{_label(text)}:;")
                case Kind.STATEMENT:
                    self._statement(text)
        return self._source()

    def _place(self, v: Variable) -> None:
        """Give a variable its address."""
        places = self._operands.places
        if v.dynamic:
            # All of them begin where the kernel's own shared memory ends, which is known only when all is read.
            places[v.name] = "dynamic_shared"
        elif v.space == "shared":
            self._shared_bytes = (self._shared_bytes + v.align - 1) // v.align * v.align
            places[v.name] = str(self._shared_bytes)
            self._shared_bytes += v.size
        else:
            places[v.name] = f"reinterpret_cast<uint64_t>({v.name})"

    def _statement(self, text: str) -> None:
        if text.startswith(".reg"):
            self._declare_registers(text)
        elif text.startswith((".local", ".shared")):
            v = variable(text)
            self._place(v)
            if v.space == "local":
                self._locals.append(f"alignas({v.align}) char {v.name}[{v.size}];")
                self._locals.append(f"std::memset({v.name}, 0xA5, {v.size});")
        elif text.startswith((".branchtargets", ".pragma")):
            pass
        elif text.startswith("."):
            raise Unsupported(f"directive {text}")
        else:
            self._lines.append(self._instruction(text))

    def _declare_registers(self, text: str) -> None:
        found = re.match(r"\.reg\s+\.(\w+)\s+(.+)$", text, re.S)
        if not found:
            raise Unsupported(f"declaration {text}")
        for name in split_operands(found[2]):
            if numbered := re.match(r"(%?[\w$]+)<(\d+)>$", name):
                for n in range(int(numbered[2])):
                    self._operands.declare(f"{numbered[1]}{n}", found[1])
            else:
                self._operands.declare(name, found[1])

    def _instruction(self, text: str) -> str:
        found = re.match(r"(?:@(?P<not>!?)(?P<predicate>[%\w$]+)\s+)?(?P<name>[\w.:]+)\s*(?P<operands>.*)$", text, re.S)
        if not found:
            raise Unsupported(f"instruction {text}")
        opcode, *modifiers = found["name"].split(".")
        i = Instruction(opcode, tuple(modifiers), split_operands(found["operands"]), " ".join(text.split()))
        if opcode not in self._table:
            raise i.unsupported()
        try:
            code = self._table[opcode](i)
        except Unsupported as e:
            raise e if i.text in str(e) else Unsupported(f"{e} in instruction {i.text}") from None
        except (KeyError, ValueError, IndexError):  # types or operands that no case of its translation is made for
            raise i.unsupported() from None
        code = f"if (Profiled) t.instructions++; {code}"
        if found["predicate"]:
            condition = found["not"] + self._operands.read(found["predicate"], "pred")
            return f"if ({condition}) {{ {code} }}"
        return code

    def _control(self, i: Instruction) -> str:
        match i.opcode:
            case "bra":
                return f"goto {_label(i.operands[0])};"
            case "brx":
                targets = self._branch_targets[i.operands[1]]
                cases = " ".join(f"case {n}: goto {_label(target)};" for n, target in enumerate(targets))
                return f"switch ({self._operands.read(i.operands[0], 'u32')}) {{ {cases} }}"
            case "ret" | "exit":
                return "return;"
            case "trap":
                return "t.device->trap(t);"
        self._has_barriers = True
        if i.has("warp"):
            return "t.device->wait(t, Barrier::warp);"
        if i.has("sync") and i.operands == ["0"]:
            return "t.device->wait(t, Barrier::block);"
        raise i.unsupported()

    def _source(self) -> str:
        name, parameters = self._entry.name, self._entry.parameters
        lines = "\n".join(self._lines)
        used = set(re.findall(r"\br\d+_\w+", lines))
        registers = "\n".join(f"{C_TYPE[r.type]} {r.c}{{}};" for r in self._operands.registers if r.c in used)
        dynamic = -(-self._shared_bytes // DYNAMIC_SHARED_ALIGN) * DYNAMIC_SHARED_ALIGN
        offsets = ", ".join(str(p.offset) for p in parameters) or "0"
        sizes = ", ".join(str(p.size) for p in parameters) or "0"
        locals_ = "\n".join(self._locals)
        return f"""
template <bool Profiled> static void {name}__body(const char* params, Thread& t) {{
constexpr uint64_t dynamic_shared = {dynamic};
{locals_}
{registers}
{lines}
}}
static const unsigned {name}__offsets[] = {{{offsets}}}, {name}__sizes[] = {{{sizes}}};
extern "C" const Kernel {name}__kernel = {{
"{name}", {len(parameters)}, {name}__offsets, {name}__sizes, {dynamic}, {self._entry.max_threads},
{"true" if self._has_barriers else "false"}, {self._memory.instructions}, {name}__body<false>, {name}__body<true>}};"""


def _label(name: str) -> str:
    return f"label_{name}"
