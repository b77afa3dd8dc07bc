"""What a GPU's backend says of a model that it opens, and where it keeps engines."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from gpupipe.engine import gpu_backend as room
from gpupipe.engine.gpu_backend import GpuBackend
from gpupipe.model.runtime import SessionOptions
from gpupipe.options import ModelOptions

CUDA, TENSORRT, CPU = (f"{name}ExecutionProvider" for name in ("CUDA", "Tensorrt", "CPU"))


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[SessionOptions]:
    """The options of every model that is opened; none is."""
    seen: list[SessionOptions] = []

    def model(_: Path, options: SessionOptions, *, batch: int, runs: int) -> Any:
        seen.append(options)
        nodes = {"tensorrt": {TENSORRT: 9}, "cuda": {CUDA: 8, CPU: 1}, "cpu": {}}[options.provider]
        return SimpleNamespace(provider=options.provider, nodes=nodes)

    monkeypatch.setattr(room, "Model", model)
    monkeypatch.setattr(
        room, "open_model", lambda _, path, options, batch, __: (model(path, options, batch=batch, runs=0), None)
    )
    monkeypatch.delenv("NVIDIA_TF32_OVERRIDE", raising=False)
    return seen


def backend(name: str = "NVIDIA GeForce RTX 4090", capability: tuple[int, int] = (8, 9), gigabytes: int = 24) -> Any:
    gpu: Any = SimpleNamespace(
        index=1,
        name=name,
        compute_capability=capability,
        total_bytes=gigabytes << 30,
        compute_stream=SimpleNamespace(ptr=1234),
    )
    return GpuBackend(gpu)


def notes(backend: Any, **options: Any) -> tuple[str, ...]:
    found: tuple[str, ...] = backend.open_model(Path("m.onnx"), ModelOptions(**options)).notes
    return found


def test_tf32_that_was_not_asked_for_is_said(opened: list[SessionOptions], monkeypatch: pytest.MonkeyPatch) -> None:
    (said,) = notes(backend(), provider="tensorrt")
    assert said.startswith("TensorRT computes in TF32 here")
    assert "NVIDIA_TF32_OVERRIDE=0" in said
    assert notes(backend(), provider="tensorrt", precision="tf32") == ()
    assert notes(backend(), provider="tensorrt", precision="fp16") == ()
    assert notes(backend("Tesla T4", (7, 5), 16), provider="tensorrt") == ()  # has none
    monkeypatch.setenv("NVIDIA_TF32_OVERRIDE", "0")
    assert notes(backend(), provider="tensorrt") == ()


@pytest.mark.parametrize("provider", ["cuda", "auto"])
def test_nodes_that_run_elsewhere_are_said(opened: list[SessionOptions], provider: str) -> None:
    wanted = f"of 9 nodes of the model 8 are run by {CUDA}, 1 by {CPU}"
    assert notes(backend(), provider=provider) == (wanted,)
    assert notes(backend(), provider="cpu") == ()


def test_each_kind_of_gpu_keeps_its_engines_apart(opened: list[SessionOptions]) -> None:
    for each in (backend(), backend(gigabytes=16), backend("NVIDIA L4"), backend()):
        notes(each, provider="tensorrt")
    folders = [options.engine_cache for options in opened]
    assert folders[0] == folders[3]
    assert len(set(folders)) == 3
    assert folders[0] is not None
    assert folders[0].parts[-2:] == ("tensorrt", "nvidia-geforce-rtx-4090-8-9-24")
