"""Opening ONNX Runtime sessions: which provider, with what options, and whether it is really the one in use."""

from __future__ import annotations

import contextlib
import importlib
import os
import sys
from collections import Counter
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

from gpupipe.errors import DeviceMemoryError, InferenceError, ProviderError, reason
from gpupipe.machine import package_version
from gpupipe.model.engines import engine_folder, with_engines
from gpupipe.model.external import check_external

Provider = Literal["cpu", "cuda", "tensorrt"]

PROVIDER_NAMES: dict[Provider, str] = {
    "cpu": "CPUExecutionProvider",
    "cuda": "CUDAExecutionProvider",
    "tensorrt": "TensorrtExecutionProvider",
}


IDENTITY = (
    b'\x08\x08:7\n\x10\n\x01x\x12\x01y"\x08Identity\x12\x01gZ\x0f\n\x01x\x12\n\n\x08\x08\x01\x12\x04\n\x02\x08\x01'
    b"b\x0f\n\x01y\x12\n\n\x08\x08\x01\x12\x04\n\x02\x08\x01B\x04\n\x00\x10\r"
)
"""An ONNX model (IR version 8, opset 13) that copies one float: the least that shows whether a provider opens."""


TF32_OVERRIDE = "NVIDIA_TF32_OVERRIDE"
"""The environment variable that, set to 0 before any of NVIDIA's libraries is loaded, forbids TF32 to all of them."""

RECORD_ASSIGNMENT = "session.record_ep_graph_assignment_info"
"""The session entry that lets `get_provider_graph_assignment_info` tell which provider got each node (in the wheels
1.24.1 and 1.26.0)."""

OUT_OF_MEMORY = (
    "out of memory",
    "failed to allocate memory",
    "smaller than requested bytes",
    "alloc_failed",
    "allocation_failed",
    "outofmemory",
)
"""What CUDA, ONNX Runtime's arena, cuBLAS, cuDNN and TensorRT say, in lower case, when device memory runs out."""


@dataclass(frozen=True)
class SessionOptions:
    """How to run a model.

    Attributes:
        provider: which execution provider.
        threads: CPU threads for one run.
        device_id: which GPU.
        stream: handle of the CUDA stream to run on, or None.
        tf32: let the CUDA provider round float32 inputs of matrix products to 10 bits (faster, less exact). TensorRT
            is not told: its provider has no such option, and it uses TF32 from compute capability 8.0 on
            (https://github.com/microsoft/onnxruntime/issues/26029); see `TF32_OVERRIDE`.
        fp16: let TensorRT compute in float16 where it is faster.
        engine_cache: folder in which TensorRT keeps built engines, of this kind of GPU; each model and batch has a
            folder of its own in it.
        profile: for TensorRT, the one shape of each input.
        graphs: let the CUDA provider capture runs in CUDA graphs. ONNX Runtime opens no session so where a graph cannot
            hold the whole model, and captures every run that does not name `graphs.NO_GRAPH`.
        nhwc: let the CUDA provider convolve in NHWC; a build without such kernels stays with NCHW.
    """

    provider: Provider = "cpu"
    threads: int = 1
    device_id: int = 0
    stream: int | None = None
    tf32: bool = False
    fp16: bool = False
    engine_cache: Path | None = None
    profile: dict[str, tuple[int, ...]] = field(default_factory=dict)
    graphs: bool = False
    nhwc: bool = False


@cache
def runtime() -> ModuleType:
    """The `onnxruntime` module, whose telemetry is off unless the environment says `ORT_DISABLE_TELEMETRY=0`.

    Raises:
        InferenceError: it is not installed, or is installed twice.
    """
    installed = [name for name in ("onnxruntime", "onnxruntime-gpu") if package_version(name)]
    if len(installed) == 2:
        raise InferenceError(
            "onnxruntime and onnxruntime-gpu are both installed, and each overwrites the other's module",
            remedy="pip uninstall -y onnxruntime onnxruntime-gpu, then pip install 'gpupipe[cpu]' or 'gpupipe[cuda]'",
        )
    # Since 1.29 it keeps events in the home folder, and sends them (https://github.com/microsoft/onnxruntime/pull/27379).
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    try:
        import onnxruntime
    except ImportError as error:
        raise InferenceError(
            f"ONNX Runtime cannot be imported: {reason(error)}", remedy="pip install 'gpupipe[cpu]' or 'gpupipe[cuda]'"
        ) from error
    onnxruntime.set_default_logger_severity(4)  # what fails is raised; cuDNN also logs every plan that it passes over
    return onnxruntime  # type: ignore[no-any-return]


@cache
def failures() -> tuple[type[Exception], ...]:
    """What ONNX Runtime raises: its exceptions have no common base but `Exception`.

    A message that quotes what is no UTF-8 in a damaged file cannot be made text: the error is then pybind11's.
    """
    runtime()
    from onnxruntime.capi import onnxruntime_pybind11_state as native

    kinds = [kind for kind in vars(native).values() if isinstance(kind, type) and issubclass(kind, Exception)]
    return (RuntimeError, UnicodeDecodeError, *kinds)


def open_session(path: Path | bytes, options: SessionOptions, *, field: str = "model", option: str = "--model") -> Any:
    """Open a model.

    Returns:
        An `onnxruntime.InferenceSession` whose first provider is the one that was asked for, and has got at least one
        node.

    Raises:
        InferenceError: the file is missing, is no model, or names files outside its folder.
        ProviderError: the provider cannot be had.
        DeviceMemoryError: the GPU's memory does not suffice.
        OutputError: TensorRT's engines cannot be kept where they should be.
    """
    ort = runtime()
    file = None if isinstance(path, bytes) else path
    if file is not None and not file.is_file():
        raise InferenceError("no such file", file=file, field=field, remedy=f"give one with {option}")
    if file is not None:
        check_external(file, field)
    name = PROVIDER_NAMES[options.provider]
    if name not in ort.get_available_providers():
        raise ProviderError(
            f"this ONNX Runtime was built without {name}",
            field="--provider",
            value=options.provider,
            remedy="pip uninstall -y onnxruntime, then pip install 'gpupipe[cuda]'; or use --provider cpu",
        )
    settings = ort.SessionOptions()
    settings.intra_op_num_threads = options.threads
    settings.inter_op_num_threads = 1
    # A memory pattern plans one block for all activations of a run, beside those that its first run has left in the
    # arena; the arena alone needs less, at the same speed.
    settings.enable_mem_pattern = False
    # Its own format, which files whose names end in .ort are taken for, is not what `check_external` reads.
    settings.add_session_config_entry("session.load_model_format", "ONNX")
    if options.provider != "cpu":
        _preload_libraries(options.provider)
        settings.add_session_config_entry(RECORD_ASSIGNMENT, "1")

    def opened() -> Any:
        # Unless told not to, it goes on with other providers after an error, and says so on standard output only.
        session = ort.InferenceSession(
            path if file is None else str(file), settings, providers=_providers(options), enable_fallback=0
        )
        for node in (*session.get_inputs(), *session.get_outputs()):
            _ = node.name, node.shape, node.type  # names that are no UTF-8 are told of here, and not later
        return session

    try:
        if options.provider == "tensorrt" and options.engine_cache is not None and file is not None:
            options = replace(options, engine_cache=engine_folder(options.engine_cache, file, options.profile))
            assert options.engine_cache is not None
            session = with_engines(options.engine_cache, opened, failures())
        else:
            session = opened()
    except failures() as error:
        raise_if_out_of_memory(error, options, file)
        if options.provider != "cpu" and (file is None or probe_provider(options.provider)):
            raise ProviderError(
                f"{name} did not open: {reason(error)}",
                field="--provider",
                value=options.provider,
                remedy="see `gpupipe doctor` for what is missing, or use --provider cpu",
            ) from error
        raise InferenceError(
            f"cannot be opened: {reason(error)}",
            file=file,
            field=field,
            remedy="export it again, or see `gpupipe doctor`",
        ) from error
    if session.get_providers()[0] != name:
        raise ProviderError(
            f"{name} did not open; ONNX Runtime would use {session.get_providers()[0]} in silence",
            field="--provider",
            value=options.provider,
            remedy="see `gpupipe doctor` for what is missing, or use --provider cpu",
        )
    nodes = assigned_nodes(session) if options.provider != "cpu" else {}
    if nodes and name not in nodes:  # the first provider is the first registered, which may have taken no node
        raise ProviderError(
            f"{name} opened, but took no node of the model: {', '.join(nodes)} would run it",
            file=file,
            field="--provider",
            value=options.provider,
            remedy="use --provider cuda or cpu" if options.provider == "tensorrt" else "use --provider cpu",
        )
    return session


def assigned_nodes(session: Any) -> dict[str, int]:
    """How many nodes of its model each provider runs, by ONNX Runtime's names of providers.

    Args:
        session: that `open_session` opened with another provider than the CPU's.

    Returns:
        Nothing where ONNX Runtime does not tell.
    """
    tell = getattr(session, "get_provider_graph_assignment_info", None)
    found: Counter[str] = Counter()
    for part in tell() if tell is not None else ():
        found[part.ep_name] += len(part.get_nodes())
    return dict(found)


def assigned_operators(session: Any) -> set[str]:
    """The operators of a model's graph that run on the provider that it was opened with; see `assigned_nodes`."""
    tell = getattr(session, "get_provider_graph_assignment_info", None)
    own = session.get_providers()[0]
    parts = [part for part in (tell() if tell is not None else ()) if part.ep_name == own]
    return {node.op_type for part in parts for node in part.get_nodes()}


def raise_if_out_of_memory(error: Exception, options: SessionOptions, file: Path | None) -> None:
    """Raise a DeviceMemoryError if a GPU's memory is what ONNX Runtime ran out of."""
    text = reason(error)
    if options.provider != "cpu" and any(sign in text.lower() for sign in OUT_OF_MEMORY):
        raise DeviceMemoryError(
            f"the model does not fit in the GPU's memory: {text}",
            file=file,
            remedy="use a smaller --batch, nv12 instead of bgr24, fewer --frames, another GPU, or --provider cpu",
        ) from error


def probe_provider(provider: Provider) -> str | None:
    """Why a provider does not open on this machine, or None if it does."""
    try:
        open_session(IDENTITY, SessionOptions(provider))
    except InferenceError as error:
        return error.on_command_line()  # which is where this is read
    return None


def _preload_libraries(provider: Provider) -> None:
    """Load the libraries of CUDA, cuDNN and TensorRT that pip has installed, where no linker would find them."""
    # What it cannot find it prints.
    with contextlib.redirect_stdout(sys.stderr):
        runtime().preload_dlls()
    if provider == "tensorrt":
        with contextlib.suppress(ImportError, OSError):
            importlib.import_module("tensorrt_libs")  # loads its libraries when imported


def _providers(options: SessionOptions) -> list[tuple[str, dict[str, str]]]:
    if options.provider == "cpu":
        return [(PROVIDER_NAMES["cpu"], {})]
    shared = {"device_id": str(options.device_id)}
    if options.stream is not None:
        shared |= {"user_compute_stream": str(options.stream)}
    cuda = shared | {
        # Since 1.20 the words are modes of cuDNN's heuristics, none of which tries algorithms out: HEURISTIC is mode A,
        # EXHAUSTIVE mode B, many times slower to plan, DEFAULT the slow fallback
        # (https://github.com/microsoft/onnxruntime/issues/22705, https://github.com/microsoft/onnxruntime/pull/19470).
        # A plan always gets the workspace that it wants (conv.cc, CreateCudnnFeExecutionPlan).
        "cudnn_conv_algo_search": "HEURISTIC",
        "arena_extend_strategy": "kSameAsRequested",
        "use_tf32": str(int(options.tf32)),
        "enable_cuda_graph": str(int(options.graphs)),
        "prefer_nhwc": str(int(options.nhwc)),
    }
    if options.provider == "cuda":
        return [(PROVIDER_NAMES["cuda"], cuda)]
    shapes = ",".join(f"{name}:{'x'.join(map(str, shape))}" for name, shape in options.profile.items())
    # Its switches are "True" and "False": it refuses "1" and "0", which CUDA's take as well.
    tensorrt = shared | {"trt_fp16_enable": str(options.fp16)}
    if shapes:
        tensorrt |= dict.fromkeys(
            ("trt_profile_min_shapes", "trt_profile_opt_shapes", "trt_profile_max_shapes"), shapes
        )
    if options.engine_cache is not None:
        tensorrt |= {"trt_engine_cache_enable": "True", "trt_engine_cache_path": str(options.engine_cache)}
        tensorrt |= {"trt_timing_cache_enable": "True", "trt_timing_cache_path": str(options.engine_cache)}
    return [(PROVIDER_NAMES["tensorrt"], tensorrt), (PROVIDER_NAMES["cuda"], cuda)]
