"""What a lip-sync model takes and gives: names, sizes and type, and the shapes that follow."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from gpupipe.errors import InferenceError
from gpupipe.geometry import SPEECH_SHAPE, CropLayout

DTYPES: dict[str, np.dtype[Any]] = {"tensor(float)": np.dtype(np.float32), "tensor(float16)": np.dtype(np.float16)}

PRECISION_KEY = "gpupipe.precision"
"""The entry of a model's metadata that says in which precision gpupipe has made it: fp32, fp16 or int8."""


def model_shapes(layout: CropLayout, batch: int) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
    """The shapes of `visual`, `audio` and `prediction`: what a model reads and writes for a batch."""
    size = layout.model_size
    return (batch, 6, size, size), (batch, *SPEECH_SHAPE), (batch, 3, size, size)


def precision_of(session: Any) -> str | None:
    """What gpupipe has made a model in, as its metadata say; None of any other model."""
    found: str | None = session.get_modelmeta().custom_metadata_map.get(PRECISION_KEY)
    return found


class Signature:
    """The names, sizes and type of a lip-sync model's inputs and output.

    Attributes:
        path: the ONNX file.
        visual, audio, prediction: names.
        size: pixels along each side, or None if left open.
        batch: frames in a batch, or None if left open.
        dtype: float32 or float16.
    """

    def __init__(self, path: Path, session: Any) -> None:
        self.path = path
        inputs, outputs = session.get_inputs(), session.get_outputs()

        def wrong(what: str) -> InferenceError:
            found = ", ".join(f"{node.name}{list(node.shape)} {node.type}" for node in (*inputs, *outputs))
            return InferenceError(
                f"is no lip-sync model: {what}",
                file=path,
                field="model",
                value=found,
                remedy="give one with inputs [B,6,S,S] and [B,32,16,16] and one output [B,3,S,S]",
            )

        if len(inputs) != 2 or len(outputs) != 1:
            raise wrong(f"{len(inputs)} inputs and {len(outputs)} outputs instead of 2 and 1")
        visual = [node for node in inputs if len(node.shape) == 4 and node.shape[1] == 6]
        if len(visual) != 1:
            raise wrong("not exactly one input with 6 channels")
        (audio,) = (node for node in inputs if node is not visual[0])
        nodes = (visual[0], audio, outputs[0])
        for node, shape in zip(nodes, ((6, None, None), SPEECH_SHAPE, (3, None, None)), strict=True):
            if len(node.shape) != 4 or any(
                isinstance(got, int) and want is not None and got != want
                for got, want in zip(node.shape[1:], shape, strict=True)
            ):
                raise wrong(f"{node.name} has another shape")
        if len({node.type for node in nodes}) != 1 or visual[0].type not in DTYPES:
            raise wrong("inputs and output are not all float32 or all float16")
        sizes = {side for node in (visual[0], outputs[0]) for side in node.shape[2:] if isinstance(side, int)}
        if len(sizes) > 1:
            raise wrong("images are not square, or differ in size")
        batches = {node.shape[0] for node in nodes if isinstance(node.shape[0], int)}
        if len(batches) > 1:
            raise wrong("inputs and output differ in batch size")
        self.visual, self.audio, self.prediction = (node.name for node in nodes)
        self.size: int | None = sizes.pop() if sizes else None
        self.batch: int | None = batches.pop() if batches else None
        self.dtype: np.dtype[Any] = DTYPES[visual[0].type]

    def describe(self) -> dict[str, Any]:
        """The same as JSON values."""
        return {
            "inputs": [self.visual, self.audio],
            "output": self.prediction,
            "size": self.size,
            "batch": self.batch,
            "dtype": self.dtype.name,
        }

    def check_size(self, layout: CropLayout) -> None:
        """Raise an InferenceError if the model does not fit a character's crops."""
        if self.size not in (None, layout.model_size):
            raise InferenceError(
                f"the model is for {self.size}x{self.size} images, the crops "
                f"({layout.crop_size}x{layout.crop_size}) hold {layout.model_size}",
                file=self.path,
                field="model",
                remedy="use the model that belongs to the character",
            )

    def shapes(self, batch: int) -> dict[str, tuple[int, ...]]:
        """The shape of each input for batches of `batch` frames."""
        if self.size is None:
            raise InferenceError(
                "the model leaves its image size open, which TensorRT cannot build for",
                field="--provider",
                value="tensorrt",
                remedy="export it with a fixed size, or use --provider cuda",
            )
        return {self.visual: (batch, 6, self.size, self.size), self.audio: (batch, *SPEECH_SHAPE)}
