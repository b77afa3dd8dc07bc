"""A stand-in for ONNX Runtime's CUDA provider: its CPU provider on softcuda's memory, with CUDA graphs like the real
thing's, and a stream that is captured meanwhile."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

import cupy
import onnxruntime

OPENING: Any = onnxruntime.InferenceSession
"""The real one, before tests put this one in its place."""

PLAIN_RUNS = 2
"""Before a capture: `min_num_runs_before_cuda_graph_capture_` (cuda_execution_provider.h)."""

GRAPH_BYTES = 300_000


class Run(NamedTuple):
    """What a session did: "plain", "capture" or "replay", of which graph, in which thread, with a wait or without."""

    what: str
    graph: str
    thread: str
    waits: bool


class Log(NamedTuple):
    """What a session on a stream was opened with, and what it did."""

    provider: dict[str, str]
    runs: list[Run]

    def count(self, what: str) -> int:
        return sum(run.what == what for run in self.runs)


class Binding:
    """A binding that knows what was bound, so that a capture can keep the addresses."""

    def __init__(self, session: Any) -> None:
        self.session, self.real = session, session.io_binding()
        self.inputs: dict[str, tuple[Any, ...]] = {}
        self.outputs: dict[str, tuple[Any, ...]] = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(self.real, name)

    def bind_input(self, name: str, *place: Any) -> None:
        self.inputs[name] = place
        self.real.bind_input(name, *place)

    def bind_output(self, name: str, *place: Any) -> None:
        self.outputs[name] = place
        self.real.bind_output(name, *place)

    def captured(self) -> Any:
        """A binding of what is bound now, whatever is bound later."""
        copy = Binding(self.session)
        for name, place in self.inputs.items():
            copy.bind_input(name, *place)
        for name, place in self.outputs.items():
            copy.bind_output(name, *place)
        return copy.real


class Session:
    """See the module.

    Attributes:
        opened: of every session on a stream, in order.
        during_capture: called between the beginning and the end of each capture.
        throws: whether what fails in a capture leaves it open.
    """

    opened: ClassVar[list[Log]] = []
    during_capture: ClassVar[Callable[[], None] | None] = None
    throws: ClassVar[bool] = False

    def __init__(self, path: Any, settings: Any = None, *, providers: Any, **_: Any) -> None:
        name, self.provider = (providers[0], {}) if isinstance(providers[0], str) else providers[0]
        self.graphs = self.provider.get("enable_cuda_graph") == "1"
        self.session = OPENING(path, settings, providers=[(name, {})])
        if self.graphs:
            self._refuse()
        self.runs: list[Run] = []
        self._plain: dict[tuple[int, str], int] = {}
        self._captured: dict[tuple[int, str], Any] = {}
        self._memory: list[Any] = []
        if "user_compute_stream" in self.provider:
            Session.opened.append(Log(self.provider, self.runs))

    def _refuse(self) -> None:
        """As `InferenceSession::Initialize` refuses control flow."""
        parts = self.session.get_provider_graph_assignment_info()
        if {node.op_type for part in parts for node in part.get_nodes()} & {"If", "Loop", "Scan"}:
            raise RuntimeError(
                "This session cannot use the graph capture feature as requested by the user as the model has control "
                "flow nodes which can't be supported by CUDAExecutionProvider"
            )

    def __getattr__(self, name: str) -> Any:
        return getattr(self.session, name)

    def io_binding(self) -> Any:
        return Binding(self.session)

    def run_with_iobinding(self, binding: Binding, options: Any = None) -> None:
        graph = entry(options, "gpu_graph_id", "0")
        waits = entry(options, "disable_synchronize_execution_providers", "0") == "0"

        def done(what: str, bound: Any) -> None:
            self.session.run_with_iobinding(bound, options)
            self.runs.append(Run(what, graph, threading.current_thread().name, waits))

        if not self.graphs or graph == "-1":
            done("plain", binding.real)
            return
        key = (threading.get_ident(), graph)
        if key not in self._captured:
            while self._plain.setdefault(key, 0) < PLAIN_RUNS:
                done("plain", binding.real)
                self._plain[key] += 1
            self._capture(lambda: done("capture", binding.real))
            self._captured[key] = binding.captured()
            self._memory.append(cupy.cuda.Memory(GRAPH_BYTES))
        done("replay", self._captured[key])

    def _capture(self, run: Callable[[], None]) -> None:
        stream, runtime = int(self.provider["user_compute_stream"]), cupy.cuda.runtime
        runtime.streamSynchronize(stream)
        runtime.streamBeginCapture(stream, runtime.streamCaptureModeGlobal)
        try:
            run()
            if Session.during_capture is not None:
                Session.during_capture()
        except BaseException:
            if Session.throws:
                raise
        try:
            runtime.graphDestroy(runtime.streamEndCapture(stream))
        except runtime.CUDARuntimeError as error:
            raise RuntimeError(f"CUDA failure: {error}") from error


def entry(options: Any, name: str, missing: str) -> str:
    """A run entry."""
    try:
        return missing if options is None else str(options.get_run_config_entry(name))
    except RuntimeError:  # there is no such entry
        return missing
