"""What a frame costs a lip-sync model."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from gpupipe.geometry import SPEECH_SHAPE, CropLayout
from gpupipe.model.runtime import runtime
from gpupipe.model.signature import Signature


def model_cost(path: Path, layout: CropLayout) -> dict[str, int]:
    """What one frame costs the model, counted in one run of the graph as it stands.

    Returns:
        `macs`: multiply-adds of its convolutions and matrix products. `weight_bytes`: of its file. `activations`:
        numbers that must be read and written at least if one of those operators runs after the other: the inputs read,
        the prediction written, and every other tensor that they give written once and read once. What any other
        operator gives counts nothing: providers fuse it with its neighbours (activations, sums) or make it in place
        (Concat), those the most that build engines.
    """
    with tempfile.TemporaryDirectory() as folder:
        settings = runtime().SessionOptions()
        settings.graph_optimization_level = runtime().GraphOptimizationLevel.ORT_DISABLE_ALL
        settings.enable_profiling = True
        # Weights that a kernel has packed for itself are missing from the profile.
        settings.add_session_config_entry("session.disable_prepacking", "1")
        settings.profile_file_prefix = str(Path(folder) / "profile")
        session = runtime().InferenceSession(str(path), settings, providers=["CPUExecutionProvider"])
        signature = Signature(path, session)
        batch = signature.batch or 1
        shapes = signature.visual, (batch, 6, layout.model_size, layout.model_size)
        audio = signature.audio, (batch, *SPEECH_SHAPE)
        session.run(None, {name: np.zeros(shape, signature.dtype) for name, shape in (shapes, audio)})
        events = json.loads(Path(session.end_profiling()).read_text("utf-8"))
    nodes = [event["args"] for event in events if "output_type_shape" in event.get("args", {})]
    costs = [(macs, prod(_shape(node["output_type_shape"][0]))) for node in nodes if (macs := node_macs(node))]
    prediction = 3 * layout.model_size**2
    between = max(0, sum(given for _, given in costs) // batch - prediction)
    return {
        "macs": sum(macs for macs, _ in costs) // batch,
        "activations": 6 * layout.model_size**2 + prod(SPEECH_SHAPE) + prediction + 2 * between,
        "weight_bytes": path.stat().st_size,
    }


def moved_bytes(cost: Mapping[str, int], number_bytes: int, frames: int) -> float:
    """Bytes a frame that a model must read and write at least, in runs of so many frames.

    It is taken for granted that a tensor does not outlast its making in a cache: where a batch's tensors are small
    beside a GPU's L2 cache, or one frame's beside a core's, it takes less.

    Args:
        cost: what `model_cost` gives, with the weights of the file that is run.
        number_bytes: of one activation: 4 for float32, 2 for float16, 1 for int8.
        frames: of a run, which reads the weights once.
    """
    return cost["activations"] * number_bytes + cost["weight_bytes"] / frames


class ModelFloor(NamedTuple):
    """The least milliseconds a frame of the model; None where that is not known.

    Attributes:
        operations: over the rate of matrix products.
        bytes: activations and weights over the bandwidth.
    """

    operations: float | None = None
    bytes: float | None = None

    @classmethod
    def of(cls, macs: int, moved: float, operations_per_second: float | None, bytes_per_second: float) -> ModelFloor:
        """Of a frame's multiply-adds and bytes."""
        operations = None if operations_per_second is None else 2 * macs / operations_per_second * 1e3
        return cls(operations, moved / bytes_per_second * 1e3)

    @property
    def ms(self) -> float | None:
        """The larger one."""
        return max((value for value in self if value is not None), default=None)

    def rounded(self) -> dict[str, float | None]:
        """Both as JSON values."""
        return {name: None if value is None else round(value, 4) for name, value in self._asdict().items()}


def node_macs(node: dict[str, Any]) -> int:
    """Multiply-adds of one node of an ONNX Runtime profile (an event's `args`), from its shapes; 0 for operators that
    are neither a convolution nor a matrix product."""
    inputs, outputs = node["input_type_shape"], node["output_type_shape"]
    match node.get("op_name"):
        case "Conv" | "FusedConv" | "NhwcFusedConv" | "ConvInteger":
            return prod(_shape(outputs[0])) * prod(_shape(inputs[1])[1:])
        case "QLinearConv":  # x, its scale and zero point, then the weights
            return prod(_shape(outputs[0])) * prod(_shape(inputs[3])[1:])
        case "ConvTranspose":
            return prod(_shape(inputs[0])) * prod(_shape(inputs[1])[1:])
        case "MatMul" | "Gemm" | "FusedMatMul" | "FusedGemm" | "MatMulInteger" | "QLinearMatMul":
            return prod(_shape(outputs[0])) * _shape(inputs[0])[-1]
    return 0


def _shape(entry: dict[str, list[int]]) -> list[int]:
    """Of a tensor in a profile, which tells it by the type."""
    return next(iter(entry.values()))
