"""A lip-sync model in two nets, opened: features once for each cached frame, and the rest that reads them in place."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from gpupipe.errors import InferenceError
from gpupipe.gpu.types import Array
from gpupipe.model.features import (
    ALIGNMENT,
    Allocate,
    FeatureRow,
    Gather,
    ResidentFeatures,
    consecutive,
    gather_on_host,
)
from gpupipe.model.graphs import Binding
from gpupipe.model.measured import DTYPES
from gpupipe.model.nets import TensorSpec
from gpupipe.model.runner import Runner, frames_of_a_run, place, runs_at_a_time, threads_of_a_run
from gpupipe.model.runtime import SessionOptions, assigned_nodes, open_session


class _OpenNet:
    """A net, opened for batches of up to `batch` frames."""

    def __init__(self, path: Path, options: SessionOptions, batch: int, runs: int) -> None:
        self.path = path
        self.inputs: dict[str, TensorSpec] = {}
        self.outputs: dict[str, TensorSpec] = {}
        if options.provider == "tensorrt":  # which must be told the shapes before it opens
            self._look(open_session(path, SessionOptions()))
            shapes = {name: (batch, *spec.frame_shape) for name, spec in self.inputs.items()}
            options = replace(options, profile=shapes)
        runs = runs_at_a_time(options, runs)
        session = open_session(path, threads_of_a_run(options, runs))
        self._look(session)
        fixed = next(iter(self.inputs.values())).shape[0]
        self.chunk = frames_of_a_run(path, options, batch, fixed)
        self.nodes = {} if options.provider == "cpu" else assigned_nodes(session)
        self.runner = Runner(path, session, options, runs)

    def _look(self, session: Any) -> None:
        for nodes, specs in ((session.get_inputs(), self.inputs), (session.get_outputs(), self.outputs)):
            for node in nodes:
                if node.type not in DTYPES:
                    raise InferenceError(
                        "is no part of a lip-sync model", file=self.path, value=f"{node.name} {node.type}"
                    )
                shape = tuple(side if isinstance(side, int) else None for side in node.shape)
                specs[node.name] = TensorSpec(node.name, shape, DTYPES[node.type])

    def binding(self, inputs: dict[str, Array], outputs: dict[str, Array]) -> Binding:
        binding = self.runner.session.io_binding()
        for name, array in inputs.items():
            binding.bind_input(name, *place(array))
        for name, array in outputs.items():
            binding.bind_output(name, *place(array))
        return binding


class SourceNet:
    """The net that is run once for each cached frame: visual → features.

    Args:
        path: the ONNX file.
        options: how to run it.
        batch: frames in a batch.
        runs: frames run at a time on the CPU; 0 picks one per thread, 4 at most.

    Attributes:
        visual: what it reads.
        features: what it gives, to stay with the frame.
        nodes: as `Model.nodes`.

    Raises:
        InferenceError: the file cannot be opened, or is no source net.
        OptionError: it takes other batches only.
    """

    def __init__(self, path: Path, options: SessionOptions, *, batch: int, runs: int = 0) -> None:
        self._net = _OpenNet(path, options, batch, runs)
        if len(self._net.inputs) != 1:
            raise InferenceError("is no source net", file=path, value=", ".join(self._net.inputs))
        (self.visual,) = self._net.inputs.values()
        self.features = tuple(replace(spec, place="frame") for spec in self._net.outputs.values())
        self.nodes = self._net.nodes

    def run(self, visual: Array, features: Sequence[Array]) -> None:
        """Make the features of some frames; on a GPU this queues the work on the stream and does not wait.

        On a GPU give as many frames as a batch has, or more: a new number costs a new search. If they are no multiple
        of it, some frames are run twice.

        Args:
            visual: `[n, 6, S, S]`, C-contiguous, which must outlive the work.
            features: for each feature `[n, *frame_shape]`, likewise: `ResidentFeatures.rows`.

        Raises:
            InferenceError: the net failed.
            DeviceMemoryError: the GPU's memory does not suffice.
        """
        count, chunk = len(visual), self._net.chunk
        starts = [min(start, max(0, count - chunk)) for start in range(0, count, chunk)]
        bindings = []
        for part in (slice(start, start + chunk) for start in starts):
            outputs = {spec.name: array[part] for spec, array in zip(self.features, features, strict=True)}
            bindings.append(self._net.binding({self.visual.name: visual[part]}, outputs))
        self._net.runner.run(bindings)

    def close(self) -> None:
        """Stop the threads and release the session."""
        self._net.runner.close()


class RestBinding:
    """One run's buffers: those of a slot, bound for good, and the room for features that must be gathered, if ever."""

    def __init__(self, binding: Binding, room: ResidentFeatures | None) -> None:
        self.binding, self.room = binding, room


class RestNet:
    """The net that is run for every frame shown: features, audio, and visual if it is still needed → prediction.

    Features are read where they lie. On the CPU, where a run is a frame, always; where a run is a batch, if the
    batch's frames are consecutive rows of the same arrays, and the first is aligned. Others are gathered first: on a
    GPU, whose stream keeps runs in order, in one room; on the CPU, where runs go side by side, in one of each binding.

    Args:
        path: the ONNX file.
        source: the source net that it belongs to.
        options: how to run it.
        batch: the most frames in a batch.
        runs: frames run at a time on the CPU; 0 picks one per thread, 4 at most.
        gather: how features are gathered; where they are on a GPU it must be given.
        empty: makes room for gathered features, on the side where features are.

    Attributes:
        audio, prediction: tensors of a slot.
        needs_visual: whether it reads the visual input too.
        room: on a GPU, room for the features of a run; None on the CPU.
        nodes: as `Model.nodes`.
        direct, gathered: runs so far that read features where they lie, and that had them gathered.

    Raises:
        InferenceError: the file cannot be opened, or does not belong to the source net.
        OptionError: it takes other batches only.
    """

    def __init__(
        self,
        path: Path,
        source: SourceNet,
        options: SessionOptions,
        *,
        batch: int,
        runs: int = 0,
        gather: Gather | None = None,
        empty: Allocate = np.empty,
    ) -> None:
        if gather is None and options.provider != "cpu":
            raise ValueError("features on a GPU are gathered there: give a gather")
        self._net = _OpenNet(path, options, batch, runs)
        self._gather, self._empty = gather or gather_on_host, empty
        self.features, self.visual = source.features, source.visual
        self.nodes = self._net.nodes
        inputs, names = self._net.inputs, {spec.name for spec in source.features}
        self.needs_visual = source.visual.name in inputs
        audio = [spec for name, spec in inputs.items() if name not in names | {source.visual.name}]
        fitting = all(
            spec.name in inputs and inputs[spec.name].frame_bytes == spec.frame_bytes for spec in source.features
        )
        if len(audio) != 1 or len(self._net.outputs) != 1 or not fitting:
            raise InferenceError(
                "does not belong to the source net beside it", file=path, value=", ".join(inputs), remedy="remove both"
            )
        (self.audio,), (self.prediction,) = audio, self._net.outputs.values()
        on_cpu = options.provider == "cpu"
        self._align = 1 if on_cpu else ALIGNMENT
        self.room = None if on_cpu else self._new_room()
        self.direct = self.gathered = 0

    def _new_room(self) -> ResidentFeatures:
        return ResidentFeatures.allocate(self.features, self._net.chunk, self._empty)

    def bind(self, audio: Array, prediction: Array, visual: Array | None = None) -> list[RestBinding]:
        """Bind a slot's buffers, which must outlive the bindings.

        Args:
            audio: `[B, 32, 16, 16]`, C-contiguous.
            prediction: `[B, 3, S, S]`, likewise.
            visual: `[B, 6, S, S]`, likewise; None unless it is needed.

        Returns:
            A binding for each run: each frame on the CPU, the batch on a GPU. A binding is for one run at a time.
        """
        chunk, bound = self._net.chunk, []
        for start in range(0, len(audio), chunk):
            part = slice(start, start + chunk)
            inputs = {self.audio.name: audio[part]}
            if self.needs_visual:
                assert visual is not None, "this net still reads the visual input"
                inputs[self.visual.name] = visual[part]
            binding = self._net.binding(inputs, {self.prediction.name: prediction[part]})
            bound.append(RestBinding(binding, self.room or (self._new_room() if chunk > 1 else None)))
        return bound

    def run(self, bindings: Sequence[RestBinding], rows: Sequence[FeatureRow]) -> None:
        """Run the net; on a GPU this queues the work on the stream and does not wait.

        Args:
            bindings: of a slot, or those of them that have a frame with features.
            rows: where the features of their frames are, in the order of their places; if there are fewer of them
                than places, the last places hold no frame. The features must outlive the work.

        Raises:
            InferenceError: the net failed.
            DeviceMemoryError: the GPU's memory does not suffice.
        """
        chunk = self._net.chunk
        needed = bindings[: -(-len(rows) // chunk)]
        starts = [consecutive(rows[chunk * n : chunk * (n + 1)], chunk, self._align) for n in range(len(needed))]
        self.direct += sum(start is not None for start in starts)
        self.gathered += sum(start is None for start in starts)

        def before(number: int) -> None:
            own, bound, start = rows[chunk * number : chunk * (number + 1)], needed[number], starts[number]
            if start is not None:
                own[0].features.bind(bound.binding, start, chunk)
                return
            assert bound.room is not None, "frame by frame on the CPU nothing is gathered"
            self._gather(own, bound.room)
            bound.room.bind(bound.binding, 0, chunk)

        self._net.runner.run([bound.binding for bound in needed], before)

    def close(self) -> None:
        """Stop the threads and release the session."""
        self._net.runner.close()
