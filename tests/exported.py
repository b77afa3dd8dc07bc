"""Lip-sync graphs as exporters write them: Shape, Gather and Slice chains around Pads of nothing, BatchNorm apart."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from gpupipe.geometry import SPEECH_SHAPE

INT64_MAX = 2**63 - 1


def random_model(
    size: int,
    seed: int = 0,
    *,
    batch: int | str = "batch",
    opset: int = 17,
    channels: int = 4,
    pads: bool = True,
) -> Any:
    """A random net of the published form: halvings, speech joined at the bottom, doublings with skips, sigmoid.

    Args:
        size: side of its images; a multiple of 16.
        seed: of the weights, of how deep it is and of what its blocks are.
        batch: a number, or a name for one that is open.
        opset: 13 to 17.
        channels: of its widest pictures.
        pads: whether the doublings are padded to their skips, as the published code does.
    """
    return _Builder(seed, channels).model(size, batch, opset, pads=pads)


class _Builder:
    def __init__(self, seed: int, channels: int) -> None:
        self.random = np.random.default_rng(seed)
        self.channels = channels
        self.nodes: list[Any] = []
        self.weights: list[Any] = []

    def op(self, kind: str, *inputs: str, **attributes: Any) -> str:
        name = f"/net/{kind}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, inputs, [f"{name}_output_0"], name=name, **attributes))
        return f"{name}_output_0"

    def weight(self, values: NDArray[Any]) -> str:
        name = f"onnx::weight_{len(self.weights)}"
        self.weights.append(numpy_helper.from_array(np.asarray(values, np.float32), name))
        return name

    def constant(self, *values: int) -> str:
        return self.op("Constant", value=numpy_helper.from_array(np.array(values, np.int64)))

    def number(self, value: int) -> str:
        return self.op("Constant", value=numpy_helper.from_array(np.array(value, np.int64)))

    def conv(self, x: str, into: int, out: int, side: int, *, stride: int = 1, group: int = 1) -> str:
        deviation = np.sqrt(2 / (into // group * side * side))
        w = self.weight(deviation * self.random.standard_normal((out, into // group, side, side)))
        x = self.op("Conv", x, w, kernel_shape=[side] * 2, strides=[stride] * 2, pads=[side // 2] * 4, group=group)
        scale, variance = self.random.uniform(0.7, 1.3, (2, out))
        bias, mean = self.random.normal(0, 0.2, (2, out))
        return self.op("BatchNormalization", x, *(self.weight(v) for v in (scale, bias, mean, variance)), epsilon=1e-5)

    def block(self, x: str, into: int, out: int, *, stride: int = 1) -> str:
        """An inverted residual block; the residual where it can be, by chance."""
        y = self.op("Relu", self.conv(x, into, 2 * into, 1))
        y = self.op("Relu", self.conv(y, 2 * into, 2 * into, 3, stride=stride, group=2 * into))
        y = self.conv(y, 2 * into, out, 1)
        return self.op("Add", x, y) if into == out and stride == 1 and self.random.random() < 0.7 else y

    def pad_to(self, x: str, skip: str) -> str:
        """`F.pad(x, [dx // 2, dx - dx // 2, dy // 2, dy - dy // 2])` as torch.onnx writes it."""
        return pad_chain(self, x, skip)

    def model(self, size: int, batch: int | str, opset: int, *, pads: bool) -> Any:
        depth = int(self.random.integers(2, 5))
        wide = [self.channels * 2 ** min(level, 3) for level in range(depth + 1)]
        x = self.block("visual_input", 6, wide[0])
        skips = [x]
        for level in range(depth):
            x = self.block(x, wide[level], wide[level + 1], stride=2)
            skips.append(x)
        heard = self.op("Relu", self.conv("audio_input", SPEECH_SHAPE[0], wide[-1], 3))
        heard = self.op("ReduceMean", heard, axes=[2, 3], keepdims=1)
        x = self.op("Concat", skips.pop(), self.op("Mul", heard, self.op("Relu", skips_like(self, x))), axis=1)
        into = 2 * wide[-1]
        for level in reversed(range(depth)):
            scales = self.op("Constant", value=numpy_helper.from_array(np.array([1, 1, 2, 2], np.float32)))
            mode = {"coordinate_transformation_mode": "align_corners", "mode": "linear"}
            up = self.op("Resize", x, "", scales, nearest_mode="floor", cubic_coeff_a=-0.75, **mode)
            skip = skips.pop()
            x = self.op("Concat", self.pad_to(up, skip) if pads else up, skip, axis=1)
            x = self.block(x, into + wide[level], wide[level])
            x = self.op("Dropout", x) if self.random.random() < 0.3 else x
            into = wide[level]
        w = self.weight(self.random.normal(0, 0.5, (3, into, 1, 1)))
        b = self.weight(self.random.normal(0, 0.2, 3))
        x = self.op("Conv", x, w, b, kernel_shape=[1, 1])
        self.nodes.append(helper.make_node("Sigmoid", [x], ["output"], name="/net/Sigmoid"))
        return finished(self.nodes, self.weights, size, batch, opset)


def skips_like(builder: _Builder, x: str) -> str:
    """What the speech is multiplied with: the picture, slid past a Slice of everything, as indexing exports it."""
    starts, ends, axes = builder.constant(0), builder.constant(INT64_MAX), builder.constant(2)
    return builder.op("Slice", x, starts, ends, axes)


def finished(nodes: list[Any], weights: list[Any], size: int, batch: int | str, opset: int) -> Any:
    def value(name: str, *shape: int) -> Any:
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, [batch, *shape])

    graph = helper.make_graph(
        nodes,
        "main_graph",
        [value("visual_input", 6, size, size), value("audio_input", *SPEECH_SHAPE)],
        [value("output", 3, size, size)],
        initializer=weights,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    model.producer_name = "pytorch"
    onnx.checker.check_model(model, full_check=True)
    return model


def pad_chain(builder: Any, x: str, skip: str) -> str:
    """The nodes of a Pad of `x` to the size of `skip`."""

    def side(of: str, axis: int) -> str:
        return str(builder.op("Gather", builder.op("Shape", of), builder.number(axis), axis=0))

    halves = []
    for axis in (3, 2):
        difference = builder.op("Sub", side(skip, axis), side(x, axis))
        half = builder.op("Div", difference, builder.number(2))
        halves += [half, builder.op("Sub", difference, half)]
    joined = builder.op("Concat", *(builder.op("Unsqueeze", half, builder.constant(0)) for half in halves), axis=0)
    zeros = builder.op("ConstantOfShape", builder.constant(4), value=numpy_helper.from_array(np.array([0], np.int64)))
    pairs = builder.op("Reshape", builder.op("Concat", joined, zeros, axis=0), builder.constant(-1, 2))
    last, first, axis, step = (builder.constant(number) for number in (-1, -INT64_MAX, 0, -1))
    turned = builder.op("Transpose", builder.op("Slice", pairs, last, first, axis, step), perm=[1, 0])
    pads = builder.op("Cast", builder.op("Reshape", turned, builder.constant(-1)), to=TensorProto.INT64)
    return str(builder.op("Pad", x, pads, "", mode="constant"))


class _Inserter:
    """Adds nodes to a graph that is there."""

    def __init__(self, nodes: list[Any]) -> None:
        self.nodes = nodes
        self.count = 0

    def op(self, kind: str, *inputs: str, **attributes: Any) -> str:
        self.count += 1
        name = f"pad{self.count}_{kind.lower()}"
        self.nodes.append(helper.make_node(kind, inputs, [name], name=name, **attributes))
        return name

    def constant(self, *values: int) -> str:
        return self.op("Constant", value=numpy_helper.from_array(np.array(values, np.int64)))

    def number(self, value: int) -> str:
        return self.op("Constant", value=numpy_helper.from_array(np.array(value, np.int64)))


def with_pads(model: Any) -> Any:
    """A model whose doublings are padded to their skips before they are joined, by the chains of an export."""
    made = onnx.ModelProto()
    made.CopyFrom(model)
    nodes: list[Any] = []
    inserter = _Inserter(nodes)
    for node in model.graph.node:
        if node.op_type == "Concat" and node.input[0].startswith("resize"):
            node = helper.make_node("Concat", [pad_chain(inserter, *node.input), node.input[1]], node.output, axis=1)
        nodes.append(node)
    del made.graph.node[:]
    made.graph.node.extend(nodes)
    onnx.checker.check_model(made)
    return made


def inputs(size: int, batch: int, seed: int = 0) -> dict[str, NDArray[np.float32]]:
    """Random inputs of `random_model`."""
    random = np.random.default_rng(seed)
    return {
        "visual_input": random.random((batch, 6, size, size), np.float32),
        "audio_input": random.random((batch, *SPEECH_SHAPE), np.float32),
    }


def in_half(model: Any) -> Any:
    """A random model as it is exported from one whose weights are float16."""
    made = onnx.ModelProto()
    made.CopyFrom(model)
    for tensor in made.graph.initializer:
        tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float16), tensor.name))
    for value in (*made.graph.input, *made.graph.output):
        value.type.tensor_type.elem_type = TensorProto.FLOAT16
    onnx.checker.check_model(made, full_check=True)
    return made
