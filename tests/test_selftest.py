"""gpupipe selftest on the device that is there: all that is possible passes, and what is wrong is found and named."""

from __future__ import annotations

import ctypes
import json
import mmap
import os
import subprocess
import sys
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import small
from conftest import on_softcuda

from gpupipe import cli
from gpupipe.compose import gpu as compose_gpu
from gpupipe.doctor import checks_frames, checks_graphs, checks_machine, checks_runs, sample, selftest
from gpupipe.doctor.check import Check, Found, NotPossible, Subject
from gpupipe.doctor.libraries import by_name, loaded_libraries
from gpupipe.doctor.on_device import OnDevice
from gpupipe.geometry import CropLayout
from gpupipe.gpu import device as gpu_device
from gpupipe.media.encode import VideoWriter
from gpupipe.model import rates, runtime
from gpupipe.model.cost import model_cost
from gpupipe.model.model import Model

cuda = pytest.mark.cuda

ON_CUDA = (
    "node assignment: cuda", "predictions: cuda", "binding is in place", "features: cuda", "stream order",
    "arena and threads", "times: model",
)  # fmt: skip


def results(made: Mapping[str, Any]) -> dict[str, str]:
    return {check["name"]: check["result"] for check in made["checks"]}


def failed(made: Mapping[str, Any]) -> set[str]:
    return {name for name, result in results(made).items() if result == "failed"}


def only(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    """Let the self-test make some of its checks; those that open providers always."""
    kept = [check for check in selftest.CHECKS if check.name in names or check.name.endswith(" opens")]
    assert len(kept) == len(names) + 3
    monkeypatch.setattr(selftest, "CHECKS", kept)


@pytest.fixture(autouse=True)
def quicker(monkeypatch: pytest.MonkeyPatch) -> None:
    if on_softcuda():
        monkeypatch.setattr(checks_frames, "SIZES", (32, 96))
        monkeypatch.setattr(checks_frames, "ROUNDS", 2)
        monkeypatch.setattr(checks_runs, "FLAT_RUNS", 24)
        monkeypatch.setattr(checks_runs, "ORDERED_RUNS", 5)
        monkeypatch.setattr(rates, "COPY_BYTES", 1 << 20)
        monkeypatch.setattr(checks_machine, "LOCKED_BYTES", 64 << 20)
        monkeypatch.setattr(checks_machine, "COPIED_BYTES", 16 << 20)


@cuda
def test_what_is_possible_passes_and_the_rest_says_why(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["selftest", "--json", str(tmp_path / "found.json")]) == 0
    out, err = capsys.readouterr()
    made = json.loads((tmp_path / "found.json").read_text("utf-8"))
    assert made["passed"] is True
    assert failed(made) == set()
    assert len(made["checks"]) == len(selftest.CHECKS) == len({check.name for check in selftest.CHECKS})
    for check in made["checks"]:
        assert (check["measured"] is None) == (check["result"] == "not possible here"), check
        assert (check["reason"] is None) == (check["result"] == "passed"), check
        assert check["criterion"]
    always = {
        "cpu opens", "kernels exact: prepare", "kernels exact: paste", "render exact", "budget", "memory check",
        "pinned memory", "input copied: libx264", "segments join: libx264", "quality: libx264", "times: copies",
        "times: kernels", "times: render",
    }  # fmt: skip
    assert always <= {name for name, result in results(made).items() if result == "passed"}
    assert out.startswith("gpupipe selftest: ")
    assert f"{len(made['checks'])}" == str(sum(made["counts"].values()))
    lines = out.splitlines()
    for check in made["checks"]:
        (line,) = (line for line in lines if line[7:].startswith(f"{check['name']:<30} "))
        assert line[:7].strip() == selftest.SIGNS[check["result"]]
        assert line in err.splitlines()


@cuda
@pytest.mark.parametrize("has_model", [True, False])
def test_a_characters_own_frames_and_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, has_model: bool) -> None:
    only(monkeypatch, "render exact", "memory check", "tensorrt cache", "times: render")
    folder = small.small_character(tmp_path / "small")
    model = folder / "checkpoint" / "model_best.onnx"
    if not has_model:
        model.unlink()
    made = selftest.run("cuda:0", character=folder)
    assert made["passed"]
    assert made["model"] == (str(model) if has_model else "random weights")
    assert f"character: {folder}; model: {made['model']}" in selftest.text(made).splitlines()
    render = next(check for check in made["checks"] if check["name"] == "times: render")
    assert render["measured"].startswith(f"{small.FRAMES} frames of {small.WIDTH}x{small.HEIGHT}: ")


def test_without_a_gpu_it_is_one_line(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    hidden = ("SOFTCUDA", "PYTHONPATH", "LD_LIBRARY_PATH")
    env = {name: value for name, value in os.environ.items() if not name.startswith(hidden)}
    root = Path(__file__).resolve().parents[1]
    for device, said in ((["--device", "cuda"], "--device cpu"), (["--device", "cpu"], "give cuda or cuda:N")):
        done = subprocess.run(
            [sys.executable, "-m", "gpupipe", "selftest", *device],
            env=env | {"CUDA_VISIBLE_DEVICES": "-1", "PYTHONPATH": str(root)},
            cwd=root,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 1
        assert done.stdout == ""
        assert done.stderr.startswith("error: ")
        assert said in done.stderr
        assert done.stderr.count("\n") == 1


# Planted faults


@cuda
@pytest.mark.parametrize("kernel", ["prepare", "paste"])
def test_a_kernel_that_draws_wrongly_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], kernel: str
) -> None:
    """Each in turn takes the crops to have no border."""
    only(monkeypatch, "kernels exact: prepare", "kernels exact: paste", "render exact")
    from gpupipe.gpu import launch

    queue = getattr(launch, kernel)

    def other(*arguments: Any, **more: Any) -> None:
        with monkeypatch.context() as patch:
            patch.setattr(launch, "BORDER", 0)
            queue(*arguments, **more)

    monkeypatch.setattr(launch, kernel, other)
    assert cli.main(["selftest"]) == 1
    out = capsys.readouterr().out
    named = {line.removeprefix("FAILED ").split(": wanted")[0] for line in out.splitlines() if ": wanted: " in line}
    assert named == {f"kernels exact: {kernel}", "render exact"}


@cuda
def test_a_batch_that_costs_more_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    only(monkeypatch, "budget")
    finish = compose_gpu.GpuCompositor.finish

    def waiting(self: Any, slot: Any) -> Any:
        self.device.synchronize()  # of three streams
        return finish(self, slot)

    monkeypatch.setattr(compose_gpu.GpuCompositor, "finish", waiting)
    made = selftest.run()
    assert failed(made) == {"budget"}
    assert made["checks"][-1]["measured"].startswith("a batch: 4 waits, 64 bytes a frame up, ")


@cuda
def test_memory_that_was_not_counted_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    only(monkeypatch, "memory check")
    new_slot = compose_gpu.GpuCompositor.new_slot

    def larger(self: Any) -> Any:
        slot = new_slot(self)
        vars(slot)["more"] = self.device.empty((30_000_000,), np.uint8)  # three slots
        return slot

    monkeypatch.setattr(compose_gpu.GpuCompositor, "new_slot", larger)
    made = selftest.run()
    assert failed(made) == {"memory check"}
    assert 90 <= float(made["checks"][-1]["measured"].split()[0]) < 130


@pytest.fixture
def cuda_provider(monkeypatch: pytest.MonkeyPatch, model_on_device: list[int], tmp_path: Path) -> list[float]:
    """`model_on_device`; what is in the list is added to every prediction of a whole model."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    added: list[float] = []
    run = Model.run

    def adding(model: Model, bindings: Any, frames: int) -> None:
        run(model, bindings, frames)
        for value in added if model.provider == "cuda" else ():
            address, shape, dtype = outputs[id(bindings)]
            memory = (ctypes.c_byte * (int(np.prod(shape)) * dtype.itemsize)).from_address(address)
            np.frombuffer(memory, dtype).reshape(shape)[...] += value

    outputs: dict[int, Any] = {}
    bind = Model.bind

    def binding(model: Model, visual: Any, audio: Any, prediction: Any) -> Any:
        bound = bind(model, visual, audio, prediction)
        if not isinstance(prediction, np.ndarray):
            outputs[id(bound)] = prediction.data.ptr, prediction.shape, np.dtype(prediction.dtype)
        return bound

    monkeypatch.setattr(Model, "run", adding)
    monkeypatch.setattr(Model, "bind", binding)
    monkeypatch.setattr(rates, "_matrix_rate", lambda *_: 1e9)
    return added


@cuda
def test_checks_of_a_provider(cuda_provider: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    only(monkeypatch, *ON_CUDA, "tf32 off is exact", "first start: cuda")
    made = selftest.run()
    assert failed(made) == set()
    found = results(made)
    assert {found[name] for name in ("cuda opens", *ON_CUDA)} == {"passed"}
    assert found["tf32 off is exact"] == "not possible here"  # it changes nothing on a CPU
    assert found["first start: cuda"] == "not possible here"


@cuda
@pytest.mark.parametrize("left", [0, 1_000_000])
def test_memory_that_runs_leave_is_named(
    cuda_provider: list[float], monkeypatch: pytest.MonkeyPatch, left: int
) -> None:
    """In one thread: each that the stand-in's CPU provider has makes itself buffers of some 500 KB when it first gets a
    share of a run, which on a busy machine may be any; the host is all that a GPU's needs."""
    import cuda_provider as stand_in

    only(monkeypatch, "host memory flat")
    opening, run, kept = stand_in.OPENING, OnDevice.run, list[mmap.mmap]()

    def in_one_thread(path: Any, settings: Any, **named: Any) -> Any:
        settings.intra_op_num_threads = 1
        return opening(path, settings, **named)

    def leaving(opened: OnDevice) -> None:
        run(opened)
        if left:
            kept.append(mmap.mmap(-1, left))
            kept[-1].write(bytes(left))

    monkeypatch.setattr(stand_in, "OPENING", in_one_thread)
    monkeypatch.setattr(OnDevice, "run", leaving)
    made = selftest.run()
    (told,) = (check for check in made["checks"] if check["name"] == "host memory flat")
    assert told["result"] == ("failed" if left else "passed")
    assert told["numbers"]["runs"] == 24
    assert 24 * left - 5e6 < told["numbers"]["grown_bytes"] < 24 * left + 1e6


ON_GRAPHS = ("graph replay", "times: graph", "float16 layouts")


@cuda
def test_graphs_are_checked_against_plain_runs(model_on_device: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    only(monkeypatch, *ON_GRAPHS, "graph replay does not wait")
    made = selftest.run()
    assert failed(made) == set()
    found = results(made)
    assert {found[name] for name in ON_GRAPHS} == {"passed"}
    assert found["graph replay does not wait"] == "not possible here"
    told = {check["name"]: check["measured"] for check in made["checks"]}
    assert told["graph replay"] == f"0 values of {checks_graphs.REPLAYS} replays are not a plain run's"
    assert "replayed" in told["times: graph"]
    assert "float16 convolutions in N" in told["float16 layouts"]


@cuda
def test_a_replay_that_differs_is_named(model_on_device: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    """Its graph holds addresses that are another binding's."""
    from cuda_provider import Binding

    only(monkeypatch, "graph replay")
    capture = Binding.captured

    def swapped(binding: Any) -> Any:
        binding.outputs = {name: (*place[:-1], STRAY.ctypes.data) for name, place in binding.outputs.items()}
        return capture(binding)

    monkeypatch.setattr(Binding, "captured", swapped)
    assert failed(selftest.run()) == {"graph replay"}


STRAY = np.zeros((8, 3, 320, 320), np.float32)


@cuda
def test_where_no_graph_is_possible_the_reason_is_told(
    model_on_device: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    only(monkeypatch, "graph replay", "times: graph")
    monkeypatch.setattr(runtime.runtime(), "__version__", "1.25.1")
    made = selftest.run()
    assert {check["reason"] for check in made["checks"] if "graph" in check["name"]} == {
        "the model runs without CUDA graphs: ONNX Runtime 1.25.1 does not replay them safely without a wait, 1.30 and "
        "later do"
    }


@cuda
def test_a_capture_that_fails_is_a_failure(model_on_device: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    import cupy
    from cuda_provider import Session

    only(monkeypatch, "graph replay")
    monkeypatch.setattr(Session, "during_capture", staticmethod(lambda: cupy.cuda.Memory(256)))
    made = selftest.run()
    assert failed(made) == {"graph replay"}


@cuda
def test_who_waits_is_named(cuda_provider: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    """Taken for a GPU, the software device makes whoever waits do the work, and its provider waits in every run."""
    only(monkeypatch, "run does not wait: cuda", "event waits", "pinned memory", "first start: cuda")
    monkeypatch.setattr(Subject, "works_alone", True)
    monkeypatch.setattr(checks_runs, "RATHER_MS", 10.0)
    monkeypatch.setattr(checks_machine, "RATHER_MS", 10.0)
    monkeypatch.setattr(checks_machine, "WAITING_SECONDS", 0.001)  # of 100 ms, on a machine that is shared
    made = selftest.run()
    assert failed(made) >= {"run does not wait: cuda", "event waits"}
    for check in made["checks"]:
        if check["result"] == "failed":  # which is what was measured, no error
            assert check["reason"] is None, check


@cuda
@pytest.mark.parametrize(("added", "names"), [(3e-4, {"predictions: cuda", "tf32 off is exact"}), (2e-5, set())])
def test_a_provider_that_differs_is_named(
    cuda_provider: list[float], monkeypatch: pytest.MonkeyPatch, added: float, names: set[str]
) -> None:
    only(monkeypatch, "predictions: cuda", "tf32 off is exact")
    cuda_provider.append(added)
    made = selftest.run()
    assert failed(made) == names
    assert made["passed"] is not names


@cuda
def test_features_are_made_bound_and_gathered(
    cuda_provider: list[float], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    only(monkeypatch, "features: cuda", "features: tensorrt")
    made = selftest.run()
    (told,) = (check for check in made["checks"] if check["name"] == "features: cuda")
    assert told["result"] == "passed"
    assert told["measured"].startswith("6 batches (2 made, 4 as they lie, 2 gathered): largest difference ")
    assert results(made)["features: tensorrt"] == "not possible here"
    cuda_provider.append(3e-5)
    assert failed(selftest.run()) == {"features: cuda"}


@cuda
def test_a_provider_that_does_not_open_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    only(monkeypatch, "predictions: cuda")
    onnxruntime = runtime.runtime()
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: list(runtime.PROVIDER_NAMES.values()))
    monkeypatch.setattr(onnxruntime, "preload_dlls", lambda: None)
    opening = onnxruntime.InferenceSession

    def opened(model: Any, settings: Any, *, providers: Any, **_: Any) -> Any:
        if providers[0][0] != "CPUExecutionProvider":
            raise RuntimeError("libcudnn.so.9: cannot open shared object file")
        return opening(model, settings, providers=["CPUExecutionProvider"])

    monkeypatch.setattr(onnxruntime, "InferenceSession", opened)
    made = selftest.run()
    assert failed(made) == {"cuda opens"}
    (told,) = (check for check in made["checks"] if check["name"] == "cuda opens")
    assert "libcudnn.so.9" in told["reason"]
    assert results(made)["predictions: cuda"] == "not possible here"


@cuda
@pytest.mark.skipif(not on_softcuda(), reason="makes GPUs of its own number")
def test_the_second_of_two_gpus(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", TWO_GPUS, str(tmp_path / "found.json")],
        env=os.environ | {"SOFTCUDA_DEVICES": "2"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    made = json.loads((tmp_path / "found.json").read_text("utf-8"))
    assert made["gpu"]["index"] == 1
    assert failed(made) == set()
    assert results(made)["current device"] == "passed"


TWO_GPUS = """
import json, pathlib, sys
from gpupipe.doctor import selftest
selftest.CHECKS = [check for check in selftest.CHECKS if check.name in ("cpu opens", "render exact", "current device")]
pathlib.Path(sys.argv[1]).write_text(json.dumps(selftest.run("cuda:1")), "utf-8")
"""


ON_NVENC = (
    "nvenc from GPU memory: h264_nvenc", "nvenc sessions", "input copied: h264_nvenc", "segments join: h264_nvenc"
)  # fmt: skip


@cuda
@pytest.mark.skipif(not on_softcuda(), reason="softcuda's encoder, which loses nothing")
@pytest.mark.parametrize("early", [False, True])
def test_an_encoder_that_reads_gpu_memory(monkeypatch: pytest.MonkeyPatch, early: bool) -> None:
    only(monkeypatch, *ON_NVENC)
    monkeypatch.setenv("SOFTCUDA_NVENC", "1")
    if early:  # frames are given back before they have been read
        write = VideoWriter.write

        def given_back(writer: VideoWriter, frame: Any, read: Any = lambda: None) -> None:
            write(writer, frame)
            read()

        monkeypatch.setattr(VideoWriter, "write", given_back)
    made = selftest.run()
    assert failed(made) == ({ON_NVENC[0]} if early else set())
    assert set(ON_NVENC[early:]) <= {name for name, result in results(made).items() if result == "passed"}
    (found,) = (check for check in made["checks"] if check["name"] == ON_NVENC[0])
    if not early:
        assert found["measured"] == "60 of 60 frames; mean square difference at most 0.000; 14 held at most"
        assert found["numbers"] == {"frames": 60, "mean_square_difference": 0.0, "held": 14}


# Its parts


@cuda
def test_a_check_that_breaks_is_a_failure_with_its_reason() -> None:
    subject: Any = type("Subject", (), {"gpu": gpu_device.open_device()})()

    def broken(_: Subject) -> Found:
        raise ZeroDivisionError("by 0")

    def absent(_: Subject) -> Found:
        raise NotPossible("no such thing")

    told = Check("broken", "it works", broken).made(subject)
    assert (told["result"], told["reason"], told["measured"]) == ("failed", "ZeroDivisionError: by 0", None)
    told = Check("absent", "it works", absent).made(subject)
    assert (told["result"], told["reason"]) == ("not possible here", "no such thing")


def test_libraries_are_told_by_their_names() -> None:
    paths = ["/v/nvidia/lib/libcudart.so.12", "/usr/lib/libcudart.so.12.8.90", "/v/libcudnn_ops.so.9", "/lib/libc.so.6"]
    paths += ["/v/libnvrtc-builtins.so.12.9", "/v/libnvrtc.so.12", "/v/nvrtc.cpython-311.so", "/v/libcublasLt.so.12"]
    assert by_name(paths) == {
        "cudart": ["/usr/lib/libcudart.so.12.8.90", "/v/nvidia/lib/libcudart.so.12"],
        "cublasLt": ["/v/libcublasLt.so.12"],
        "cudnn_ops": ["/v/libcudnn_ops.so.9"],
        "nvrtc-builtins": ["/v/libnvrtc-builtins.so.12.9"],
        "nvrtc": ["/v/libnvrtc.so.12"],
    }
    assert by_name(["C:\\v\\cudart64_12.dll", "C:\\v\\cudnn_ops64_9.dll", "C:\\Windows\\System32\\nvcuda.dll"]) == {
        "nvcuda": ["C:\\Windows\\System32\\nvcuda.dll"],
        "cudart": ["C:\\v\\cudart64_12.dll"],
        "cudnn_ops": ["C:\\v\\cudnn_ops64_9.dll"],
    }
    if sys.platform == "linux":
        assert loaded_libraries() is not None


@pytest.mark.parametrize("half", [False, True])
def test_the_model_made_of_bytes_is_one(half: bool) -> None:
    made = onnx.load_from_string(sample.model_bytes(32, 5, half=half))
    onnx.checker.check_model(made, full_check=True)
    names = [[value.name for value in values] for values in (made.graph.input, made.graph.output)]
    assert names == [["visual", "audio"], ["prediction"]]
    other = onnx.load_from_string(sample.model_bytes(32, 6, half=half))
    assert [node.SerializeToString() for node in made.graph.node] == [
        node.SerializeToString() for node in other.graph.node
    ]
    for one, two in zip(made.graph.initializer, other.graph.initializer, strict=True):
        assert one.name == two.name
        assert one.raw_data != two.raw_data
    assert onnx.numpy_helper.to_array(made.graph.initializer[0]).shape == (sample.CHANNELS, 6, 3, 3)


def test_its_multiply_adds(tmp_path: Path) -> None:
    """At 32x32: 6 to 24 planes, 24 to 24 at half the size, the speech, back up, and 48 to 3."""
    path = tmp_path / "model.onnx"
    path.write_bytes(sample.model_bytes(32, 0))
    whole, half = 32 * 32, 16 * 16
    wanted = whole * 24 * 6 * 9 + half * 24 * 24 * 9 + 24 * 32 + half * 24 * 24 * 4 + whole * 3 * 48 * 9
    assert model_cost(path, CropLayout(32))["macs"] == wanted


def test_the_character_of_noise_lacks_a_model_only(tmp_path: Path) -> None:
    from gpupipe.doctor import inspect

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        told = inspect(sample.write_character(tmp_path / "sample"))
    (fault,) = told["faults"]
    assert "model_best.onnx: model: no such file" in fault
    assert told["frames"] == sample.FRAMES
    assert told["rectangles"]["partly_outside"] > 0
