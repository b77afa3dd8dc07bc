"""The layout of a float16 model's convolutions: timed once, kept, and said."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import onnxruntime
import pytest

from gpupipe.demo.models import save, tiny_model
from gpupipe.errors import DeviceMemoryError
from gpupipe.gpu.device import Device, open_device
from gpupipe.model import layout
from gpupipe.model.layout import Timed
from gpupipe.model.model import Model
from gpupipe.model.runtime import SessionOptions

pytest.importorskip("cupy")
cuda_provider = pytest.importorskip("cuda_provider")

pytestmark = pytest.mark.cuda

SLOW, FAST = Timed(0.004, 0.005), Timed(0.004, 0.003)


@pytest.fixture
def gpu(model_on_device: list[int]) -> Device:
    return open_device()


@pytest.fixture
def half(tmp_path: Path) -> Path:
    path = tmp_path / "half.onnx"
    save(tiny_model(32, "float16"), path)
    return path


def opened(gpu: Device, path: Path, root: Path, batch: int = 2) -> tuple[str, str | None]:
    """The layout of the model that is given, and what is said of it."""
    options = SessionOptions("cuda", stream=int(gpu.compute_stream.ptr))
    model, note = layout.open_model(gpu, path, options, batch, root)
    given = cuda_provider.Session.opened[-1].provider["prefer_nhwc"]
    model.close()
    return given, note


def test_what_was_timed_first_is_kept(gpu: Device, half: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []

    def timed(gpu: Device, path: Path, options: SessionOptions, batch: int, size: int) -> Timed:
        calls.append(batch)
        return FAST if batch == 2 else SLOW

    monkeypatch.setattr(layout, "timed", timed)
    won = ("1", "float16 convolutions in NHWC: 3.00 ms a batch, 4.00 ms in NCHW")
    lost = ("0", "float16 convolutions in NCHW: 4.00 ms a batch, 5.00 ms in NHWC")
    for _ in range(2):
        assert opened(gpu, half, tmp_path / "kept") == won
        assert opened(gpu, half, tmp_path / "kept", batch=3) == lost
    assert calls == [2, 3]
    assert opened(gpu, half, tmp_path / "of another GPU") == won
    monkeypatch.setattr(onnxruntime, "__version__", "1.31.1")
    assert opened(gpu, half, tmp_path / "kept") == won
    assert calls == [2, 3, 2, 2]
    other = tmp_path / "other.onnx"
    save(tiny_model(64, "float16"), other)
    assert opened(gpu, other, tmp_path / "kept") == won
    assert calls == [2, 3, 2, 2, 2]


def test_another_process_that_was_quicker_is_believed(
    gpu: Device, half: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def timed(*_: Any) -> Timed:
        (tmp_path / "kept").mkdir()
        layout._file(tmp_path / "kept", half, 2).write_text(json.dumps({"nchw_seconds": 0.004, "nhwc_seconds": 0.005}))
        return FAST

    monkeypatch.setattr(layout, "timed", timed)
    assert opened(gpu, half, tmp_path / "kept")[0] == "0"


def test_half_a_file_is_timed_anew(gpu: Device, half: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layout, "timed", lambda *_: FAST)
    (tmp_path / "kept").mkdir()
    layout._file(tmp_path / "kept", half, 2).write_text('{"nchw_sec')
    assert opened(gpu, half, tmp_path / "kept")[0] == "1"


def test_nhwc_must_win_by_more_than_chance() -> None:
    assert not Timed(1.0, 0.98).faster
    assert Timed(1.0, 0.96).faster


def test_what_cannot_be_timed_or_kept_is_nchw_and_said(
    gpu: Device, half: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> Timed:
        raise DeviceMemoryError("GPU 0 is out of memory")

    monkeypatch.setattr(layout, "timed", full)
    given, note = opened(gpu, half, tmp_path / "kept")
    assert given == "0"
    assert note == "float16 convolutions in NCHW: NHWC could not be timed and kept: GPU 0 is out of memory"
    monkeypatch.setattr(layout, "timed", lambda *_: FAST)
    (tmp_path / "a file").write_text("")
    given, note = opened(gpu, half, tmp_path / "a file")
    assert given == "0"
    assert note is not None
    assert "could not be timed and kept" in note


def test_only_float16_models_are_timed(gpu: Device, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layout, "timed", lambda *_: pytest.fail("timed"))
    path = tmp_path / "single.onnx"
    save(tiny_model(32), path)
    assert opened(gpu, path, tmp_path / "kept") == ("0", None)


def test_both_layouts_are_timed_in_turn_and_nothing_is_left(
    gpu: Device, half: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onnxruntime, "__version__", "1.25.1")
    before = gpu.free_bytes
    found = layout.timed(gpu, half, SessionOptions("cuda"), 2, 32)
    assert min(found) > 0
    nchw, nhwc = cuda_provider.Session.opened
    assert [each.provider["prefer_nhwc"] for each in (nchw, nhwc)] == ["0", "1"]
    assert {each.provider["user_compute_stream"] for each in (nchw, nhwc)} == {str(int(gpu.upload_stream.ptr))}
    assert len(nchw.runs) == len(nhwc.runs) == layout.WARM_UP + layout.ROUNDS
    assert gpu.free_bytes == before


def test_what_belongs_to_a_model_is_not_opened_like_it(gpu: Device, half: Path) -> None:
    """An audio encoder is given its options."""
    options = SessionOptions("cuda", stream=int(gpu.compute_stream.ptr), nhwc=True)
    model = Model(half, options, batch=2)
    assert (model.options.nhwc, model.options.graphs) == (False, False)
    model.close()
