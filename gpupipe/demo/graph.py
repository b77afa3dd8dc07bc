"""A small writer of ONNX graphs for the demo's models."""

from __future__ import annotations

from collections.abc import Sequence
from os import PathLike
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from gpupipe.model import graph as model_graph

Dtype = Literal["float32", "float16"]

# Old enough for every ONNX Runtime that the package accepts.
_OPSET = 17
_IR_VERSION = 8


def load_onnx() -> Any:
    """The `onnx` package, imported on first use.

    Raises:
        GpupipeError: it is not installed.
    """
    return model_graph.load_onnx("making the demo's models", "demo")


class Value:
    """A tensor of a graph under construction; arithmetic on it adds nodes, as NumPy arithmetic would compute."""

    def __init__(self, graph: Graph, name: str) -> None:
        self.graph = graph
        self.name = name

    def __add__(self, other: Operand) -> Value:
        """One Add node."""
        return self.graph.op("Add", self, other)

    def __radd__(self, other: Operand) -> Value:
        """One Add node, this value on the right."""
        return self.graph.op("Add", other, self)

    def __sub__(self, other: Operand) -> Value:
        """One Sub node."""
        return self.graph.op("Sub", self, other)

    def __rsub__(self, other: Operand) -> Value:
        """One Sub node, this value on the right."""
        return self.graph.op("Sub", other, self)

    def __mul__(self, other: Operand) -> Value:
        """One Mul node."""
        return self.graph.op("Mul", self, other)

    def __rmul__(self, other: Operand) -> Value:
        """One Mul node, this value on the right."""
        return self.graph.op("Mul", other, self)

    def __truediv__(self, other: Operand) -> Value:
        """One Div node."""
        return self.graph.op("Div", self, other)

    def __rtruediv__(self, other: Operand) -> Value:
        """One Div node, this value on the right."""
        return self.graph.op("Div", other, self)

    def clip(self, low: float, high: float) -> Value:
        """Limited to `low` … `high`, like `numpy.ndarray.clip`."""
        return self.graph.op("Clip", self, low, high)

    # NumPy would otherwise try to add element by element when an array stands on the left.
    __array_ufunc__ = None


Operand = Value | NDArray[Any] | float


class Graph:
    """Collects nodes and weights, then writes the model.

    Args:
        name: of the graph.
        dtype: of the inputs, outputs and floating weights.
    """

    def __init__(self, name: str, dtype: Dtype = "float32") -> None:
        self._onnx = load_onnx()
        self._name = name
        self.dtype = np.dtype(dtype)
        self._nodes: list[Any] = []
        self._weights: list[Any] = []
        self._inputs: list[Any] = []

    def input(self, name: str, shape: Sequence[int | str]) -> Value:
        """A model input; a dimension given as text is dynamic."""
        self._inputs.append(self._describe(name, shape))
        return Value(self, name)

    def weight(self, array: NDArray[Any] | float) -> Value:
        """A constant; floating values take the graph's type, integers stay int64."""
        values = np.asarray(array)
        return self._add(values.astype(np.int64 if values.dtype.kind == "i" else self.dtype))

    def weight32(self, array: NDArray[np.float32]) -> Value:
        """A constant that stays float32 in a float16 graph, as the scales of a Resize must."""
        return self._add(array)

    def _add(self, values: NDArray[Any]) -> Value:
        name = f"w{len(self._weights)}"
        self._weights.append(self._onnx.numpy_helper.from_array(np.ascontiguousarray(values), name))
        return Value(self, name)

    def op(self, kind: str, *inputs: Operand | None, **attributes: Any) -> Value:
        """One node with one output; `None` stands for an optional input left out."""
        names = ["" if each is None else self._value(each).name for each in inputs]
        output = f"{kind.lower()}{len(self._nodes)}"
        self._nodes.append(self._onnx.helper.make_node(kind, names, [output], name=output, **attributes))
        return Value(self, output)

    def cut(self, value: Value, axis: int, start: int, stop: int) -> Value:
        """`value[start:stop]` along `axis`."""
        return self.op("Slice", value, *(np.array([number]) for number in (start, stop, axis)))

    def model(self, output: Value, name: str, shape: Sequence[int | str]) -> Any:
        """The finished, checked `onnx.ModelProto` with the one output `name`."""
        helper = self._onnx.helper
        self._nodes.append(helper.make_node("Identity", [output.name], [name], name=name))
        graph = helper.make_graph(
            self._nodes, self._name, self._inputs, [self._describe(name, shape)], initializer=self._weights
        )
        model = helper.make_model(
            graph,
            opset_imports=[helper.make_opsetid("", _OPSET)],
            ir_version=_IR_VERSION,
            producer_name="gpupipe demo",
        )
        self._onnx.checker.check_model(model)
        return model

    def _value(self, operand: Operand) -> Value:
        return operand if isinstance(operand, Value) else self.weight(operand)

    def _describe(self, name: str, shape: Sequence[int | str]) -> Any:
        kind = self._onnx.helper.np_dtype_to_tensor_dtype(self.dtype)
        return self._onnx.helper.make_tensor_value_info(name, kind, list(shape))


def save(model: Any, path: str | PathLike[str]) -> None:
    """Write a model that `Graph.model` made."""
    load_onnx().save(model, str(path))
