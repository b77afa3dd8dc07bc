"""CUDA graphs: whether a session's runs can be captured and replayed, and the graphs of those that were."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterable
from typing import Any, Final
from weakref import WeakKeyDictionary

from gpupipe.errors import reason
from gpupipe.model.runtime import SessionOptions, assigned_operators, failures, runtime

Binding = Any
"""ONNX Runtime's binding of one run's buffers."""

FIRST_VERSION: Final = (1, 30)
"""Of ONNX Runtime. Before 1.27 a replay always waits (https://github.com/microsoft/onnxruntime/pull/28686); before 1.30
it reads page-locked buffers that others may have been given meanwhile
(https://github.com/microsoft/onnxruntime/pull/32121: `CudaKernel::RetainBufferForGraphCapture` is in the published
wheels 1.30.0 and 1.31.1, not in 1.29.0)."""

REFUSED: Final = "cannot use the graph capture feature"
"""What ONNX Runtime says (`InferenceSession::Initialize`) when it opens no session with graphs: the model has control
flow, or nodes that another provider computes with."""

GRAPH_ID: Final = "gpu_graph_id"
"""The run entry that tells a session's graphs apart; with `NO_GRAPH` a run is neither captured nor replayed."""
NO_GRAPH: Final = "-1"

MOST_GRAPHS: Final = 32
"""Of a session: ONNX Runtime gives none back before the session is closed, and lanes may come and go."""

REPLAYABLE: Final = {
    "Abs", "Add", "AveragePool", "BatchNormalization", "Cast", "Clip", "Concat", "Conv", "ConvTranspose", "Div",
    "Erf", "Exp", "Expand", "Flatten", "FusedConv", "FusedMatMul", "Gather", "Gelu", "Gemm",
    "GlobalAveragePool", "HardSigmoid", "HardSwish", "Identity", "InstanceNormalization", "LeakyRelu",
    "LayerNormalization", "MatMul", "Max", "MaxPool", "Min", "Mul", "Neg", "Pad", "Pow", "PRelu", "QuickGelu",
    "ReduceMean", "ReduceSum", "Relu", "Reshape", "Resize", "Shape", "Sigmoid", "Slice", "Softmax", "Split",
    "Sqrt", "Squeeze", "Sub", "Tanh", "Tile", "Transpose", "Unsqueeze", "Upsample",
}  # fmt: skip
"""Operators whose CUDA kernels, when they run, copy nothing from host memory that a replay would read too late; other
models are run node by node. One that does (GatherND: a local variable, gather_nd.cc, 1.30) makes the replay read memory
that is gone: an illegal access, after which the process can use the GPU no more."""


def run_options(options: SessionOptions, *, waits: bool, graph: str = NO_GRAPH) -> Any:
    """ONNX Runtime's options of a run.

    Args:
        options: with which the session was opened.
        waits: for the end of the run, on a GPU.
        graph: the number of its graph.
    """
    settings = runtime().RunOptions()
    settings.log_severity_level = 4  # what fails is raised, and told once
    if options.provider != "cpu" and not waits:
        # The stream is ours and the caller waits for it: a wait inside every run would stop the overlap.
        settings.add_run_config_entry("disable_synchronize_execution_providers", "1")
    if options.graphs:
        settings.add_run_config_entry(GRAPH_ID, graph)
    return settings


def why_not(options: SessionOptions) -> str | None:
    """Why a session with these options cannot have graphs, or None."""
    if options.provider == "tensorrt":
        # One graph, captured for whichever buffers come first, and a wait after each replay
        # (`TensorrtExecutionProvider::ReplayGraph`: `IsGraphCaptured(0)`; the flag that leaves the wait out is unused
        # there: https://github.com/microsoft/onnxruntime/pull/28686).
        return "TensorRT's provider keeps one graph, for one slot's buffers, and waits for each replay"
    found = runtime().__version__
    if tuple(map(int, re.findall(r"\d+", found)[:2])) < FIRST_VERSION:
        first = ".".join(map(str, FIRST_VERSION))
        return f"ONNX Runtime {found} does not replay them safely without a wait, {first} and later do"
    return None


def unsafe_operators(session: Any) -> str | None:
    """Why an opened session must not be captured, or None."""
    found = assigned_operators(session)
    if not found:
        return "ONNX Runtime does not tell which provider runs a node"
    unknown = sorted(found - REPLAYABLE)
    return f"operators not known to be safe in one: {', '.join(unknown)}" if unknown else None


class Graphs:
    """The CUDA graphs of a session's runs, one for each binding that was captured.

    ONNX Runtime keeps a graph with the thread that captured it (`PerThreadContext`, cuda_execution_provider.cc): in any
    other thread the run would be captured anew, and is therefore not replayed there.

    Args:
        session: an `onnxruntime.InferenceSession`, opened with `options`.
        options: see `SessionOptions.graphs`.
        missing: why there can be none; None if there can.

    Attributes:
        missing: why there are none, or not of all bindings; None if nothing has failed.
        count: graphs captured so far.
    """

    def __init__(self, session: Any, options: SessionOptions, missing: str | None) -> None:
        self.missing = missing
        self.count = 0
        self._session, self._options = session, options
        self._replays: WeakKeyDictionary[Binding, Any] = WeakKeyDictionary()
        self._thread = 0

    def capture(self, bindings: Iterable[Binding]) -> bool:
        """Capture a run on each of the bindings, in the thread that will replay them; what hinders is in `missing`.

        The session must have run twice before, so that nothing is allocated meanwhile (ONNX Runtime itself runs twice
        before each capture: `min_num_runs_before_cuda_graph_capture_`), nothing else may be queued on its stream, and
        no thread may wait for the whole GPU: see `gpu.driver.opening_lock` and `Device.capturing`.

        Returns:
            Whether all were captured; if not, the stream's capture may still be open: `gpu.driver.end_capture`.
        """
        self._thread = threading.get_ident()
        for binding in bindings:
            if self.missing is None and self.count == MOST_GRAPHS:
                self.missing = f"a session has {MOST_GRAPHS} at most"
            if self.missing is not None:
                return False
            number = str(self.count + 1)  # 0 is the one of runs that name none
            try:
                # A run that waits gives its page-locked buffers back, so that the next one allocates none.
                self._session.run_with_iobinding(binding, run_options(self._options, waits=True, graph=number))
            except failures() as error:
                self.missing = f"the capture failed: {reason(error)}"
                return False
            self.count += 1
            self._replays[binding] = run_options(self._options, waits=False, graph=number)
        return True

    def replay(self, binding: Binding) -> Any | None:
        """The options of the run that replays a binding's graph in this thread, or None if there is none."""
        return self._replays.get(binding) if threading.get_ident() == self._thread else None
