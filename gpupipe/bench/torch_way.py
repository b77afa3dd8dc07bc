"""The lip-sync model by PyTorch, converted from its ONNX file by onnx2torch. Both packages are optional."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from gpupipe.errors import InferenceError, reason
from gpupipe.model.runtime import SessionOptions, open_session
from gpupipe.model.signature import Signature

Floats = NDArray[np.float32]


def problem() -> str | None:
    """Why the model cannot be run by PyTorch here, or None."""
    missing = [name for name in ("torch", "onnx2torch") if importlib.util.find_spec(name) is None]
    return f"not installed: pip install {' '.join(missing)}" if missing else None


class TorchRunner:
    """Runs a model on the CPU by PyTorch, in inference mode; like `bench_scene.Runner`.

    Args:
        path: the ONNX file.
        threads: CPU threads.

    Raises:
        InferenceError: the model cannot be converted.
    """

    def __init__(self, path: Path, threads: int) -> None:
        import onnx2torch
        import torch

        self._torch = torch
        torch.set_num_threads(threads)
        session = open_session(path, SessionOptions())
        # The converted module takes its inputs in the file's order.
        self._visual_first = session.get_inputs()[0].name == Signature(path, session).visual
        try:
            self._module = onnx2torch.convert(str(path)).eval()
        except (NotImplementedError, RuntimeError, ValueError, KeyError) as error:
            raise InferenceError(f"onnx2torch cannot convert it: {reason(error)}", file=path, field="model") from error

    def __call__(self, visual: Floats, audio: Floats) -> Floats:
        """`[B, 6, S, S]` and `[B, 32, 16, 16]` to `[B, 3, S, S]`."""
        inputs = [self._torch.from_numpy(array) for array in (visual, audio)]
        with self._torch.inference_mode():
            output = self._module(*(inputs if self._visual_first else reversed(inputs)))
        return np.asarray(output.numpy(), np.float32)
