"""Random lip-sync models: a visual encoder, an audio encoder, joined at random places of a decoder with skips.

Written with nothing but names of operators, as exporters write them: shapes that are computed in the graph, pads that
do nothing, sizes taken from skips.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from hypothesis import strategies as st

from gpupipe.demo.graph import Dtype, Graph, Value
from gpupipe.geometry import SPEECH_SHAPE

Join = Literal["concat", "add", "none"]
Up = Literal["linear", "nearest", "sizes", "transposed"]
Act = Literal["relu", "leaky", "swish", "clip"]


@dataclass(frozen=True)
class Recipe:
    """What a model is made of.

    Attributes:
        cells: side of the bottleneck; the images have `cells * 2 ** len(widths)`.
        widths: channels after each halving.
        first: channels at full size.
        skips: for each size, the largest last, how it joins the decoder.
        ups: how the decoder doubles.
        joins: decoder steps at which the speech is joined once more.
        roi_at_end: whether the picture goes straight to the end too.
        pads: whether the decoder fits what it has doubled to the skip, with shapes that it computes.
        expand_like: whose shape the speech is repeated to: a skip's, or the visual input's.
        batch_of_speech: whether the visual encoder takes its batch from the speech.
    """

    cells: int
    widths: tuple[int, ...]
    first: int
    skips: tuple[Join, ...]
    ups: tuple[Up, ...]
    joins: frozenset[int]
    activation: Act
    batch_norm: bool
    residual: bool
    dtype: Dtype = "float32"
    roi_at_end: bool = False
    pads: bool = False
    expand_like: Literal["skip", "visual"] = "skip"
    batch_of_speech: bool = False
    batch: int | None = None
    seed: int = field(default=0, compare=False)

    @property
    def size(self) -> int:
        """Side of the images."""
        return self.cells << len(self.widths)


@st.composite
def recipes(draw: st.DrawFn, dtype: Dtype = "float32") -> Recipe:
    """Models of both families' forms (five halvings and four), scaled down, and of fewer."""
    depth = draw(st.integers(1, 5))
    joins: list[Join] = ["concat", "add", "none"]
    ups: list[Up] = ["linear", "nearest", "sizes", "transposed"]
    return Recipe(
        cells=draw(st.integers(1, 2) if depth > 3 else st.integers(1, 5)),
        widths=tuple(draw(st.lists(st.integers(2, 9), min_size=depth, max_size=depth))),
        first=draw(st.integers(2, 8)),
        skips=tuple(draw(st.lists(st.sampled_from(joins), min_size=depth, max_size=depth))),
        ups=tuple(draw(st.lists(st.sampled_from(ups), min_size=depth, max_size=depth))),
        joins=draw(st.frozensets(st.integers(0, depth - 1))),
        activation=draw(st.sampled_from(["relu", "leaky", "swish", "clip"])),
        batch_norm=draw(st.booleans()),
        residual=draw(st.booleans()),
        dtype=dtype,
        roi_at_end=draw(st.booleans()),
        pads=draw(st.booleans()),
        expand_like=draw(st.sampled_from(["skip", "visual"])),
        batch_of_speech=draw(st.booleans()),
        batch=draw(st.sampled_from([None, None, 1, 3])),
        seed=draw(st.integers(0, 1000)),
    )


class Builder:
    """Adds a recipe's blocks to a graph."""

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe
        self.graph = Graph("unet", recipe.dtype)
        self.random = np.random.default_rng(recipe.seed)

    def conv(self, x: Value, into: int, out: int, kernel: int = 3, stride: int = 1, pad: int | None = None) -> Value:
        weights = self.random.normal(0, (1.5 / (into * kernel * kernel)) ** 0.5, (out, into, kernel, kernel))
        pads = [kernel // 2 if pad is None else pad] * 4
        x = self.graph.op("Conv", x, weights, kernel_shape=[kernel] * 2, strides=[stride] * 2, pads=pads)
        if self.recipe.batch_norm:
            values = (
                self.random.uniform(0.9, 1.1, out),
                *self.random.normal(0, 0.1, (2, out)),
                self.random.uniform(0.8, 1.2, out),
            )
            x = self.graph.op("BatchNormalization", x, *values)
        return x

    def activate(self, x: Value) -> Value:
        match self.recipe.activation:
            case "relu":
                return self.graph.op("Relu", x)
            case "leaky":
                return self.graph.op("LeakyRelu", x, alpha=0.1)
            case "swish":
                return self.graph.op("Sigmoid", x) * x
        return x.clip(0.0, 6.0)

    def block(self, x: Value, into: int, out: int, stride: int = 1) -> Value:
        x = self.activate(self.conv(x, into, out, stride=stride))
        y = self.conv(x, out, out, kernel=1)
        return self.activate(x + y if self.recipe.residual else y)

    def sides(self, x: Value) -> Value:
        """Height and width, by a chain of Shape and Slice."""
        return self.graph.cut(self.graph.op("Shape", x), 0, 2, 4)

    def double(self, x: Value, channels: int, how: Up, like: Value) -> Value:
        if how == "transposed":
            weights = self.random.normal(0, (1 / channels) ** 0.5, (channels, channels, 2, 2))
            return self.graph.op("ConvTranspose", x, weights, kernel_shape=[2, 2], strides=[2, 2])
        if how == "sizes":
            front = self.graph.cut(self.graph.op("Shape", x), 0, 0, 2)
            sizes = self.graph.op("Concat", front, self.sides(like), axis=0)
            return self.graph.op("Resize", x, None, None, sizes, mode="nearest")
        scales = self.graph.weight32(np.array([1, 1, 2, 2], np.float32))
        more = {"coordinate_transformation_mode": "align_corners"} if how == "linear" else {}
        return self.graph.op("Resize", x, None, scales, mode=how, **more)

    def fit(self, x: Value, like: Value) -> Value:
        """A Pad of what is missing: nothing, but the graph does not know that."""
        missing = self.sides(like) - self.sides(x)
        half = self.graph.op("Div", missing, np.array(2))
        zeros = np.array([0, 0])
        pads = self.graph.op("Concat", zeros, half, zeros, missing - half, axis=0)
        return self.graph.op("Pad", x, pads)

    def spread(self, speech: Value, channels: int, like: Value) -> Value:
        """One number a channel of the speech, repeated to the size of another tensor."""
        mean = self.conv(self.graph.op("GlobalAveragePool", speech), SPEECH_SHAPE[0], channels, kernel=1)
        front = self.graph.cut(self.graph.op("Shape", mean), 0, 0, 2)
        return self.graph.op("Expand", mean, self.graph.op("Concat", front, self.sides(like), axis=0))

    def model(self) -> Any:
        """The `onnx.ModelProto`."""
        recipe, graph, batch = self.recipe, self.graph, self.recipe.batch or "frames"
        visual = graph.input("faces", [batch, 6, recipe.size, recipe.size])
        speech = graph.input("sound", [batch, *SPEECH_SHAPE])
        x = visual - 0.5
        if recipe.batch_of_speech:
            first = graph.cut(graph.op("Shape", speech), 0, 0, 1)
            x = graph.op("Reshape", x, graph.op("Concat", first, graph.cut(graph.op("Shape", x), 0, 1, 4), axis=0))
        x = self.block(x, 6, recipe.first)
        skips, channels = [(x, recipe.first)], recipe.first
        for width in recipe.widths:
            x = self.block(x, channels, width, stride=2)
            skips.append((x, width))
            channels = width
        heard = self.activate(self.conv(speech, SPEECH_SHAPE[0], 4, kernel=SPEECH_SHAPE[1] - recipe.cells + 1, pad=0))
        x = self.block(graph.op("Concat", x, heard, axis=1), channels + 4, 6)
        channels = 6
        steps = zip(reversed(skips[:-1]), recipe.skips, recipe.ups, strict=True)
        for step, ((skip, width), join, up) in enumerate(steps):
            x = self.double(x, channels, up, skip)
            if recipe.pads:
                x = self.fit(x, skip)
            if join == "concat":
                x, channels = graph.op("Concat", x, skip, axis=1), channels + width
            elif join == "add":
                x = self.conv(x, channels, width, kernel=1) + skip
                channels = width
            if step in recipe.joins:
                last = step == len(recipe.widths) - 1
                like = visual if last and recipe.expand_like == "visual" else skip
                x = x * self.spread(speech, channels, like)
            x = self.block(x, channels, 5)
            channels = 5
        y = self.conv(x, channels, 3, kernel=1)
        if recipe.roi_at_end:
            y = y + graph.cut(visual, 1, 0, 3)
        return graph.model(graph.op("Sigmoid", y), "drawn", [batch, 3, recipe.size, recipe.size])


def unet(recipe: Recipe) -> Any:
    """A model of a recipe, an `onnx.ModelProto`."""
    return Builder(recipe).model()
