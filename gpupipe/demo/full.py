"""The demo's full lip-sync model: the structure and cost of the published family, with weights made to be watchable.

Nearly all weights are random. A few channels are wired by hand so that the picture stays recognisable and talks:
the roi passes through the skip of full resolution to the output, and the loudness of the speech, averaged over one
speech channel, darkens the mouth. Convolutions do not know where they are; the place of the mouth comes from shifting
maps of ones against the zero padding, until only the mouth's cells of the 10 × 10 map are left.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gpupipe.demo.graph import Dtype, Graph, Value
from gpupipe.geometry import SPEECH_BEFORE, SPEECH_SHAPE

FULL_SIZE = 10 * 2**5
"""Side of the full model's roi in pixels: five halvings lead to the 10 x 10 cells that the speech is joined to."""

_Array = NDArray[np.float64]
_EPSILON = 1e-5

_CENTRE, _DOWN, _UP, _RIGHT, _LEFT = (4, 1, 7, 3, 5)
"""Taps of a 3 by 3 kernel, in reading order; a map shifts down when the tap above is read."""

# Channels of the wired speech, from the stride-2 convolution on: the loudness, then the four sides of the mouth.
_LOUD, _SIDES = 0, (1, 2, 3, 4)
# In the final 16 channels: the roi's blue, green and red, then the hole of the mouth.
_HOLE = 3
# A hole opens where loudness * place exceeds the first number, and is complete after 1 / the second.
_HOLE_FROM, _HOLE_GAIN = 0.30, 7.0
_HOLE_COLOUR = (-3.3, -3.3, -3.0)


def _kernel(tap: int) -> _Array:
    kernel = np.zeros(9)
    kernel[tap] = 1
    return kernel.reshape(3, 3)


_BOX = np.full((3, 3), 1 / 9)
_CORNERS = np.array([[0, 0, 0], [0.5, 1.0, 0.5], [0, 0, 0]])


@dataclass(frozen=True)
class _Wire:
    """One hidden channel set by hand: relu(sum of weighted inputs + bias), a 3 × 3 kernel, then weighted outputs."""

    inputs: dict[int, float]
    outputs: dict[int, float]
    bias: float = 0.0
    kernel: _Array = field(default_factory=lambda: _kernel(_CENTRE))


def _move(source: int, target: int, kernel: _Array | None = None) -> _Wire:
    """The wire that copies a channel, through `kernel`."""
    return _Wire({source: 1.0}, {target: 1.0}, kernel=_kernel(_CENTRE) if kernel is None else kernel)


def _filter_in_place(channel: int, kernel: _Array) -> list[_Wire]:
    """The wires that replace a channel of a residual block by its filtered self: x + (filtered - x)."""
    return [_move(channel, channel, kernel), _Wire({channel: 1.0}, {channel: -1.0})]


class _Net:
    """The blocks of the network, added to a graph with seeded weights."""

    def __init__(self, graph: Graph, seed: int) -> None:
        self.graph = graph
        self.random = np.random.default_rng(seed)

    def batch_norm(self, x: Value, channels: int, fixed: dict[int, float]) -> Value:
        """BatchNormalization; channels in `fixed` only get that bias."""
        scale = self.random.uniform(0.9, 1.1, channels)
        bias = self.random.normal(0, 0.1, channels)
        mean = self.random.normal(0, 0.1, channels)
        variance = self.random.uniform(0.8, 1.2, channels)
        for channel, value in fixed.items():
            scale[channel], bias[channel], mean[channel], variance[channel] = 1, value, 0, 1 - _EPSILON
        return self.graph.op("BatchNormalization", x, scale, bias, mean, variance, epsilon=_EPSILON)

    def conv(self, x: Value, weights: _Array, *, stride: int = 1, pad: int = 0, group: int = 1) -> Value:
        """Convolution without bias, `weights` `[out, in / group, k, k]`."""
        size = weights.shape[2]
        return self.graph.op(
            "Conv", x, weights, kernel_shape=[size, size], strides=[stride] * 2, pads=[pad] * 4, group=group
        )

    def relu(self, x: Value) -> Value:
        return self.graph.op("Relu", x)

    def weights(self, out: int, into: int, size: int, gain: float) -> _Array:
        """Random weights that keep the variance of their input, times `gain`."""
        return self.random.normal(0, np.sqrt(gain / (into * size * size)), (out, into, size, size))

    def block(
        self, x: Value, into: int, out: int, *, stride: int = 1, residual: bool = False, wires: Iterable[_Wire] = ()
    ) -> Value:
        """Inverted residual: 1×1 to twice the channels, BN, ReLU, 3×3 depthwise, BN, ReLU, 1×1, BN."""
        wires = list(wires)
        hidden = 2 * into
        expand = self.weights(hidden, into, 1, 2.0)
        depthwise = self.weights(hidden, 1, 3, 2.0)
        # A residual block adds to what is there: less of it, or the values grow from block to block.
        project = self.weights(out, hidden, 1, 0.2 if residual else 1.0)
        wired = {channel for wire in wires for channel in wire.outputs}
        project[list(wired)] = 0
        for unit, wire in enumerate(wires):
            expand[unit] = 0
            for channel, weight in wire.inputs.items():
                expand[unit, channel] = weight
            depthwise[unit, 0] = wire.kernel
            project[:, unit] = 0
            for channel, weight in wire.outputs.items():
                project[channel, unit] = weight
        y = self.relu(self.batch_norm(self.conv(x, expand), hidden, {u: w.bias for u, w in enumerate(wires)}))
        y = self.conv(y, depthwise, stride=stride, pad=1, group=hidden)
        y = self.relu(self.batch_norm(y, hidden, dict.fromkeys(range(len(wires)), 0.0)))
        y = self.batch_norm(self.conv(y, project), out, dict.fromkeys(wired, 0.0))
        return x + y if residual else y

    def double(
        self,
        x: Value,
        into: int,
        out: int,
        *,
        stride: int = 1,
        first: Iterable[_Wire] = (),
        second: Iterable[_Wire] = (),
    ) -> Value:
        """A block that changes the channels, then a residual one."""
        return self.block(self.block(x, into, out, stride=stride, wires=first), out, out, residual=True, wires=second)

    def conv_relu(
        self, x: Value, into: int, out: int, wired: Sequence[tuple[int, _Array, float]], *, stride: int, pad: int
    ) -> Value:
        """3×3 convolution, BN, ReLU; `wired` holds, for each of the first channels, its input, kernel and bias."""
        weights = self.weights(out, into, 3, 2.0)
        for channel, (source, kernel, _) in enumerate(wired):
            weights[channel] = 0
            weights[channel, source] = kernel
        fixed = {channel: bias for channel, (_, _, bias) in enumerate(wired)}
        return self.relu(self.batch_norm(self.conv(x, weights, stride=stride, pad=pad), out, fixed))


def _hold(*channels: int) -> list[_Wire]:
    """Keeps a residual block from changing channels: a wire of nothing."""
    return [_Wire({}, {channel: 0.0}) for channel in channels]


def _speech(net: _Net, x: Value) -> Value:
    """`[B, 32, 16, 16]` → `[B, 512, 10, 10]`; channel 0 is the mean loudness, 1 … 4 bound the mouth's place."""
    x = net.block(x, SPEECH_SHAPE[0], 64, wires=[_move(2 * SPEECH_BEFORE, _LOUD, _BOX)])
    x = net.block(x, 64, 128, wires=[_move(_LOUD, _LOUD, _BOX)])
    one = (1, np.zeros((3, 3)), 1.0)
    x = net.conv_relu(x, 128, 256, [(_LOUD, _BOX, 0.0), one], stride=1, pad=1)
    x = net.block(x, 256, 256, residual=True, wires=[*_filter_in_place(_LOUD, _BOX), *_hold(1)])
    # With padding 3, cell p reads 2 p - 3 (the first tap) … 2 p - 1: a first tap leaves cells from 2, a last one to 8.
    sides = [(1, _kernel(tap), 0.0) for tap in (_DOWN, _UP, _RIGHT, _LEFT)]
    x = net.conv_relu(x, 256, 512, [(_LOUD, _BOX, 0.0), *sides], stride=2, pad=3)
    for step in range(2):
        x = net.block(x, 512, 512, residual=True, wires=[*_filter_in_place(_LOUD, _BOX), *_shift_in_place(step)])
    return x


# How many cells each side still moves after the strided convolution: the mouth is row 3, columns 4 and 5.
_SHIFTS = {1: (_DOWN, 1), 2: (_UP, 5), 3: (_RIGHT, 2), 4: (_LEFT, 3)}


def _tap(side: int, step: int) -> int:
    tap, times = _SHIFTS[side]
    return tap if step < times else _CENTRE


def _shift_in_place(step: int) -> list[_Wire]:
    """The wires with which a residual block shifts the four sides by one cell, or holds them."""
    return [wire for side in _SIDES for wire in _filter_in_place(side, _kernel(_tap(side, step)))]


def _picture(net: _Net, features: Value, skips: list[Value]) -> Value:
    """`[B, 1024, 10, 10]` and the skips, smallest first → `[B, 16, S, S]`."""
    shifted = [_move(512 + side, side, _kernel(_tap(side, 2))) for side in _SIDES]
    x = net.double(
        features,
        1024,
        512,
        first=[_move(512 + _LOUD, _LOUD), *shifted],
        second=[*_hold(_LOUD), *_shift_in_place(3)],
    )
    x = net.block(x, 512, 256, wires=[_move(c, c, _kernel(_tap(c, 4))) if c else _move(c, c) for c in (0, *_SIDES)])
    # Loud where all four sides hold, else less than nothing; the kernel adds corners to the mouth.
    gate = _Wire({_LOUD: 1.0, **dict.fromkeys(_SIDES, 16.0)}, {_LOUD: 1.0}, -16.0 * len(_SIDES), _CORNERS)
    x = net.block(x, 256, 256, residual=True, wires=[gate, _Wire({_LOUD: 1.0}, {_LOUD: -1.0})])

    channels = 256
    for skip, out in zip(skips, (128, 64, 32, 32, 16), strict=True):
        scales = np.array([1.0, 1.0, 2.0, 2.0], np.float32)
        up = net.graph.op(
            "Resize", x, None, net.graph.weight32(scales), mode="linear", coordinate_transformation_mode="align_corners"
        )
        x = net.graph.op("Concat", up, skip, axis=1)
        if out != 16:
            x = net.double(x, 2 * channels, out, first=[_move(_LOUD, _LOUD)], second=_hold(_LOUD))
            channels = out
    opening = {_LOUD: _HOLE_GAIN}
    hole = [
        _Wire(opening, {_HOLE: 1.0}, bias=-_HOLE_FROM * _HOLE_GAIN),
        _Wire(opening, {_HOLE: -1.0}, bias=-_HOLE_FROM * _HOLE_GAIN - 1),
    ]
    roi = [_move(channels + plane, plane) for plane in range(3)]
    return net.double(x, 2 * channels, 16, first=[*roi, *hole], second=[*_logit(), *_hold(_HOLE)])


def _logit() -> list[_Wire]:
    """The wires that bend the roi's planes so that the final sigmoid(4 (x - 0.5)) gives them back nearly unchanged."""
    wires = []
    for plane in range(3):
        for knee, slope in ((0.72, 0.75), (0.92, 4.2)):
            wires.append(_Wire({plane: 1.0}, {plane: slope}, bias=-knee))
            wires.append(_Wire({plane: -1.0}, {plane: -slope}, bias=1 - knee))
    return wires


def full_model(dtype: Dtype = "float32", seed: int = 7) -> Any:
    """A model with the exact structure and cost of the published one, which leaves the picture recognisable.

    12.2 million parameters and 4.886 billion multiplications a frame; Conv and BatchNormalization are separate nodes,
    as in a plain export.

    Args:
        dtype: of inputs, output and weights.
        seed: of the random weights.

    Returns:
        `onnx.ModelProto` with inputs `input` `[B, 6, S, S]` and `audio` `[B, 32, 16, 16]` and output `output`
        `[B, 3, S, S]`, S = `FULL_SIZE` and B dynamic.

    Raises:
        GpupipeError: the onnx package is not installed.
    """
    size = FULL_SIZE
    graph = Graph("full_lip_sync", dtype)
    net = _Net(graph, seed)
    visual = graph.input("input", ["batch", 6, size, size])
    audio = graph.input("audio", ["batch", *SPEECH_SHAPE])

    x = net.block(visual, 6, 32, wires=[_move(plane, plane) for plane in range(3)])
    skips = [x]
    for into, out in ((32, 32), (32, 64), (64, 128), (128, 256), (256, 512)):
        x = net.double(x, into, out, stride=2)
        skips.insert(0, x)
    x = _picture(net, graph.op("Concat", x, _speech(net, audio), axis=1), skips[1:])

    last = np.random.default_rng(seed + 1).normal(0, 0.01, (3, 16))
    for plane in range(3):
        last[plane, :3] = 0
        last[plane, plane] = 4
        last[plane, _HOLE] = _HOLE_COLOUR[plane]
    y = graph.op("Conv", x, last[:, :, None, None], np.full(3, -2.0), kernel_shape=[1, 1])
    return graph.model(graph.op("Sigmoid", y), "output", ["batch", 3, size, size])
