"""The lip-sync model: what it takes and gives, and running it on buffers that are bound once."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from gpupipe.errors import InferenceError, OptionError, reason
from gpupipe.geometry import SPEECH_SHAPE
from gpupipe.model.runtime import SessionOptions, failures, open_session, raise_if_out_of_memory, runtime

DTYPES: dict[str, np.dtype[Any]] = {"tensor(float)": np.dtype(np.float32), "tensor(float16)": np.dtype(np.float16)}


class Model:
    """A lip-sync model, opened.

    On the CPU a batch is run frame by frame, several frames at a time with few threads each: as fast as one run of
    the whole batch or faster (nothing in the graph is left to one thread), with a fraction of its activations.

    Args:
        path: the ONNX file.
        options: how to run it; `threads` is the number for all runs together.
        batch: frames in a batch.
        runs: frames run at a time on the CPU; 0 picks one per thread, 4 at most.

    Attributes:
        size: pixels along each side of the model's images, or None if the file leaves it open.
        dtype: of inputs and output.
        options: how it is run.
        provider: the execution provider in use.
        runs: frames run at a time.

    Raises:
        InferenceError: the file cannot be opened, or has other inputs or outputs than a lip-sync model.
    """

    def __init__(self, path: Path, options: SessionOptions, *, batch: int, runs: int = 0) -> None:
        self.path, self.options = path, options
        on_cpu = options.provider == "cpu"
        self.runs = min(runs or 4, options.threads, batch) if on_cpu else 1
        self.provider = options.provider
        signature = Signature(path, open_session(path, SessionOptions())) if options.provider == "tensorrt" else None
        if signature is not None:
            options = replace(options, profile=signature.shapes(batch))
        self._session = open_session(path, replace(options, threads=max(1, options.threads // self.runs)))
        self.signature = signature or Signature(path, self._session)
        self.size, self.dtype = self.signature.size, self.signature.dtype
        self.chunk = self.signature.batch or (1 if on_cpu else batch)
        if batch % self.chunk:
            raise OptionError(
                f"the model takes batches of {self.chunk} only",
                file=path,
                field="--batch",
                value=batch,
                remedy=f"use a multiple of {self.chunk}",
            )
        self._pool = ThreadPoolExecutor(self.runs, "infer") if self.runs > 1 else None
        self._run_options = runtime().RunOptions()
        self._run_options.log_severity_level = 4  # what fails is raised, and told once
        if not on_cpu:
            # The stream is ours and the caller waits for it: a wait inside every run would stop the overlap.
            self._run_options.add_run_config_entry("disable_synchronize_execution_providers", "1")

    def bind(self, visual: Any, audio: Any, prediction: Any) -> Sequence[Any]:
        """Bind a slot's buffers, which must outlive the binding.

        Args:
            visual: `[B, 6, S, S]`, NumPy (the CPU provider) or CuPy (the others), C-contiguous, of the model's dtype.
            audio: `[B, 32, 16, 16]`, likewise.
            prediction: `[B, 3, S, S]`, likewise.

        Returns:
            What `run` takes.
        """
        bindings = []
        for start in range(0, len(visual), self.chunk):
            part = slice(start, start + self.chunk)
            binding = self._session.io_binding()
            for name, array in ((self.signature.visual, visual[part]), (self.signature.audio, audio[part])):
                binding.bind_input(name, *_place(array))
            binding.bind_output(self.signature.prediction, *_place(prediction[part]))
            bindings.append(binding)
        return bindings

    def run(self, bindings: Sequence[Any]) -> None:
        """Run the model on bound buffers; on a GPU this queues the work on the stream and does not wait.

        Raises:
            InferenceError: the model failed.
            DeviceMemoryError: the GPU's memory does not suffice.
        """
        try:
            if self._pool is None:
                for binding in bindings:
                    self._session.run_with_iobinding(binding, self._run_options)
            else:
                list(self._pool.map(lambda b: self._session.run_with_iobinding(b, self._run_options), bindings))
        except failures() as error:
            raise_if_out_of_memory(error, self.options, self.path)
            raise InferenceError(
                f"the model failed: {reason(error)}", file=self.path, remedy="export it again"
            ) from error

    def close(self) -> None:
        """Stop the threads and release the session."""
        if self._pool:
            self._pool.shutdown()
        self._session = None


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


def _place(array: Any) -> tuple[str, int, Any, tuple[int, ...], int]:
    """Device, device number, element type, shape and address of an array, as `bind_input` takes them."""
    if isinstance(array, np.ndarray):
        return "cpu", 0, array.dtype.type, array.shape, array.ctypes.data
    return "cuda", int(array.device.id), np.dtype(array.dtype).type, tuple(array.shape), int(array.data.ptr)
