"""What a frame costs a lip-sync model."""

from __future__ import annotations

import json
import tempfile
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from gpupipe.geometry import SPEECH_SHAPE, CropLayout
from gpupipe.model.runtime import runtime
from gpupipe.model.signature import Signature


def model_cost(path: Path, layout: CropLayout) -> dict[str, int]:
    """What one frame costs the model: multiply-adds ("macs") of its convolutions and matrix products, counted in one
    run of the graph as it stands, and the bytes of its weights."""
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
    macs = sum(node_macs(event["args"]) for event in events if "output_type_shape" in event.get("args", {}))
    return {"macs": macs // batch, "weight_bytes": path.stat().st_size}


def node_macs(node: dict[str, Any]) -> int:
    """Multiply-adds of one node of an ONNX Runtime profile (an event's `args`), from its shapes; 0 for operators that
    are neither a convolution nor a matrix product."""

    def shape(entry: dict[str, list[int]]) -> list[int]:
        return next(iter(entry.values()))

    inputs, outputs = node["input_type_shape"], node["output_type_shape"]
    match node.get("op_name"):
        case "Conv" | "FusedConv" | "NhwcFusedConv" | "ConvInteger":
            return prod(shape(outputs[0])) * prod(shape(inputs[1])[1:])
        case "QLinearConv":  # x, its scale and zero point, then the weights
            return prod(shape(outputs[0])) * prod(shape(inputs[3])[1:])
        case "ConvTranspose":
            return prod(shape(inputs[0])) * prod(shape(inputs[1])[1:])
        case "MatMul" | "Gemm" | "FusedMatMul" | "FusedGemm" | "MatMulInteger" | "QLinearMatMul":
            return prod(shape(outputs[0])) * shape(inputs[0])[-1]
    return 0
