"""What the CUDA kernels cost, counted: registers and spills, instructions, bytes moved, and their floors on three GPUs.

    python benchmarks/kernel_report.py [--rectangles cache/crop_rectangles.json] [--quick] [--output benchmarks/results]

Needs no GPU. ptxas (nvidia-cuda-nvcc-cu12) gives registers and spills for each architecture, nvdisasm
(nvidia-cuda-nvdisasm) the widths of loads and stores in the machine code; the software device of tests/softcuda runs
the kernels with SOFTCUDA_PROFILE=1 and counts PTX instructions and 32-byte sectors. A kernel cannot take less time than
its unique bytes over the memory's bandwidth, nor than its instructions over the issue rate. Writes `kernels.json` and
`kernels.md`. With `--quick` a batch has two frames, and the machine code of the oldest and of the newest architecture
only is looked at: a second for each.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple, get_args

import numpy as np
from kernel_scene import HEIGHT, LAYOUT, WIDTH, GatherScene, KernelScene, face_rects, features

from gpupipe.colour import PixelFormat
from gpupipe.compose.frames import FrameSpec
from gpupipe.compose.traffic import gathered_bytes, least_bytes
from gpupipe.geometry import Rect
from gpupipe.gpu import kernels
from gpupipe.gpu.device import open_device
from gpupipe.gpu.limits import Limits
from gpupipe.machine import cpu_count

ROOT = Path(__file__).resolve().parents[1]
ARCHITECTURES = (75, 80, 86, 89, 90, 100, 120)
DTYPES = ("float32", "float16")
BATCH = 8
QUICK_BATCH = 2
GATHERED = 2
"""Frames whose features are gathered: 11 MB each."""


class Gpu(NamedTuple):
    """The data sheet's numbers: GB/s of memory, multiprocessors, boost clock in GHz, GB/s of PCIe in one direction."""

    name: str
    bandwidth: float
    multiprocessors: int
    clock: float
    pcie_name: str
    pcie: float

    def floor_us(self, unique_bytes: float, instructions: float) -> dict[str, float]:
        """Microseconds that memory and the four schedulers of each multiprocessor need at least."""
        limits = Limits(self.bandwidth * 1e9, self.multiprocessors, self.clock * 1e9)
        found = {"memory": limits.memory_seconds(unique_bytes), "issue": limits.issue_seconds(instructions)}
        return {name: seconds * 1e6 for name, seconds in found.items() if seconds is not None}


GPUS = (
    Gpu("T4", 320, 40, 1.59, "Gen3 x16", 15.75),
    Gpu("RTX 4090", 1008, 128, 2.52, "Gen4 x16", 31.5),
    Gpu("H100 SXM", 3350, 132, 1.98, "Gen5 x16", 63.0),
)


def tool(name: str, package: str, wheel: str) -> str:
    """A program of one of NVIDIA's wheels."""
    spec = importlib.util.find_spec(package)
    for folder in (spec.submodule_search_locations or []) if spec else []:
        if found := shutil.which(name, path=str(Path(folder) / "bin")):
            return found
    raise SystemExit(f"{name} is missing: pip install {wheel}")


def assemble(name: str, dtype: str, architecture: int, folder: Path, *, widths: bool = True) -> dict[str, Any]:
    """Registers, spilled bytes and, if asked for, the width of loads and stores of a kernel on an architecture."""
    ptx, cubin = (str(folder / f"{name}_{dtype}_{architecture}.{suffix}") for suffix in ("ptx", "cubin"))
    Path(ptx).write_bytes(kernels.compile_offline(name, dtype, architecture))
    ptxas = tool("ptxas", "nvidia.cuda_nvcc", "nvidia-cuda-nvcc-cu12")
    log = run(ptxas, "-v", f"-arch=sm_{architecture}", ptx, "-o", cubin).stderr
    spills = re.search(r"(\d+) bytes spill stores, (\d+) bytes spill loads", log)
    registers = re.search(r"Used (\d+) registers", log)
    if spills is None or registers is None:
        raise SystemExit(f"ptxas says neither registers nor spills:\n{log}")
    found = {"registers": int(registers[1]), "spill_bytes": int(spills[1]) + int(spills[2])}
    if not widths:
        return found
    code = run(tool("nvdisasm", "nvidia.cu13", "nvidia-cuda-nvdisasm"), "-c", cubin).stdout
    return found | {
        "loads_128": len(re.findall(r"\bLDG\.E\S*\.128\b", code)),
        "stores_128": len(re.findall(r"\bSTG\.E\S*\.128\b", code)),
    }


def run(*command: str) -> subprocess.CompletedProcess[str]:
    """Run a program, and return what it said."""
    return subprocess.run(command, check=True, capture_output=True, text=True)


def spec_of(pixel_format: PixelFormat, rects: tuple[Rect, ...]) -> FrameSpec:
    """A character with a frame for each rectangle."""
    return FrameSpec(LAYOUT, pixel_format, WIDTH, HEIGHT, rects)


def measure(pixel_format: PixelFormat, dtype: str, rects: tuple[Rect, ...]) -> None:
    """One batch through the compositor, and features gathered, in a process that counts."""
    gpu = open_device()
    if pixel_format == "nv12":
        gathering = GatherScene(gpu, LAYOUT, np.dtype(dtype), GATHERED)
        gathering.launch()
        gpu.synchronize()
    scene = KernelScene(gpu, spec_of(pixel_format, rects))
    compositor, slot = scene.prepared(np.dtype(dtype), len(rects), model_on_device=False)
    compositor.paste(slot)
    compositor.finish(slot)
    compositor.close()


def profile(pixel_format: PixelFormat, dtype: str, rects: tuple[Rect, ...], folder: Path) -> dict[str, Any]:
    """What softcuda counts for `measure`, by kernel."""
    stats = folder / "stats.json"
    program = [sys.executable, str(Path(__file__).resolve())]
    command = [*program, "--measure", pixel_format, dtype, json.dumps(rects)]
    if os.environ.get("SOFTCUDA") != "1":
        command = [sys.executable, str(ROOT / "tests" / "softcuda" / "run.py"), *command]
    subprocess.run(command, check=True, env=os.environ | {"SOFTCUDA_PROFILE": "1", "SOFTCUDA_STATS": str(stats)})
    counted: dict[str, Any] = json.loads(stats.read_text())["profile"]
    return counted


def traffic(name: str, dtype: str, counted: dict[str, int], rects: tuple[Rect, ...]) -> dict[str, Any]:
    """A profile a frame, beside the minimum and the floors."""
    batch = GATHERED if name == "gather" else len(rects)
    unique = (counted["load_unique_bytes"] + counted["store_unique_bytes"]) / batch
    pixel_format: PixelFormat = "bgr24" if name == "paste_bgr24" else "nv12"
    minimum = (
        gathered_bytes(features(LAYOUT, np.dtype(dtype)))
        if name == "gather"
        else least_bytes(name, spec_of(pixel_format, rects), dtype, range(batch))
    )
    instructions = counted["ptx_instructions"] / batch
    return {
        "ptx_instructions": instructions,
        "threads": counted["threads"] / batch,
        "unique_bytes": unique,
        "minimum_bytes": minimum,
        "unique_over_minimum": unique / minimum,
        "load_sector_bytes": counted["load_sector_bytes"] / batch,
        "store_sector_bytes": counted["store_sector_bytes"] / batch,
        "store_sectors_over_unique": counted["store_sector_bytes"] / counted["store_unique_bytes"],
        "floor_us": {gpu.name: gpu.floor_us(unique, instructions) for gpu in GPUS},
    }


def report(rects: tuple[Rect, ...], source: str, looked_at: Collection[int]) -> dict[str, Any]:
    """Everything that the two files hold; the machine code is that of some architectures."""
    found: dict[str, Any] = {
        "frame": {"width": WIDTH, "height": HEIGHT, "batch": len(rects), "rectangles": source},
        "versions": {
            package: importlib.metadata.version(package)
            for package in ("cupy-cuda12x", "nvidia-cuda-nvcc-cu12", "nvidia-cuda-nvrtc-cu12")
        },
        "python": platform.python_version(),
        "gpus": {gpu.name: gpu._asdict() for gpu in GPUS},
        "pcie_us": {
            pixel_format: {gpu.name: WIDTH * HEIGHT * bytes_a_pixel / gpu.pcie / 1e3 for gpu in GPUS}
            for pixel_format, bytes_a_pixel in (("nv12", 1.5), ("bgr24", 3))
        },
        "kernels": {},
    }
    with tempfile.TemporaryDirectory() as temporary, ExitStack() as stack:
        folder = Path(temporary)
        pool = stack.enter_context(ThreadPoolExecutor(cpu_count()))
        costs: dict[str, Iterator[dict[str, Any]]] = {}
        for dtype, name in product(DTYPES, kernels.NAMES):

            def assembled(architecture: int, name: str = name, dtype: str = dtype) -> dict[str, Any]:
                return assemble(name, dtype, architecture, folder, widths=architecture in looked_at)

            costs[f"{name} {dtype}"] = pool.map(assembled, ARCHITECTURES)
        for dtype in DTYPES:  # meanwhile
            counted: dict[str, Any] = {}
            for pixel_format in get_args(PixelFormat):
                counted |= profile(pixel_format, dtype, rects, folder)
            for name in kernels.NAMES:
                each = zip(ARCHITECTURES, costs[f"{name} {dtype}"], strict=True)
                found["kernels"][f"{name} {dtype}"] = {
                    "architectures": {f"sm_{architecture}": cost for architecture, cost in each},
                    "traffic": traffic(name, dtype, counted[name], rects),
                }
    return found


def markdown(found: dict[str, Any]) -> str:
    """The report as three tables."""
    frame = found["frame"]
    rows = [
        "# CUDA kernels, counted",
        "",
        f"{frame['width']} x {frame['height']}, batch {frame['batch']}, rectangles {frame['rectangles']}; numbers are "
        "a frame's. Made by `benchmarks/kernel_report.py`, without a GPU.",
        "",
        "## Registers (none spills unless it says so), and 128-bit loads and stores in the machine code",
        "",
        "| kernel | " + " | ".join(f"sm_{a}" for a in ARCHITECTURES) + " | loads | stores |",
        "|---|" + "---|" * (len(ARCHITECTURES) + 2),
    ]
    for name, kernel in found["kernels"].items():
        on = kernel["architectures"].values()
        cells = [f"{a['registers']}" + (f" ({a['spill_bytes']} B spilled)" if a["spill_bytes"] else "") for a in on]
        vectors = [str(min(a[key] for a in on if key in a)) for key in ("loads_128", "stores_128")]
        rows.append("| " + " | ".join([name, *cells, *vectors]) + " |")
    rows += [
        "",
        "## Memory traffic and instructions",
        "",
        "| kernel | minimum, bytes | moved / minimum | stored sectors / unique | PTX instructions | threads |",
        "|---|---|---|---|---|---|",
    ]
    for name, kernel in found["kernels"].items():
        t = kernel["traffic"]
        rows.append(
            f"| {name} | {t['minimum_bytes']:,.0f} | {t['unique_over_minimum']:.3f} | "
            f"{t['store_sectors_over_unique']:.3f} | {t['ptx_instructions'] / 1e6:.2f} M | {t['threads']:,.0f} |"
        )
    rows += [
        "",
        "## Floors, µs a frame: memory / instructions",
        "",
        "Unique bytes over bandwidth, and instructions / 32 over (multiprocessors * 4 * clock); the larger one is the "
        "floor. PCIe is the copy of the finished frame to the host, which runs beside the kernels.",
        "",
        "| kernel | " + " | ".join(gpu.name for gpu in GPUS) + " |",
        "|---|" + "---|" * len(GPUS),
    ]
    for name, kernel in found["kernels"].items():
        floors = (kernel["traffic"]["floor_us"][gpu.name] for gpu in GPUS)
        rows.append(f"| {name} | " + " | ".join(f"{f['memory']:.2f} / {f['issue']:.2f}" for f in floors) + " |")
    for pixel_format, times in found["pcie_us"].items():
        cells = [f"{times[gpu.name]:.1f} ({gpu.pcie_name})" for gpu in GPUS]
        rows.append(f"| PCIe, {pixel_format} | " + " | ".join(cells) + " |")
    return "\n".join(rows) + "\n"


def read_rects(path: Path, count: int) -> tuple[Rect, ...]:
    """The rectangles of a character's first frames."""
    entries = json.loads(path.read_text(encoding="utf-8"))
    return tuple(Rect(*entries[str(i)]["rect"]) for i in range(count))


def main() -> None:
    """Write the report."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rectangles", type=Path, help="a character's cache/crop_rectangles.json")
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks" / "results", help="folder to write to")
    parser.add_argument("--quick", action="store_true", help="two frames, and two architectures' machine code")
    parser.add_argument("--measure", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        pixel_format, dtype, rects = arguments.measure
        measure(pixel_format, dtype, tuple(Rect(*rect) for rect in json.loads(rects)))
        return
    batch = QUICK_BATCH if arguments.quick else BATCH
    rects = read_rects(arguments.rectangles, batch) if arguments.rectangles else face_rects(batch)
    source = "of a filmed character" if arguments.rectangles else "of 182 x 182 pixels"
    looked_at = (ARCHITECTURES[0], ARCHITECTURES[-1]) if arguments.quick else ARCHITECTURES
    found = report(rects, source, looked_at)
    arguments.output.mkdir(parents=True, exist_ok=True)
    (arguments.output / "kernels.json").write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    (arguments.output / "kernels.md").write_text(markdown(found), encoding="utf-8")
    print(markdown(found), end="")


if __name__ == "__main__":
    main()
