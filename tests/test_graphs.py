"""CUDA graphs: captured for each slot when a lane is opened, replayed ever after, or the reason why not."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import small
from engine_scene import PEOPLE, SECONDS, finished, planned

from gpupipe.engine.gpu_backend import GpuBackend
from gpupipe.engine.lane import SLOTS
from gpupipe.gpu.device import open_device
from gpupipe.gpu.driver import opening_lock
from gpupipe.model import graphs
from gpupipe.model.model import Model
from gpupipe.model.runtime import SessionOptions
from gpupipe.render.engine import Engine
from gpupipe.speech.rows import SpeechRows

cupy = pytest.importorskip("cupy")
cuda_provider = pytest.importorskip("cuda_provider")

pytestmark = [pytest.mark.cuda, pytest.mark.timeout(120)]

ANNA, BERT = PEOPLE[:2]
ON_DEVICE: dict[str, Any] = {"provider": "cuda", "batch": 4}
REPLAYED = "the model's runs are replayed as CUDA graphs"


@pytest.fixture
def during_capture(model_on_device: list[int], monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[], None]], None]:
    """A function that lets something be done while a graph is captured."""

    def given(work: Callable[[], None]) -> None:
        monkeypatch.setattr(cuda_provider.Session, "during_capture", staticmethod(work))

    return given


def drawn(engine: Engine, rows: int = 40) -> tuple[str, ...]:
    """What is said of a session whose frames must all be right; more of them than all slots hold."""
    features = small.features(rows)
    plan = planned(ANNA, "nv12", features, **ON_DEVICE)
    with engine.open_session(plan.order, lambda _: SpeechRows(features)) as session:
        for index in range(plan.total):
            surface = session.next()
            assert surface is not None
            assert surface.host is not None
            assert surface.host.tobytes() == finished(ANNA, "nv12", features, index)
            surface.release()
        return session.notes


def log() -> Any:
    """Of the one session that was opened."""
    (found,) = cuda_provider.Session.opened
    return found


def test_each_slot_is_captured_at_the_start_and_replayed_ever_after(model_on_device: list[int]) -> None:
    with Engine(device="cuda") as engine:
        assert drawn(engine) == (REPLAYED,)
        runs = list(log().runs)
        first = next(number for number, run in enumerate(runs) if run.what == "replay" and not run.waits)
        opening, steady = runs[:first], runs[first:]
        # One to see what a graph takes, and one for each slot, each after two runs of ONNX Runtime's own.
        assert [run.what for run in opening] == ["plain"] * 2 + (["plain"] * 2 + ["capture", "replay"]) * (1 + SLOTS)
        assert [run.graph for run in opening if run.what == "capture"] == ["1", "2", "3", "4"]
        assert {run.what for run in steady} == {"replay"}
        assert len(steady) >= 10
        assert {run.graph for run in steady} <= {"2", "3", "4"}
        assert len({run.graph for run in steady}) > 1
        assert not any(run.waits for run in steady)
        assert {run.thread for run in runs} == {"compute"}
        before = len(log().runs)
        assert drawn(engine, rows=12) == (REPLAYED,)  # an open lane is not captured again
        assert {run.what for run in log().runs[before:]} == {"replay"}


def test_what_graphs_take_is_counted_before_frames_are_cached(
    model_on_device: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[dict[str, int]] = []
    require = GpuBackend.require

    def noted(backend: GpuBackend, wanted: dict[str, int]) -> None:
        asked.append(dict(wanted))
        require(backend, wanted)

    monkeypatch.setattr(GpuBackend, "require", noted)
    with Engine(device="cuda") as engine:
        drawn(engine, rows=8)
    assert asked[0]["CUDA graphs"] == SLOTS * cuda_provider.GRAPH_BYTES


@pytest.mark.parametrize(
    ("version", "said"),
    [
        ("1.25.1", "ONNX Runtime 1.25.1 does not replay them safely without a wait, 1.30 and later do"),
        ("1.29.0", "ONNX Runtime 1.29.0 does not replay them safely without a wait, 1.30 and later do"),
        ("1.30.0", None),
        ("2.0.0+cu13", None),
    ],
)
def test_versions(model_on_device: list[int], monkeypatch: pytest.MonkeyPatch, version: str, said: str | None) -> None:
    monkeypatch.setattr(onnxruntime, "__version__", version)
    with Engine(device="cuda") as engine:
        assert drawn(engine) == ((REPLAYED,) if said is None else (f"the model runs without CUDA graphs: {said}",))
        assert (engine.backend.opening() is opening_lock(0)) == (said is None)
    assert log().provider["enable_cuda_graph"] == str(int(said is None))
    assert bool(log().count("capture")) == (said is None)
    assert {run.graph for run in log().runs if run.what == "plain" and said is not None} <= {"0"}  # none named


def test_tensorrt_has_none() -> None:
    assert "keeps one graph" in (graphs.why_not(SessionOptions("tensorrt")) or "")


@pytest.mark.parametrize("throws", [False, True])
def test_a_capture_that_fails_leaves_plain_runs(
    during_capture: Callable[[Callable[[], None]], None], monkeypatch: pytest.MonkeyPatch, throws: bool
) -> None:
    """By an allocation, of ONNX Runtime's own, in the thread that captures; ended, or left open by an exception."""
    monkeypatch.setattr(cuda_provider.Session, "throws", throws)
    during_capture(lambda: cupy.cuda.Memory(256))
    with Engine(device="cuda") as engine:
        (said,) = drawn(engine)
    assert said.startswith("the model runs without CUDA graphs: the capture failed: ")
    assert ("cudaErrorStreamCaptureUnsupported" if throws else "cudaErrorStreamCaptureInvalidated") in said
    assert log().count("replay") == 0
    steady = log().runs[5:]
    assert {(run.what, run.graph) for run in steady} == {("plain", graphs.NO_GRAPH)}


def test_a_capture_that_fails_later_leaves_what_there_is(
    model_on_device: list[int], during_capture: Callable[[Callable[[], None]], None]
) -> None:
    captures = iter(range(100))
    during_capture(lambda: cupy.cuda.Memory(256) if next(captures) == 2 else None)  # of the second slot
    ways: dict[str, str] = {}
    with Engine(device="cuda") as engine:
        drawn(engine, rows=1)
        opened = len(log().runs)
        while len(set(ways.values())) < 2:  # which slots find work is left to chance
            (said,) = drawn(engine)
            assert said.startswith("the model runs in part without CUDA graphs: the capture failed")
            ways = {run.graph: run.what for run in log().runs[opened:]}
    assert ways == {"2": "replay", graphs.NO_GRAPH: "plain"}


def model_with(path: Path, *nodes: Any, more: Any = ()) -> Path:
    """The small model, with nodes that change nothing before its output."""
    small.write_model(path)
    model = onnx.load(str(path))
    output = model.graph.output[0].name
    for node in model.graph.node:
        node.output[:] = ["before" if name == output else name for name in node.output]
    model.graph.initializer.extend(more)
    model.graph.node.extend(nodes)
    onnx.save(model, str(path))
    return path


def branches(output: str) -> Any:
    """An If whose branches are alike."""
    value = onnx.helper.make_tensor_value_info("same", onnx.TensorProto.FLOAT, None)
    body = onnx.helper.make_graph([onnx.helper.make_node("Identity", ["before"], ["same"])], "branch", [], [value])
    return onnx.helper.make_node("If", ["yes"], [output], then_branch=body, else_branch=body)


@pytest.mark.parametrize("kind", ["control flow", "unsafe"])
def test_models_that_cannot_be_captured(model_on_device: list[int], tmp_path: Path, kind: str) -> None:
    small.write_model(tmp_path / "small.onnx")
    output = onnx.load(str(tmp_path / "small.onnx")).graph.output[0].name
    helper, types = onnx.helper, onnx.TensorProto
    if kind == "control flow":
        # Not a constant, which would be folded.
        nodes = (
            helper.make_node("Size", ["before"], ["size"]),
            helper.make_node("Cast", ["size"], ["yes"], to=types.BOOL),
            branches(output),
        )
        path = model_with(tmp_path / "flow.onnx", *nodes)
        said = "ONNX Runtime finds control flow, or nodes on the CPU"
    else:
        path = model_with(tmp_path / "unsafe.onnx", helper.make_node("Softplus", ["before"], [output]))
        said = "operators not known to be safe in one: Softplus"
    model = Model(path, SessionOptions("cuda", stream=int(open_device().compute_stream.ptr)), batch=2)
    model.capture([])
    assert model.graphs == 0
    assert model.notes == (f"the model runs without CUDA graphs: {said}",)
    model.close()


@pytest.fixture
def captured(model_on_device: list[int], tmp_path: Path) -> Iterator[tuple[Model, list[Any], list[Any]]]:
    """A model with a graph, its bindings and its buffers."""
    gpu = open_device()
    small.write_model(tmp_path / "small.onnx")
    model = Model(tmp_path / "small.onnx", SessionOptions("cuda", stream=int(gpu.compute_stream.ptr)), batch=2)
    size = model.size or small.MODEL_SIZE
    shapes = ((2, 6, size, size), (2, 32, 16, 16), (2, 3, size, size))
    buffers = [gpu.empty(shape, np.float32) for shape in shapes]
    for buffer in buffers:
        gpu.clear(buffer, gpu.compute_stream)
    bound: list[Any] = list(model.bind(*buffers))
    for _ in range(2):
        model.run(bound, 2)
    model.capture(bound)
    assert model.graphs == 1
    yield model, bound, buffers
    model.close()


def test_a_graph_is_replayed_in_its_own_thread_only(captured: tuple[Model, list[Any], list[Any]]) -> None:
    """In another one ONNX Runtime would capture it anew."""
    model, bound, _ = captured
    thread = threading.Thread(target=lambda: model.run(bound, 2), name="another")
    thread.start()
    thread.join()
    model.run(bound, 2)
    assert [(run.what, run.graph) for run in log().runs[-2:]] == [("plain", "-1"), ("replay", "1")]


def test_a_binding_that_was_not_captured_runs_node_by_node(captured: tuple[Model, list[Any], list[Any]]) -> None:
    model, _, buffers = captured
    model.run(model.bind(*buffers), 2)
    assert (log().runs[-1].what, log().runs[-1].graph) == ("plain", "-1")


def test_a_session_has_so_many_graphs_and_no_more(
    captured: tuple[Model, list[Any], list[Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(graphs, "MOST_GRAPHS", 3)
    model, _, buffers = captured
    for _ in range(4):
        model.capture(model.bind(*buffers))
    assert (model.graphs, log().count("capture")) == (3, 3)
    assert model.notes == ("the model runs in part without CUDA graphs: a session has 3 at most",)


def test_other_threads_go_on_while_a_graph_is_captured(
    during_capture: Callable[[Callable[[], None]], None],
) -> None:
    """They allocate and copy, and what they queue on the compute stream comes after the capture, not into the graph."""
    gpu, queued = open_device(), threading.Event()
    array, staging = gpu.empty((64,), np.uint8), gpu.pinned((64,), np.uint8)
    staging[:] = 7
    threads: list[threading.Thread] = []
    allocated: list[Any] = []

    def other() -> None:
        allocated.append(gpu.empty((64,), np.uint8))
        gpu.copy(allocated[-1], staging, gpu.upload_stream)
        gpu.wait_for_queued(gpu.upload_stream)
        allocated.append(None)
        gpu_of_engine.copy(array, staging, gpu_of_engine.compute_stream)
        queued.set()

    def work() -> None:
        threads.append(threading.Thread(target=other))
        threads[-1].start()
        while len(allocated) < 2 * len(threads):
            assert threads[-1].is_alive() or len(allocated) == 2 * len(threads)
        assert not queued.wait(0.05)

    with Engine(device="cuda") as engine:
        assert engine.backend.gpu is not None
        gpu_of_engine = engine.backend.gpu
        captures = iter(range(100))
        during_capture(lambda: work() if next(captures) == 1 else None)
        assert drawn(engine) == (REPLAYED,)
        assert queued.wait(SECONDS)
        gpu_of_engine.synchronize()
        assert gpu_of_engine.upload(np.zeros(1, np.uint8)).nbytes == 1
    host = gpu.pinned((64,), np.uint8)
    gpu.copy(host, array, gpu.copy_stream)
    gpu.synchronize()
    assert host.tolist() == [7] * 64


def test_a_foreign_thread_that_allocates_breaks_it_and_the_render_goes_on(
    during_capture: Callable[[Callable[[], None]], None],
) -> None:
    """One that has never used this GPU through gpupipe: what the threads of `Device` are kept from."""
    errors: list[str] = []

    def foreign() -> None:
        try:
            cupy.cuda.Memory(256)
        except cupy.cuda.runtime.CUDARuntimeError as error:
            errors.append(str(error))

    def work() -> None:
        thread = threading.Thread(target=foreign)
        thread.start()
        thread.join()

    during_capture(work)
    with Engine(device="cuda") as engine:
        (said,) = drawn(engine)
    assert "the capture failed" in said
    assert errors
    assert "cudaErrorStreamCaptureUnsupported" in errors[0]


def test_nothing_of_onnx_runtime_is_opened_meanwhile(during_capture: Callable[[Callable[[], None]], None]) -> None:
    """Which would wait for the whole device."""
    held: list[bool] = []
    during_capture(lambda: held.append(opening_lock(0).locked()))
    with Engine(device="cuda") as engine:
        drawn(engine, rows=8)
        assert held == [True] * (1 + SLOTS)
        assert not opening_lock(0).locked()
        # The small model of another character is the same file's content: the lane is there already.
        assert list(engine.frames(BERT.path, features=small.features(8), **ON_DEVICE))
        assert len(held) == 1 + SLOTS


def test_a_model_is_not_closed_meanwhile(
    captured: tuple[Model, list[Any], list[Any]], during_capture: Callable[[Callable[[], None]], None]
) -> None:
    """Its graphs would be destroyed."""
    closed = threading.Event()
    with Engine(device="cuda") as engine:
        drawn(engine, rows=8)
        entry = next(iter(engine.holdings._models._entries.values())).opened.result()
        close, threads = entry.model.close, [threading.Thread(target=entry.close)]

        def work() -> None:
            if not threads[0].ident:
                threads[0].start()
                assert not closed.wait(0.05)

        during_capture(work)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(entry.model, "close", closed.set)
            engine.holdings._on_compute_thread(
                lambda: engine.backend.capture(captured[0], [captured[0].bind(*captured[2])])
            )
            assert closed.wait(SECONDS)
            threads[0].join()
        assert entry.model.close == close
