"""Whole renders on a CUDA device: the same files as on the CPU, within the budget, and nothing left behind."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import gives_back

from gpupipe.character.folder import Character
from gpupipe.demo import make_demo
from gpupipe.demo.models import save, tiny_model
from gpupipe.errors import InferenceError
from gpupipe.gpu.device import open_device
from gpupipe.model import runtime as session
from gpupipe.options import EngineOptions, ModelOptions, OutputOptions
from gpupipe.render import tuned
from gpupipe.render.engine import Engine
from gpupipe.render.render import frames, render
from gpupipe.trace import Trace

pytestmark = pytest.mark.cuda

GPU: dict[str, Any] = {"device": "cuda", "provider": "cpu"}


@pytest.fixture(scope="module", params=[320, 160])
def demo(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small demo character of either family, with recorded inputs."""
    folder = tmp_path_factory.mktemp("demo") / "person"
    return make_demo(folder, frames=12, size=(480, 270), model_size=request.param, with_recorded=True)


def same_files(cpu: Path, gpu: Path) -> None:
    names = sorted(path.name for path in cpu.iterdir())
    assert names == sorted(path.name for path in gpu.iterdir())
    assert names
    for name in names:
        assert (cpu / name).read_bytes() == (gpu / name).read_bytes(), name


@pytest.mark.parametrize("batch", [1, 5, 8])
@pytest.mark.parametrize("masked_video", [False, True])
def test_images_are_those_of_the_cpu(demo: Path, tmp_path: Path, batch: int, masked_video: bool) -> None:
    options: dict[str, Any] = {"image_format": "png", "batch": batch, "masked_video": masked_video, "start_frame": 3}
    render(demo, f"{tmp_path}/cpu/", device="cpu", **options)
    stats = render(demo, f"{tmp_path}/gpu/", **GPU, **options)
    assert stats.device.startswith("cuda:0 (")
    assert stats.provider == "cpu"
    same_files(tmp_path / "cpu", tmp_path / "gpu")


@pytest.mark.parametrize("pixel_format", ["nv12", "bgr24"])
def test_a_video_is_that_of_the_cpu(demo: Path, tmp_path: Path, pixel_format: Any) -> None:
    render(demo, tmp_path / "cpu.mp4", device="cpu", pixel_format=pixel_format, segment_frames=5)
    stats = render(demo, tmp_path / "gpu.mp4", **GPU, pixel_format=pixel_format, segment_frames=5)
    assert (tmp_path / "cpu.mp4").read_bytes() == (tmp_path / "gpu.mp4").read_bytes()
    for name in ("inference", "composite", "save"):
        assert stats.stages[name].frames == stats.frames


def test_half_precision_models_too(demo: Path) -> None:
    model = demo.parent / "half.onnx"
    save(tiny_model(Character.load(demo).layout.model_size, "float16"), model)
    cpu = frames(demo, model=model, device="cpu")
    gpu = frames(demo, model=model, **GPU)
    assert all(np.array_equal(a, b) for a, b in zip(cpu, gpu, strict=True))


@pytest.mark.talker
@pytest.mark.parametrize("output", ["talk.mp4", "images/"])
def test_the_filmed_character(talker: Path, tmp_path: Path, output: str) -> None:
    character = Character.load(talker)
    model = tmp_path / "tiny.onnx"
    save(tiny_model(character.layout.model_size), model)
    options: dict[str, Any] = {"model": model, "frames": 10, "image_format": "png"}
    for name, where in (("cpu", {"device": "cpu"}), ("gpu", GPU)):
        (tmp_path / name).mkdir()
        render(character, f"{tmp_path}/{name}/{output}", **where, **options)
    if output.endswith("/"):
        same_files(tmp_path / "cpu" / "images", tmp_path / "gpu" / "images")
    else:
        same_files(tmp_path / "cpu", tmp_path / "gpu")


def test_the_steady_state_keeps_to_its_budget(
    demo: Path, softcuda_stats: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    """A long render minus a shorter one: what more batches cost."""
    batch, more = 4, 12

    def counted(batches: int) -> dict[str, Any]:
        features = tmp_path / "features.npy"
        np.save(features, np.full((batches * batch, 512), 0.3, np.float32))
        command = [sys.executable, "-m", "gpupipe", "render", str(demo), "-o", str(tmp_path / "talk.mp4"), "--quiet"]
        command += ["--overwrite", "--no-audio", "--device", "cuda", "--provider", "cpu", "--batch", str(batch)]
        return softcuda_stats([*command, "--features", str(features)])

    short, long = counted(6), counted(6 + more)
    grew = {name: long[name] - short[name] for name in long if isinstance(long[name], int)}
    frame_bytes = 480 * 270 * 3 // 2
    launches = {name: long["launches"][name] - short["launches"][name] for name in long["launches"]}
    batches = launches["prepare"]
    assert launches == {"prepare": batches, "paste_nv12": batches}
    # A batch that is not full leaves when the device has nothing else to do.
    assert more // 2 <= batches <= more * batch
    extra = grew["d2h_bytes"] - more * batch * frame_bytes
    assert 0 <= extra <= 64 * batches
    # The features of the longer speech are uploaded once; beside them, a frame costs its row of the table.
    assert grew["h2d_bytes"] - more * batch * 512 * 4 <= 64 * more * batch
    assert grew["mallocs"] == grew["pinned_allocs"] == 0
    assert long["pageable_async_copies"] == short["pageable_async_copies"] == 0
    assert grew["syncs"] <= 2 * batches  # one for the frames, one because ONNX Runtime runs on the CPU


def test_renders_leave_no_device_memory_behind(demo: Path, tmp_path: Path) -> None:
    render(demo, tmp_path / "talk.mp4", **GPU)
    before = open_device().free_bytes
    for _ in range(5):
        render(demo, tmp_path / "talk.mp4", **GPU, overwrite=True)
        assert gives_back(before, open_device().free_bytes)
    failing = np.full((4, 512), np.float32(np.finfo(np.float32).max))
    with pytest.raises(InferenceError):
        render(demo, tmp_path / "talk.mp4", **GPU, overwrite=True, features=failing, model=nan_model(demo, tmp_path))
    assert gives_back(before, open_device().free_bytes)


def test_encoders_that_nobody_asked_for_leave_memory_to_the_character(
    demo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tuned, "cpu_count", lambda: 16)
    character = Character.load(demo)
    each = 32 * character.body.width * character.body.height * 3 // 2  # four batches of 8 in nv12
    with Engine(device="cuda") as engine:

        def encoders(room: int | None, **options: Any) -> int:
            writing = OutputOptions(**options)
            return tuned.tuned(engine, EngineOptions(max_memory=room), character, ModelOptions(), writing).encoders

        assert [encoders(room) for room in (None, 8 * 3 * each, 8 * 3 * each - 1, each)] == [4, 3, 2, 1]
        assert encoders(8 * 3 * each, pixel_format="bgr24") == 1
        assert encoders(each, encoders=6) == 6, "but those who ask get them"


def nan_model(demo: Path, folder: Path) -> Path:
    """The tiny model's double that gives NaN for all it sees."""
    import onnx

    size = Character.load(demo).layout.model_size
    value, helper = onnx.TensorProto.FLOAT, onnx.helper
    graph = helper.make_graph(
        [
            helper.make_node("Slice", ["input", "zero", "three", "one"], ["roi"]),
            helper.make_node("Sub", ["roi", "roi"], ["nothing"]),
            helper.make_node("ReduceMean", ["audio"], ["level"], axes=[1, 2, 3]),
            helper.make_node("Div", ["nothing", "nothing"], ["nan"]),
            helper.make_node("Add", ["nan", "level"], ["output"]),
        ],
        "nan",
        [
            helper.make_tensor_value_info("input", value, ["B", 6, size, size]),
            helper.make_tensor_value_info("audio", value, ["B", 32, 16, 16]),
        ],
        [helper.make_tensor_value_info("output", value, ["B", 3, size, size])],
        [
            helper.make_tensor(name, onnx.TensorProto.INT64, [1], [n])
            for name, n in (("zero", 0), ("three", 3), ("one", 1))
        ],
    )
    path = folder / "nan.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8), str(path))
    return path


def test_too_little_memory_is_told_with_the_ways_out(demo: Path, tmp_path: Path) -> None:
    if not os.environ.get("SOFTCUDA"):
        pytest.skip("sets the size of softcuda's memory, and this run is on a GPU")
    command = [sys.executable, "-m", "gpupipe", "render", str(demo), "-o", str(tmp_path / "talk.mp4"), "--quiet"]
    done = subprocess.run(
        [*command, "--device", "cuda", "--provider", "cpu"],
        env=os.environ | {"SOFTCUDA_MEM": str(1 << 20)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: the job wants ")
    assert "free" in line
    assert "--batch" in line
    assert list(tmp_path.iterdir()) == []


def test_cuda_provider_is_asked_for_and_not_had(demo: Path, tmp_path: Path) -> None:
    import onnxruntime

    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        stats = render(demo, tmp_path / "talk.mp4", device="cuda", provider="cuda")
        assert stats.provider == "cuda"
        return
    with pytest.raises(InferenceError, match="built without CUDAExecutionProvider"):
        render(demo, tmp_path / "talk.mp4", device="cuda", provider="cuda")
    assert list(tmp_path.iterdir()) == []
    stats = render(demo, tmp_path / "talk.mp4", device="cuda")  # auto: picks the CPU, and says so
    assert stats.provider == "cpu"
    assert "running the model on the CPU" in stats.notes[0]


@pytest.mark.parametrize("batch", [5, 8])
def test_a_model_on_the_device(demo: Path, tmp_path: Path, model_on_device: list[int], batch: int) -> None:
    """The same frames; and the model has run before the frames are measured against the free memory and cached."""
    before = open_device().free_bytes
    render(demo, tmp_path / "cpu.mp4", device="cpu", batch=batch)
    trace = Trace()
    stats = render(demo, tmp_path / "gpu.mp4", device="cuda", provider="cuda", batch=batch, trace=trace)
    assert (tmp_path / "cpu.mp4").read_bytes() == (tmp_path / "gpu.mp4").read_bytes()
    assert trace.times("infer").frames == stats.frames
    # Batches leave while frames still come, so they need not be full.
    assert 2 + -(-stats.frames // batch) <= len(model_on_device) <= 2 + stats.frames
    frame_bytes = 480 * 270 * 3 // 2
    assert model_on_device[1] - model_on_device[2] > 12 * frame_bytes
    assert gives_back(before, open_device().free_bytes)


def test_the_cuda_provider_gives_the_frames_of_the_cpus(demo: Path) -> None:
    reason = session.probe_provider("cuda")
    if reason is not None:
        pytest.skip(reason)
    cpu = frames(demo, device="cpu", pixel_format="bgr24")
    gpu = frames(demo, device="cuda", provider="cuda", pixel_format="bgr24")
    for a, b in zip(cpu, gpu, strict=True):
        assert np.abs(a.astype(int) - b).max() <= 1
