"""Compile the kernels of a PTX file to a shared library for this CPU: `ptxcc.py IN.ptx OUT.so`. The device calls it."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

from softcuda.ptx.emit import translate  # noqa: E402
from softcuda.ptx.types import Unsupported  # noqa: E402

FLAGS = (
    "-std=c++17",
    "-O2",
    "-march=native",
    # PTX says itself where a product is fused with a sum, and its integers wrap around.
    "-ffp-contract=off",
    "-fwrapv",
    "-fno-strict-aliasing",
    "-fno-math-errno",
    "-w",
    "-shared",
    "-fPIC",
)


def compile_ptx(source: Path, library: Path) -> None:
    """Translate and compile; the library appears only when it is complete.

    Raises:
        Unsupported: the PTX uses what is not emulated.
        subprocess.CalledProcessError: the C++ compiler refused the translation.
    """
    code = translate(source.read_text(encoding="utf-8").rstrip("\0"))
    with tempfile.TemporaryDirectory(dir=library.parent) as folder:
        cpp, built = Path(folder) / "kernels.cpp", Path(folder) / "kernels.so"
        cpp.write_text(code, encoding="utf-8")
        command = ["g++", *FLAGS, f"-I{HERE / 'device'}", "-o", str(built), str(cpp)]
        subprocess.run(command, check=True, stderr=subprocess.PIPE, text=True)
        built.replace(library)


def main(source: str, library: str) -> int:
    """Compile, or say why not."""
    try:
        compile_ptx(Path(source), Path(library))
    except Unsupported as e:
        print(f"softcuda: PTX outside the emulated subset: {e}", file=sys.stderr)
        return 1
    except subprocess.CalledProcessError as e:
        print(f"softcuda: the C++ compiler refused the translation of the PTX:\n{e.stderr}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
