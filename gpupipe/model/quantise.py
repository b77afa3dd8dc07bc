"""An int8 model of a float32 one: QDQ, static, weights per channel, by ONNX Runtime's own quantiser.

For the CPU, whose kernels want uint8 activations and int8 weights
(https://onnxruntime.ai/docs/performance/model-optimizations/quantization.html). The CUDA provider has no kernels for
what is quantised (https://github.com/microsoft/onnxruntime/issues/12229,
https://github.com/microsoft/onnxruntime/issues/24807).
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, Final

import numpy as np

from gpupipe.errors import InferenceError
from gpupipe.model.graph import Graph, Node, check, clean, consumers, copied, load_onnx, opset
from gpupipe.model.ranges import Range

OPERATORS: Final = ("Conv", "Add", "Concat", "Relu", "Resize", "MaxPool")
"""What is quantised."""
OPSET: Final = 13
"""The first opset with quantisation per channel (QuantizeLinear-13)."""


class Quantiser:
    """Makes int8 models of one float32 graph, each with other nodes left in float.

    Args:
        model: folded and equalised; left as it is.
        ranges: of its tensors.

    Attributes:
        model: the graph, of an opset that can be quantised.
        nodes: the names of the nodes that can be quantised, in order.
        units: the same, with each ReLU beside the node before it if that has no other reader: only what the ReLU gives
            has a range that eight bits hold well.
    """

    def __init__(self, model: Graph, ranges: Mapping[str, Range]) -> None:
        onnx = load_onnx()
        if opset(model) < OPSET:
            model = onnx.version_converter.convert_version(copied(model), OPSET)
            check(model)
        self.model = onnx.shape_inference.infer_shapes(model)
        self._ranges = {
            name: (np.float32(min(seen.low.min(), 0)), np.float32(max(seen.high.max(), 0)))
            for name, seen in ranges.items()
        }
        last = _last(self.model)
        self.nodes = [
            node.name for node in self.model.graph.node if node.op_type in OPERATORS and node.name not in last
        ]
        self.units = self._united()
        if not self.nodes:
            raise InferenceError("has nothing that can be quantised", field="model", remedy="use --precision fp16")

    def _united(self) -> list[tuple[str, ...]]:
        read = consumers(self.model)
        chosen, maker = set(self.nodes), {name: node for node in self.model.graph.node for name in node.output}
        follows: dict[str, str] = {}
        for node in self.model.graph.node:
            before = maker.get(node.input[0]) if node.op_type == "Relu" and node.name in chosen else None
            if before is not None and before.name in chosen and read[node.input[0]] == 1:
                follows[before.name] = node.name
        later = set(follows.values())
        return [(name, follows[name]) if name in follows else (name,) for name in self.nodes if name not in later]

    def quantised(self, in_float: set[str], *, checked: bool = True) -> Graph:
        """The int8 model with these nodes left in float, by their names; `checked` unless it is only tried."""
        from onnxruntime.quantization import CalibrationMethod, QuantType
        from onnxruntime.quantization.calibrate import TensorsData
        from onnxruntime.quantization.qdq_quantizer import QDQQuantizer

        chosen = [name for name in self.nodes if name not in in_float]
        if not chosen:
            return copied(self.model)
        with _quiet():
            quantizer = QDQQuantizer(
                copied(self.model),
                True,  # per channel
                not adds_without_saturating(),  # reduced range of weights
                QuantType.QInt8,
                QuantType.QUInt8,
                TensorsData(CalibrationMethod.MinMax, dict(self._ranges)),
                chosen,
                [],
                list(OPERATORS),
                {},
            )
            quantizer.quantize_model()
            quantizer.model.topological_sort()  # it appends what it adds
        made = quantizer.model.model
        clean(made)
        if checked:
            check(made)
        return made


def _last(model: Graph) -> set[str]:
    """The names of the nodes from the last convolution to the output. Eight bits are what the output's own pixels have:
    there is nothing to spare."""
    made_by = {name: node for node in model.graph.node for name in node.output}
    found: set[str] = set()
    ends: list[Node] = [made_by[value.name] for value in model.graph.output if value.name in made_by]
    while ends:
        node = ends.pop()
        if node.name not in found and len(found) < len(made_by):
            found.add(node.name)
            if node.op_type != "Conv":
                ends += [made_by[name] for name in node.input if name in made_by]
    return found


@contextmanager
def _quiet() -> Iterator[None]:
    """The quantiser's remarks, which it gives by way of the root logger, are left out."""
    root = logging.getLogger()
    before = root.level
    root.setLevel(logging.ERROR)
    try:
        yield
    finally:
        root.setLevel(before)


@cache
def adds_without_saturating() -> bool:
    """Whether this processor adds products of eight bits in 32. Older ones add pairs of them in 16, which holds 7-bit
    weights only (https://onnxruntime.ai/docs/performance/model-optimizations/quantization.html, "reduce_range")."""
    import platform

    if platform.machine().lower() not in ("x86_64", "amd64"):
        return True
    try:
        told = Path("/proc/cpuinfo").read_text("utf-8")
    except OSError:  # not Linux: ask nothing, and be safe
        return False
    return bool(re.search(r"^flags\b.*\b(avx512_vnni|avx_vnni)\b", told, re.MULTILINE))


def operator_counts(model: Graph) -> dict[str, Any]:
    """How many convolutions a quantised model has, and how many of them are quantised."""
    made_by = {name: node for node in model.graph.node for name in node.output}
    convs = [node for node in model.graph.node if node.op_type == "Conv"]
    quantised = sum(getattr(made_by.get(node.input[1]), "op_type", "") == "DequantizeLinear" for node in convs)
    return {"convolutions": len(convs), "quantised": quantised}
