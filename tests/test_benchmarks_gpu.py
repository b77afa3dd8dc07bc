"""benchmarks/gpu.py: every row is there, shares are what they say, and the times are for a real GPU to tell."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from itertools import product
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import small
from conftest import on_softcuda

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks"))

import gpu as script
from on_gpu import kernels as on_gpu_kernels
from on_gpu import models as on_gpu_models
from on_gpu.bench import VARIANTS, Bench
from on_gpu.models import ENCODERS, batch_least
from on_gpu.table import HEADS, Least, Subject, missing, table, timed, without_paths

from gpupipe.bench import machine_facts
from gpupipe.compose.frames import FrameSpec
from gpupipe.compose.traffic import gathered_bytes, least_bytes
from gpupipe.errors import DeviceMemoryError
from gpupipe.geometry import CropLayout, Rect
from gpupipe.gpu import state as gpu_state
from gpupipe.gpu.limits import Limits, limits_of
from gpupipe.gpu.timer import Timer
from gpupipe.model import rates
from gpupipe.model.nets import TensorSpec
from gpupipe.model.runtime import SessionOptions, open_session

cuda = pytest.mark.cuda

ROOT = Path(__file__).resolve().parents[1]

T4 = Limits(320e9, 40, 1.59e9)

# Times and shares


def test_shares_of_planted_times() -> None:
    """Batches of 4 in 2, 4 and 8 ms: 1 ms a frame, of which a quarter, an eighth and a tenth had to be."""
    subject = Subject("kernel", "prepare", "float16", "32x32", 4)
    least = Least(0.25e-3, 0.125e-3, 0.1e-3)
    row = timed(subject, [8e-3, 2e-3, 4e-3], 4, moved=3_000_000, least=least, notes=["slow"])
    assert row["ms"] == {"median": 1.0, "q1": 0.75, "q3": 1.5}
    assert (row["runs"], row["frames_a_run"], row["frames_a_second"]) == (3, 4, 1000.0)
    assert (row["bytes_a_frame"], row["gb_a_second"]) == (3_000_000, 3.0)
    assert row["least_ms"] == {"measured": 0.25, "nominal": 0.125, "issue": 0.1}
    assert row["share"] == {"measured": 0.25, "nominal": 0.125, "issue": 0.1}
    assert row["problem"] is None
    assert table([row]).splitlines()[1].split() == [
        *("kernel", "prepare", "float16", "32x32", "4", "1.0000", "1000.0", "3.0", "0.2500", "25.0%", "12.5%", "10.0%"),
        "slow",
    ]


def test_what_is_not_known_has_no_share() -> None:
    row = timed(Subject("model", "cuda"), [2e-3], 2)
    assert row["share"] == row["least_ms"] == dict.fromkeys(Least._fields)
    assert row["gb_a_second"] is None
    none = missing(Subject("model", "tensorrt"), "it is not here")
    assert none.keys() == row.keys()
    assert (none["ms"], none["problem"]) == (None, "it is not here")
    assert table([none]).splitlines()[1].split() == ["model", "tensorrt", "it", "is", "not", "here"]
    nothing = timed(Subject("model", "cuda"), [0.0], 2, moved=1, least=Least(1.0))
    assert nothing["share"]["measured"] is nothing["gb_a_second"] is nothing["frames_a_second"] is None


def test_the_least_of_kernels_and_batches() -> None:
    least = on_gpu_kernels.kernel_least(3_200_000, 8_140_800, 160e9, T4)
    assert least == pytest.approx((20e-6, 10e-6, 1e-6))
    assert on_gpu_kernels.kernel_least(1, None, 1.0, Limits(None, 1, None)) == (1.0, None, None)
    reached = {"copy_bytes_per_second": 100e9, "to_host_bytes_per_second": 10e9}
    assert batch_least(1e6, 1e6, 0.5e-3, reached).measured == pytest.approx(0.51e-3)  # 10 µs and the model
    assert batch_least(1e6, 9e6, 0.5e-3, reached).measured == pytest.approx(0.9e-3)  # the copy is longer
    assert batch_least(1e6, 1e6, None, reached) == Least()


def test_whole_batches_are_counted_and_three_are_under_way() -> None:
    """A run takes a second: so many frames as were prepared, none in a slot whose batch is not finished."""
    told: list[str] = []
    under_way: set[int] = set()

    def prepare(slot: int, _: Any) -> None:
        assert slot not in under_way
        under_way.add(slot)
        told.append(f"prepare with {len(under_way)}")

    compositor = SimpleNamespace(
        admit=lambda frames: None,
        prepare=prepare,
        ready=lambda slot: told.append("ready"),
        paste=lambda slot: told.append("paste"),
        finish=under_way.remove,
    )
    lane = SimpleNamespace(
        batch=4,
        compositor=compositor,
        kind=SimpleNamespace(dtype=np.dtype(np.float32)),
        free=[SimpleNamespace(buffers=number, bindings=None) for number in range(3)],
        model=SimpleNamespace(run=lambda bindings, frames: told.append(f"run of {frames}")),
    )
    spec = FrameSpec(CropLayout(320), "nv12", 1280, 720, (Rect(532, 210, 714, 392),) * 4)
    scene = SimpleNamespace(spec=spec, frames=None, drawings=lambda batch, to_host: [None] * batch)

    def timed_once(work: Callable[[], None]) -> list[float]:
        work()
        return [1.0]

    bench: Any = SimpleNamespace(
        gpu=None,
        timer=SimpleNamespace(host_seconds=timed_once),
        model_seconds=lambda variant, batch: 1e-3,
        rates={"copy_bytes_per_second": 1e9, "to_host_bytes_per_second": 1e6},
    )
    given: Any = (lane, scene)
    row = on_gpu_models._batches(bench, VARIANTS[0], Subject("batch", "cpu"), *given)
    assert not under_way
    batches = told.count("paste")
    assert told[:4] == ["prepare with 1", "ready", "run of 4", "paste"]
    assert told.count("prepare with 3") == batches - 2
    assert (row["frames_a_run"], row["frames_a_second"]) == (4 * batches, 4 * batches)
    assert row["least_ms"]["measured"] == 1382.4  # 1280 * 720 * 1.5 bytes at 1 MB/s


@pytest.mark.parametrize(
    ("kernel", "dtype", "wanted"),
    [
        ("paste_nv12", "float32", 3_962_490),
        ("paste_nv12", "float16", 3_348_090),
        ("paste_bgr24", "float32", 6_677_556),
        ("paste_bgr24", "float16", 6_063_156),
    ],
)
def test_bytes_are_those_that_the_kernels_heads_say(kernel: str, dtype: str, wanted: int) -> None:
    spec = FrameSpec(CropLayout(320), "nv12", 1280, 720, (Rect(532, 210, 714, 392),))
    assert least_bytes(kernel, spec, dtype, [0]) == wanted


def test_bytes_of_prepare_and_of_what_is_outside() -> None:
    inside, outside = Rect(10, 20, 60, 80), Rect(-50, -60, 50, 60)
    spec = FrameSpec(CropLayout(320), "bgr24", 640, 480, (inside, outside) * 4)
    assert least_bytes("prepare", spec, "float32", range(8)) == 2_803_520
    assert least_bytes("prepare", spec, "float16", range(8)) == 1_558_336
    one, other = (least_bytes("paste_bgr24", spec, "float32", [source]) for source in (0, 1))
    assert one - other == 8 * (50 + 60) - 8 * (100 + 120)  # as much of the body is covered


def test_bytes_that_are_gathered() -> None:
    specs = [TensorSpec("skip", (None, 12, 320, 320), np.dtype(np.float16), "frame")] * 2
    assert gathered_bytes(specs) == 2 * 2 * 2 * 12 * 320 * 320


def test_counted_instructions_are_of_one_size() -> None:
    counted = json.loads(on_gpu_kernels.COUNTED.read_text("utf-8"))
    given = (np.dtype(np.float32), counted)
    rects, layout = (Rect(0, 0, 10, 10),), CropLayout(320)
    wanted = counted["kernels"]["paste_nv12 float32"]["traffic"]["ptx_instructions"]
    assert on_gpu_kernels.instructions("paste_nv12", FrameSpec(layout, "nv12", 1280, 720, rects), *given) == wanted
    larger = FrameSpec(layout, "nv12", 1920, 1080, rects)
    assert on_gpu_kernels.instructions("paste_nv12", larger, *given) is None
    assert on_gpu_kernels.instructions("prepare", larger, *given) is not None
    other = FrameSpec(CropLayout(160), "nv12", 1280, 720, rects)
    assert on_gpu_kernels.instructions("prepare", other, *given) is None


def test_paths_are_left_out() -> None:
    said = f"{Path.home()}/my models/best.onnx; C:\\Users\\me\\x.dll \\\\server\\share\\y.dll; a/b 3/4 https://host/a/b.html"
    assert without_paths(said) == "/my models/best.onnx; x.dll y.dll; a/b 3/4 https://host/a/b.html"
    assert (
        without_paths("cannot open /usr/lib/x86_64/libcudnn.so.9: no such file")
        == "cannot open libcudnn.so.9: no such file"
    )


# The tool, the limits and the timer


def planted_tool(monkeypatch: pytest.MonkeyPatch, told: str, returncode: int = 0) -> list[list[str]]:
    asked: list[list[str]] = []

    def run(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        asked.append(command)
        return subprocess.CompletedProcess(command, returncode, told, "")

    tools = SimpleNamespace(run=run, TimeoutExpired=subprocess.TimeoutExpired)
    monkeypatch.setattr("gpupipe.gpu.state.subprocess", tools)  # and nobody else's
    monkeypatch.setattr("gpupipe.gpu.state.shutil", SimpleNamespace(which=lambda name: name))
    return asked


def test_clocks_temperature_and_power(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = planted_tool(
        monkeypatch, "1980, 2619, 41, 118.27, [N/A], 5, 16, 550.54.15\n210, 405, 30, 20, 70, 1, 16, 550\n"
    )
    assert gpu_state.gpu_state("GPU-1") == {
        "graphics_mhz": 1980.0, "memory_mhz": 2619.0, "temperature_c": 41.0, "power_w": 118.27, "power_limit_w": None,
        "pcie_generation": 5.0, "pcie_width": 16.0, "driver": "550.54.15",
    }  # fmt: skip
    assert machine_facts.facts()["gpu_clocks"] == "1980 MHz, 2619 MHz, 550.54.15"
    assert "--id=GPU-1" in asked[0]
    assert not any(part.startswith("--id") for part in asked[1])
    for answer in ("", "No devices were found\n"):
        planted_tool(monkeypatch, answer)
        assert gpu_state.gpu_state() is None
    planted_tool(monkeypatch, "", returncode=9)
    assert gpu_state.gpu_state() is None
    monkeypatch.setattr("gpupipe.gpu.state.shutil", SimpleNamespace(which=lambda name: None))
    assert gpu_state.gpu_state() is None


@cuda
def test_limits_are_of_the_device() -> None:
    if not on_softcuda():
        pytest.skip("softcuda says what it is")
    assert limits_of(0) == (16e9, 4, 1e9)  # 64 bits, twice a clock of 1 GHz


@cuda
def test_a_timer_stops_when_it_has_had_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    from gpupipe.gpu.device import open_device

    clock = iter(range(1000))
    monkeypatch.setattr("gpupipe.gpu.timer.time", SimpleNamespace(perf_counter=lambda: next(clock)))
    runs: list[int] = []
    gpu = open_device()
    timer = Timer(gpu, runs=30, warm_up=2, least_runs=3, most_seconds=10)
    seconds = timer.host_seconds(lambda: runs.append(1))
    assert len(seconds) == len(runs) - 2
    assert 3 < len(seconds) < 30
    assert set(seconds) == {1}
    timer = Timer(gpu, runs=5, most_seconds=0)
    assert len(timer.seconds(lambda: None, gpu.compute_stream)) == timer.least_runs


@cuda
def test_what_is_timed_cold_comes_behind_the_flush() -> None:
    from gpupipe.gpu.device import open_device

    gpu = open_device()
    timer = Timer(gpu, runs=3, warm_up=0, flush_bytes=1 << 20, busy_ms=0.1)
    first = gpu.empty((1 << 20,), np.uint8)
    host = gpu.pinned((1 << 20,), np.uint8)
    host[...] = 7
    seconds = timer.seconds(lambda: gpu.copy(first, host, gpu.copy_stream), gpu.copy_stream, cold=True)
    assert len(seconds) == 3
    assert all(each > 0 for each in seconds)
    host[...] = 0
    gpu.copy(host, first, gpu.copy_stream)
    gpu.synchronize()
    assert (host == 7).all()


# All of it


@pytest.fixture
def in_a_hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rates, "COPY_BYTES", 1 << 20)
    monkeypatch.setattr(rates, "MATRIX_SIDE", 64)
    monkeypatch.setattr(rates, "DEVICE_MATRIX_SIDE", 64)


def run(tmp_path: Path, *arguments: str) -> dict[str, Any]:
    path = tmp_path / "found.json"
    assert script.main([*arguments, "--quick", "--json", str(path)]) == 0
    found: dict[str, Any] = json.loads(path.read_text("utf-8"))
    return found


def named(row: dict[str, Any]) -> tuple[Any, ...]:
    return tuple(row[key] for key in Subject._fields)


SIZES, BATCHES = ("96x64", "160x96"), (1, 2)


def composed(sizes: tuple[str, ...], best: str) -> set[tuple[Any, ...]]:
    """Rows of engines and renders."""
    return {("engine", f"{best}, session", "float32", *each) for each in product(sizes, BATCHES)} | {
        ("render", f"{best}, {encoder}", "float32", size, 2) for encoder, size in product(ENCODERS, sizes)
    }


def always() -> set[tuple[Any, ...]]:
    """Rows that need no provider but the CPU's."""
    dtypes = ("float32", "float16")
    frames = ("1 MB", *(f"{size} nv12" for size in SIZES))
    return {
        *(("copy", way, None, frame, None) for way, frame in product(("up", "down", "within"), frames)),
        *(("kernel", name, *each) for name, *each in product(("prepare", "gather"), dtypes, ("32x32",), BATCHES)),
        *(
            ("kernel", name, *each)
            for name, *each in product(("paste_bgr24", "paste_nv12"), dtypes, SIZES, BATCHES)
        ),
        *opened("cpu", "float32"),
    }  # fmt: skip


def opened(variant: str, dtype: str) -> set[tuple[Any, ...]]:
    """Rows of a model that opens."""
    alone = {("model", variant, dtype, None, batch) for batch in BATCHES}
    return alone | {("batch", variant, dtype, size, batch) for size, batch in product(SIZES, BATCHES)}


def unopened(*providers: str) -> set[tuple[Any, ...]]:
    return {("model", each.name, each.file, None, None) for each in VARIANTS if each.provider in providers}


@cuda
@pytest.mark.usefixtures("in_a_hurry")
def test_every_row_is_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    if not on_softcuda():
        pytest.skip("which providers open is softcuda's here")
    found = run(tmp_path)
    rows = found["rows"]
    assert len(rows) == len({named(row) for row in rows})
    assert {named(row) for row in rows} == always() | unopened("cuda", "tensorrt") | composed(SIZES, "cpu")
    for row in rows:
        cannot = named(row) in unopened("cuda", "tensorrt") or row["name"].endswith("_nvenc")
        assert (row["problem"] is not None) == (row["ms"] is None) == cannot, row
        assert row.keys() == rows[0].keys()
        if row["ms"]:
            assert row["ms"]["median"] > 0
            least = row["least_ms"]["measured"]
            assert row["share"]["measured"] == pytest.approx(least / row["ms"]["median"], rel=0.02, abs=1e-4), row
            in_a_run = {"copy": 1, "batch": 12 * (row["batch"] or 0), "engine": 12, "render": 12}
            assert row["frames_a_run"] == in_a_run.get(row["part"], row["batch"]), row
        if row["part"] in ("kernel", "copy"):
            assert row["gb_a_second"] == pytest.approx(
                row["bytes_a_frame"] / row["ms"]["median"] / 1e6, rel=0.02, abs=1e-3
            )
    moved = {(row["name"], row["frame"]): row["bytes_a_frame"] for row in rows if row["part"] == "copy"}
    for frame, size in (("1 MB", 1 << 20), ("96x64 nv12", 96 * 64 * 3 // 2), ("160x96 nv12", 160 * 96 * 3 // 2)):
        assert [moved[way, frame] for way in ("up", "down", "within")] == [size, size, 2 * size]
    assert {key: found[key] for key in ("schema", "complete", "meaningless", "character")} == {
        "schema": script.SCHEMA, "complete": True, "meaningless": True, "character": "made up"
    }  # fmt: skip
    assert found.keys() >= {"gpu", "machine", "packages", "model", "settings", "rates", "two_events_ms"}
    assert found["gpu"]["name"].startswith("softcuda")
    assert found["gpu"]["limits"] == {"bandwidth": 16e9, "multiprocessors": 4, "clock": 1e9}
    assert list(found["gpu"]["state"]) == [
        "before",
        *(f"after {part}" for part in ("copies", "kernels", "models", "renders")),
    ]
    assert found["rates"].keys() == {
        *(f"{way}_bytes_per_second" for way in ("copy", "to_host", "to_device")),
        "cpu_flops_per_second",
        "cpu_copy_bytes_per_second",
        "cpu_threads_copy_bytes_per_second",
    }
    out, err = capsys.readouterr()
    head, lines = out.split("\n\n")
    assert "A GPU IN SOFTWARE" in head
    assert len(lines.splitlines()) == 1 + len(rows)
    assert all(name in lines.splitlines()[0] for name in HEADS)
    assert "built without CUDAExecutionProvider" in lines
    assert "kernel paste_nv12 float16 160x96 2" in err.splitlines()
    text = json.dumps(found)
    assert not [word for word in (socket.gethostname(), str(tmp_path), str(Path.home()), str(ROOT)) if word in text]


@cuda
@pytest.mark.usefixtures("in_a_hurry", "model_on_device")
def test_a_characters_own_model_on_the_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The matrix product of one kind is planted, which gives the least of the model; another cannot be had."""

    def planted(_: Any, arithmetic: str) -> float:
        if arithmetic == "float16":
            raise RuntimeError("cannot load /opt/lib/libcublasLt.so.12")
        return {"float32": 1e9, "tf32": 4e9}[arithmetic]

    monkeypatch.setattr(rates, "device_matrix_rate", planted)
    folder = small.small_character(tmp_path / "anna")
    found = run(tmp_path, str(folder), "--providers", "cuda,cpu")
    rows = {named(row): row for row in found["rows"]}
    no_file = ("model", "cuda fp16", "float16", None, None)
    size = f"{small.WIDTH}x{small.HEIGHT}"
    wanted = always() | opened("cuda", "float32") | opened("cuda tf32", "float32") | {no_file}
    wanted |= {
        ("model", f"{name}, no graph", "float32", None, batch)
        for name, batch in product(("cuda", "cuda tf32"), BATCHES)
    }
    assert set(rows) == wanted | composed((size,), "cuda")
    assert rows[no_file]["problem"] == "there is no float16 file of this model"
    timed_rows = [row for row in found["rows"] if row["problem"] is None]
    assert len(timed_rows) == len(rows) - 2  # and no NVENC
    assert (found["character"], found["model"]["about"]) == ("anna", "the character's own")
    assert found["model"]["types"] == ["float32"]
    assert found["notes"] == ["no rate of float16 matrix products: cannot load libcublasLt.so.12"]
    assert found["rates"].keys() >= {"cpu_flops_per_second", "float32_flops_per_second", "tf32_flops_per_second"}
    for name, rate in (("cuda", 1e9), ("cuda tf32", 4e9)):
        for batch in BATCHES:
            row = rows["model", name, "float32", None, batch]
            operations = 2e3 * found["model"]["macs"] / rate
            moved = 4 * found["model"]["activations"] + found["model"]["weight_bytes"] / batch
            taken = 1e3 * moved / found["rates"]["copy_bytes_per_second"]
            assert row["least_ms"]["measured"] == pytest.approx(max(operations, taken), abs=1e-6)
            assert row["notes"][-1] == f"at least, ms a frame: operations {operations:.4f}, bytes {taken:.4f}"


def test_the_longer_of_a_models_floors_counts(tmp_path: Path) -> None:
    """1 GMAC, 10 million numbers and 8 MB of weights, by GPUs and a CPU of round numbers."""
    files = {"float32": tmp_path / "single.onnx", "float16": tmp_path / "half.onnx"}
    files["float32"].write_bytes(bytes(8_000_000))
    files["float16"].write_bytes(bytes(4_000_000))
    bench: Any = SimpleNamespace(
        models=files,
        cost={"macs": 1_000_000_000, "activations": 10_000_000, "weight_bytes": 1},
        host_rates={"flops_per_second": 1e11, "threads_copy_bytes_per_second": 1e10},
        flops={"float32": 1e13, "float16": 1e14},
        rates={"copy_bytes_per_second": 1e12},
    )
    bench.model_floor = lambda *given: Bench.model_floor(bench, *given)
    by_name = {(each.name, each.file): each for each in VARIANTS}
    for name, batch, floor, longer in (
        (("cpu", "float32"), 8, (20.0, 4.8), 20.0),  # the weights are read for every frame
        (("cuda", "float32"), 1, (0.2, 0.048), 0.2),
        (("cuda fp16", "float16"), 1, (0.02, 0.024), 0.024),
        (("cuda fp16", "float16"), 8, (0.02, 0.0205), 0.0205),
    ):
        assert Bench.model_floor(bench, by_name[name], batch) == pytest.approx(floor)
        assert Bench.model_seconds(bench, by_name[name], batch) == pytest.approx(longer / 1e3)
    no_rate = by_name["cuda tf32", "float32"]
    assert Bench.model_floor(bench, no_rate, 1).operations is None
    assert Bench.model_seconds(bench, no_rate, 1) is None, "then the other may not be the longer one"


@pytest.mark.parametrize("arithmetic", ["float32", "tf32", "float16"])
def test_rates_of_matrix_products(arithmetic: Any) -> None:
    """By the CPU's provider, which takes the same models."""
    assert rates._matrix_rate("cpu", 1, 0, arithmetic, 64) > 0
    session = open_session(rates.matmul(arithmetic), SessionOptions())
    kind, wanted = ("tensor(float16)", np.float16) if arithmetic == "float16" else ("tensor(float)", np.float32)
    assert {node.type for node in (*session.get_inputs(), *session.get_outputs())} == {kind}
    (multiplied,) = session.run(None, {name: np.full((3, 3), 2, wanted) for name in "ab"})
    assert multiplied.tolist() == [[12.0] * 3] * 3


@cuda
@pytest.mark.usefixtures("in_a_hurry")
def test_what_fails_is_a_row_and_the_rest_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One kind of kernel does not fit, one has a fault, and then somebody has had enough."""
    measured = on_gpu_kernels._row

    def failing(bench: Bench, subject: Subject, *given: Any) -> Any:
        if subject.batch == 2:
            raise (
                DeviceMemoryError("it does not fit", file=tmp_path / "a.onnx")
                if subject.dtype == "float16"
                else KeyError(3)
            )
        return measured(bench, subject, *given)

    def interrupted(bench: Bench) -> Iterator[Any]:
        yield missing(Subject("model", "first"), "none")
        raise KeyboardInterrupt

    monkeypatch.setattr(on_gpu_kernels, "_row", failing)
    monkeypatch.setattr(script, "models", interrupted)
    found = run(tmp_path)
    assert found["complete"] is False
    assert found["rows"][-1]["name"] == "first"
    problems = {(row["dtype"], row["batch"]): row["problem"] for row in found["rows"] if row["part"] == "kernel"}
    failed = {("float32", 2): "KeyError: 3", ("float16", 2): "a.onnx: it does not fit"}
    assert problems == {("float32", 1): None, ("float16", 1): None} | failed


def test_without_a_gpu_it_is_one_line() -> None:
    hidden = ("SOFTCUDA", "PYTHONPATH", "LD_LIBRARY_PATH")
    env = {name: value for name, value in os.environ.items() if not name.startswith(hidden)}
    for arguments, said in (
        ((), "error: there is no GPU to measure: "),
        (("--device", "cpu"), "error: --device: a GPU is what is measured (got 'cpu'); give cuda:N"),
    ):
        done = subprocess.run(
            [sys.executable, str(ROOT / "benchmarks" / "gpu.py"), *arguments],
            env=env | {"CUDA_VISIBLE_DEVICES": "-1", "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            check=False,
        )
        assert (done.returncode, done.stdout) == (1, "")
        assert done.stderr.startswith(said)
        assert done.stderr.count("\n") == 1
