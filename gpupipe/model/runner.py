"""Running an opened session on bound buffers: several frames at a time on the CPU, queued on the stream on a GPU."""

from __future__ import annotations

import concurrent.futures
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from gpupipe.errors import InferenceError, OptionError, reason
from gpupipe.model.graphs import Binding, Graphs, run_options
from gpupipe.model.runtime import SessionOptions, failures, raise_if_out_of_memory

SETTLING_RUNS = 256
"""On a GPU one of so many runs waits for its end: only then does ONNX Runtime give back page-locked buffers whose
release some operators (Concat and Split of unequal parts, ScatterND, batched MatMul, recurrent layers) put off
(`DeviceStreamCollectionImpl::CleanUp`, device_stream_collection.cc, 0896ef2)."""


Wait = Callable[[], None]
"""Waits for the end of what was started, and raises what stopped it."""


def started(pool: ThreadPoolExecutor, works: Sequence[Callable[[], None]]) -> Wait:
    """Start works in a pool's threads, one after the other as threads become free."""
    futures: list[Future[None]] = []

    def wait() -> None:
        concurrent.futures.wait(futures)  # all of them: their buffers may be used again afterwards
        for future in futures:
            future.result()

    try:
        for work in works:
            futures.append(pool.submit(work))
    except BaseException:
        concurrent.futures.wait(futures)
        raise
    return wait


def frames_of_a_run(path: Path, options: SessionOptions, batch: int, fixed: int | None) -> int:
    """Frames that the model takes in one run: as many as it was made for, else one on the CPU, and all elsewhere.

    Args:
        path: the model, for errors.
        options: how it is run.
        batch: frames of a batch.
        fixed: how many it was made for; None or 0: any number.

    Raises:
        OptionError: a batch is no multiple of that.
    """
    frames = fixed or (1 if options.provider == "cpu" else batch)
    if batch % frames:
        raise OptionError(
            f"the model takes batches of {frames} only",
            file=path,
            field="--batch",
            value=batch,
            remedy=f"use a multiple of {frames}",
        )
    return frames


def runs_at_a_time(options: SessionOptions, asked: int = 0) -> int:
    """How many runs share the CPU's threads: one per thread, 4 at most, unless asked for; 1 on a GPU."""
    return min(asked or 4, options.threads) if options.provider == "cpu" else 1


def threads_of_a_run(options: SessionOptions, runs: int) -> SessionOptions:
    """The options with the threads that one run can have: its own, and those of the session's pool, which all runs of
    the session share (n threads are the caller and n - 1 of a pool: `ThreadPool`, threadpool.cc of ONNX Runtime)."""
    return replace(options, threads=max(1, options.threads - runs + 1))


class Runner:
    """Runs of one session.

    Args:
        path: the model's, for errors.
        session: an `onnxruntime.InferenceSession`.
        options: with which it was opened.
        runs: at a time.
        graphs: of its runs; a run on a binding that has one replays it.
    """

    def __init__(
        self, path: Path, session: Any, options: SessionOptions, runs: int, graphs: Graphs | None = None
    ) -> None:
        self.path, self.session, self.options = path, session, options
        self._pool = ThreadPoolExecutor(runs, "model") if options.provider == "cpu" else None
        self._waiting, self._queueing = (run_options(options, waits=waits) for waits in (True, False))
        self._graphs = graphs
        self._runs_done = 0

    def start(self, bindings: Sequence[Binding]) -> Wait:
        """Start a run on each of the bindings, on the CPU, in the order of all that were started, as threads become
        free.

        Args:
            bindings: of buffers that outlive the runs.

        Returns:
            What waits for their end, and raises as `run` does.
        """
        assert self._pool is not None
        return started(self._pool, [partial(self.run, [binding]) for binding in bindings])

    def run(self, bindings: Sequence[Binding], before: Callable[[int], None] | None = None) -> None:
        """Run on each of the bindings; on a GPU this queues the work on the stream and does not wait, but for one run
        of `SETTLING_RUNS`.

        Args:
            bindings: of buffers that outlive the run.
            before: called with the number of a binding right before its run, in the thread of the run.

        Raises:
            InferenceError: the model failed.
            DeviceMemoryError: the GPU's memory does not suffice.
        """

        def one(number: int, settings: Any) -> None:
            if before is not None:
                before(number)
            self.session.run_with_iobinding(bindings[number], settings)

        try:
            if self._pool is None or len(bindings) == 1:
                for number, binding in enumerate(bindings):
                    replay = None if self._graphs is None else self._graphs.replay(binding)
                    if replay is not None:  # which allocates nothing, and needs no settling
                        one(number, replay)
                        continue
                    self._runs_done += 1
                    settling = self._runs_done % SETTLING_RUNS == 0
                    one(number, self._waiting if settling else self._queueing)
            else:  # on the CPU, where a run is done when it returns
                list(self._pool.map(lambda number: one(number, self._queueing), range(len(bindings))))
        except failures() as error:
            raise_if_out_of_memory(error, self.options, self.path)
            raise InferenceError(
                f"the model failed: {reason(error)}", file=self.path, remedy="export it again"
            ) from error

    def close(self) -> None:
        """Stop the threads and release the session."""
        if self._pool:
            self._pool.shutdown()
        self.session = self._graphs = None


def place(array: Any) -> tuple[str, int, Any, tuple[int, ...], int]:
    """Device, device number, element type, shape and address of an array, as `bind_input` takes them."""
    if isinstance(array, np.ndarray):
        return "cpu", 0, array.dtype.type, array.shape, array.ctypes.data
    return "cuda", int(array.device.id), np.dtype(array.dtype).type, tuple(array.shape), int(array.data.ptr)
