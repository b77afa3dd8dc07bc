"""The lip-sync model by PyTorch, converted from its ONNX file by onnx2torch. Both packages are optional."""

from __future__ import annotations

import importlib
import importlib.util
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from gpupipe.bench.plain_ways import PlainWay, sequential
from gpupipe.bench.scene import Runner, Scene
from gpupipe.errors import InferenceError, reason

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


class TorchRunner(Runner):
    """Runs a model on the CPU by PyTorch, in inference mode.

    Args:
        path: the ONNX file.
        threads: CPU threads.

    Raises:
        InferenceError: the model cannot be converted.
    """

    def __init__(self, path: Path, threads: int) -> None:
        import onnx2torch
        import torch

        super().__init__(path, threads)
        self._torch = torch
        torch.set_num_threads(threads)
        # The converted module takes its inputs in the file's order.
        self._visual_first = self.session.get_inputs()[0].name == self.signature.visual
        try:
            with _no_doubts():
                self._module: Any = onnx2torch.convert(str(path)).eval()
        except (NotImplementedError, RuntimeError, ValueError, KeyError) as error:
            raise InferenceError(
                f"onnx2torch cannot convert it: {reason(error)}",
                file=path,
                field="model",
                remedy="export it with opset 17 or lower, or leave pytorch out of --ways",
            ) from error

    def run(self, visual: NDArray[Any], audio: NDArray[Any]) -> NDArray[Any]:
        """See `Runner`."""
        inputs = [self._torch.from_numpy(array) for array in (visual, audio)]
        with self._torch.inference_mode(), _no_doubts():
            prediction: NDArray[Any] = self._module(*(inputs if self._visual_first else reversed(inputs))).numpy()
        return prediction


@contextmanager
def _no_doubts() -> Iterator[None]:
    """onnx2torch warns of its own resize with align_corners and of its slices; what they give is compared."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=UserWarning, module="onnx2torch")
        yield


class TorchWay(PlainWay):
    """PyTorch takes part in the inference only."""

    stages = ("infer",)
    optional = True

    def __init__(self, scene: Scene) -> None:
        super().__init__("pytorch", "the model by PyTorch on the CPU, by onnx2torch", scene, sequential)
        self.notes = ()

    def open(self) -> None:
        """Convert the model."""
        self._runner = TorchRunner(self.scene.options.model, self.scene.threads)
        self.closing.callback(setattr, self, "_runner", None)
