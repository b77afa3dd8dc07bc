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

from gpupipe.compose.table import ROW
from gpupipe.errors import KernelError
from gpupipe.geometry import CropLayout, Rect
from gpupipe.gpu import kernels, launch
from gpupipe.model.features import ResidentFeatures
from gpupipe.model.nets import TensorSpec

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


def test_the_table_has_the_layout_that_the_kernels_read(edit: Edit) -> None:
    """Every field of a row where the C structure has it, as wide; and nothing else."""
    assert ROW.fields is not None
    checks = ""
    for name, (dtype, offset, *_) in ROW.fields.items():
        # What offsetof is made of in NVRTC's front end, which has no <cstddef>.
        address = f"__INTADDR__(&((TableRow*)0)->{name})"
        checks += f'static_assert({address} == {offset}, "offset of {name}");\n'
        checks += f'static_assert(sizeof(TableRow::{name}) == {dtype.itemsize}, "size of {name}");\n'
        if dtype.itemsize == 2:
            signed = str(dtype.kind == "i").lower()
            checks += f'static_assert(((decltype(TableRow::{name}))-1 < 0) == {signed}, "sign of {name}");\n'
    anchor = "#define IS_RECORDED"
    edit("table.cuh", anchor, f"{checks}{anchor}")
    assert kernels.compile_offline("prepare", np.float32, 86)
    edit("table.cuh", "short x1, y1,", "short y1, x1,")
    with pytest.raises(KernelError, match="offset of x1"):
        kernels.compile_offline("prepare", np.float32, 86)


@pytest.mark.parametrize("file", ["paste_nv12.cu", "paste.cuh", "table.cuh", "real.cuh"])
def test_an_error_names_file_and_line(edit: Edit, file: str) -> None:
    anchor = "#pragma once" if file.endswith(".cuh") else "KERNEL paste_nv12"
    path = edit(file, anchor, f"using Wrong = no_such_name; {anchor.removeprefix('#pragma once')}")
    with pytest.raises(KernelError) as raised:
        kernels.compile_offline("paste_nv12", np.float32, 86)
    assert str(raised.value).startswith(f"{path}:{line_of(path, 'no_such_name')}: does not compile: ")
    assert 'identifier "no_such_name" is undefined' in str(raised.value)


@pytest.mark.cuda
def test_an_error_on_a_device_names_file_and_line(edit: Edit) -> None:
    path = edit("prepare.cu", "const int place =", "const int3 place =")
    with pytest.raises(KernelError) as raised:
        kernels.load("prepare", np.float16)
    assert str(raised.value).startswith(f"{path}:{line_of(path, 'const int3 place')}: does not compile: ")


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
        launch.check_layout(CropLayout(size))


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
    crops, speech, rows = cupy.asarray(crop), cupy.zeros((17, 512), np.float32), np.zeros(1, ROW)
    rows["crop"], rows["speech"] = crops.data.ptr, speech.data.ptr
    table = cupy.asarray(rows.view(np.uint8).reshape(1, 64))
    launch.prepare(table, visual, audio, status, layout=layout, stream=cupy.cuda.Stream.null)
    roi = crop[:, :, layout.roi, layout.roi]
    want = np.array([np.float32(v) / np.float32(255) for v in range(256)], np.float32).astype(dtype)
    assert visual[:, :3].get().tobytes() == want[roi].tobytes()
    masked = roi.copy()
    masked[..., 5:6, 5:11] = 0
    assert visual[:, 3:].get().tobytes() == want[masked].tobytes()
    assert status.get().tolist() == [0]


def arguments() -> dict[str, Any]:
    """Arrays for `launch.paste` that fit, and a table of empty places: two frames, a model of 16 pixels."""
    import cupy

    return {
        "prediction": cupy.zeros((2, 3, 16, 16), np.float32),
        "table": cupy.zeros((2, 64), np.uint8),
        "matrices": cupy.zeros((12, 3, 4), np.int32),
        "status": cupy.zeros(1, np.uint32),
    }


def paste(**changed: Any) -> None:
    import cupy

    launch.paste(
        **(arguments() | changed),
        pixel_format="nv12",
        layout=CropLayout(16),
        draw_blocks=1,
        copy_blocks=1,
        stream=cupy.cuda.Stream.null,
    )


@pytest.mark.cuda
@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("table", lambda a: a.view(np.int8), r"table must be uint8 .2, 64. .got int8"),
        ("table", lambda a: a[:, :48], r"table must be uint8 .2, 64. .got uint8 .2, 48."),
        ("table", lambda a: a.repeat(300, axis=0), r"a batch has 1 to 512 frames .got 600."),
        ("matrices", lambda a: a[:, :2], r"matrices must be int32 .12, 3, 4."),
        ("prediction", lambda a: a[:1], r"prediction must be float32 .2, 3, 16, 16."),
        ("prediction", lambda a: a.transpose(0, 1, 3, 2), "prediction must be C-contiguous"),
        ("status", lambda a: a[:0], r"status must be uint32 .1."),
    ],
)
def test_arrays_are_checked_before_the_launch(name: str, change: Callable[[Any], Any], message: str) -> None:
    paste()
    with pytest.raises(ValueError, match=message):
        paste(**{name: change(arguments()[name])})


@pytest.mark.cuda
def test_a_misaligned_array_is_refused() -> None:
    import cupy

    memory = cupy.zeros(2 * 64 + 1, np.uint8)
    with pytest.raises(ValueError, match="table must be aligned to 16 bytes"):
        paste(table=memory[1:].reshape(2, 64))


TENSORS = (
    ("B", (7,)), ("e", (3, 11)), ("f", (4, 3)), ("f", (25_000,)), ("e", (2, 16, 514)), ("f", (8192,)), ("B", (16,)),
)  # fmt: skip
"""Types and shapes of a frame's tensors: rows that are whole 16-byte vectors and others, of a block's 32 KB and less
and more."""


def specs() -> list[TensorSpec]:
    return [TensorSpec(f"t{n}", (None, *shape), np.dtype(kind)) for n, (kind, shape) in enumerate(TENSORS)]


def resident(frames: int, seed: int) -> tuple[ResidentFeatures, ResidentFeatures]:
    """Noise, on the host and on the device; and the block in which both lie is filled to its end."""
    import cupy

    def noise(shape: tuple[int, ...], _: Any) -> Any:
        return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)

    blocks: list[Any] = []

    def uploaded(shape: tuple[int, ...], dtype: Any) -> Any:
        blocks.append(cupy.asarray(noise(shape, dtype)))
        return blocks[-1]

    return ResidentFeatures.allocate(specs(), frames, noise), ResidentFeatures.allocate(specs(), frames, uploaded)


@pytest.mark.cuda
@pytest.mark.parametrize(("places", "back"), [(1, False), (9, False), (9, True), (131, False), (131, True)])
def test_what_is_gathered_is_what_the_host_gathers(places: int, back: bool) -> None:
    """Rows of two characters, in any order and more than once, into a batch's rows; and back, each once."""
    import cupy

    rng = np.random.default_rng(places)
    characters, batch = [resident(140, 1), resident(3, 2)], resident(places, 3)
    chosen = [(0, int(row)) for row in rng.permutation(140)[:places]]
    if not back:
        chosen[-1] = (1, 2)
        chosen[places // 2] = chosen[0]
    left_alone = set(range(1, places, 4))
    kept, wanted = [], batch[0]
    before = [np.asarray(array).tobytes() for array in batch[0].arrays]
    for place, (character, row) in enumerate(chosen):
        on_host, on_device = characters[character]
        kept.append(None if place in left_alone else launch.Kept(on_device.address, on_device.frames, row))
        for own, array in zip(wanted.arrays, on_host.arrays, strict=True):
            assert isinstance(own, np.ndarray)
            assert isinstance(array, np.ndarray)
            if place not in left_alone:
                (array if back else own)[row if back else place] = (own if back else array)[place if back else row]
    arrays: Any = batch[1].arrays
    launch.gather(kept, arrays, back=back, stream=cupy.cuda.Stream.null)
    for one, other in (batch, *characters):
        for array, mine in zip(one.arrays, other.arrays, strict=True):
            found: Any = mine
            assert found.get().tobytes() == np.ascontiguousarray(array).tobytes()
    assert ([np.asarray(array).tobytes() for array in batch[0].arrays] == before) == back, "what is moved is new"


@pytest.mark.cuda
def test_what_cannot_be_gathered() -> None:
    import cupy

    stream, kept = cupy.cuda.Stream.null, [launch.Kept(1 << 20, 4, 0)] * 3
    rows = cupy.zeros((3, 8), np.float32)
    with pytest.raises(ValueError, match=r"rows must be float32 .3, 8. .got float32 .2, 8."):
        launch.gather(kept, [rows[:2]], stream=stream)
    with pytest.raises(ValueError, match="rows must be C-contiguous"):
        launch.gather(kept, [cupy.zeros((8, 3), np.float32).T], stream=stream)
    with pytest.raises(ValueError, match=r"a frame has 1 to 64 tensors .got 65."):
        launch.gather(kept, [rows] * 65, stream=stream)


def test_the_gather_table_has_the_layout_that_the_kernel_reads(edit: Edit) -> None:
    checks = f'static_assert(sizeof(GatherTable) == {launch.GATHER_TABLE.itemsize}, "size of the table");\n'
    assert launch.GATHER_TABLE.fields is not None
    for field, struct in (("places", "Place"), ("tensors", "Tensor")):
        dtype, offset, *_ = launch.GATHER_TABLE.fields[field]
        checks += f'static_assert(__INTADDR__(&((GatherTable*)0)->{field}) == {offset}, "offset of {field}");\n'
        for name, (kind, at, *_) in (dtype.base.fields or {}).items():
            checks += f'static_assert(__INTADDR__(&(({struct}*)0)->{name}) == {at}, "offset of {name}");\n'
            checks += f'static_assert(sizeof({struct}::{name}) == {kind.itemsize}, "size of {name}");\n'
    assert launch.GATHER_TABLE.itemsize + 8 <= 4096, "what a kernel's parameters have room for"
    edit("gather.cu", "KERNEL gather", f"{checks}KERNEL gather")
    assert kernels.compile_offline("gather", np.float32, 75)
    edit("gather.cu", "u32 frames, row;", "u32 row, frames;")
    with pytest.raises(KernelError, match="offset of"):
        kernels.compile_offline("gather", np.float32, 75)


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
        line = launch.pitch(covered.shape[1])
        padded = np.zeros((height, -(-line // 32) * 32), bool)
        padded[:, : covered.shape[1]] = covered
        sectors = padded.reshape(height, -1, 32).any(axis=2).repeat(32, axis=1)[:, :line]
        want = sectors.sum() // 4
        if pixel_format == "nv12":
            want = sectors.reshape(height // 2, 2, line).any(axis=1).sum() // 2
        assert launch.draw_threads(rect, width, height, pixel_format) == want


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory, talker: Path) -> dict[str, Any]:
    """The kernel report of the filmed character's rectangles."""
    for package in ("nvidia.cuda_nvcc", "nvidia.cu13"):
        pytest.importorskip(package, reason="ptxas and nvdisasm come with the dev extra")
    if not on_softcuda() and shutil.which("g++") is None:
        pytest.skip("counts with softcuda, which needs g++")
    folder = tmp_path_factory.mktemp("report")
    rectangles = talker / "cache" / "crop_rectangles.json"
    command = [sys.executable, str(REPORT), "--quick", "--rectangles", str(rectangles), "--output", str(folder)]
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
        if not kernel.startswith("prepare") and architecture in ("sm_75", "sm_120"):
            assert costs["loads_128"] >= kernels.CHUNKS_A_THREAD, architecture
            assert costs["stores_128"] >= kernels.CHUNKS_A_THREAD, architecture


@pytest.mark.talker
@pytest.mark.cuda
@pytest.mark.parametrize("kernel", KERNELS)
def test_memory_traffic_and_instructions(report: dict[str, Any], kernel: str) -> None:
    traffic = report[kernel]["traffic"]
    assert 1 <= traffic["unique_over_minimum"] <= 1.05
    assert traffic["store_sectors_over_unique"] <= 1.1
    assert traffic["ptx_instructions"] <= (12e6 if kernel.startswith("prepare") else 16e6)
    assert f"| {kernel} |" in report["markdown"]
