"""Splitting: two nets draw what the model draws, for random models of this form; and the cut is where it should be."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from unets import Recipe, recipes, unet

from gpupipe.demo.graph import Graph, Value
from gpupipe.demo.models import full_model, tiny_model
from gpupipe.errors import GpupipeError
from gpupipe.geometry import SPEECH_SHAPE
from gpupipe.model.cpu_graph import cpu_graph
from gpupipe.model.nets import Cost
from gpupipe.model.split import NotSplit, Split, split

FLOAT32_TOLERANCE = 1e-5
FLOAT16_TOLERANCE = 4e-3
"""ONNX Runtime's CPU provider computes float16 graphs in float32 and rounds where it must: at the border too, if there
is one. Eleven bits of a value under 8 make steps of 4e-3; the sigmoid makes a quarter of them."""
RELAXED = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])


def run(model: Any, **inputs: NDArray[Any]) -> dict[str, NDArray[Any]]:
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    wanted = {value.name: inputs[value.name] for value in session.get_inputs()}
    names = [value.name for value in session.get_outputs()]
    return dict(zip(names, session.run(names, wanted), strict=True))


def inputs(model: Any, batch: int, seed: int = 0) -> dict[str, NDArray[Any]]:
    """Noise for the inputs of a model."""
    random, found = np.random.default_rng(seed), {}
    for value in model.graph.input:
        dtype = onnx.helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)
        shape = [dim.dim_value for dim in value.type.tensor_type.shape.dim[1:]]
        found[value.name] = random.random((batch, *shape)).astype(dtype)
    return found


def both(cut: Split, given_inputs: dict[str, NDArray[Any]]) -> NDArray[Any]:
    """What source and rest draw, one after the other; each is given no more than it declares."""
    made = run(cut.source, **given_inputs)
    assert list(made) == [spec.name for spec in cut.features]
    batch = len(given_inputs[cut.audio.name])
    for spec in cut.features:
        assert (made[spec.name].shape, made[spec.name].dtype) == ((batch, *spec.frame_shape), spec.dtype)
    (drawn,) = run(cut.rest, **given_inputs, **made).values()
    return drawn


def names(values: Any) -> set[str]:
    return {value.name for value in values}


@RELAXED
@given(recipes(), st.integers(1, 3), st.sampled_from([0.25, 1.0, 4.0, 16.0]))
def test_source_and_rest_draw_what_a_random_model_draws(recipe: Recipe, batch: int, worth: float) -> None:
    model = unet(recipe)
    cut = split(model, worth=worth, least_saving=0)
    if isinstance(cut, NotSplit):
        assert worth > 1
        return
    batch = recipe.batch or batch
    given_inputs = inputs(model, batch, recipe.seed)
    (wanted,) = run(model, **given_inputs).values()
    assert np.abs(both(cut, given_inputs) - wanted).max() <= FLOAT32_TOLERANCE
    features = {spec.name for spec in cut.features}
    assert names(cut.source.graph.input) == {"faces"}
    assert names(cut.source.graph.output) == features
    assert names(cut.rest.graph.input) == features | {"sound"} | ({"faces"} if cut.needs_visual else set())
    assert cut.feature_bytes < cut.source_cost.activation_bytes


@settings(RELAXED, max_examples=25)
@given(recipes("float16"), st.integers(1, 2))
def test_so_do_they_in_float16(recipe: Recipe, batch: int) -> None:
    model = unet(recipe)
    cut = split(model, least_saving=0)
    assert isinstance(cut, Split)
    given_inputs = inputs(model, recipe.batch or batch, recipe.seed)
    (wanted,) = run(model, **given_inputs).values()
    apart = np.abs(both(cut, given_inputs).astype(np.float64) - wanted)
    assert apart.max() <= FLOAT16_TOLERANCE
    assert {spec.dtype for spec in cut.features} == {np.dtype(np.float16)}


@settings(RELAXED, max_examples=40)
@given(recipes(), st.integers(1, 3), st.sampled_from([1.0, 4.0]))
def test_cut_as_the_cpu_runs_it_the_nets_draw_the_same_bits(recipe: Recipe, batch: int, worth: float) -> None:
    model = unet(recipe)
    cut = split(cpu_graph(model), worth=worth, least_saving=0)
    if isinstance(cut, NotSplit):
        assert worth > 1
        return
    given_inputs = inputs(model, recipe.batch or batch, recipe.seed)
    (wanted,) = run(model, **given_inputs).values()
    assert np.array_equal(both(cut, given_inputs), wanted)


FAMILY_160 = Recipe(
    cells=10,
    widths=(16, 32, 64, 128),
    first=8,
    skips=("concat",) * 4,
    ups=("linear",) * 4,
    joins=frozenset(),
    activation="relu",
    batch_norm=True,
    residual=True,
)


def test_the_smaller_family() -> None:
    model = unet(FAMILY_160)
    cut = split(model)
    assert isinstance(cut, Split)
    assert [spec.frame_shape for spec in cut.features] == [
        (8, 160, 160),
        (16, 80, 80),
        (32, 40, 40),
        (64, 20, 20),
        (128, 10, 10),
    ]
    given_inputs = inputs(model, 2)
    (wanted,) = run(model, **given_inputs).values()
    assert np.abs(both(cut, given_inputs) - wanted).max() <= FLOAT32_TOLERANCE


SKIPS = [(32, 320, 320), (32, 160, 160), (64, 80, 80), (128, 40, 40), (256, 20, 20), (512, 10, 10)]


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 0), ("float16", FLOAT16_TOLERANCE)])
def test_the_full_model(dtype: Any, tolerance: float) -> None:
    """Multiplications as MODEL.md has them: 4.886 billion, of which 1.21 depend on the source frame alone."""
    model = full_model(dtype)
    cut = split(model)
    assert isinstance(cut, Split)
    assert [spec.frame_shape for spec in cut.features] == SKIPS
    assert cut.feature_bytes == 4_864_000 * np.dtype(dtype).itemsize
    assert not cut.needs_visual
    assert cut.whole_cost.macs == 4_885_839_872
    assert cut.source_cost.macs == 1_208_985_600
    assert cut.rest_cost.macs == cut.whole_cost.macs - cut.source_cost.macs
    given_inputs = inputs(model, 1)
    (wanted,) = run(model, **given_inputs).values()
    assert np.abs(both(cut, given_inputs).astype(np.float64) - wanted).max() <= tolerance


SIDE = 16
Parts = Callable[["Hand", Value, Value], Value]


class Hand:
    """A model made by hand: images of 16 x 16; the speech comes in as `[B, 2, 16, 16]`."""

    def __init__(self) -> None:
        self.graph = Graph("by_hand")
        self.random = np.random.default_rng(0)

    def conv(self, x: Value, into: int, out: int, stride: int = 1) -> Value:
        weights = self.random.normal(0, 0.2, (out, into, 3, 3))
        return self.graph.op("Conv", x, weights, kernel_shape=[3, 3], strides=[stride] * 2, pads=[1] * 4)

    def join(self, *values: Value) -> Value:
        return self.graph.op("Concat", *values, axis=1)

    def double(self, x: Value, times: float) -> Value:
        scales = self.graph.weight32(np.array([1, 1, times, times], np.float32))
        return self.graph.op("Resize", x, None, scales, mode="nearest")

    def model(self, parts: Parts) -> Any:
        visual = self.graph.input("faces", ["frames", 6, SIDE, SIDE])
        speech = self.graph.input("sound", ["frames", *SPEECH_SHAPE])
        drawn = parts(self, visual, self.conv(speech, SPEECH_SHAPE[0], 2))
        return self.graph.model(drawn, "drawn", ["frames", 3, SIDE, SIDE])


def resized(hand: Hand, visual: Value, speech: Value) -> Value:
    return hand.conv(hand.join(hand.double(hand.conv(visual, 6, 8, 4), 4), speech), 10, 3)


def read_before_and_after_relu(hand: Hand, visual: Value, speech: Value) -> Value:
    x = hand.conv(visual, 6, 4)
    return hand.conv(hand.join(x, hand.graph.op("Relu", x), speech), 10, 3)


def read_after_relu(hand: Hand, visual: Value, speech: Value) -> Value:
    return hand.conv(hand.join(hand.graph.op("Relu", hand.conv(visual, 6, 4)), speech), 6, 3)


def read_alone_and_in_concat(hand: Hand, visual: Value, speech: Value) -> Value:
    x, y = hand.conv(visual, 6, 4), hand.conv(visual, 6, 1)
    return hand.conv(hand.join(hand.join(x, y), hand.conv(hand.join(x, speech), 6, 1)), 6, 3)


def quantised(hand: Hand, visual: Value, speech: Value) -> Value:
    x = hand.conv(visual, 6, 4)
    zero = hand.graph.weight32(np.array(7, np.uint8))
    small = hand.graph.op("QuantizeLinear", x, 0.02, zero)
    return hand.conv(hand.join(hand.graph.op("DequantizeLinear", small, 0.02, zero), speech), 6, 3)


def size_of_a_skip(hand: Hand, visual: Value, speech: Value) -> Value:
    """The size is a full-size tensor's, of which nothing else is needed."""
    full = hand.conv(visual, 6, 4)
    small = hand.join(
        hand.conv(full, 4, 8, 4), hand.graph.op("AveragePool", speech, kernel_shape=[4, 4], strides=[4, 4])
    )
    front = hand.graph.cut(hand.graph.op("Shape", small), 0, 0, 2)
    sizes = hand.graph.op("Concat", front, hand.graph.cut(hand.graph.op("Shape", full), 0, 2, 4), axis=0)
    return hand.conv(hand.graph.op("Resize", small, None, None, sizes, mode="nearest"), 10, 3)


def roi_at_the_end(hand: Hand, visual: Value, speech: Value) -> Value:
    return hand.conv(hand.join(hand.conv(visual, 6, 2), speech), 4, 3) + hand.graph.cut(visual, 1, 0, 3)


@pytest.mark.parametrize(
    ("parts", "kept", "needs_visual"),
    [
        (resized, [((8, 4, 4), "float32")], False),
        (read_before_and_after_relu, [((4, 16, 16), "float32")], False),
        (read_after_relu, [((4, 16, 16), "float32")], False),
        (read_alone_and_in_concat, [((4, 16, 16), "float32"), ((1, 16, 16), "float32")], False),
        (quantised, [((4, 16, 16), "uint8")], False),
        (size_of_a_skip, [((8, 4, 4), "float32")], False),
        (roi_at_the_end, [((2, 16, 16), "float32")], True),
    ],
)
def test_what_is_kept(parts: Parts, kept: list[tuple[tuple[int, ...], str]], needs_visual: bool) -> None:
    model = Hand().model(parts)
    cut = split(model, least_saving=0)
    assert isinstance(cut, Split)
    assert [(spec.frame_shape, spec.dtype.name) for spec in cut.features] == kept
    assert cut.needs_visual == needs_visual
    relus = sum(node.op_type == "Relu" for node in cut.rest.graph.node)
    assert relus == (parts is read_before_and_after_relu)
    given_inputs = inputs(model, 2)
    (wanted,) = run(model, **given_inputs).values()
    assert np.abs(both(cut, given_inputs) - wanted).max() <= FLOAT32_TOLERANCE


def test_costs_of_the_parts() -> None:
    """Counted by hand: what each operator reads and writes, without weights."""
    model = Hand().model(read_after_relu)
    cut = split(model, least_saving=0)
    assert isinstance(cut, Split)
    plane = 4 * SIDE * SIDE
    speech = 4 * int(np.prod(SPEECH_SHAPE)) + 2 * plane
    assert cut.source_cost == Cost(SIDE * SIDE * 9 * 6 * 4, (6 + 4 + 4 + 4) * plane)
    rest = speech + (4 + 2 + 6) * plane + (6 + 3) * plane + 2 * 3 * plane
    assert cut.rest_cost == Cost(SIDE * SIDE * 9 * (32 * 2 + 6 * 3), rest)
    assert cut.whole_cost.activation_bytes == cut.source_cost.activation_bytes + rest


def test_more_worth_is_asked_of_a_byte() -> None:
    """The wide tensor is made again of the narrow one before it, then of the picture."""

    def narrow_then_wide(hand: Hand, visual: Value, speech: Value) -> Value:
        x = hand.conv(hand.conv(hand.conv(visual, 6, 16), 16, 2), 2, 16)
        return hand.conv(hand.join(x, speech), 18, 3)

    model = Hand().model(narrow_then_wide)
    found = [split(model, worth=worth, least_saving=0) for worth in (1, 8, 1000)]
    kept = [[spec.frame_shape[0] for spec in cut.features] for cut in found if isinstance(cut, Split)]
    assert kept == [[16], [2]]
    assert isinstance(found[2], NotSplit)


def test_what_a_branch_reads_is_kept_for_it() -> None:
    """An If reads tensors around it without naming them among its inputs."""
    model = Hand().model(read_after_relu)
    (joined,) = (node for node in model.graph.node if node.op_type == "Concat")
    (skip,) = (name for name in joined.input if name.startswith("relu"))
    make, kind = onnx.helper.make_node, onnx.TensorProto.FLOAT
    branches = {
        name: onnx.helper.make_graph(
            [make(operator, [skip] * count, ["chosen"])],
            name,
            [],
            [onnx.helper.make_tensor_value_info("chosen", kind, ["frames", 4, SIDE, SIDE])],
        )
        for name, operator, count in (("then_branch", "Neg", 1), ("else_branch", "Add", 2))
    }
    half = onnx.numpy_helper.from_array(np.array(0.5, np.float32), "half")
    model.graph.initializer.append(half)
    loud = [
        make("ReduceMax", ["sound"], ["loudest"], keepdims=0),
        make("Greater", ["loudest", "half"], ["loud"]),
        make("If", ["loud"], ["branched"], **branches),
    ]
    joined.input[list(joined.input).index(skip)] = "branched"
    nodes = list(model.graph.node)
    place = nodes.index(joined)
    del model.graph.node[:]
    model.graph.node.extend([*nodes[:place], *loud, *nodes[place:]])
    cut = split(model, least_saving=0)
    assert isinstance(cut, Split)
    assert [spec.name for spec in cut.features] == [skip]
    for loudness in (0.1, 1):
        given_inputs = inputs(model, 2)
        given_inputs["sound"] *= np.float32(loudness)
        (wanted,) = run(model, **given_inputs).values()
        assert np.abs(both(cut, given_inputs) - wanted).max() <= FLOAT32_TOLERANCE


def test_models_that_are_left_whole() -> None:
    def random(hand: Hand, visual: Value, speech: Value) -> Value:
        x = hand.conv(visual, 6, 3)
        return x + speech.graph.op("RandomNormalLike", x) + hand.graph.cut(speech, 1, 0, 1)

    def deaf(hand: Hand, visual: Value, speech: Value) -> Value:
        return hand.conv(visual, 6, 3)

    def said(model: Any) -> str:
        cut = split(model)
        assert isinstance(cut, NotSplit)
        return cut.reason

    assert said(tiny_model(32)) == "nothing that depends on the source frame alone is worth keeping"
    assert said(Hand().model(random)) == "it draws random numbers (RandomNormalLike)"
    assert said(Hand().model(deaf)) == "what it draws does not depend on the speech"
    assert "of its work depends on the source frame alone" in said(Hand().model(little))


def little(hand: Hand, visual: Value, speech: Value) -> Value:
    small = hand.conv(visual, 6, 1, 4)
    wide = hand.conv(hand.conv(speech, 2, 64), 64, 64)
    return hand.conv(hand.join(hand.double(small, 4), wide), 65, 3)


def test_without_the_onnx_package(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model(32)
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(GpupipeError, match=r"pip install 'gpupipe\[optimize\]'"):
        split(model)


def test_files(tmp_path: Path) -> None:
    model = Hand().model(resized)
    cut = split(model, least_saving=0)
    assert isinstance(cut, Split)
    nets = cut.write(tmp_path)
    written = [net.file.read_bytes() for net in nets]
    assert [net.file.read_bytes() for net in cut.write(tmp_path)] == written
    source, rest = nets
    assert (source.kept_bytes, rest.kept_bytes) == (8 * 4 * 4 * 4,) * 2
    for net in nets:
        onnx.checker.check_model(onnx.load(net.file), full_check=True)
        session = onnxruntime.InferenceSession(str(net.file), providers=["CPUExecutionProvider"])
        for specs, values in ((net.inputs, session.get_inputs()), (net.outputs, session.get_outputs())):
            assert {spec.name: list(spec.shape[1:]) for spec in specs} == {v.name: v.shape[1:] for v in values}
            assert all(isinstance(value.shape[0], str) for value in values)
    (kept,) = source.outputs
    assert [spec.place for spec in rest.inputs if spec.name == kept.name] == ["frame"]
