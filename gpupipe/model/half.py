"""A float16 model of a float32 one: inputs, output and weights too, so that our kernels move half the bytes.

Which operators take float16, and which of their inputs stay float32 (the scales of a Resize), ONNX's own schemas say.
Whatever may leave float16's range stays float32, between Casts: a node with a weight beyond it, or with a number beyond
a quarter of it in or out of it on the samples. A Resize is converted like the rest: its positions are float32 all the
same, its pixels and their four weights float16 (`_ResizeBilinearKernel`, ONNX Runtime's resize_impl.cu), and Casts
around the largest pictures would move more bytes than is saved there. A sigmoid's output has steps of 1/8 of a level.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import numpy as np

from gpupipe.errors import InferenceError
from gpupipe.model.graph import (
    STANDARD,
    Graph,
    Node,
    check,
    clean,
    copied,
    load_onnx,
    opset,
    refill,
    subgraphs,
    weights,
)
from gpupipe.model.ranges import Range

LARGEST: Final = float(np.finfo(np.float16).max)
SAFE: Final = LARGEST / 4
"""The largest magnitude on the samples for which a tensor becomes float16; other frames may give more."""

FLOAT, HALF = "tensor(float)", "tensor(float16)"


def to_half(model: Graph, ranges: Mapping[str, Range]) -> Graph:
    """A float16 model.

    Args:
        model: a folded float32 graph; left as it is.
        ranges: of its tensors, from `ranges.measure`.

    Raises:
        InferenceError: its control flow (If, Loop) cannot be converted, or a number in it is infinite or NaN.
    """
    onnx = load_onnx()
    if any(subgraphs(node) for node in model.graph.node):
        raise InferenceError(
            "has branches or loops, which are not converted to float16",
            field="model",
            remedy="export it without, or use --precision fp32",
        )
    wild = next((name for name, seen in ranges.items() if not np.isfinite(seen.greatest)), None)
    if wild is not None:
        raise InferenceError(
            f"gives infinite numbers or NaN on the samples, at {wild}", field="model", remedy="export it again"
        )
    made = copied(model)
    _Conversion(onnx, made, ranges).convert()
    clean(made)
    check(made)
    return made


class _Conversion:
    """The tensors of a graph, in the type in which they are made, and in the other where a node reads that."""

    def __init__(self, onnx: Any, model: Graph, ranges: Mapping[str, Range]) -> None:
        self.onnx, self.model, self.ranges = onnx, model, ranges
        self.weights = weights(model)
        self.kind = onnx.TensorProto
        inferred = onnx.shape_inference.infer_shapes(model).graph
        values = (*inferred.input, *inferred.output, *inferred.value_info)
        self.floats = {value.name for value in values if value.type.tensor_type.elem_type == self.kind.FLOAT}
        self.floats |= {name for name, values in self.weights.items() if values.dtype == np.float32}
        self.names = {value.name for value in values} | self.weights.keys()
        self.is_half: dict[str, bool] = {value.name: True for value in model.graph.input}
        self.other: dict[str, str] = {}
        self.nodes: list[Node] = []

    def convert(self) -> None:
        """Convert the graph."""
        graph = self.model.graph
        for node in graph.node:
            half = self._takes_half(node)
            for place, name in enumerate(node.input):
                if name in self.floats:
                    node.input[place] = self._as(name, half and HALF in self._input_types(node, place))
            for name in node.output:
                if name in self.floats:
                    self.is_half[name] = half
            self.nodes.append(node)
        for value in graph.output:
            if not self.is_half[value.name]:
                self._output_to_half(value.name)
        for value in (*graph.input, *graph.output):
            if value.name in self.floats:
                value.type.tensor_type.elem_type = self.kind.FLOAT16
        refill(graph.node, self.nodes)

    def _as(self, name: str, half: bool) -> str:
        """The name of a tensor in one of the types: where it has the other, of a Cast of it, or of another weight."""
        if name in self.weights:
            if not half:
                return name
            if name not in self.other:
                self.other[name] = self._named(f"{name}_half")
                values = self.weights[name].astype(np.float16)
                tensor = self.onnx.numpy_helper.from_array(values, self.other[name])
                self.model.graph.initializer.append(tensor)
            return self.other[name]
        if self.is_half[name] == half:
            return name
        if name not in self.other:
            self.other[name] = self._named(f"{name}_{'half' if half else 'single'}")
            self.nodes.append(self._cast(name, self.other[name], half=half))
        return self.other[name]

    def _output_to_half(self, name: str) -> None:
        """Let the model's output, which was made as float32, be float16."""
        inner = self._named(f"{name}_single")
        for node in self.nodes:
            for field in (node.input, node.output):
                for place, each in enumerate(field):
                    if each == name:
                        field[place] = inner
        self.nodes.append(self._cast(inner, name, half=True))

    def _cast(self, given: str, wanted: str, *, half: bool) -> Node:
        kind = self.kind.FLOAT16 if half else self.kind.FLOAT
        return self.onnx.helper.make_node("Cast", [given], [wanted], f"{wanted} cast", to=kind)

    def _named(self, name: str) -> str:
        while name in self.names:
            name += "_"
        self.names.add(name)
        return name

    def _takes_half(self, node: Node) -> bool:
        """Whether a node computes in float16."""
        floating = [name for name in (*node.input, *node.output) if name in self.floats]
        if node.domain not in STANDARD or not any(name in self.floats for name in node.input):
            return False  # what makes floating-point numbers of others (Cast, ConstantOfShape) makes float32
        if node.op_type == "Cast":
            return False
        schema = self.onnx.defs.get_schema(node.op_type, opset(self.model), "")
        results = [
            self._allowed(schema, schema.outputs[min(k, len(schema.outputs) - 1)]) for k in range(len(node.output))
        ]
        if HALF not in self._input_types(node, 0) or any(HALF not in types for types in results):
            return False
        return all(self._fits(name) for name in floating)

    def _fits(self, name: str) -> bool:
        if name in self.weights:
            values = self.weights[name]
            return values.size == 0 or float(np.abs(values).max()) <= LARGEST
        return name not in self.ranges or self.ranges[name].greatest <= SAFE

    def _input_types(self, node: Node, place: int) -> set[str]:
        """The types that an input of a node may have."""
        schema = self.onnx.defs.get_schema(node.op_type, opset(self.model), "")
        # The last one of a schema may stand for many, as Concat's does.
        return self._allowed(schema, schema.inputs[min(place, len(schema.inputs) - 1)])

    @staticmethod
    def _allowed(schema: Any, formal: Any) -> set[str]:
        constraints = {entry.type_param_str: set(entry.allowed_type_strs) for entry in schema.type_constraints}
        return constraints.get(formal.type_str, {formal.type_str})
