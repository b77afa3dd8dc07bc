"""Run a command with CuPy on the software CUDA device: `python tests/softcuda/run.py COMMAND…`."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from softcuda.build import BuildError, build


def environment(folder: Path, base: Mapping[str, str]) -> dict[str, str]:
    """The environment `base` with what makes CuPy in a new process find the device built in `folder`."""

    def first(path: Path, name: str) -> str:
        return os.pathsep.join(filter(None, (str(path), base.get(name))))

    return dict(base) | {
        "SOFTCUDA": "1",
        "SOFTCUDA_PYTHON": sys.executable,
        "PYTHONPATH": first(folder / "python", "PYTHONPATH"),
        "LD_LIBRARY_PATH": first(folder / "lib", "LD_LIBRARY_PATH"),
        # The device translates PTX, so CuPy must not ask NVRTC for machine code, nor use libraries made of it.
        "CUPY_COMPILE_WITH_PTX": "1",
        "CUPY_ACCELERATORS": "",
        # PTX made for this device stays out of the cache that a GPU uses.
        "CUPY_CACHE_DIR": base.get("CUPY_CACHE_DIR", str(folder / "cupy-cache")),
    }


def main(command: list[str]) -> int:
    """Replace this process by `command`."""
    if not command:
        print("usage: python tests/softcuda/run.py COMMAND…", file=sys.stderr)
        return 2
    try:
        env = environment(build(), os.environ)
    except BuildError as e:
        print(e, file=sys.stderr)
        return 1
    try:
        os.execvpe(command[0], command, env)
    except OSError as e:
        print(f"softcuda: cannot run {command[0]}: {e.strerror}", file=sys.stderr)
        return 127


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
