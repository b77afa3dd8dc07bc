"""The lip-sync model by PyTorch, converted from its ONNX file by onnx2torch. Both packages are optional."""

from __future__ import annotations

import importlib
import importlib.util
import warnings
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from gpupipe.bench.plain_ways import PlainWay, sequential
from gpupipe.bench.scene import Scene
from gpupipe.bench.way import Floats
from gpupipe.errors import InferenceError
from gpupipe.model.model import Signature
from gpupipe.model.runtime import SessionOptions, open_session

PACKAGES = ("torch", "onnx2torch")


def problem() -> str | None:
    """Why the model cannot be run by PyTorch here, or None."""
    missing = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
    return f"not installed: pip install {' '.join(missing)}" if missing else _import_problem()


@cache
def _import_problem() -> str | None:
    """What importing the packages says; takes seconds the first time.

    Both can be there and not fit: torchvision, which onnx2torch imports, from another index than torch raises
    RuntimeError ("operator torchvision::nms does not exist").
    """
    try:
        for name in PACKAGES:
            importlib.import_module(name)
    except (ImportError, OSError, RuntimeError, AttributeError) as error:
        reason = " ".join(str(error).split())
        return f"cannot be imported: {reason}; install torch and torchvision from the same index"
    return None


class TorchRunner:
    """Runs a model on the CPU by PyTorch, in inference mode; like `scene.Runner`.

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
        self.signature = Signature(path, session)
        # The converted module takes its inputs in the file's order.
        self._visual_first = session.get_inputs()[0].name == self.signature.visual
        try:
            with warnings.catch_warnings():
                # It doubts its own bilinear resize with align_corners; what it computes is compared before it is timed.
                warnings.filterwarnings("ignore", category=UserWarning, module="onnx2torch")
                self._module: Any = onnx2torch.convert(str(path)).eval()
        except (NotImplementedError, RuntimeError, ValueError, KeyError) as error:
            reason = " ".join(str(error).split())
            raise InferenceError(f"onnx2torch cannot convert it: {reason}", file=path, field="model") from error

    def __call__(self, visual: Floats, audio: Floats) -> Floats:
        """`[B, 6, S, S]` and `[B, 32, 16, 16]` to `[B, 3, S, S]`, all float32."""
        step = self.signature.batch or len(visual)
        done = []
        for start in range(0, len(visual), step):
            inputs = [
                self._torch.from_numpy(array[start : start + step].astype(self.signature.dtype, copy=False))
                for array in (visual, audio)
            ]
            with self._torch.inference_mode():
                output = self._module(*(inputs if self._visual_first else reversed(inputs)))
            done.append(output.numpy())
        whole = done[0] if len(done) == 1 else np.concatenate(done)
        return np.asarray(whole, np.float32)


class TorchWay(PlainWay):
    """PyTorch takes part in the inference only."""

    stages = ("infer",)

    def __init__(self, scene: Scene) -> None:
        super().__init__("pytorch", "the model by PyTorch on the CPU, by onnx2torch", scene, sequential)
        self.notes = ()

    def open(self) -> None:
        """Convert the model."""
        self._runner = TorchRunner(self.scene.options.model, self.scene.threads)
        self.closing.callback(setattr, self, "_runner", None)
