"""What ONNX Runtime makes of a graph for this machine's CPU, as a graph that can be kept and cut."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from gpupipe.errors import InferenceError, reason
from gpupipe.model.measured import onnx_package
from gpupipe.model.runtime import failures, runtime

if TYPE_CHECKING:
    import onnx

OPTIMISED_FILE = "optimised.onnx"


def cpu_graph(model: onnx.ModelProto, *, file: Path = Path("model.onnx")) -> onnx.ModelProto:
    """The graph with everything fused, and its tensors blocked by channels, as this machine's convolutions want them.

    A model that is cut and only then opened gets its features in the plain layout, and both nets turn them round: the
    rest takes 97 ms of one core so, and 89 if this graph is cut (the whole: 121). It also makes the same operators of a
    node on either side of the cut, and in the whole, so that they agree bit for bit.

    For the CPU provider only, on this kind of CPU, with this version of ONNX Runtime: a file that is kept must be told
    by both (`onnxruntime.__version__`, `machine.cpu_name`). Not for float16, which the CPU computes in float32 with
    casts around every node.

    Args:
        model: with its weights.
        file: what errors call it.

    Raises:
        InferenceError: it does not open.
        GpupipeError: the onnx package is not installed.
    """
    loaded = onnx_package()
    with tempfile.TemporaryDirectory() as folder:
        settings = runtime().SessionOptions()
        settings.graph_optimization_level = runtime().GraphOptimizationLevel.ORT_ENABLE_ALL
        settings.optimized_model_filepath = str(Path(folder) / OPTIMISED_FILE)
        try:
            runtime().InferenceSession(model.SerializeToString(), settings, providers=["CPUExecutionProvider"])
        except failures() as error:
            raise InferenceError(
                f"cannot be opened: {reason(error)}", file=file, remedy="export it again, or see `gpupipe doctor`"
            ) from error
        return loaded.load(settings.optimized_model_filepath)  # type: ignore[no-any-return]
