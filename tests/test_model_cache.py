"""Optimised models in the cache: made once, by one process, whole or not at all, and not too many."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import exported
import numpy as np
import onnx
import pytest

from gpupipe.errors import OptionError
from gpupipe.geometry import CropLayout, Rect
from gpupipe.model import cache
from gpupipe.model.cache import bound, kept, key_of, optimised
from gpupipe.model.optimise import Optimised
from gpupipe.model.quality import compare
from gpupipe.model.samples import Samples, SampleSet, noise, noise_set

LAYOUT = CropLayout(64)
ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("LOCALAPPDATA", str(tmp_path / "cache"))
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("GPUPIPE_MODEL_CACHE", raising=False)
    return tmp_path / "cache"


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "model.onnx"
    onnx.save(exported.random_model(64, 1), str(path))
    return path


def never() -> Any:
    raise AssertionError("it is there")


def made(size: int = 1000) -> Optimised:
    """A model of some bytes, of no use."""
    nothing = np.zeros((1, 3, 32, 32), np.float32)
    weight = onnx.numpy_helper.from_array(np.zeros(size, np.uint8), "w")
    graph = onnx.helper.make_graph([], "g", [], [], initializer=[weight])
    samples = Samples(np.zeros((1, 6, 32, 32), np.float32), np.zeros((1, 32, 16, 16), np.float32))
    quality = compare(nothing, nothing, Rect(0, 0, 32, 32))
    return Optimised(onnx.helper.make_model(graph), quality, nothing, nothing, samples)


def test_it_is_made_once(model: Path) -> None:
    asked: list[str] = []

    def samples() -> Samples:
        asked.append("")
        return noise(LAYOUT, 2, 1)

    given = SampleSet("key", "noise", samples, samples)
    first = optimised(model, "fp16", given)
    assert first.made
    assert asked
    assert onnx.load(first.path).graph.input[0].type.tensor_type.elem_type == onnx.TensorProto.FLOAT16
    asked.clear()
    again = optimised(model, "fp16", given)
    assert (again.path, again.quality, again.made, asked) == (first.path, first.quality, False, [])
    assert optimised(model, "fp32", given).path != first.path


def test_a_key_tells_all_that_matters(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given = noise_set(LAYOUT, 2)
    keys = {key_of(model, precision, given) for precision in ("fp32", "fp16", "int8")}
    keys.add(key_of(model, "fp16", noise_set(LAYOUT, 3)))
    other = tmp_path / "other.onnx"
    onnx.save(exported.random_model(64, 2), str(other))
    keys.add(key_of(other, "fp16", given))
    monkeypatch.setattr("gpupipe.model.optimise.package_version", lambda name: "99")
    keys.add(key_of(model, "fp16", given))
    assert len(keys) == 6
    copy = tmp_path / "copy.onnx"
    copy.write_bytes(model.read_bytes())
    assert key_of(copy, "fp16", given) == key_of(model, "fp16", given)


def test_weights_beside_a_model_are_in_its_key(tmp_path: Path) -> None:
    path = tmp_path / "apart" / "model.onnx"
    path.parent.mkdir()
    onnx.save(exported.random_model(64, 1), str(path), save_as_external_data=True, location="w.bin", size_threshold=0)
    before = key_of(path, "fp16", noise_set(LAYOUT, 2))
    os.utime(path.parent / "w.bin", (1, 1))
    assert key_of(path, "fp16", noise_set(LAYOUT, 2)) != before


def test_two_processes_make_one_model(tmp_path: Path, model: Path) -> None:
    program = """
import sys, json, pathlib
from gpupipe.geometry import CropLayout
from gpupipe.model.cache import optimised
from gpupipe.model.samples import noise_set
found = optimised(pathlib.Path(sys.argv[1]), "fp16", noise_set(CropLayout(64), 2))
print(json.dumps([str(found.path), found.made]))
"""
    processes = [
        subprocess.Popen([sys.executable, "-c", program, str(model)], cwd=ROOT, stdout=subprocess.PIPE, text=True)
        for _ in range(3)
    ]
    told = [json.loads(process.communicate(timeout=60)[0]) for process in processes]
    assert len({path for path, _ in told}) == 1
    assert sorted(done for _, done in told) == [False, False, True]
    onnx.checker.check_model(told[0][0])


def test_a_kill_half_way_leaves_nothing_that_counts(tmp_path: Path) -> None:
    """The process dies while it writes the model; the next one makes it, and removes what is left."""
    program = """
import sys, os, pathlib
sys.path.insert(0, "tests")
import test_model_cache as t
class Dying:
    def SerializeToString(self):
        return b"half a model"
def half():
    found = t.made()
    object.__setattr__(found, "model", Dying())
    return found
real = os.fsync
os.fsync = lambda file: os._exit(9)  # as by kill -9, when the bytes are in the file and it has not its name
t.kept(pathlib.Path(sys.argv[1]), "ab12", half, 1 << 30)
"""
    root = tmp_path / "models"
    done = subprocess.run([sys.executable, "-c", program, str(root)], cwd=ROOT, timeout=60, check=False)
    assert done.returncode == 9
    assert [path.name for path in root.glob("*.onnx")] == []
    assert len(list(root.glob(".ab12*.partial"))) == 1
    found = kept(root, "ab12", made, 1 << 30)
    assert found.made
    assert sorted(path.name for path in root.iterdir()) == ["ab12.json", "ab12.onnx", "lock-a"]


def test_a_failure_leaves_nothing(tmp_path: Path) -> None:
    def fails() -> Optimised:
        raise ValueError

    with pytest.raises(ValueError):  # noqa: PT011
        kept(tmp_path, "cd", fails, 1 << 30)
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == ["lock-c"]
    assert kept(tmp_path, "cd", made, 1 << 30).made


def test_a_file_without_its_quality_is_made_again(tmp_path: Path) -> None:
    kept(tmp_path, "ef", made, 1 << 30)
    assert not kept(tmp_path, "ef", never, 1 << 30).made
    (tmp_path / "ef.json").write_text("{")
    assert kept(tmp_path, "ef", made, 1 << 30).made


def test_what_was_not_used_for_longest_leaves_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(5):
        kept(tmp_path, f"a{number}", lambda: made(10_000), 1 << 30)
    old = time.time() - 10_000
    for number, age in enumerate((50, 40, 30, 20, 10)):
        os.utime(tmp_path / f"a{number}.onnx", (old - age, old - age))
    kept(tmp_path, "a0", never, 1 << 30)  # which was the oldest, and is used now
    bound(tmp_path, 31_000)
    assert sorted(path.name for path in tmp_path.glob("a*")) == [
        f"a{number}.{suffix}" for number in (0, 3, 4) for suffix in ("json", "onnx")
    ]
    bound(tmp_path, 0)  # who got the name of a0 just now may not have opened it yet
    assert [path.name for path in tmp_path.glob("*.onnx")] == ["a0.onnx"]
    monkeypatch.setattr(cache, "FRESH_SECONDS", -1.0)
    bound(tmp_path, 0)
    assert list(tmp_path.glob("a*")) == []


def test_the_limit_is_the_environments(monkeypatch: pytest.MonkeyPatch) -> None:
    assert cache.limit() == 4 << 30
    monkeypatch.setenv("GPUPIPE_MODEL_CACHE", "500M")
    assert cache.limit() == 500 << 20
    monkeypatch.setenv("GPUPIPE_MODEL_CACHE", "much")
    with pytest.raises(OptionError, match=r"GPUPIPE_MODEL_CACHE: not a number of bytes"):
        cache.limit()
