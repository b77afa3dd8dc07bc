"""Where TensorRT's engines are kept: apart for each model and batch, one process at a time, and anew if they fail."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import onnxruntime
import pytest

from gpupipe.demo.models import save, tiny_model
from gpupipe.errors import InferenceError, OutputError
from gpupipe.filelock import FileLock
from gpupipe.model import runtime
from gpupipe.model.engines import LOCK, engine_folder, with_engines
from gpupipe.model.runtime import SessionOptions, open_session

PROFILE: dict[str, tuple[int, ...]] = {"visual": (8, 6, 32, 32), "audio": (8, 32, 16, 16)}


def model_file(folder: Path, content: bytes, *beside: str) -> Path:
    folder.mkdir()
    (folder / "model_best.onnx").write_bytes(content)
    for name in beside:
        (folder / name).write_bytes(b"weights")
    return folder / "model_best.onnx"


def test_models_of_one_name_have_folders_of_their_own(tmp_path: Path) -> None:
    anna, bert, copy = (model_file(tmp_path / name, name[:1].encode()) for name in ("anna", "bert", "another anna"))
    folders = [engine_folder(tmp_path / "gpu", path, PROFILE) for path in (anna, bert, copy)]
    assert folders[0] == folders[2] != folders[1]
    assert {folder.parent for folder in folders} == {tmp_path / "gpu"}
    assert folders[0].name.endswith("-batch8")
    four = PROFILE | {"visual": (4, 6, 32, 32)}
    assert engine_folder(tmp_path / "gpu", anna, four) != folders[0]


def test_weights_beside_the_model_count(tmp_path: Path) -> None:
    path = model_file(tmp_path / "anna", b"... location ...", "weights.bin")
    before = engine_folder(tmp_path, path, PROFILE)
    assert engine_folder(tmp_path, path, PROFILE) == before
    (path.parent / "weights.bin").write_bytes(b"other weights")
    assert engine_folder(tmp_path, path, PROFILE) != before


def test_engines_that_do_not_load_are_built_anew(tmp_path: Path) -> None:
    folder = tmp_path / "a" / "b"
    tried = []

    def opening() -> str:
        tried.append(sorted(path.name for path in folder.iterdir()))
        if (folder / "half.engine").exists():
            raise RuntimeError("cannot be deserialised")
        return "opened"

    assert with_engines(folder, opening, (RuntimeError,)) == "opened"
    (folder / "half.engine").write_bytes(b"half")
    (folder / "timing.cache").write_bytes(b"times")
    assert with_engines(folder, opening, (RuntimeError,)) == "opened"
    assert tried == [[LOCK], ["half.engine", LOCK, "timing.cache"], [LOCK]]


def test_what_fails_without_engines_fails_once(tmp_path: Path) -> None:
    tried = []

    def opening() -> None:
        tried.append(1)
        raise RuntimeError("no such operator")

    with pytest.raises(RuntimeError, match="operator"):
        with_engines(tmp_path, opening, (RuntimeError,))
    assert len(tried) == 1
    assert FileLock(tmp_path / LOCK).acquire(timeout=0)


def test_one_opens_at_a_time(tmp_path: Path) -> None:
    opened = threading.Event()
    with FileLock(tmp_path / LOCK):
        thread = threading.Thread(target=lambda: with_engines(tmp_path, opened.set, (RuntimeError,)))
        thread.start()
        assert not opened.wait(0.2)
    assert opened.wait(5)
    thread.join()


def test_a_folder_that_cannot_be_made_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match=r"cannot be made: .*; make it writable"):
        with_engines(tmp_path / "file" / "engines", lambda: None, (RuntimeError,))


def test_a_session_on_tensorrt_keeps_its_engines_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The lock is held while the session is opened, and the folder is the model's own."""
    path = tmp_path / "m.onnx"
    save(tiny_model(32), path)
    seen: list[dict[str, str]] = []
    opening: Any = onnxruntime.InferenceSession

    def opened(model: str, settings: Any, *, providers: Any, enable_fallback: int) -> Any:
        seen.append(providers[0][1])
        assert not FileLock(Path(seen[-1]["trt_engine_cache_path"]) / LOCK).acquire(timeout=0)
        return opening(model, settings, providers=["CPUExecutionProvider"])

    monkeypatch.setitem(runtime.PROVIDER_NAMES, "tensorrt", "CPUExecutionProvider")
    monkeypatch.setattr(onnxruntime, "preload_dlls", lambda: None)
    monkeypatch.setattr(onnxruntime, "InferenceSession", opened)
    options = SessionOptions("tensorrt", engine_cache=tmp_path / "gpu", profile=PROFILE)
    open_session(path, options)
    wanted = engine_folder(tmp_path / "gpu", path, PROFILE)
    assert Path(seen[0]["trt_engine_cache_path"]) == wanted == Path(seen[0]["trt_timing_cache_path"])
    with pytest.raises(InferenceError, match="no such file"):
        open_session(tmp_path / "other.onnx", options)
