#!/usr/bin/env python3
"""Translate the PTX of CUDA kernels to C++ and compile it for the host CPU.

Usage: ptxcc.py IN.ptx OUT.so

Every `.entry NAME` becomes, in OUT.so:
  extern "C" const int  NAME__nparams, NAME__sizes[]   bytes of each parameter
  extern "C" void NAME__launch(const char* params, const unsigned grid[3],
                               const unsigned block[3], unsigned dynamic_shared)

Threads of a block run one after another, or as fibres where the kernel has a
barrier.  An instruction outside the subset below is an error that names it.
"""

import hashlib
import re
import subprocess
import sys
import tempfile
from pathlib import Path

REG_C = {
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
    "f16": "_Float16",
    "f32": "float",
    "f64": "double",
}
SIZE = {"8": 1, "16": 2, "32": 4, "64": 8}

PRELUDE = r"""
#include <cstdint>
#include <cstring>
#include <cstdlib>
#include <cstdio>
#include <cmath>
#include <algorithm>
#include <vector>
#include <unordered_map>
#include <unordered_set>
#include <ucontext.h>
template<class T,class S> static inline T bits(S s){ static_assert(sizeof(T)==sizeof(S)); T t; std::memcpy(&t,&s,sizeof t); return t; }
template<class T> static inline T ldm(uint64_t a){ T t; std::memcpy(&t,(const void*)a,sizeof t); return t; }
template<class T> static inline void stm(uint64_t a,T v){ std::memcpy((void*)a,&v,sizeof v); }
template<class T> static inline void chk(uint64_t a){ if(a%sizeof(T)){ std::fprintf(stderr,"softcuda: misaligned %zu-byte access at 0x%llx\n",sizeof(T),(unsigned long long)a); std::abort(); } }
struct Block { unsigned grid[3], block[3], cta[3]; char* shared; ucontext_t sched; };
struct Thread { unsigned tid[3]; Block* b; ucontext_t uc; bool done=false; std::vector<char> stack; };
// What a kernel does to memory, as a profiler would count it: 32-byte sectors for each warp's request.
struct Profile {
  unsigned long long threads=0,instructions=0,requests=0,bytes[2]={},sectors[2]={},unique[2]={};
  std::vector<uint32_t> occurrence; std::unordered_map<uint64_t,std::vector<uint64_t>> warp; std::unordered_set<uint64_t> touched[2]; unsigned lanes=0;
  void begin(size_t n){ if(lanes==32) end_warp(); lanes++; threads++; occurrence.assign(n,0); }
  void access(uint32_t id,uint64_t a,unsigned n,bool store){ bytes[store]+=n; auto& v=warp[((uint64_t)id<<33)|((uint64_t)occurrence[id]++<<1)|store];
    for(uint64_t s=a>>5;s<=(a+n-1)>>5;s++) v.push_back(s); }
  void end_warp(){ for(auto& kv:warp){ auto& v=kv.second; std::sort(v.begin(),v.end()); v.erase(std::unique(v.begin(),v.end()),v.end());
      bool st=kv.first&1; requests++; sectors[st]+=v.size(); touched[st].insert(v.begin(),v.end()); } warp.clear(); lanes=0; }
  void end_launch(){ end_warp(); for(int i=0;i<2;i++){ unique[i]+=touched[i].size()*32; touched[i].clear(); } }
};
template<class T,class F> static inline T sat_round(F v, F r){ // float -> int with PTX saturation
  if(std::isnan(v)) return 0; if(r<=(F)std::numeric_limits<T>::min()) return std::numeric_limits<T>::min();
  if(r>=(F)std::numeric_limits<T>::max()) return std::numeric_limits<T>::max(); return (T)r; }
static inline uint32_t prmt(uint32_t a,uint32_t b,uint32_t s){ uint64_t v=((uint64_t)b<<32)|a; uint32_t o=0; for(int i=0;i<4;i++){ unsigned n=(s>>(4*i))&0xf; uint8_t x=(uint8_t)(v>>(8*(n&7))); if(n&8) x=(x&0x80)?0xff:0; o|=(uint32_t)x<<(8*i);} return o; }
static inline uint32_t lop3(uint32_t a,uint32_t b,uint32_t c,unsigned t){ uint32_t r=0; for(int i=0;i<8;i++) if(t>>i&1) r|=((i&4)?a:~a)&((i&2)?b:~b)&((i&1)?c:~c); return r; }
static inline uint32_t bfe_u(uint32_t a,unsigned p,unsigned l){ p&=255;l&=255; if(l==0||p>31) return 0; uint32_t v=a>>p; return l>31?v:v&((1u<<l)-1); }
static inline int32_t bfe_s(int32_t a,unsigned p,unsigned l){ p&=255;l&=255; if(l==0) return 0; int64_t v=(int64_t)a>>std::min(p,31u); if(l>=32||p+l>=32) return (int32_t)v; return (int32_t)((uint32_t)v<<(32-l))>>(32-l); }
static inline uint32_t bfi32(uint32_t a,uint32_t b,unsigned p,unsigned l){ p&=255;l&=255; if(l==0||p>31) return b; uint32_t m=(l>31?~0u:((1u<<l)-1))<<p; return (b&~m)|((a<<p)&m); }
"""


class Unsupported(Exception):
    pass


def split_ops(text):
    """Split operands at top-level commas ({...} and [...] kept whole)."""
    out, depth, cur = [], 0, ""
    for ch in text:
        if ch in "{[(":
            depth += 1
        if ch in "}])":
            depth -= 1
        if ch == "," and depth == 0:
            out.append(cur.strip())
            cur = ""
        else:
            cur += ch
    if cur.strip():
        out.append(cur.strip())
    return out


class Kernel:
    def __init__(self, name, params, body, module_vars):
        self.name, self.module_vars = name, module_vars
        self.regs = {}  # register -> PTX type
        self.params = []  # (name, offset, size)
        self.shared = dict(module_vars)
        off = 0
        for p in params:
            m = re.match(
                r"\.param\s+(?:\.align\s+(\d+)\s+)?\.(\w+)\s+(?:\.ptr\s+(?:\.\w+\s+)?(?:\.align\s+\d+\s+)?)?([\w$]+)(?:\[(\d+)\])?",
                p,
            )
            if not m:
                raise Unsupported("parameter " + p)
            align, ty, pname, n = m.groups()
            size = SIZE[ty[1:]] * int(n or 1)
            a = int(align) if align else SIZE[ty[1:]]
            off = (off + a - 1) // a * a
            self.params.append((pname, off, size))
            off += size
        self.lines, self.decls, self.local = [], [], []
        self.barrier = False
        self.ids = 0  # numbered memory instructions
        self.body = body

    def next_id(self):
        self.ids += 1
        return self.ids - 1

    # --- operands -------------------------------------------------------
    def special(self, op):
        axis = {"x": 0, "y": 1, "z": 2}
        m = re.match(r"%(tid|ntid|ctaid|nctaid)\.([xyz])$", op)
        if m:
            i = axis[m[2]]
            return {
                "tid": f"t.tid[{i}]",
                "ntid": f"t.b->block[{i}]",
                "ctaid": f"t.b->cta[{i}]",
                "nctaid": f"t.b->grid[{i}]",
            }[m[1]]
        if op == "%laneid":
            return "((t.tid[0]+t.b->block[0]*(t.tid[1]+t.b->block[1]*t.tid[2]))&31)"
        return None

    def reg(self, op):
        return op.replace("%", "r_").replace("$", "_").replace(".", "_")

    def src(self, op, ty):
        """A C expression of C type REG_C[ty] for operand `op`."""
        want = REG_C[ty]
        sp = self.special(op)
        if sp:
            return f"(({want})({sp}))"
        neg = op.startswith("!")
        name = op[1:] if neg else op
        if name in self.regs:
            have = self.regs[name]
            c = self.reg(name)
            if neg:
                return f"(!{c})"
            if have == ty or ty == "pred":
                return c
            hf, wf = have[0] == "f", ty[0] == "f"
            if hf == wf and not hf:
                return f"(({want}){c})"
            hb, wb = int(have[1:]), int(ty[1:])
            if hb == wb:
                return f"bits<{want}>({c})"
            if wf and hb > wb:  # narrow a wide untyped register first
                return f"bits<{want}>((uint{wb}_t){c})"
            raise Unsupported(f"register {op}:{have} read as {ty}")
        m = re.match(r"0[fF]([0-9a-fA-F]{8})$", op)
        if m:
            v = f"bits<float>((uint32_t)0x{m[1]}u)"
            return v if ty == "f32" else f"bits<{want}>((uint32_t)0x{m[1]}u)"
        m = re.match(r"0[dD]([0-9a-fA-F]{16})$", op)
        if m:
            return f"bits<double>((uint64_t)0x{m[1]}ull)"
        m = re.match(r"0[xX]([0-9a-fA-F]+)U?$", op)
        if m and ty[0] == "f":
            return f"bits<{want}>((uint{ty[1:]}_t)0x{m[1]}ull)"
        if re.match(r"-?(0[xX][0-9a-fA-F]+|\d+)U?$", op):
            lit = op.rstrip("U")
            return f"(({want})({lit}{'ull' if not lit.startswith('-') else 'll'}))"
        if op in self.shared:
            return f"(({want})(uint64_t)(t.b->shared+{self.shared[op]}))"
        if any(op == n for n, _ in self.local):
            return f"(({want})(uint64_t){op})"
        raise Unsupported(f"operand {op}")

    def dst(self, op, ty, expr):
        """Assign expr (C type REG_C[ty]) to register op."""
        if op == "_":
            return f"(void)({expr});"
        have = self.regs[op]
        c = self.reg(op)
        if have == ty or ty == "pred":
            return f"{c} = {expr};"
        hf, wf = have[0] == "f", ty[0] == "f"
        if hf == wf:
            return f"{c} = ({REG_C[have]})({expr});"
        hb, wb = int(have[1:]), int(ty[1:])
        if hb == wb:
            return f"{c} = bits<{REG_C[have]}>(({REG_C[ty]})({expr}));"
        return f"{c} = ({REG_C[have]})bits<uint{wb}_t>(({REG_C[ty]})({expr}));"

    def addr(self, op, space):
        m = re.match(r"\[\s*([%\w$.]+)\s*(?:\+\s*(-?\d+))?\s*\]$", op)
        if not m:
            raise Unsupported("address " + op)
        base, off = m[1], int(m[2] or 0)
        if space == "param":
            for n, o, _ in self.params:
                if n == base:
                    return f"((uint64_t)P+{o + off})"
        if base in self.regs:
            w = "u64" if self.regs[base][1:] == "64" else "u32"
            e = self.src(base, w)
            if w == "u32":  # 32-bit shared/local window address
                e = f"((uint64_t)t.b->shared+{e})" if space == "shared" else f"((uint64_t){e})"
            return f"({e}+{off}ll)"
        if base in self.shared:
            return f"((uint64_t)t.b->shared+{self.shared[base]}+{off})"
        for n, _ in self.local:
            if n == base:
                return f"((uint64_t){n}+{off})"
        raise Unsupported("address " + op)

    # --- instructions ---------------------------------------------------
    def instr(self, text):
        pred = ""
        m = re.match(r"@(!?)(%[\w]+)\s+(.*)$", text, re.S)
        if m:
            pred = f"if ({m[1]}{self.reg(m[2])}) "
            text = m[3]
        parts = text.split(None, 1)
        op, rest = parts[0], parts[1] if len(parts) > 1 else ""
        f = op.split(".")
        o = split_ops(rest)
        code = self.translate(f, o, text)
        code = "if(R) prof.instructions++; " + code
        self.lines.append(pred + "{ " + code + " }" if pred else code)

    def translate(self, f, o, text):
        name, ty = f[0], f[-1]
        S, D = self.src, self.dst
        c = REG_C.get(ty)
        u = "u" + ty[1:] if ty[0] in "subf" and ty[1:].isdigit() else ty
        if name in ("bra",):
            return f"goto {self.label(o[0])};"
        if name in ("ret", "exit"):
            return "return;"
        if name in ("bar", "barrier"):
            self.barrier = True
            return "swapcontext(&t.uc,&t.b->sched);"
        if name in ("membar", "fence", "prefetch", "pragma"):
            return ";"
        if name == "trap":
            return 'std::fprintf(stderr,"softcuda: trap\\n"); std::abort();'
        if name in ("ld", "ldu"):
            space = next((x for x in f if x in ("param", "global", "shared", "local", "const")), "generic")
            a = self.addr(o[1], space)
            vec = next((int(x[1:]) for x in f if x in ("v2", "v4")), 1)
            outs = split_ops(o[0].strip("{}")) if vec > 1 else [o[0]]
            n = SIZE[ty[1:]]
            if space in ("global", "generic"):
                rec = f"if(R) prof.access({self.next_id()},a_,{n * vec},false); "
            else:
                rec = ""
            align = "" if space == "param" else f"{{ uint64_t a_={a}; if(a_%{n * vec}){{ chk<uint64_t>(1); }} {rec}}} "
            return align + " ".join(
                D(r, ty, f"ldm<{c}>({a}+{i * n})")
                if self.regs.get(r, "b64")[1:] == ty[1:] or r == "_"
                else self.widen(r, ty, f"ldm<{c}>({a}+{i * n})")
                for i, r in enumerate(outs)
            )
        if name == "st":
            space = next((x for x in f if x in ("param", "global", "shared", "local")), "generic")
            a = self.addr(o[0], space)
            vec = next((int(x[1:]) for x in f if x in ("v2", "v4")), 1)
            ins = split_ops(o[1].strip("{}")) if vec > 1 else [o[1]]
            n = SIZE[ty[1:]]
            rec = f"if(R) prof.access({self.next_id()},a_,{n * vec},true); " if space in ("global", "generic") else ""
            return (
                f"{{ uint64_t a_={a}; if(a_%{n * vec}){{ chk<uint64_t>(1); }} {rec}"
                + " ".join(f"stm<{c}>(a_+{i * n},{S(r, ty)});" for i, r in enumerate(ins))
                + " }"
            )
        if name in ("cvta",):
            return D(o[0], "u64", S(o[1], "u64"))
        if name == "mov":
            if o[0].startswith("{"):
                outs = split_ops(o[0].strip("{}"))
                w = int(ty[1:]) // len(outs)
                v = S(o[1], "b" + ty[1:])
                return (
                    "{ "
                    + f"uint{ty[1:]}_t v_={v}; "
                    + " ".join(D(r, f"b{w}", f"(uint{w}_t)(v_>>{w * i})") for i, r in enumerate(outs))
                    + " }"
                )
            if o[1].startswith("{"):
                ins = split_ops(o[1].strip("{}"))
                w = int(ty[1:]) // len(ins)
                e = "|".join(f"((uint{ty[1:]}_t){S(r, f'b{w}')}<<{w * i})" for i, r in enumerate(ins))
                return D(o[0], "b" + ty[1:], e)
            if ty != "pred" and not self.special(o[1]) and o[1] in self.shared and ty[1:] == "32":
                return D(o[0], ty, f"((uint32_t){self.shared[o[1]]})")
            return D(o[0], ty, S(o[1], ty))
        if name == "not":
            return D(o[0], ty, f"(!{S(o[1], ty)})" if ty == "pred" else f"({c})(~{S(o[1], ty)})")
        if name in ("and", "or", "xor"):
            sym = {"and": "&", "or": "|", "xor": "^"}[name]
            return D(o[0], ty, f"({c})({S(o[1], ty)}{sym}{S(o[2], ty)})")
        if name == "shl":
            w = int(ty[1:])
            return D(o[0], f"u{w}", f"({S(o[2], 'u32')}>={w}u?0:(uint{w}_t)({S(o[1], f'u{w}')}<<{S(o[2], 'u32')}))")
        if name == "shr":
            w = int(ty[1:])
            if ty[0] == "s":
                return D(o[0], ty, f"({c})({S(o[1], ty)}>>std::min<uint32_t>({S(o[2], 'u32')},{w - 1}u))")
            return D(o[0], f"u{w}", f"({S(o[2], 'u32')}>={w}u?0:(uint{w}_t)({S(o[1], f'u{w}')}>>{S(o[2], 'u32')}))")
        if name == "shf":
            left = "l" in f[1:2]
            lo, hi, k = S(o[1], "u32"), S(o[2], "u32"), S(o[3], "u32")
            k = f"({k}&31u)" if "wrap" in f else f"std::min<uint32_t>({k},32u)"
            v = f"(((uint64_t){hi}<<32)|{lo})"
            return D(o[0], "u32", f"(uint32_t)(({v}<<{k})>>32)" if left else f"(uint32_t)({v}>>{k})")
        if name == "setp":
            cmp = f[1]
            combine = f[2] if len(f) > 3 and f[2] in ("and", "or", "xor") else None
            sym = {
                "eq": "==",
                "ne": "!=",
                "lt": "<",
                "le": "<=",
                "gt": ">",
                "ge": ">=",
                "lo": "<",
                "ls": "<=",
                "hi": ">",
                "hs": ">=",
            }
            a, b = S(o[1], ty), S(o[2], ty)
            if cmp in sym:
                e = f"({a}{sym[cmp]}{b})"
                if ty[0] == "f" and cmp == "ne":
                    e = f"({a}<{b}||{a}>{b})"
            elif cmp in ("equ", "neu", "ltu", "leu", "gtu", "geu"):
                e = f"(std::isnan((float){a})||std::isnan((float){b})||{a}{sym[cmp[:2]]}{b})"
            elif cmp == "nan":
                e = f"(std::isnan((float){a})||std::isnan((float){b}))"
            elif cmp == "num":
                e = f"!(std::isnan((float){a})||std::isnan((float){b}))"
            else:
                raise Unsupported(text)
            if combine:
                e = f"({e}{ {'and': '&&', 'or': '||', 'xor': '!='}[combine] }{S(o[3], 'pred')})"
            p, q = (o[0].split("|") + [None])[:2]
            out = D(p, "pred", e)
            if q:
                out += D(q, "pred", f"!{self.reg(p)}")
            return out
        if name == "selp":
            return D(o[0], ty, f"({S(o[3], 'pred')}?{S(o[1], ty)}:{S(o[2], ty)})")
        if name in (
            "add",
            "sub",
            "mul",
            "min",
            "max",
            "div",
            "rem",
            "mad",
            "fma",
            "abs",
            "neg",
            "mul24",
            "mad24",
            "sqrt",
            "rcp",
            "rsqrt",
            "ex2",
            "lg2",
            "sin",
            "cos",
            "tanh",
            "copysign",
            "clz",
            "popc",
            "brev",
        ):
            return self.arith(name, f, o, ty, text)
        if name == "cvt":
            return self.cvt(f, o)
        if name == "prmt":
            return D(o[0], "u32", f"prmt({S(o[1], 'u32')},{S(o[2], 'u32')},{S(o[3], 'u32')})")
        if name == "lop3":
            return D(o[0], "u32", f"lop3({S(o[1], 'u32')},{S(o[2], 'u32')},{S(o[3], 'u32')},{o[4]})")
        if name == "bfe" and ty == "u32":
            return D(o[0], "u32", f"bfe_u({S(o[1], 'u32')},{S(o[2], 'u32')},{S(o[3], 'u32')})")
        if name == "bfi" and ty == "b32":
            return D(o[0], "u32", f"bfi32({S(o[1], 'u32')},{S(o[2], 'u32')},{S(o[3], 'u32')},{S(o[4], 'u32')})")
        if name == "dp4a":  # dp4a.atype.btype d, a, b, c
            at, bt = ("int8_t" if x == "s32" else "uint8_t" for x in (f[1], f[2]))
            t = "s32" if "s32" in f[1:3] else "u32"
            e = "+".join(
                f"(int32_t)({at})({S(o[1], 'b32')}>>{8 * i})*(int32_t)({bt})({S(o[2], 'b32')}>>{8 * i})"
                for i in range(4)
            )
            return D(o[0], t, f"({REG_C[t]})((uint32_t)({e})+{S(o[3], 'u32')})")
        if name == "sad":
            a, b = S(o[1], ty), S(o[2], ty)
            return D(o[0], ty, f"({c})(({a}<{b}?{b}-{a}:{a}-{b})+{S(o[3], ty)})")
        if name == "bfe" and ty == "s32":
            return D(o[0], "s32", f"bfe_s((int32_t){S(o[1], 's32')},{S(o[2], 'u32')},{S(o[3], 'u32')})")
        if name in ("atom", "red"):
            opx = next(x for x in f if x in ("add", "min", "max", "exch", "cas", "and", "or", "inc"))
            space = next((x for x in f if x in ("global", "shared")), "generic")
            if name == "red":
                o = ["_"] + o
            a = self.addr(o[1], space)
            v = S(o[2], ty)
            new = {
                "add": f"({c})(old_+{v})",
                "min": f"std::min<{c}>(old_,{v})",
                "max": f"std::max<{c}>(old_,{v})",
                "exch": v,
                "and": f"({c})(old_&{v})",
                "or": f"({c})(old_|{v})",
            }.get(opx)
            if opx == "cas":
                new = f"(old_=={v}?{S(o[3], ty)}:old_)"
            if new is None:
                raise Unsupported(text)
            return f"{{ uint64_t a_={a}; {c} old_=ldm<{c}>(a_); stm<{c}>(a_,{new}); {D(o[0], ty, 'old_')} }}"
        raise Unsupported(text)

    def widen(self, r, ty, expr):
        """ld into a wider register sign- or zero-extends."""
        have = self.regs[r]
        if have[0] == "f":
            return self.dst(r, ty, expr)
        return f"{self.reg(r)} = ({REG_C[have]})({expr});"

    def arith(self, name, f, o, ty, text):
        S, D = self.src, self.dst
        if ty in ("f32", "f64", "f16"):
            c, sfx = REG_C[ty], {"f32": "f", "f64": "", "f16": ""}[ty]
            a = [S(x, ty) for x in o[1:]]
            fn = {
                "add": "({0}+{1})",
                "sub": "({0}-{1})",
                "mul": "({0}*{1})",
                "div": "({0}/{1})",
                "min": f"std::fmin{sfx}({{0}},{{1}})",
                "max": f"std::fmax{sfx}({{0}},{{1}})",
                "fma": f"std::fma{sfx}({{0}},{{1}},{{2}})",
                "mad": f"std::fma{sfx}({{0}},{{1}},{{2}})",
                "abs": f"std::fabs{sfx}({{0}})",
                "neg": "(-{0})",
                "sqrt": f"std::sqrt{sfx}({{0}})",
                "rcp": "(1/{0})",
                "rsqrt": f"(1/std::sqrt{sfx}({{0}}))",
                "ex2": f"std::exp2{sfx}({{0}})",
                "lg2": f"std::log2{sfx}({{0}})",
                "sin": f"std::sin{sfx}({{0}})",
                "cos": f"std::cos{sfx}({{0}})",
                "tanh": f"std::tanh{sfx}({{0}})",
                "copysign": f"std::copysign{sfx}({{1}},{{0}})",
            }.get(name)
            if fn is None:
                raise Unsupported(text)
            if any(r in f for r in ("rz", "rm", "rp")) and name not in ("min", "max"):
                raise Unsupported(text)
            e = f"({c})" + fn.format(*a)
            if "sat" in f:
                e = f"std::fmin((float)1,std::fmax((float)0,(float)({e})))"
            return D(o[0], ty, e)
        if ty[0] == "f":
            raise Unsupported(text)
        w = int(ty[1:])
        c, uc = REG_C[ty], f"uint{w}_t"
        a = [S(x, ty) for x in o[1:]]
        if name in ("add", "sub"):
            sym = "+" if name == "add" else "-"
            if "sat" in f or "cc" in f:
                raise Unsupported(text)
            return D(o[0], ty, f"({c})(({uc}){a[0]}{sym}({uc}){a[1]})")
        if name in ("mul", "mad", "mul24", "mad24"):
            if "wide" in f:
                W = f"{ty[0]}{2 * w}"
                prod = f"(({REG_C[W]})(({REG_C[W]}){a[0]}*({REG_C[W]}){a[1]}))"
                if name == "mad":
                    prod = f"({REG_C[W]})({prod}+{S(o[3], W)})"
                return D(o[0], W, prod)
            if "hi" in f:
                W = "__int128" if ty[0] == "s" else "unsigned __int128"
                e = f"({c})((({W}){a[0]}*({W}){a[1]})>>{w})"
            else:
                e = (
                    f"({c})(({uc})(({uc}){a[0]}*({uc}){a[1]}))"
                    if w >= 32
                    else f"({c})((uint32_t){a[0]}*(uint32_t){a[1]})"
                )
            if name.startswith("mad"):
                e = f"({c})(({uc})({e})+({uc}){a[2]})"
            return D(o[0], ty, e)
        if name in ("min", "max"):
            return D(o[0], ty, f"std::{name}<{c}>({a[0]},{a[1]})")
        if name in ("div", "rem"):
            return D(o[0], ty, f"({c})({a[0]}{'/' if name == 'div' else '%'}{a[1]})")
        if name == "abs":
            return D(o[0], ty, f"({c})({a[0]}<0?-{a[0]}:{a[0]})")
        if name == "neg":
            return D(o[0], ty, f"({c})(-({uc}){a[0]})")
        if name == "clz":
            return D(o[0], "u32", f"({a[0]}?__builtin_clz{'ll' if w == 64 else ''}({a[0]}):{w})")
        if name == "popc":
            return D(o[0], "u32", f"__builtin_popcount{'ll' if w == 64 else ''}({a[0]})")
        raise Unsupported(text)

    def cvt(self, f, o):
        S, D = self.src, self.dst
        if f[1] == "pack":  # cvt.pack.sat.u8.s32.b32 d, a, b, c: bytes (b, a) below c's low half
            n = int(f[3][1:])
            lo, hi = ("0", str((1 << n) - 1)) if f[3][0] == "u" else (f"-{1 << (n - 1)}", str((1 << (n - 1)) - 1))
            mask = (1 << n) - 1
            sat = lambda x: f"((uint32_t)std::min<int32_t>({hi},std::max<int32_t>({lo},{S(x, 's32')}))&0x{mask:x}u)"
            rest = f"|({S(o[3], 'b32')}<<{2 * n})" if len(o) > 3 else ""
            return D(o[0], "b32", f"({sat(o[2])}|({sat(o[1])}<<{n}){rest})")
        types = [x for x in f if x in REG_C]
        to, fr = types[0], types[1]
        ct = REG_C[to]
        v = S(o[1], fr) if fr in ("f16", "f32", "f64") or o[1] not in self.regs else self.narrow(o[1], fr)
        if fr[0] == "f" and to[0] == "f":
            e = v
            for r, fn in (("rni", "nearbyint"), ("rzi", "trunc"), ("rmi", "floor"), ("rpi", "ceil")):
                if r in f:
                    e = f"std::{fn}(({'double' if fr == 'f64' else 'float'}){v})"
            if "rz" in f or "rm" in f or "rp" in f:
                raise Unsupported(".".join(f))
            e = f"({ct})({e})"
            if "sat" in f:
                e = f"({ct})std::fmin(1.0,std::fmax(0.0,(double)({e})))"
            return D(o[0], to, e)
        if fr[0] == "f":
            w = "double" if fr == "f64" else "float"
            r = next(
                (fn for k, fn in (("rni", "nearbyint"), ("rzi", "trunc"), ("rmi", "floor"), ("rpi", "ceil")) if k in f),
                None,
            )
            if r is None:
                raise Unsupported(".".join(f))
            return self.assign_int(o[0], to, f"sat_round<{ct},{w}>(({w}){v},std::{r}(({w}){v}))")
        if to[0] == "f":
            if "rz" in f or "rm" in f or "rp" in f:
                raise Unsupported(".".join(f))
            return D(o[0], to, f"({ct}){v}")
        if "sat" in f:
            e = f"({ct})std::min<__int128>(std::numeric_limits<{ct}>::max(),std::max<__int128>(std::numeric_limits<{ct}>::min(),(__int128){v}))"
        else:
            e = f"({ct}){v}"
        return self.assign_int(o[0], to, e)

    def narrow(self, r, ty):
        return f"(({REG_C[ty]}){self.reg(r)})"

    def assign_int(self, r, ty, e):
        have = self.regs[r]
        return f"{self.reg(r)} = ({REG_C[have]})({e});"

    def label(self, s):
        return "L_" + s.replace("$", "_").strip()

    # --- whole kernel ---------------------------------------------------
    def emit(self, shared_size):
        text = self.body
        for raw in re.split(r"(?<=[;:])|\n", text):
            s = re.sub(r"^[{}\s]+", "", raw.strip())  # the braces of inline assembly
            if not s or s.startswith(("//", ".loc", ".file", ".maxntid", ".minnctapersm", ".reqntid", ".pragma")):
                continue
            m = re.match(r"([$\w]+):$", s)
            if m:
                self.lines.append(self.label(m[1]) + ": ;")
                continue
            s = s.rstrip(";").strip()
            if not s or s in "{}":
                continue
            m = re.match(r"\.reg\s+\.(\w+)\s+(.+)$", s)
            if m:
                for r in m[2].split(","):
                    r = r.strip()
                    mm = re.match(r"(%[\w]+)<(\d+)>$", r)
                    names = [f"{mm[1]}{i}" for i in range(int(mm[2]))] if mm else [r]
                    for n in names:
                        self.regs[n] = m[1]
                continue
            m = re.match(r"\.local\s+\.align\s+(\d+)\s+\.b8\s+([\w$]+)\[(\d+)\]$", s)
            if m:
                n = m[2].replace("$", "_")
                self.decls.append(f"alignas({m[1]}) char {n}[{m[3]}];")
                self.local.append((m[2], n))
                continue
            m = re.match(r"\.shared\s+\.align\s+(\d+)\s+\.b(\d+)\s+([\w$]+)(?:\[(\d+)\])?$", s)
            if m:
                a, size = int(m[1]), int(m[2]) // 8 * int(m[4] or 1)
                shared_size = (shared_size + a - 1) // a * a
                self.shared[m[3]] = shared_size
                shared_size += size
                continue
            if s.startswith("."):
                raise Unsupported(s)
            self.instr(s)
        used = set(re.findall(r"r_[\w]+", "\n".join(self.lines)))
        regs = [f"{REG_C[t]} {self.reg(n)} = {{}};" for n, t in self.regs.items() if self.reg(n) in used]
        n = self.name
        sizes = ",".join(str(s) for _, _, s in self.params) or "0"
        offs = ",".join(str(x) for _, x, _ in self.params) or "0"
        run = "t.b=&b; if(profiling){ prof.begin(IDS); body<true>(P,t); } else body<false>(P,t);".replace(
            "IDS", str(self.ids)
        )
        fibre = (
            r"""
      std::vector<Thread> ts(nt); size_t live=nt;
      for(size_t i=0;i<nt;i++){ Thread& t=ts[i]; t.b=&b; t.tid[0]=i%block[0]; t.tid[1]=i/block[0]%block[1]; t.tid[2]=i/block[0]/block[1];
        t.stack.resize(65536); getcontext(&t.uc); t.uc.uc_stack.ss_sp=t.stack.data(); t.uc.uc_stack.ss_size=t.stack.size(); t.uc.uc_link=&b.sched;
        makecontext(&t.uc,(void(*)())fibre_main,2,(unsigned)((uint64_t)&t>>32),(unsigned)(uint64_t)&t); }
      cur_params=P;
      while(live){ live=0; for(size_t j=0;j<nt;j++){ Thread& t=ts[rev?nt-1-j:j]; if(t.done) continue; swapcontext(&b.sched,&t.uc); if(!t.done) live++; } }
"""
            if self.barrier
            else ""
        )
        helper = (
            r"""
static thread_local const char* cur_params;
static void fibre_main(unsigned hi,unsigned lo){ Thread* t=(Thread*)(((uint64_t)hi<<32)|lo); body<false>(cur_params,*t); t->done=true; }
"""
            if self.barrier
            else ""
        )
        loop = (
            fibre
            if self.barrier
            else f"""
      Thread t; for(size_t j=0;j<nt;j++){{ size_t i=rev?nt-1-j:j; t.tid[0]=i%block[0]; t.tid[1]=i/block[0]%block[1]; t.tid[2]=i/block[0]/block[1]; {run} }}
"""
        )
        return f"""
namespace ns_{n} {{
static Profile prof;
template<bool R> static void body(const char* P, Thread& t) {{
{chr(10).join(self.decls)}
{chr(10).join(regs)}
{chr(10).join(self.lines)}
return;
}}
{helper}
}}
extern "C" const int {n}__nparams={len(self.params)}; extern "C" const int {n}__sizes[]={{{sizes}}}; extern "C" const int {n}__offsets[]={{{offs}}};
extern "C" void {n}__launch(const char* P,const unsigned* grid,const unsigned* block,unsigned dyn) {{
  using namespace ns_{n};
  std::vector<char> sh({shared_size}+dyn+16,(char)0xA5); size_t nt=(size_t)block[0]*block[1]*block[2],nb=(size_t)grid[0]*grid[1]*grid[2];
  static const bool profiling=getenv("SOFTCUDA_PROFILE")&&*getenv("SOFTCUDA_PROFILE")!='0'; (void)profiling;
  static const bool rev=getenv("SOFTCUDA_REVERSE")&&*getenv("SOFTCUDA_REVERSE")!='0';
  Block b; std::copy(grid,grid+3,b.grid); std::copy(block,block+3,b.block); b.shared=sh.data();
  for(size_t q=0;q<nb;q++){{ size_t c=rev?nb-1-q:q; b.cta[0]=c%grid[0]; b.cta[1]=c/grid[0]%grid[1]; b.cta[2]=c/grid[0]/grid[1];
  {loop}
  }}
  if(profiling) prof.end_launch();
}}
extern "C" void {n}__profile(unsigned long long* o) {{ auto& p=ns_{n}::prof; unsigned long long v[]={{p.threads,p.instructions,p.requests,p.bytes[0],p.sectors[0]*32,p.unique[0],p.bytes[1],p.sectors[1]*32,p.unique[1]}}; std::copy(v,v+9,o); }}
"""


def translate(ptx):
    ptx = re.sub(r"//[^\n]*", "", ptx)
    ptx = re.sub(r"/\*.*?\*/", "", ptx, flags=re.S)
    out = [PRELUDE]
    module_vars, size = {}, 0
    for m in re.finditer(
        r"^\s*(?:\.visible\s+|\.extern\s+|\.weak\s+)?\.shared\s+\.align\s+(\d+)\s+\.b8\s+([\w$]+)\[(\d*)\]\s*;",
        ptx,
        re.M,
    ):
        a = int(m[1])
        size = (size + a - 1) // a * a
        module_vars[m[2]] = size
        size += int(m[3] or 0)
    for m in re.finditer(r"\.entry\s+([\w$]+)\s*\((.*?)\)([^{]*)\{", ptx, re.S):
        depth, i = 1, m.end()
        while depth:
            depth += {"{": 1, "}": -1}.get(ptx[i], 0)
            i += 1
        params = [p.strip() for p in m[2].split(",") if p.strip()]
        out.append(Kernel(m[1], params, ptx[m.end() : i - 1], module_vars).emit(size))
    return "\n".join(out)


def main(src, dst):
    code = translate(Path(src).read_text())
    with tempfile.TemporaryDirectory() as d:
        cpp = Path(d) / "k.cpp"
        cpp.write_text(code)
        subprocess.run(
            [
                "g++",
                "-std=c++17",
                "-O2",
                "-march=native",
                "-ffp-contract=off",
                "-fno-strict-aliasing",
                "-w",
                "-include",
                "limits",
                "-shared",
                "-fPIC",
                "-o",
                dst + ".tmp",
                str(cpp),
            ],
            check=True,
        )
    Path(dst + ".tmp").rename(dst)


if __name__ == "__main__":
    try:
        main(sys.argv[1], sys.argv[2])
    except Unsupported as e:
        sys.exit(f"softcuda: PTX outside the emulated subset: {e}")
