"""The lip-sync model, opened: run on buffers that are bound once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from gpupipe.errors import InferenceError, OptionError
from gpupipe.model.graphs import REFUSED, Graphs, unsafe_operators, why_not
from gpupipe.model.runner import Runner, Wait, frames_of_a_run, place, runs_at_a_time, threads_of_a_run
from gpupipe.model.runtime import SessionOptions, assigned_nodes, open_session
from gpupipe.model.signature import Signature, precision_of

Bindings = Sequence[Any]
"""What `Model.bind` gives and `Model.run` takes: ONNX Runtime's bindings of one slot's buffers, a run each."""


class Model:
    """A lip-sync model, opened.

    On the CPU a batch is run frame by frame, several frames at a time with few threads each: as fast as one run of
    the whole batch or faster (nothing in the graph is left to one thread), with a fraction of its activations.

    Args:
        path: the ONNX file.
        options: how to run it; `threads` is the number for all runs together.
        batch: the most frames in a batch.
        runs: run at a time on the CPU, whatever the batch; 0 picks one per thread, 4 at most.
        graphs: on a GPU, let runs be captured in CUDA graphs where that is possible.

    Attributes:
        size: pixels along each side of the model's images, or None if the file leaves it open.
        dtype: of inputs and output.
        options: how it is run, and what belongs to it may be.
        provider: the execution provider in use.
        runs: at a time, of a frame each, or of as many as the file is made for.
        nodes: how many nodes of its graph each provider runs, by ONNX Runtime's names; nothing where it does not tell.
        graph_bytes: device memory that a CUDA graph of a slot takes, as far as it was measured.

    Raises:
        InferenceError: the file cannot be opened, or has other inputs or outputs than a lip-sync model.
        OptionError: the batch does not suit it, or the provider.
    """

    def __init__(self, path: Path, options: SessionOptions, *, batch: int, runs: int = 0, graphs: bool = True) -> None:
        self.path, self.options = path, replace(options, graphs=False, nhwc=False)
        on_cpu = options.provider == "cpu"
        if on_cpu and options.tf32:
            raise OptionError(
                "the CPU has no TF32",
                field="--precision",
                value="tf32",
                remedy="use fp32, or int8, or another provider",
            )
        self.runs = runs_at_a_time(options, runs)
        self.provider = options.provider
        signature = Signature(path, open_session(path, SessionOptions())) if options.provider == "tensorrt" else None
        if signature is not None:
            options = replace(options, profile=signature.shapes(batch))
        missing = why_not(options) if graphs else "they were not asked for"
        options = replace(options, graphs=missing is None and not on_cpu)
        try:
            self._session = open_session(path, threads_of_a_run(options, self.runs))
        except InferenceError as error:
            if not options.graphs or REFUSED not in str(error):
                raise
            options, missing = replace(options, graphs=False), "ONNX Runtime finds control flow, or nodes on the CPU"
            self._session = open_session(path, options)
        self.signature = signature or Signature(path, self._session)
        if not on_cpu and precision_of(self._session) == "int8":
            # Quantised for the CPU's kernels: CUDA has none (`quantise`), and TensorRT wants other zero points.
            raise OptionError(
                f"{self.provider} does not run models that are quantised for the CPU",
                file=path,
                field="--precision",
                value="int8",
                remedy="use fp16, or --provider cpu",
            )
        self.size, self.dtype = self.signature.size, self.signature.dtype
        self.chunk = frames_of_a_run(path, options, batch, self.signature.batch)
        self.nodes = {} if on_cpu else assigned_nodes(self._session)
        self._graphs = None if on_cpu else Graphs(self._session, options, missing or unsafe_operators(self._session))
        self._runner = Runner(path, self._session, options, self.runs, self._graphs)
        self.graph_bytes = 0

    def bind(self, visual: Any, audio: Any, prediction: Any) -> Bindings:
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
                binding.bind_input(name, *place(array))
            binding.bind_output(self.signature.prediction, *place(prediction[part]))
            bindings.append(binding)
        return bindings

    def run(self, bindings: Bindings, frames: int) -> None:
        """Run the model on bound buffers; on a GPU this queues the work on the stream and does not wait, but for one
        run of `SETTLING_RUNS`.

        Args:
            bindings: of a slot.
            frames: how many of its first places hold a frame. On the CPU no other is run; on a GPU the batch always
                is, for a new shape would cost a new search.

        Raises:
            InferenceError: the model failed.
            DeviceMemoryError: the GPU's memory does not suffice.
        """
        self._runner.run(self._needed(bindings, frames))

    def start(self, bindings: Bindings, frames: int) -> Wait:
        """Like `run`, but on the CPU too it does not wait: runs of several batches go on side by side.

        Returns:
            What waits for the end, and raises; on a GPU it does nothing.
        """
        if self.provider == "cpu":
            return self._runner.start(self._needed(bindings, frames))
        self.run(bindings, frames)
        return lambda: None

    def _needed(self, bindings: Bindings, frames: int) -> Bindings:
        return bindings[: -(-frames // self.chunk)]

    def capture(self, bindings: Bindings) -> bool:
        """Capture the runs on bound buffers in CUDA graphs, which later runs replay; does nothing where that is not
        possible, and `notes` says why. See `Graphs.capture` for when that is allowed.

        Args:
            bindings: of a slot, whose later runs are in this thread.

        Returns:
            Whether all were captured.
        """
        return self._graphs is not None and self._graphs.capture(bindings)

    @property
    def graphs(self) -> int:
        """How many CUDA graphs there are."""
        return 0 if self._graphs is None else self._graphs.count

    @property
    def notes(self) -> tuple[str, ...]:
        """What is to be said of how a GPU runs it."""
        if self._graphs is None:
            return ()
        if self._graphs.missing is None:
            return ("the model's runs are replayed as CUDA graphs",) if self.graphs else ()
        part = "in part " if self.graphs else ""
        return (f"the model runs {part}without CUDA graphs: {self._graphs.missing}",)

    def close(self) -> None:
        """Stop the threads and release the session."""
        self._runner.close()
        self._session = self._graphs = None
