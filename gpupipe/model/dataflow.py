"""What each tensor of a graph depends on, and parts of a graph as graphs of their own."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence, Set
from typing import TYPE_CHECKING, Any

import numpy as np

from gpupipe.model.measured import Measured, onnx_package

if TYPE_CHECKING:
    import onnx

RANDOM = {"RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Bernoulli", "Multinomial"}
"""Operators whose values are others in every run."""

BATCH = "gpupipe.batch"
"""The number of frames in a net's batch, int64 `[1]`, where a graph's part must be told the shape of a tensor that
belongs to another part."""


class Dataflow:
    """What is read by whom.

    A shape is no dependency: `Shape(x)` is numbers and the batch, which every input of the graph has as well. So a size
    that is taken from a skip ties nothing to the skip.

    Args:
        model: the graph.
        tensors: types and shapes.

    Attributes:
        nodes: of the graph, in its order, which is one of execution.
        reads: for each node, the tensors that it reads, shapes left out; constants are among them.
        producers: the node that makes a tensor.
        readers: the nodes that read a tensor.
        depends: for each node, the inputs of the graph that its outputs depend on.
        shapes: the nodes that give the shape of a tensor whose shape is known.
    """

    def __init__(self, model: onnx.ModelProto, tensors: Mapping[str, Measured]) -> None:
        self.nodes = list(model.graph.node)
        self.tensors = tensors
        constants = {tensor.name for tensor in model.graph.initializer}
        inputs = {value.name for value in model.graph.input} - constants
        self.shapes = {
            number for number, node in enumerate(self.nodes) if node.op_type == "Shape" and node.input[0] in tensors
        }
        self.reads: list[tuple[str, ...]] = []
        self.producers: dict[str, int] = {}
        self.readers: dict[str, list[int]] = {}
        self.depends: list[frozenset[str]] = []
        for number, node in enumerate(self.nodes):
            read = () if number in self.shapes else tuple(dict.fromkeys(_read(node)))
            found: frozenset[str] = frozenset()
            for name in read:
                self.readers.setdefault(name, []).append(number)
                if name in self.producers:
                    found |= self.depends[self.producers[name]]
                elif name in inputs:
                    found |= {name}
            self.reads.append(read)
            self.depends.append(found)
            self.producers |= dict.fromkeys(filter(None, node.output), number)

    def needed(self, outputs: Sequence[str], given: Set[str] = frozenset()) -> list[int]:
        """The nodes that must run for these tensors, in order, if those in `given` are there already."""
        found: set[int] = set()
        left = list(outputs)
        while left:
            name = left.pop()
            number = self.producers.get(name)
            if name not in given and number is not None and number not in found:
                found.add(number)
                left += self.reads[number]
        return sorted(found)

    def read_bytes(self, number: int) -> int:
        """Bytes a frame that a node reads, without weights and what else depends on no input."""
        return sum(
            self.tensors[name].frame_bytes
            for name in self.reads[number]
            if name in self.tensors and (name not in self.producers or self.depends[self.producers[name]])
        )

    def written_bytes(self, number: int) -> int:
        """Bytes a frame that a node writes."""
        return sum(self.tensors[name].frame_bytes for name in self.nodes[number].output if name in self.tensors)


def _read(node: onnx.NodeProto) -> Iterator[str]:
    """The tensors that a node reads, those among them that only the graphs inside it (If, Loop) read."""
    yield from filter(None, node.input)
    for attribute in node.attribute:
        for graph in (*attribute.graphs, *((attribute.g,) if attribute.HasField("g") else ())):
            own = {value.name for value in (*graph.input, *graph.initializer)}
            for inner in graph.node:
                yield from (name for name in _read(inner) if name not in own)
                own.update(inner.output)
            yield from (value.name for value in graph.output if value.name not in own)


def part(
    model: onnx.ModelProto,
    flow: Dataflow,
    inputs: Sequence[onnx.ValueInfoProto],
    outputs: Sequence[onnx.ValueInfoProto],
) -> onnx.ModelProto:
    """The part of a graph that makes `outputs` of `inputs`, as a graph of its own, with copies of its weights.

    Args:
        model: the whole.
        flow: its.
        inputs: tensors of the whole; the first one has the batch as its first dimension.
        outputs: tensors of the whole.

    Returns:
        It, checked.
    """
    onnx = onnx_package()
    given = {value.name for value in inputs}
    wanted = flow.needed([value.name for value in outputs], given)
    here = given | {name for number in wanted for name in flow.nodes[number].output}
    nodes: list[Any] = []
    constants: dict[str, Any] = {}
    for number in wanted:
        node = flow.nodes[number]
        if number in flow.shapes and node.input[0] not in here:
            nodes += _shape(node, flow.tensors[node.input[0]], constants)
        else:
            nodes.append(node)
    if constants:
        nodes[:0] = _batch(inputs[0].name, constants)
    read = {name for node in nodes for name in _read(node)}
    graph = onnx.helper.make_graph(
        nodes,
        model.graph.name,
        inputs,
        outputs,
        [tensor for tensor in model.graph.initializer if tensor.name in read]
        + [onnx.numpy_helper.from_array(array, name) for name, array in constants.items()],
        sparse_initializer=[tensor for tensor in model.graph.sparse_initializer if tensor.values.name in read],
    )
    # Before IR version 4 weights had to be inputs too.
    made = onnx.helper.make_model(
        graph,
        opset_imports=model.opset_import,
        functions=model.functions,
        ir_version=max(4, model.ir_version),
        producer_name="gpupipe",
    )
    made.metadata_props.extend(model.metadata_props)
    onnx.checker.check_model(made)
    return made  # type: ignore[no-any-return]


def _batch(name: str, constants: dict[str, Any]) -> list[Any]:
    """Nodes that give the size of a tensor's first dimension."""
    make = onnx_package().helper.make_node
    first = f"{BATCH}.first"
    constants[first] = np.array([0], np.int64)
    return [
        make("Shape", [name], [f"{BATCH}.shape"], name=f"{BATCH}.shape"),
        make("Gather", [f"{BATCH}.shape", first], [BATCH], name=BATCH, axis=0),
    ]


def _shape(node: onnx.NodeProto, tensor: Measured, constants: dict[str, Any]) -> list[Any]:
    """Nodes that give what a Shape node gives, of the batch alone: `batch * each + fixed`."""
    make = onnx_package().helper.make_node
    ends = {attribute.name: attribute.i for attribute in node.attribute}
    wanted = slice(ends.get("start"), ends.get("end"))
    output = node.output[0]
    each, fixed, grown = (f"{BATCH}.{word}.{output}" for word in ("each", "fixed", "grown"))
    constants[each] = np.array(tensor.each[wanted], np.int64)
    constants[fixed] = np.array(tensor.fixed[wanted], np.int64)
    return [
        make("Mul", [BATCH, each], [grown], name=grown),
        make("Add", [grown, fixed], [output], name=node.name or output),
    ]
