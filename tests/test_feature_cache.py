"""Features that stay with cached frames: the same frames, whichever are kept, and the source net run once for each."""

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import small
import unets

import gpupipe
from gpupipe.cli import main
from gpupipe.engine.features import SplitModel
from gpupipe.errors import OptionError
from gpupipe.model.split_file import SplitFiles, split_files
from gpupipe.model.split_model import SourceNet
from gpupipe.render.engine import Engine

RECIPE = unets.Recipe(
    cells=2, widths=(12, 24, 32, 32), first=8, skips=("concat", "concat", "concat", "concat"),
    ups=("linear",) * 4, joins=frozenset({0}), activation="relu", batch_norm=True, residual=True,
)  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A character of 12 frames with a U-Net for 32x32 images; whose cache folder is its own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("LOCALAPPDATA", str(tmp_path / "cache"))
    folder = small.small_character(tmp_path / "anna")
    assert RECIPE.size == small.MODEL_SIZE
    onnx.save(unets.unet(RECIPE), str(folder / "checkpoint" / "model_best.onnx"))
    np.save(folder / "aud_ave.npy", small.features(70))
    return folder


@pytest.fixture
def source_runs(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Frames that source nets were run for."""
    runs: list[int] = []
    run = SourceNet.run

    def counted(self: SourceNet, visual: Any, features: Any) -> None:
        runs.append(len(visual))
        run(self, visual, features)

    monkeypatch.setattr(SourceNet, "run", counted)
    return runs


def frame_bytes(folder: Path) -> int:
    """Bytes of features that a frame keeps."""
    with Engine(device="cpu", feature_cache="1G") as engine:
        engine.load(folder)
        (entry,) = engine.holdings._lanes._entries.values()
        split = entry.opened.result().split
        assert isinstance(split, SplitModel)
        return split.frame_bytes


def test_the_frames_are_the_same_whichever_are_kept(
    folder: Path, tmp_path: Path, source_runs: list[int], capfd: pytest.CaptureFixture[str]
) -> None:
    gpupipe.render(folder, tmp_path / "off.mp4", device="cpu", crf=0)
    assert source_runs == []
    each = frame_bytes(folder)
    for budget, kept in ((f"{each}", 1), (f"{5 * each + 3}", 5), ("1G", 12)):
        source_runs.clear()
        stats = gpupipe.render(folder, tmp_path / "on.mp4", device="cpu", crf=0, overwrite=True, feature_cache=budget)
        assert (tmp_path / "on.mp4").read_bytes() == (tmp_path / "off.mp4").read_bytes()
        assert source_runs == [1] * kept, "each kept frame's features are made once"
        assert stats.notes[0].startswith(f"features of {kept} of 12 frames are kept, ")
    source_runs.clear()
    bounded: Any = {"feature_cache": "1G", "cache": 0}  # the frames are decoded over and over, their features stay
    gpupipe.render(folder, tmp_path / "on.mp4", device="cpu", crf=0, overwrite=True, **bounded)
    assert (tmp_path / "on.mp4").read_bytes() == (tmp_path / "off.mp4").read_bytes()
    assert source_runs == [1] * 12
    stats = gpupipe.render(folder, tmp_path / "no.mp4", device="cpu", feature_cache=f"{each - 1}")
    assert "no features are kept" in stats.notes[0]
    assert "a frame needs" in stats.notes[0]


def test_an_int8_model_keeps_bytes(folder: Path, tmp_path: Path, source_runs: list[int]) -> None:
    """The cut of what ONNX Runtime has made of a quantised graph: features are uint8, and nothing is rounded anew."""
    made = tmp_path / "int8.onnx"
    assert main(["optimize", str(folder), "-o", str(made), "--precision", "int8", "--force", "--quiet"]) == 0
    whole = frame_bytes(folder)
    gpupipe.render(folder, tmp_path / "off.mp4", device="cpu", crf=0, model=made)
    gpupipe.render(folder, tmp_path / "on.mp4", device="cpu", crf=0, model=made, feature_cache="1G")
    assert (tmp_path / "on.mp4").read_bytes() == (tmp_path / "off.mp4").read_bytes()
    assert source_runs == [1] * 12
    made.replace(folder / "checkpoint" / "model_best.onnx")
    assert frame_bytes(folder) < whole / 2


def test_features_stay_for_the_next_job_and_beside_others(folder: Path, tmp_path: Path, source_runs: list[int]) -> None:
    with Engine(device="cpu") as engine:
        wanted = [np.stack(list(engine.frames(folder, start_frame=start))) for start in range(3)]
    with Engine(device="cpu", feature_cache="1G") as engine:
        jobs = [engine.frames(folder, start_frame=start) for start in range(3)]
        taken: list[list[Any]] = [[], [], []]
        for _ in range(70):  # in turn: their frames share batches
            for number, job in enumerate(jobs):
                taken[number].append(next(job))
        for number, frames in enumerate(taken):
            np.testing.assert_array_equal(np.stack(frames), wanted[number])
        assert source_runs == [1] * 12
        list(engine.frames(folder))
        assert source_runs == [1] * 12


@pytest.mark.parametrize(("measured", "used"), [(1.5, True), (5.0, True), (6.5, False), (float("inf"), False)])
def test_auto_keeps_what_is_shown_often_enough(
    folder: Path, tmp_path: Path, source_runs: list[int], monkeypatch: pytest.MonkeyPatch, measured: float, used: bool
) -> None:
    """70 frames of 12: each is shown 5.8 times."""
    monkeypatch.setattr(SplitModel, "_measured", lambda self: measured)
    stats = gpupipe.render(folder, tmp_path / "talk.mp4", device="cpu", feature_cache="auto")
    assert bool(source_runs) == used
    if not used:
        assert stats.notes == (f"no features are kept: a frame must be shown {measured:.1f} times, and is 5.8 times",)


def test_the_break_even_is_measured(folder: Path) -> None:
    with Engine(device="cpu", feature_cache="1G") as engine:
        engine.load(folder)
        (entry,) = engine.holdings._lanes._entries.values()
        split = entry.opened.result().split
        assert isinstance(split, SplitModel)
        assert split.break_even > 0
        assert split.break_even == split.break_even, "once"


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda folder: small.write_model(folder / "checkpoint" / "model_best.onnx"), "no features are kept: "),
        (lambda folder: small.write_model(folder / "checkpoint" / "model_best.onnx", dtype="float16"), "float32"),
        (lambda folder: small.write_model(folder / "checkpoint" / "model_best.onnx", batch=2), "fixed batches"),
    ],
)
def test_a_model_that_is_left_whole(
    folder: Path, tmp_path: Path, source_runs: list[int], change: Callable[[Path], None], why: str
) -> None:
    change(folder)
    for _ in range(2):  # the second time its reason comes from the cache
        stats = gpupipe.render(folder, tmp_path / "talk.mp4", device="cpu", feature_cache="1G", overwrite=True, batch=4)
        assert why in stats.notes[0]
    assert source_runs == []


def test_what_is_no_size(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="feature_cache: not a number of bytes"):
        gpupipe.render(folder, tmp_path / "talk.mp4", device="cpu", feature_cache="much")


def test_nets_are_cut_once(folder: Path, tmp_path: Path) -> None:
    frame_bytes(folder)
    (made,) = (tmp_path / "cache").rglob("rest.onnx")
    before = made.stat().st_mtime_ns
    (made.parent.parent / ".killed.partial").mkdir()
    frame_bytes(folder)
    assert made.stat().st_mtime_ns == before


def test_nets_that_are_not_as_they_were_written_are_cut_anew(folder: Path) -> None:
    model = folder / "checkpoint" / "model_best.onnx"
    files = split_files(model, on_cpu=True)
    assert isinstance(files, SplitFiles)
    here = files.source.parent
    names = {files.source.name, files.rest.name, "sums.json"}
    assert set(small.files_in(here)) == names
    for name in names:
        for end in (bytes(9), b""):  # overwritten, and cut off
            (here / name).write_bytes((here / name).read_bytes()[:-9] + end)
            assert split_files(model, on_cpu=True) == files
            sums = json.loads((here / "sums.json").read_text("utf-8"))
            assert sums == {net.name: hashlib.sha256(net.read_bytes()).hexdigest() for net in files}
        (here / name).unlink()
        assert split_files(model, on_cpu=True) == files
        assert set(small.files_in(here)) == names


def test_weights_beside_a_model_are_in_the_key_of_its_nets(folder: Path) -> None:
    path = folder / "checkpoint" / "model_best.onnx"
    model = onnx.load(str(path))
    weights = max(model.graph.initializer, key=lambda tensor: len(tensor.raw_data))
    onnx.external_data_helper.set_external_data(weights, "weights.bin")
    onnx.save(model, str(path))
    before = split_files(path, on_cpu=True)
    assert isinstance(before, SplitFiles)
    assert split_files(path, on_cpu=True) == before
    os.utime(path.with_name("weights.bin"), (1, 1))
    assert split_files(path, on_cpu=True) != before
