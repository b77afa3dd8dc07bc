"""Models in float16 and int8: what they are made of, what they draw, and that they run."""

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

from gpupipe.errors import InferenceError
from gpupipe.geometry import CropLayout
from gpupipe.model import optimise as pipeline
from gpupipe.model import sensitive
from gpupipe.model.equalise import equalise
from gpupipe.model.fold import fold
from gpupipe.model.graph import read_graph, session_of
from gpupipe.model.half import SAFE, to_half
from gpupipe.model.optimise import optimise
from gpupipe.model.quality import drawn, psnr
from gpupipe.model.quantise import Quantiser, operator_counts
from gpupipe.model.ranges import Range, measure
from gpupipe.model.samples import Samples, SampleSet, noise, noise_set
from gpupipe.model.sensitive import Search, node_costs
from gpupipe.model.signature import PRECISION_KEY, Signature

SIZE = 64
LAYOUT = CropLayout(SIZE)


def saved(model: Any, folder: Path) -> Path:
    path = folder / "model.onnx"
    onnx.save(model, str(path))
    return path


def prepared(folder: Path, seed: int = 0, size: int = SIZE) -> tuple[Any, Signature, Samples]:
    """A folded random model, its signature, and samples."""
    path = saved(exported.random_model(size, seed), folder)
    model = fold(read_graph(path), path)
    return model, Signature(path, session_of(model)), noise(CropLayout(size), 4, seed)


def outputs(model: Any, samples: Samples, names: list[str] | None = None) -> list[NDArray[Any]]:
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    half = session.get_inputs()[0].type == "tensor(float16)"
    kind = np.float16 if half else np.float32
    feed = {"visual_input": samples.visual.astype(kind), "audio_input": samples.audio.astype(kind)}
    found: list[NDArray[Any]] = session.run(names, feed)
    return found


def kinds(model: Any) -> Counter[str]:
    return Counter(node.op_type for node in model.graph.node)


def noisy_set(size: int = SIZE, count: int = 6) -> SampleSet:
    """Samples of which one may calibrate, as filmed ones."""
    layout = CropLayout(size)
    return SampleSet("test", "noise", lambda: noise(layout, count, 1), lambda: noise(layout, count, 2))


@pytest.mark.parametrize("seed", range(3))
def test_ranges_are_those_of_every_channel(tmp_path: Path, seed: int) -> None:
    model, signature, samples = prepared(tmp_path, seed)
    found = measure(model, signature, samples)
    watched = onnx.ModelProto()
    watched.CopyFrom(model)
    names = [name for node in model.graph.node for name in node.output]
    watched.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names if name != "output")
    for name, values in zip(names, outputs(watched, samples, names), strict=True):
        np.testing.assert_allclose(found[name].low, values.min(axis=(0, 2, 3)), rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(found[name].high, values.max(axis=(0, 2, 3)), rtol=1e-5, atol=1e-5)


def test_ranges_where_axes_are_an_input(tmp_path: Path) -> None:
    model, signature, samples = prepared(tmp_path)
    newer = onnx.version_converter.convert_version(model, 18)
    one, other = (measure(each, signature, samples) for each in (model, newer))
    for name, seen in one.items():
        np.testing.assert_allclose(other[name].high, seen.high, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("size", "seed"), [(160, 0), (160, 1), (320, 2)])
def test_float16_is_float16_throughout_and_draws_the_same(tmp_path: Path, size: int, seed: int) -> None:
    model, signature, samples = prepared(tmp_path, seed, size)
    made = to_half(model, measure(model, signature, samples))
    onnx.checker.check_model(made, full_check=True)
    types = {value.type.tensor_type.elem_type for value in (*made.graph.input, *made.graph.output)}
    assert types == {TensorProto.FLOAT16}
    assert "Cast" not in kinds(made)
    resizes = {name for node in made.graph.node if node.op_type == "Resize" for name in node.input[1:]}
    for tensor in made.graph.initializer:
        wanted = TensorProto.FLOAT if tensor.name in resizes else TensorProto.FLOAT16
        assert tensor.data_type == wanted
    (one,), (other,) = outputs(model, samples), outputs(made, samples)
    assert other.dtype == np.float16
    assert psnr(drawn(one), drawn(other.astype(np.float32))) > 45


def test_what_may_overflow_stays_float32(tmp_path: Path) -> None:
    model, signature, samples = prepared(tmp_path, 4)
    convs = [node for node in model.graph.node if node.op_type == "Conv"]
    weights = {tensor.name: tensor for tensor in model.graph.initializer}
    up, down = convs[0], convs[1]  # expand, then depthwise: what lies between is a Relu
    for conv, factor in ((up, 1e5), (down, 1e-5)):
        for name in conv.input[1 : 3 if conv is up else 2]:
            scaled = numpy_helper.to_array(weights[name]) * np.float32(factor)
            weights[name].CopyFrom(numpy_helper.from_array(scaled, name))
    ranges = measure(model, signature, samples)
    assert max(seen.greatest for seen in ranges.values()) > SAFE
    made = to_half(model, ranges)
    assert kinds(made)["Cast"] == 2
    (one,), (other,) = outputs(model, samples), outputs(made, samples)
    assert np.isfinite(other).all()
    assert psnr(drawn(one), drawn(other.astype(np.float32))) > 45


def test_an_output_that_stays_float32_is_cast(tmp_path: Path) -> None:
    model, signature, samples = prepared(tmp_path)
    ranges = measure(model, signature, samples)
    ranges["output"] = Range(np.zeros(3, np.float32), np.full(3, 1e6, np.float32))
    made = to_half(model, ranges)
    onnx.checker.check_model(made, full_check=True)
    assert (made.graph.node[-1].op_type, made.graph.node[-1].output[0]) == ("Cast", "output")
    (one,), (other,) = outputs(model, samples), outputs(made, samples)
    np.testing.assert_allclose(other.astype(np.float32), one, atol=2e-2)


def test_nan_and_branches_are_refused(tmp_path: Path) -> None:
    model, signature, samples = prepared(tmp_path)
    ranges = measure(model, signature, samples)
    ranges["output"] = Range(np.full(3, np.nan, np.float32), np.zeros(3, np.float32))
    with pytest.raises(InferenceError, match="infinite numbers or NaN on the samples, at output"):
        to_half(model, ranges)
    inner = helper.make_graph([], "inner", [], [])
    model.graph.node.append(helper.make_node("If", ["x"], ["y"], then_branch=inner, else_branch=inner))
    with pytest.raises(InferenceError, match="branches or loops"):
        to_half(model, {})


@pytest.mark.parametrize(("size", "seed"), [(160, seed) for seed in range(2)] + [(320, 4)])
def test_equal_ranges_change_no_output(tmp_path: Path, size: int, seed: int) -> None:
    model, signature, samples = prepared(tmp_path, seed, size)
    ranges = measure(model, signature, samples)
    made, told = equalise(model, ranges)
    np.testing.assert_allclose(outputs(made, samples)[0], outputs(model, samples)[0], rtol=0, atol=2e-5)
    # What is told of its ranges is what they are.
    for name, seen in measure(made, signature, samples).items():
        np.testing.assert_allclose(told[name].low, seen.low, rtol=1e-3, atol=1e-3)
        np.testing.assert_allclose(told[name].high, seen.high, rtol=1e-3, atol=1e-3)
    # Between two convolutions nothing ties a channel to others: all have the same range then.
    hidden = next(node.output[0] for node in made.graph.node if node.op_type == "Relu")
    alive = ranges[hidden].high > 0
    assert np.ptp(ranges[hidden].high[alive]) > 0.1
    np.testing.assert_allclose(told[hidden].high[alive], 1, rtol=1e-5)


def test_int8_quantises_by_channel_and_keeps_the_output_in_float(tmp_path: Path) -> None:
    model, signature, samples = prepared(tmp_path, 1, 160)
    quantiser = Quantiser(*equalise(model, measure(model, signature, samples)))
    made = quantiser.quantised(set())
    onnx.checker.check_model(made, full_check=True)
    convs = kinds(model)["Conv"]
    assert operator_counts(made) == {"convolutions": convs, "quantised": convs - 1}
    tensors = {tensor.name: tensor for tensor in made.graph.initializer}
    scales = [
        tensors[node.input[1]]
        for node in made.graph.node
        if node.op_type == "DequantizeLinear" and node.input[0] in tensors
    ]
    assert sum(len(scale.dims) == 1 and scale.dims[0] > 1 for scale in scales) >= convs - 1
    (sigmoid,) = (node for node in made.graph.node if node.op_type == "Sigmoid")
    (last,) = (node for node in made.graph.node if sigmoid.input[0] in node.output)
    assert last.op_type == "Conv"
    assert last.input[1] in tensors  # its weights are not quantised
    assert tensors[last.input[1]].data_type == TensorProto.FLOAT
    assert [value.type.tensor_type.elem_type for value in made.graph.input] == [TensorProto.FLOAT] * 2
    (one,), (other,) = outputs(model, samples), outputs(made, samples)
    assert psnr(drawn(one), drawn(other)) > 25


def test_nodes_left_in_float_are_not_quantised(tmp_path: Path) -> None:
    model, signature, samples = prepared(tmp_path, 1)
    quantiser = Quantiser(model, measure(model, signature, samples))
    convs = {node.name for node in model.graph.node if node.op_type == "Conv"}
    some = set(sorted(convs & set(quantiser.nodes))[:3])
    assert operator_counts(quantiser.quantised(some))["quantised"] == len(convs) - 4
    assert operator_counts(quantiser.quantised(set(quantiser.nodes)))["quantised"] == 0
    assert (
        outputs(quantiser.quantised(set(quantiser.nodes)), samples)[0].tobytes() == outputs(model, samples)[0].tobytes()
    )


def test_an_old_opset_is_raised_to_what_can_be_quantised(tmp_path: Path) -> None:
    model, signature, samples = prepared(tmp_path, 1)
    old = onnx.ModelProto()
    old.CopyFrom(model)
    old.opset_import[0].version = 12
    made = Quantiser(old, measure(model, signature, samples)).quantised(set())
    assert made.opset_import[0].version == 13
    assert outputs(made, samples)[0].shape == (4, 3, SIZE, SIZE)


def test_a_node_that_does_not_bear_eight_bits_is_found(tmp_path: Path) -> None:
    """A channel is made huge on its way, and small again: what is beside it drowns in the steps of its scale."""
    model, signature, samples = prepared(tmp_path, 0, 96)
    samples = noise(CropLayout(96), 3, 5)
    weights = {tensor.name: tensor for tensor in model.graph.initializer}
    convs = [node for node in model.graph.node if node.op_type == "Conv"]
    expand, depthwise = convs[-4], convs[-3]  # of the last block; the very last draws the picture
    loudest = int(np.argmax(measure(model, signature, samples)[depthwise.input[0]].high))
    for name, factor in (*((each, 300.0) for each in expand.input[1:]), (depthwise.input[1], 1 / 300)):
        values = numpy_helper.to_array(weights[name]).copy()
        values[loudest] *= np.float32(factor)
        weights[name].CopyFrom(numpy_helper.from_array(values, name))
    ranges = measure(model, signature, samples)
    quantiser = Quantiser(model, ranges)  # not equalised, which would mend it
    wanted = outputs(model, samples)[0]
    region = LAYOUT.mask
    found = Search(quantiser, signature, samples, wanted, region, seconds=60).run()
    bad = drawn(outputs(quantiser.quantised(set()), samples)[0])
    good = drawn(outputs(found.model, samples)[0])
    inside = np.s_[..., region.y1 : region.y2, region.x1 : region.x2]
    assert psnr(drawn(wanted)[inside], bad[inside]) < 30
    assert psnr(drawn(wanted)[inside], good[inside]) >= 38
    assert {expand.name, depthwise.name} & set(found.in_float)
    assert found.cost < 0.8


def test_the_search_ends_in_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sensitive, "MARGIN_DB", 60.0)  # which no eight bits reach
    model, signature, samples = prepared(tmp_path, 0)
    quantiser = Quantiser(*equalise(model, measure(model, signature, samples)))
    said: list[str] = []
    search = Search(quantiser, signature, samples, outputs(model, samples)[0], LAYOUT.mask, trials=0)
    found = search.run(said.append)
    assert set(found.in_float) == set(quantiser.nodes)
    assert found.trials <= 2 + 2 * sensitive.PARTS
    assert said[0].startswith("all in int8: ")


def test_costs_are_shares_and_follow_the_work(tmp_path: Path) -> None:
    model, *_ = prepared(tmp_path, 2)
    inferred = onnx.shape_inference.infer_shapes(model)
    names = [node.name for node in inferred.graph.node]
    costs = node_costs(inferred, names)
    assert sum(costs.values()) == pytest.approx(1)
    first, second = names[:2]
    # A 1x1 convolution from 6 to 12 channels: 18 values moved and 72 / 32 multiplied a pixel; the Relu after it 24.
    assert costs[second] / costs[first] == pytest.approx(24 / (18 + 72 / sensitive.MACS_A_VALUE))


def test_optimised_models_say_what_they_are(tmp_path: Path) -> None:
    path = saved(exported.random_model(SIZE, 3), tmp_path)
    for precision, least in (("fp32", 90.0), ("fp16", 45.0), ("int8", 35.0)):
        made = optimise(path, precision, noisy_set())  # type: ignore[arg-type]
        assert {entry.key: entry.value for entry in made.model.metadata_props}[PRECISION_KEY] == precision
        assert made.quality.mouth_psnr_mean >= least
        assert made.quality.passes
        assert made.about["nodes_before"] > 2 * kinds(made.model)["Conv"]
        assert made.wanted.shape == (6, 3, SIZE, SIZE)
        # What was compared is what the models give.
        one, other = (outputs(each, made.samples)[0].astype(np.float32) for each in (onnx.load(path), made.model))
        np.testing.assert_allclose(made.wanted, one, atol=1e-5)
        np.testing.assert_allclose(made.found, other, atol=2e-2 if precision == "int8" else 2e-3)


def test_int8_needs_a_character(tmp_path: Path) -> None:
    path = saved(exported.random_model(SIZE, 3), tmp_path)
    with pytest.raises(InferenceError, match=r"model\.onnx: --precision|model\.onnx: precision") as caught:
        optimise(path, "int8", noise_set(LAYOUT, 2))
    assert "give the character's folder" in str(caught.value)
    half = saved(exported.in_half(exported.random_model(SIZE, 3)), tmp_path)
    with pytest.raises(InferenceError, match="is float16"):
        optimise(half, "int8", noisy_set())
    assert optimise(half, "fp16", noise_set(LAYOUT, 2)).quality.passes


def test_a_model_that_gives_nan_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = saved(exported.random_model(SIZE, 3), tmp_path)
    answers = iter([np.zeros((2, 3, SIZE, SIZE), np.float32)] * 2 + [np.full((2, 3, SIZE, SIZE), np.nan, np.float32)])
    monkeypatch.setattr(pipeline, "predict", lambda *_: next(answers))
    with pytest.raises(InferenceError, match="gives NaN or infinite numbers in fp16"):
        optimise(path, "fp16", noise_set(LAYOUT, 2))


def test_a_fixed_batch_is_judged_too(tmp_path: Path) -> None:
    path = saved(exported.random_model(SIZE, 3, batch=4), tmp_path)
    assert optimise(path, "fp16", noise_set(LAYOUT, 6)).quality.frames == 6
