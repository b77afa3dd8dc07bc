"""session: what is said of providers and of memory; inference itself against ONNX Runtime's plain call."""

import functools
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnxruntime
import pytest

from gpupipe.demo.models import save, tiny_model
from gpupipe.errors import DeviceMemoryError, InferenceError, OptionError, ProviderError
from gpupipe.model import model as inference
from gpupipe.model import runner
from gpupipe.model import runtime as session
from gpupipe.model.model import Model
from gpupipe.model.runner import Runner, started
from gpupipe.model.runtime import SessionOptions, probe_provider, raise_if_out_of_memory


@pytest.fixture(scope="module")
def model_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "tiny.onnx"
    save(tiny_model(32), path)
    return path


@pytest.mark.parametrize("threads", [1, 2, 5])
@pytest.mark.parametrize("batch", [1, 3, 8])
def test_bound_buffers_give_what_a_plain_run_gives(model_path: Path, threads: int, batch: int) -> None:
    rng = np.random.default_rng(batch)
    visual, audio = (rng.random((batch, *shape), dtype=np.float32) for shape in ((6, 32, 32), (32, 16, 16)))
    prediction = np.zeros((batch, 3, 32, 32), np.float32)
    model = Model(model_path, SessionOptions(threads=threads), batch=batch)
    bound = model.bind(visual, audio, prediction)
    for _ in range(2):
        visual[:] = rng.random(visual.shape, dtype=np.float32)
        model.run(bound, batch)
        (wanted,) = onnxruntime.InferenceSession(str(model_path)).run(None, {"input": visual, "audio": audio})
        assert np.allclose(prediction, wanted, atol=1e-6)
    model.close()
    assert model.runs == min(threads, 4)  # whatever the batch


def test_batches_that_were_started_run_side_by_side(model_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Or a batch of one frame would leave all threads but one without work."""
    model = Model(model_path, SessionOptions(threads=2), batch=1)
    together = threading.Barrier(2)  # broken unless two runs are under way at a time
    run = Runner.run

    def meeting(runner: Runner, bindings: Any) -> None:
        together.wait(20)
        run(runner, bindings)

    rng = np.random.default_rng(0)
    slots = []
    for _ in range(4):
        visual, audio = (rng.random((1, *shape), dtype=np.float32) for shape in ((6, 32, 32), (32, 16, 16)))
        slots.append((visual, audio, np.zeros((1, 3, 32, 32), np.float32)))
    monkeypatch.setattr(Runner, "run", meeting)
    waits = [model.start(model.bind(*slot), 1) for slot in slots]
    for wait in waits:
        wait()
    whole = onnxruntime.InferenceSession(str(model_path))
    for visual, audio, prediction in slots:
        np.testing.assert_allclose(prediction, whole.run(None, {"input": visual, "audio": audio})[0], atol=1e-6)
    model.close()


def test_what_was_started_and_fails_is_told_when_all_of_it_has_ended() -> None:
    ended: list[int] = []

    def work(number: int) -> None:
        if number == 1:
            raise InferenceError("the second one")
        time.sleep(0.02)
        ended.append(number)

    with ThreadPoolExecutor(2) as pool:
        wait = started(pool, [functools.partial(work, number) for number in range(4)])
        with pytest.raises(InferenceError, match="the second one"):
            wait()
        assert sorted(ended) == [0, 2, 3], "their buffers may be used again"


def test_both_packages_at_once_are_detected(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gpupipe.model.runtime.package_version", lambda name: "1.25")
    session.runtime.cache_clear()
    with pytest.raises(InferenceError, match="both installed") as caught:
        session.runtime()
    assert "pip uninstall -y onnxruntime onnxruntime-gpu" in str(caught.value)
    session.runtime.cache_clear()


def test_none_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "onnxruntime", None)
    session.runtime.cache_clear()
    with pytest.raises(InferenceError, match=r"pip install 'gpupipe\[cpu\]'"):
        session.runtime()
    session.runtime.cache_clear()


def test_providers_that_open() -> None:
    assert probe_provider("cpu") is None
    if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
        reason = probe_provider("cuda")
        assert reason is not None
        assert "built without CUDAExecutionProvider" in reason


@pytest.mark.parametrize(
    "text",
    [
        "Failed to allocate memory for requested buffer of size 268435456",
        "CUDA failure 2: out of memory ; GPU=0",
        "CUDNN failure 4: CUDNN_STATUS_ALLOC_FAILED",
        "CUDNN failure 4003: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED",
        "Available memory of 1024 is smaller than requested bytes of 4096",
    ],
)
def test_memory_errors_of_onnx_runtime_are_memory_errors_of_the_device(text: str) -> None:
    with pytest.raises(DeviceMemoryError, match="smaller batch"):
        raise_if_out_of_memory(RuntimeError(text), SessionOptions("cuda"), Path("m.onnx"))
    raise_if_out_of_memory(RuntimeError(text), SessionOptions("cpu"), Path("m.onnx"))
    raise_if_out_of_memory(RuntimeError("no such kernel"), SessionOptions("cuda"), Path("m.onnx"))


def test_options_have_the_values_that_providers_take(tmp_path: Path) -> None:
    """CUDA's switches are 0 and 1; TensorRT's are True and False, and ONNX Runtime refuses it any other."""
    options = SessionOptions("tensorrt", device_id=1, stream=1234, fp16=True, engine_cache=tmp_path / "engines")
    (name, tensorrt), (second, cuda) = session._providers(replace(options, profile={"a": (8, 6, 32, 32), "b": (8, 2)}))
    assert (name, second) == ("TensorrtExecutionProvider", "CUDAExecutionProvider")
    switches = ("trt_fp16_enable", "trt_engine_cache_enable", "trt_timing_cache_enable")
    assert [tensorrt[switch] for switch in switches] == ["True"] * 3
    assert session._providers(SessionOptions("tensorrt"))[0][1]["trt_fp16_enable"] == "False"
    for end in ("min", "opt", "max"):
        assert tensorrt[f"trt_profile_{end}_shapes"] == "a:8x6x32x32,b:8x2"
    assert cuda["device_id"] == tensorrt["device_id"] == "1"
    assert cuda["user_compute_stream"] == tensorrt["user_compute_stream"] == "1234"
    assert (cuda["use_tf32"], cuda["cudnn_conv_algo_search"]) == ("0", "HEURISTIC")


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str | None], None]:
    """A function that makes sessions on CUDA fail with a text; `probe` is the text for the smallest model, if any."""

    class Opened:
        def get_providers(self) -> list[str]:
            return ["CUDAExecutionProvider", "CPUExecutionProvider"]

        def get_inputs(self) -> list[Any]:
            return []

        get_outputs = get_inputs

    def fail(text: str, probe: str | None) -> None:
        def opened(path: str | bytes, *_: object, providers: object, enable_fallback: int) -> Opened:
            assert not enable_fallback
            if said := probe if isinstance(path, bytes) else text:
                raise RuntimeError(said)
            return Opened()

        monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider"])
        monkeypatch.setattr(onnxruntime, "preload_dlls", lambda: print("Failed to load libcudnn.so.9"))
        monkeypatch.setattr(onnxruntime, "InferenceSession", opened)

    return fail


@pytest.mark.parametrize(
    ("text", "probe", "error", "message"),
    [
        ("CUDA failure 35: driver too old", "CUDA failure 35: driver too old", ProviderError, "did not open: .*35"),
        ("no kernel for Wrong(13)", None, InferenceError, "cannot be opened: no kernel for Wrong"),
        ("CUDA failure 2: out of memory", None, DeviceMemoryError, "does not fit in the GPU's memory"),
    ],
)
def test_a_provider_that_fails_is_told_from_a_model_that_does(
    failing: Callable[[str, str | None], None],
    capsys: pytest.CaptureFixture[str],
    model_path: Path,
    text: str,
    probe: str | None,
    error: type[Exception],
    message: str,
) -> None:
    failing(text, probe)
    with pytest.raises(error, match=message) as raised:
        session.open_session(model_path, SessionOptions("cuda"))
    assert type(raised.value) is error
    assert (probe_provider("cuda") is None) == (probe is None)
    assert capsys.readouterr().out == ""


def test_a_batch_that_a_static_model_does_not_take(tmp_path: Path) -> None:
    import onnx

    model = tiny_model(32)
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.shape.dim[0].dim_value = 3
    onnx.save(model, str(tmp_path / "three.onnx"))
    with pytest.raises(OptionError, match="batches of 3"):
        Model(tmp_path / "three.onnx", SessionOptions(), batch=8)
    opened = Model(tmp_path / "three.onnx", SessionOptions(threads=2), batch=6)
    assert opened.chunk == 3
    opened.close()


class Recorder:
    """A session that notes the options of each run, and gives what ONNX Runtime tells of its nodes."""

    def __init__(self, session: Any, nodes: dict[str, int]) -> None:
        self.session, self.nodes = session, nodes
        self.waits: list[bool] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self.session, name)

    def get_inputs(self) -> list[Any]:
        return [] if self.session is None else list(self.session.get_inputs())

    def get_outputs(self) -> list[Any]:
        return [] if self.session is None else list(self.session.get_outputs())

    def run_with_iobinding(self, binding: Any, options: Any) -> None:
        entry = "disable_synchronize_execution_providers"
        try:
            self.waits.append(options.get_run_config_entry(entry) != "1")
        except RuntimeError:  # there is no such entry
            self.waits.append(True)

    def get_provider_graph_assignment_info(self) -> list[Any]:
        return [
            SimpleNamespace(ep_name=name, get_nodes=lambda count=count: [None] * count)
            for name, count in self.nodes.items()
        ]


def test_one_run_of_many_waits_so_that_buffers_are_given_back(
    model_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = Recorder(onnxruntime.InferenceSession(str(model_path)), {"CUDAExecutionProvider": 5})
    monkeypatch.setattr(inference, "open_session", lambda *_, **__: made)
    model = Model(model_path, SessionOptions("cuda"), batch=2)
    buffers = [np.zeros(shape, np.float32) for shape in ((2, 6, 32, 32), (2, 32, 16, 16), (2, 3, 32, 32))]
    bound = model.bind(*buffers)
    for _ in range(2 * runner.SETTLING_RUNS + 1):
        model.run(bound, 2)
    waited = [number for number, waits in enumerate(made.waits, 1) if waits]
    assert waited == [runner.SETTLING_RUNS, 2 * runner.SETTLING_RUNS]
    assert model.nodes == {"CUDAExecutionProvider": 5}


@pytest.mark.parametrize(
    ("nodes", "message"),
    [
        ({"CUDAExecutionProvider": 7, "CPUExecutionProvider": 1}, "took no node of the model: CUDAExecutionProvider, "),
        ({"CUDAExecutionProvider": 3, "TensorrtExecutionProvider": 4}, None),
        ({}, None),  # an ONNX Runtime that does not tell
    ],
)
def test_a_provider_that_takes_no_node_is_an_error(
    monkeypatch: pytest.MonkeyPatch, model_path: Path, nodes: dict[str, int], message: str | None
) -> None:
    class Opened(Recorder):
        def get_providers(self) -> list[str]:
            return ["TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider"]

    entries = []

    def opened(_: object, settings: Any, **__: object) -> Opened:
        entries.append(settings.get_session_config_entry("session.record_ep_graph_assignment_info"))
        return Opened(None, nodes)

    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["TensorrtExecutionProvider"])
    monkeypatch.setattr(onnxruntime, "preload_dlls", lambda: None)
    monkeypatch.setattr(onnxruntime, "InferenceSession", opened)
    if message is None:
        assert session.assigned_nodes(session.open_session(model_path, SessionOptions("tensorrt"))) == nodes
    else:
        with pytest.raises(ProviderError, match=message):
            session.open_session(model_path, SessionOptions("tensorrt"))
    assert entries == ["1"]


def test_onnx_runtime_tells_which_provider_runs_a_node() -> None:
    settings = onnxruntime.SessionOptions()
    settings.add_session_config_entry(session.RECORD_ASSIGNMENT, "1")
    opened = onnxruntime.InferenceSession(session.IDENTITY, settings, providers=["CPUExecutionProvider"])
    assert session.assigned_nodes(opened) == {"CPUExecutionProvider": 1}


def test_nothing_of_a_run_is_sent_or_kept_by_onnx_runtime(model_path: Path, tmp_path: Path) -> None:
    """Its telemetry would keep a database in the home folder."""
    code = "import sys; from gpupipe.model.runtime import runtime; runtime().InferenceSession(sys.argv[1])"
    environment = os.environ | {name: str(tmp_path) for name in ("HOME", "USERPROFILE", "XDG_CACHE_HOME")}
    environment.pop("ORT_DISABLE_TELEMETRY", None)
    subprocess.run([sys.executable, "-c", code, str(model_path)], env=environment, check=True, timeout=60)
    assert list(tmp_path.iterdir()) == []
