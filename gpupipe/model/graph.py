"""ONNX graphs as Protocol Buffers: read, checked, cleaned, run and written.

The only home of the `onnx` package but for the demo's; it is imported when a graph is read.
"""

from __future__ import annotations

import importlib
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from gpupipe.errors import GpupipeError, InferenceError, OutputError, reason
from gpupipe.machine import cpu_count
from gpupipe.model.external import check_external
from gpupipe.model.runtime import SessionOptions, open_session

Graph: TypeAlias = Any
"""An `onnx.ModelProto`."""
Node: TypeAlias = Any
"""An `onnx.NodeProto`."""

STANDARD = ("", "ai.onnx")
"""The domain of ONNX's own operators, by both its names."""

OLDEST_IR = 4
"""The first IR version in which a weight need not be an input too (onnx.proto, IR_VERSION_2019_1_22)."""


def load_onnx(what: str = "optimising a model", extra: str = "optimize") -> Any:
    """The `onnx` package, imported on first use because rendering does not need it.

    Args:
        what: what it is for.
        extra: the extra of gpupipe's that installs it.

    Raises:
        GpupipeError: it is not installed.
    """
    try:
        return importlib.import_module("onnx")
    except ImportError:
        raise GpupipeError(f"{what} needs the onnx package", remedy=f"pip install 'gpupipe[{extra}]'") from None


def read_graph(path: Path) -> Graph:
    """A model with all its weights, those that it keeps in other files too.

    Every node has a name of its own afterwards, and weights are no inputs.

    Raises:
        InferenceError: it is missing, or is no ONNX model.
    """
    onnx = load_onnx()
    if not path.is_file():
        raise InferenceError("no such file", file=path, field="model", remedy="give one with --model")
    check_external(path, "model")
    try:
        model = onnx.load(str(path))
        check(model)
    except Exception as error:  # protobuf's, onnx's and the system's have nothing in common
        raise InferenceError(
            f"cannot be read: {reason(error)}", file=path, field="model", remedy="export it again"
        ) from error
    weights = {tensor.name for tensor in model.graph.initializer}
    inputs = [value for value in model.graph.input if value.name not in weights]
    refill(model.graph.input, inputs)
    model.ir_version = max(model.ir_version, OLDEST_IR)
    seen: Counter[str] = Counter()
    for node in model.graph.node:
        name = node.name or node.op_type
        seen[name] += 1
        node.name = name if seen[name] == 1 else f"{name}#{seen[name]}"
    return model


def write_graph(model: Graph, path: Path) -> None:
    """Write a model as one file, which appears when it is complete.

    Raises:
        OutputError: it cannot be written.
    """
    part = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with part.open("wb") as file:
            file.write(model.SerializeToString())
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    except OSError as error:
        raise OutputError(f"cannot be written: {reason(error)}", file=path, remedy="use another folder") from error
    finally:
        part.unlink(missing_ok=True)


def copied(model: Graph) -> Graph:
    """A copy."""
    made = load_onnx().ModelProto()
    made.CopyFrom(model)
    return made


def check(model: Graph) -> None:
    """Let `onnx.checker` look at a model, types and shapes too where every operator is ONNX's own.

    Raises:
        onnx.checker.ValidationError, onnx.shape_inference.InferenceError: it is none.
    """
    own = all(node.domain in STANDARD for node in model.graph.node)
    load_onnx().checker.check_model(model, full_check=own)


def opset(model: Graph) -> int:
    """The version of ONNX's own operators that a model uses."""
    return next((entry.version for entry in model.opset_import if entry.domain in STANDARD), 1)


def subgraphs(node: Node) -> list[Any]:
    """The graphs inside a node: those of If, Loop and Scan."""
    found = [attribute.g for attribute in node.attribute if attribute.HasField("g")]
    return found + [graph for attribute in node.attribute for graph in attribute.graphs]


def attribute(node: Node, name: str, default: Any) -> Any:
    """The value of a node's attribute."""
    found = next((entry for entry in node.attribute if entry.name == name), None)
    return default if found is None else load_onnx().helper.get_attribute_value(found)


def weights(model: Graph) -> dict[str, NDArray[Any]]:
    """The values of a model's initializers, by name."""
    to_array = load_onnx().numpy_helper.to_array
    return {tensor.name: to_array(tensor) for tensor in model.graph.initializer}


def add_weight(model: Graph, name: str, values: NDArray[Any]) -> str:
    """Add an initializer; its name."""
    made = load_onnx().numpy_helper.from_array(np.ascontiguousarray(values).reshape(np.shape(values)), name)
    model.graph.initializer.append(made)
    return name


def consumers(model: Graph) -> Counter[str]:
    """How often each tensor is read: by nodes, by graphs inside nodes, and as an output of the model."""
    found: Counter[str] = Counter(value.name for value in model.graph.output)
    for node in _all_nodes(model.graph.node):
        found.update(name for name in node.input if name)
    for node in model.graph.node:
        for inner in subgraphs(node):
            found.update(value.name for value in inner.output)
    return found


def rename(model: Graph, names: Mapping[str, str]) -> None:
    """Let every reader of a tensor read another."""

    def last(name: str) -> str:
        while name in names:
            name = names[name]
        return name

    for node in _all_nodes(model.graph.node):
        for place, name in enumerate(node.input):
            if name in names:
                node.input[place] = last(name)
        for inner in subgraphs(node):
            for value in inner.output:
                value.name = last(value.name)


def clean(model: Graph) -> None:
    """Remove nodes and weights that nothing reads, imports of operators that are not used, and what was inferred."""
    read = {value.name for value in model.graph.output}
    graph = model.graph
    for place in reversed(range(len(graph.node))):  # which are in topological order
        node = graph.node[place]
        if not read.intersection(node.output):
            del graph.node[place]
        else:
            for each in _all_nodes([node]):
                read.update(each.input)
                read.update(value.name for inner in subgraphs(each) for value in inner.output)
    _keep(graph.initializer, lambda tensor: tensor.name in read)
    del graph.value_info[:]
    domains = {node.domain for node in _all_nodes(graph.node)} | set(STANDARD)
    if not model.functions:
        _keep(model.opset_import, lambda entry: entry.domain in domains)


def float_types(model: Graph) -> dict[str, int]:
    """The ranks of a model's tensors of floating-point numbers, by name; weights are not among them."""
    onnx = load_onnx()
    inferred = onnx.shape_inference.infer_shapes(model).graph
    kinds = (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16)
    values = (*inferred.input, *inferred.output, *inferred.value_info)
    return {
        value.name: len(value.type.tensor_type.shape.dim)
        for value in values
        if value.type.tensor_type.elem_type in kinds and value.type.tensor_type.HasField("shape")
    }


def session_of(model: Graph, *, outputs: Iterable[str] = (), threads: int | None = None) -> Any:
    """An ONNX Runtime session of a model on the CPU, with these tensors as its outputs too."""
    if outputs:
        onnx = load_onnx()
        there = {value.name for value in model.graph.output}
        model = copied(model)
        model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in outputs if name not in there)
    return open_session(model.SerializeToString(), SessionOptions(threads=threads or cpu_count()))


def _all_nodes(nodes: Iterable[Node]) -> Iterator[Node]:
    """Nodes, and those inside them."""
    for node in nodes:
        yield node
        for inner in subgraphs(node):
            yield from _all_nodes(inner.node)


def _keep(field: Any, wanted: Callable[[Any], bool]) -> None:
    """Remove from a repeated field what is not wanted."""
    for place in reversed(range(len(field))):
        if not wanted(field[place]):
            del field[place]


def refill(field: Any, values: Iterable[Any]) -> None:
    """Give a repeated field of a message other values."""
    kept = [type(value).FromString(value.SerializeToString()) for value in values]
    del field[:]
    field.extend(kept)
