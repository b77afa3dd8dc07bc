"""Kernels are found, compiled and checked; and what they cost, as benchmarks/kernel_report.py counts it."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import on_softcuda
from numpy.typing import NDArray

from gpupipe.errors import KernelError
from gpupipe.geometry import CropLayout, Rect
from gpupipe.gpu import kernels

pytest.importorskip("cupy")

ROOT = Path(__file__).resolve().parents[1]
REPORT = ROOT / "benchmarks" / "kernel_report.py"

Edit = Callable[[str, str, str], Path]


@pytest.fixture
def edit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Edit:
    """A function that replaces text in a copy of the kernels' folder, which is then the one in use."""
    folder = tmp_path / "kernels"
    shutil.copytree(kernels.folder(), folder)
    monkeypatch.setattr(kernels, "folder", lambda: folder)

    def replace(name: str, old: str, new: str) -> Path:
        path = folder / name
        text = path.read_text(encoding="utf-8")
        assert old in text
        path.write_text(text.replace(old, new), encoding="utf-8")
        return path

    return replace


def line_of(path: Path, text: str) -> int:
    lines = path.read_text(encoding="utf-8").splitlines()
    return 1 + next(i for i, line in enumerate(lines) if text in line)


@pytest.mark.parametrize("file", ["paste_nv12.cu", "paste.cuh", "real.cuh"])
def test_an_error_names_file_and_line(edit: Edit, file: str) -> None:
    path = edit(
        file,
        "#pragma once" if file.endswith(".cuh") else "struct Matrix {",
        "using Wrong = no_such_name; struct Matrix {",
    )
    with pytest.raises(KernelError) as raised:
        kernels.compile_offline("paste_nv12", np.float32, 86)
    assert str(raised.value).startswith(f"{path}:{line_of(path, 'no_such_name')}: does not compile: ")
    assert 'identifier "no_such_name" is undefined' in str(raised.value)


@pytest.mark.cuda
def test_an_error_on_a_device_names_file_and_line(edit: Edit) -> None:
    path = edit("prepare.cu", "const int2 from =", "const int3 from =")
    with pytest.raises(KernelError) as raised:
        kernels.load("prepare", np.float16)
    assert str(raised.value).startswith(f"{path}:{line_of(path, 'const int3 from')}: does not compile: ")


def test_a_missing_file(edit: Edit) -> None:
    edit("prepare.cu", "prepare", "prepare").unlink()
    with pytest.raises(KernelError, match=r"prepare\.cu: cannot be read: No such file or directory; install"):
        kernels.source("prepare")


def test_float32_and_float16_only() -> None:
    with pytest.raises(KernelError, match=r"float32 and float16 .got 'float64'"):
        kernels.options(np.float64)


@pytest.mark.parametrize("size", [2, 6, 321])
def test_sizes_that_do_not_suit(size: int) -> None:
    with pytest.raises(KernelError, match=f"multiple of 4 pixels on a GPU .got {size}"):
        kernels.check_layout(CropLayout(size))


@pytest.mark.cuda
def test_compiled_once_for_each_device_and_type() -> None:
    with ThreadPoolExecutor(4) as pool:
        loaded = list(pool.map(lambda _: kernels.load("prepare", np.float32), range(8)))
    assert all(kernel is loaded[0] for kernel in loaded)
    assert kernels.load("prepare", np.float16) is not loaded[0]


@pytest.mark.cuda
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_every_byte_is_divided_as_ieee_says(dtype: Any) -> None:
    """All 256 values, with the mask's rectangle black."""
    import cupy

    layout = CropLayout(16)
    crop = np.arange(3 * layout.crop_size**2).astype(np.uint8).reshape(1, 3, layout.crop_size, layout.crop_size)
    assert len(np.unique(crop[:, :, layout.roi, layout.roi])) == 256
    visual = cupy.empty((1, 6, 16, 16), dtype)
    audio = cupy.empty((1, 32, 16, 16), dtype)
    status = cupy.empty(1, np.uint32)
    speech, index = cupy.zeros((1, 512), np.float32), cupy.zeros((1, 2), np.int32)
    stream = cupy.cuda.Stream.null
    kernels.prepare(cupy.asarray(crop), None, speech, index, visual, audio, status, layout=layout, stream=stream)
    roi = crop[:, :, layout.roi, layout.roi]
    want = np.array([np.float32(v) / np.float32(255) for v in range(256)], np.float32).astype(dtype)
    assert visual[:, :3].get().tobytes() == want[roi].tobytes()
    masked = roi.copy()
    masked[..., 5:6, 5:11] = 0
    assert visual[:, 3:].get().tobytes() == want[masked].tobytes()
    assert status.get().tolist() == [0]


def arguments() -> dict[str, Any]:
    """Arrays for `kernels.paste` that fit: one 20 × 10 frame, a model of 16 pixels."""
    import cupy

    return {
        "prediction": cupy.zeros((2, 3, 16, 16), np.float32),
        "crops": cupy.zeros((1, 3, 24, 24), np.uint8),
        "body": cupy.zeros((1, 15, 32), np.uint8),
        "placements": cupy.asarray(np.array([[2, 2, 3, 3, 0, 0, 0, 0]], np.int32)),
        "taps": cupy.zeros((1, 2), np.uint32),
        "matrix": np.zeros((3, 4), np.int32),
        "index": cupy.zeros((2, 2), np.int32),
        "frames": cupy.zeros((2, 15, 32), np.uint8),
        "status": cupy.zeros(1, np.uint32),
    }


def paste(**changed: Any) -> None:
    import cupy

    kernels.paste(
        **(arguments() | changed),
        pixel_format="nv12",
        layout=CropLayout(16),
        width=20,
        height=10,
        draw_threads=256,
        stream=cupy.cuda.Stream.null,
    )


@pytest.mark.cuda
@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("crops", lambda a: a.astype(np.int8), r"crops must be uint8 .1, 3, 24, 24. .got int8"),
        ("body", lambda a: a[:, :14], r"body must be uint8 .1, 15, 32. .got uint8 .1, 14, 32."),
        ("frames", lambda a: a[:1], r"frames must be uint8 .2, 15, 32."),
        ("prediction", lambda a: a.transpose(0, 1, 3, 2), "prediction must be C-contiguous"),
        ("status", lambda a: a[:0], r"status must be uint32 .1."),
        ("index", lambda a: a.repeat(300, axis=0), r"a batch has 1 to 512 frames .got 600."),
    ],
)
def test_arrays_are_checked_before_the_launch(name: str, change: Callable[[Any], Any], message: str) -> None:
    paste()
    with pytest.raises(ValueError, match=message):
        paste(**{name: change(arguments()[name])})


@pytest.mark.cuda
def test_a_misaligned_array_is_refused() -> None:
    import cupy

    memory = cupy.zeros(2 * 15 * 32 + 1, np.uint8)
    with pytest.raises(ValueError, match="frames must be aligned to 16 bytes"):
        paste(frames=memory[1:].reshape(2, 15, 32))


@pytest.mark.parametrize("pixel_format", ["nv12", "bgr24"])
def test_draw_threads_cover_the_rectangle(pixel_format: Any) -> None:
    """Against a count of the sectors that the rectangle's bytes lie in."""
    rng = np.random.default_rng(0)
    for _ in range(300):
        width, height = (int(v) * 2 for v in rng.integers(1, 60, 2))
        x, y = int(rng.integers(-40, width + 20)), int(rng.integers(-40, height + 20))
        rect = Rect(x, y, x + int(rng.integers(1, 90)), y + int(rng.integers(1, 90)))
        covered: NDArray[np.bool_] = np.zeros((height, width), bool)
        seen = rect.within(width, height)
        covered[seen.y1 : seen.y2, seen.x1 : seen.x2] = True
        if pixel_format == "bgr24":
            covered = covered.repeat(3, axis=1)
        line = kernels.pitch(covered.shape[1])
        padded = np.zeros((height, -(-line // 32) * 32), bool)
        padded[:, : covered.shape[1]] = covered
        sectors = padded.reshape(height, -1, 32).any(axis=2).repeat(32, axis=1)[:, :line]
        want = sectors.sum() // 4
        if pixel_format == "nv12":
            want = sectors.reshape(height // 2, 2, line).any(axis=1).sum() // 2
        assert kernels.draw_threads(rect, width, height, pixel_format) == want


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory, talker: Path) -> dict[str, Any]:
    """The kernel report of the filmed character's rectangles."""
    for package in ("nvidia.cuda_nvcc", "nvidia.cu13"):
        pytest.importorskip(package, reason="ptxas and nvdisasm come with the dev extra")
    if not on_softcuda() and shutil.which("g++") is None:
        pytest.skip("counts with softcuda, which needs g++")
    folder = tmp_path_factory.mktemp("report")
    rectangles = talker / "cache" / "crop_rectangles.json"
    command = [sys.executable, str(REPORT), "--rectangles", str(rectangles), "--output", str(folder)]
    done = subprocess.run(command, check=False, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads((folder / "kernels.json").read_text(encoding="utf-8"))["kernels"]
    return found | {"markdown": (folder / "kernels.md").read_text(encoding="utf-8")}


KERNELS = [f"{name} {dtype}" for name in kernels.NAMES for dtype in ("float32", "float16")]


@pytest.mark.talker
@pytest.mark.cuda
@pytest.mark.parametrize("kernel", KERNELS)
def test_registers_spills_and_vectors(report: dict[str, Any], kernel: str) -> None:
    on = report[kernel]["architectures"]
    assert list(on) == [f"sm_{a}" for a in (75, 80, 86, 89, 90, 100, 120)]
    for architecture, costs in on.items():
        assert costs["registers"] <= 64, architecture
        assert costs["spill_bytes"] == 0, architecture
        if kernel.startswith("paste"):
            assert costs["loads_128"] >= kernels.CHUNKS_A_THREAD, architecture
            assert costs["stores_128"] >= kernels.CHUNKS_A_THREAD, architecture


@pytest.mark.talker
@pytest.mark.cuda
@pytest.mark.parametrize("kernel", KERNELS)
def test_memory_traffic_and_instructions(report: dict[str, Any], kernel: str) -> None:
    traffic = report[kernel]["traffic"]
    assert 1 <= traffic["unique_over_minimum"] <= 1.05
    assert traffic["store_sectors_over_unique"] <= 1.1
    assert traffic["ptx_instructions"] <= (12e6 if kernel.startswith("prepare") else 15e6)
    assert f"| {kernel} |" in report["markdown"]
