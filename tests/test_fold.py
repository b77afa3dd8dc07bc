"""Folding an exported graph changes nothing but the graph."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import exported
import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from gpupipe.demo.full import FULL_SIZE, full_model
from gpupipe.errors import InferenceError
from gpupipe.model.fold import fold
from gpupipe.model.graph import read_graph, write_graph

# BatchNorm inside a convolution rounds once where it was rounded twice.
TOLERANCE = 1e-5
GONE = {"BatchNormalization", "Shape", "Gather", "Pad", "Slice", "ConstantOfShape", "Constant", "Identity", "Dropout"}


def run(model: Any, inputs: dict[str, NDArray[Any]]) -> NDArray[Any]:
    """The model's output as ONNX Runtime computes it when it optimises nothing."""
    settings = onnxruntime.SessionOptions()
    settings.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    settings.intra_op_num_threads = 2
    session = onnxruntime.InferenceSession(model.SerializeToString(), settings, providers=["CPUExecutionProvider"])
    found: NDArray[Any] = session.run(None, inputs)[0]
    return found


def folded(model: Any, folder: Path) -> Any:
    path = folder / "model.onnx"
    onnx.save(model, str(path))
    return fold(read_graph(path), path)


def kinds(model: Any) -> Counter[str]:
    return Counter(node.op_type for node in model.graph.node)


@pytest.mark.parametrize(("size", "seed"), [(160, seed) for seed in range(6)] + [(320, 6)])
def test_a_random_export_is_the_same_model(tmp_path: Path, size: int, seed: int) -> None:
    model = exported.random_model(size, seed, opset=(13, 14, 15, 16, 17)[seed % 5])
    made = folded(model, tmp_path)
    onnx.checker.check_model(made, full_check=True)
    assert not GONE & kinds(made).keys()
    assert [dim.dim_param for dim in (v.type.tensor_type.shape.dim[0] for v in made.graph.input)] == ["batch"] * 2
    assert (made.opset_import[0].version, made.ir_version) == (model.opset_import[0].version, 8)
    for batch in (1, 4):
        inputs = exported.inputs(size, batch, seed)
        np.testing.assert_allclose(run(made, inputs), run(model, inputs), rtol=0, atol=TOLERANCE)


def test_the_published_model_is_left_with_what_computes(tmp_path: Path) -> None:
    model = exported.with_pads(full_model())
    assert len(model.graph.node) == 495
    made = folded(model, tmp_path)
    assert kinds(made) == {"Conv": 93, "Relu": 62, "Add": 15, "Concat": 6, "Resize": 5, "Sigmoid": 1}
    inputs = exported.inputs(FULL_SIZE, 1)
    inputs = {"input": inputs["visual_input"], "audio": inputs["audio_input"]}
    np.testing.assert_allclose(run(made, inputs), run(model, inputs), rtol=0, atol=TOLERANCE)


def test_a_fixed_batch_stays_fixed(tmp_path: Path) -> None:
    model = exported.random_model(96, 1, batch=2)
    made = folded(model, tmp_path)
    assert not GONE & kinds(made).keys()
    inputs = exported.inputs(96, 2)
    np.testing.assert_allclose(run(made, inputs), run(model, inputs), rtol=0, atol=TOLERANCE)


def test_weights_in_files_of_their_own_are_taken_in(tmp_path: Path) -> None:
    model, path = exported.random_model(96, 2), tmp_path / "apart.onnx"
    inputs = exported.inputs(96, 1)
    wanted = run(model, inputs)
    onnx.save(model, str(path), save_as_external_data=True, location="weights.bin", size_threshold=0)
    assert (tmp_path / "weights.bin").stat().st_size > 10_000
    write_graph(fold(read_graph(path), path), tmp_path / "folded.onnx")
    (tmp_path / "weights.bin").unlink()
    np.testing.assert_allclose(run(onnx.load(tmp_path / "folded.onnx"), inputs), wanted, rtol=0, atol=TOLERANCE)


def test_shapes_that_depend_on_the_batch_stay(tmp_path: Path) -> None:
    """A Reshape by a shape that was read from the input, as `view(x.size(0), ...)` exports it."""
    model = exported.random_model(64, 3)
    nodes = list(model.graph.node)
    sigmoid = next(node for node in nodes if node.op_type == "Sigmoid")
    added = [
        helper.make_node("Shape", ["visual_input"], ["whole"], name="whole"),
        helper.make_node("Gather", ["whole", "first"], ["count"], name="count", axis=0),
        helper.make_node("Concat", ["count", "rest"], ["wanted"], name="wanted", axis=0),
        helper.make_node("Reshape", [sigmoid.input[0], "wanted"], ["same"], name="same"),
    ]
    sigmoid.input[0] = "same"
    del model.graph.node[:]
    model.graph.node.extend([*nodes[:-1], *added, sigmoid])
    for name, values in (("first", [0]), ("rest", [3, 64, 64])):
        model.graph.initializer.append(numpy_helper.from_array(np.array(values, np.int64), name))
    made = folded(model, tmp_path)
    assert kinds(made)["Reshape"] == 1
    for batch in (1, 5):
        inputs = exported.inputs(64, batch)
        np.testing.assert_allclose(run(made, inputs), run(model, inputs), rtol=0, atol=TOLERANCE)


def test_an_open_size_stays_open(tmp_path: Path) -> None:
    model = exported.random_model(64, 4)
    for value in (model.graph.input[0], model.graph.output[0]):
        for dim, name in zip(value.type.tensor_type.shape.dim[2:], ("height", "width"), strict=True):
            dim.dim_param = name
    made = folded(model, tmp_path)
    assert not {"Pad", "BatchNormalization", "Gather"} & kinds(made).keys()
    for size in (64, 128):
        inputs = exported.inputs(size, 2)
        np.testing.assert_allclose(run(made, inputs), run(model, inputs), rtol=0, atol=TOLERANCE)


def test_a_float16_export_is_folded_as_well(tmp_path: Path) -> None:
    model = exported.in_half(exported.random_model(64, 6))
    made = folded(model, tmp_path)
    assert not GONE & kinds(made).keys()
    assert {tensor.data_type for tensor in made.graph.initializer} == {TensorProto.FLOAT16, TensorProto.FLOAT}
    inputs = {name: values.astype(np.float16) for name, values in exported.inputs(64, 2).items()}
    np.testing.assert_allclose(run(made, inputs), run(model, inputs), rtol=0, atol=3e-2)


def test_a_pad_that_pads_stays(tmp_path: Path) -> None:
    model = exported.random_model(64, 5)
    head, pads = model.graph.node[0], numpy_helper.from_array(np.array([0, 0, 1, 0, 0, 0, 0, 1], np.int64), "pads")
    model.graph.initializer.append(pads)
    model.graph.node.insert(0, helper.make_node("Pad", ["visual_input", "pads"], ["moved"], name="pad"))
    window = [helper.make_node("Slice", ["moved", "from", "to", "axes"], ["seen"], name="cut")]
    model.graph.node.insert(1, window[0])
    for name, values in (("from", [0, 1]), ("to", [64, 65]), ("axes", [2, 3])):
        model.graph.initializer.append(numpy_helper.from_array(np.array(values, np.int64), name))
    for node in model.graph.node[2:]:
        if node.name == head.name:
            node.input[0] = "seen"
    made = folded(model, tmp_path)
    assert kinds(made)["Pad"] == 1
    assert kinds(made)["Slice"] == 1
    inputs = exported.inputs(64, 1)
    np.testing.assert_allclose(run(made, inputs), run(model, inputs), rtol=0, atol=TOLERANCE)


def test_what_is_no_model_is_refused(tmp_path: Path) -> None:
    (tmp_path / "text.onnx").write_text("not a model")
    with pytest.raises(InferenceError, match=r"text\.onnx: model: cannot be read"):
        read_graph(tmp_path / "text.onnx")
    with pytest.raises(InferenceError, match="no such file"):
        read_graph(tmp_path / "none.onnx")


def test_a_node_without_a_name_gets_one(tmp_path: Path) -> None:
    model = exported.random_model(64, 0)
    for node in model.graph.node:
        node.name = ""
    onnx.save(model, str(tmp_path / "nameless.onnx"))
    names = [node.name for node in read_graph(tmp_path / "nameless.onnx").graph.node]
    assert all(names)
    assert len(set(names)) == len(names)
