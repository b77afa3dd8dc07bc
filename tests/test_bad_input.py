"""Bad input to a render: one line that names what is wrong, exit code 1, and nothing changed on disk."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import conftest
import numpy as np
import pytest
import small

import gpupipe
from gpupipe.cli import main
from gpupipe.errors import DeviceError, OptionError, OutputError, PackageError
from gpupipe.options import MAX_BATCH
from gpupipe.render import image_output, video_output

ROOT = Path(__file__).resolve().parents[1]

Refusal = Callable[..., str]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return small.small_character(tmp_path / "character")


@pytest.fixture
def refusal(tmp_path: Path, folder: Path, capfd: pytest.CaptureFixture[str]) -> Refusal:
    """A function that renders with the given arguments, and returns what the one line of error says.

    It fails unless the exit code is 1, nothing else is printed (by C libraries neither), and every file is as it was.
    """

    def run(*arguments: str, output: str = "talk.mp4", device: str = "cpu") -> str:
        before = small.files_in(tmp_path)
        code = main(
            ["render", str(folder), "-o", f"{tmp_path}/{output}", "--device", device, "--batch", "4", *arguments]
        )
        out, err = capfd.readouterr()
        lines = [line for line in out.splitlines() if not line.startswith("Processed ")]
        assert (code, lines) == (1, [])
        assert len(err.splitlines()) == 1
        assert err.startswith("error: ")
        assert small.files_in(tmp_path) == before
        return err.removeprefix("error: ").rstrip("\n")

    return run


def plain_environment() -> dict[str, str]:
    """This process's environment without any GPU, real or software."""
    env = {name: value for name, value in os.environ.items() if not name.startswith("SOFTCUDA")}
    if conftest.on_softcuda():
        for name in ("PYTHONPATH", "LD_LIBRARY_PATH"):  # softcuda puts one folder in front
            env[name] = env[name].partition(os.pathsep)[2]
    return env | {"CUDA_VISIBLE_DEVICES": ""}


def gpupipe_process(*arguments: str, program: str | None = None, **environment: str) -> subprocess.Popen[str]:
    """The command line in a process of its own, without any GPU, with more in its environment."""
    start = ("-m", "gpupipe") if program is None else ("-c", program)
    return subprocess.Popen(
        [sys.executable, *start, *arguments],
        cwd=ROOT,
        env=plain_environment() | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        encoding="utf-8",
    )


# Videos


@pytest.mark.parametrize("name", ["full_body_video.mp4", "crops_328_video.mp4"])
@pytest.mark.parametrize("part", [0.0, 0.001, 0.1, 0.3, 0.5, 0.7, 0.9])
def test_a_truncated_video(folder: Path, refusal: Refusal, name: str, part: float) -> None:
    whole = (folder / name).read_bytes()
    (folder / name).write_bytes(whole[: int(part * len(whole))])
    message = refusal()
    assert message.startswith(f"{folder / name}: ")
    assert "write it again" in message or message.endswith("holds no video stream; give a video file")


@pytest.mark.parametrize("frames", [0, 2, 9, 11])
def test_a_truncated_video_that_can_be_opened(folder: Path, refusal: Refusal, frames: int) -> None:
    path = folder / "full_body_video.mp4"
    small.put_index_first(path)
    start, size = small.packets_in(path)[frames]
    path.write_bytes(path.read_bytes()[: start + size // 2])
    assert refusal() == f"{path}: is truncated: {frames} whole frames of 12; write it again"


def test_a_video_damaged_in_the_middle(folder: Path, refusal: Refusal) -> None:
    path = folder / "full_body_video.mp4"
    small.damage(path, frame=5)
    message = refusal()
    assert message.startswith(f"{path}: frame ")
    assert message.endswith("; write it again")
    assert "is damaged" in message or "cannot be decoded" in message


def test_damaged_crops(folder: Path, refusal: Refusal) -> None:
    path = folder / "crops_328_video.mp4"
    small.damage(path, frame=5)
    assert refusal().startswith(f"{path}: frame ")


@pytest.mark.parametrize("content", [b"", b"no video\n" * 100, bytes(5000), b"\x1aE\xdf\xa3"])
def test_no_video(folder: Path, refusal: Refusal, content: bytes) -> None:
    path = folder / "crops_328_video.mp4"
    path.write_bytes(content)
    message = refusal()
    assert message.startswith(f"{path}: cannot be opened as a video: ")
    assert message.endswith("; it may be truncated: write it again")


def test_sound_instead_of_a_video(folder: Path, refusal: Refusal) -> None:
    path = folder / "full_body_video.mp4"
    small.write_wav(path)
    assert refusal() == f"{path}: holds no video stream; give a video file"


def test_a_video_without_frames(folder: Path, refusal: Refusal) -> None:
    path = folder / "full_body_video.mp4"
    small.write_video_without_frames(path)
    assert refusal().startswith(f"{path}: ")


def test_a_folder_that_is_missing(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["render", str(tmp_path / "none"), "-o", str(tmp_path / "talk.mp4")]) == 1
    assert capfd.readouterr() == ("", f"error: {tmp_path / 'none'}: no such character folder; give a folder\n")


def test_a_wrong_rectangle(folder: Path, refusal: Refusal) -> None:
    small.write_rectangles(folder, [[31, 11, 62, 45]] * 6 + [[31, 11, 31, 45]] * 6)
    assert refusal() == (
        f"{folder / small.RECTANGLES}: frame 6: rect: empty or reversed (got [31, 11, 31, 45]); "
        "x2 must be greater than x1, and y2 than y1"
    )


def test_counts_that_differ_warn_and_render(folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    small.write_rectangles(folder, [small.rectangle(frame) for frame in range(5)])
    output = tmp_path / "talk.mp4"
    assert main(["render", str(folder), "-o", str(output), "--device", "cpu", "--quiet"]) == 0
    out, err = capfd.readouterr()
    assert (out, err) == (
        "",
        f"warning: {folder}: counts differ (full_body_video.mp4 12, crops_328_video.mp4 12, "
        "cache/crop_rectangles.json 5); the first 5 frames are used\n",
    )
    assert small.frames_in(output) == 12


def test_an_odd_body(folder: Path, refusal: Refusal, tmp_path: Path) -> None:
    path = folder / "full_body_video.mp4"
    small.write_video(path, small.pictures(97, 65, 12))
    wrong = "needs an even width and height (got '97x65'); write"
    for arguments in ([], ["--pixel-format", "bgr24"]):
        message = refusal(*arguments)
        assert message.startswith(f"{path}: size: ")
        assert wrong in message
    with pytest.raises(PackageError, match="nv12 needs an even width and height"):
        next(iter(gpupipe.frames(folder, device="cpu")))
    assert next(iter(gpupipe.frames(folder, device="cpu", pixel_format="bgr24"))).shape == (65, 97, 3)
    assert main(["render", str(folder), "-o", f"{tmp_path}/images/", "--device", "cpu", "--quiet"]) == 0
    assert len(list((tmp_path / "images").iterdir())) == 12


def test_recorded_inputs_that_are_missing(folder: Path, refusal: Refusal) -> None:
    assert refusal("--masked-video") == (
        f"{folder}: --masked-video: the recorded model inputs are missing; "
        "add rois_320_video.mp4 and model_inputs_video.mp4, or leave --masked-video out"
    )


def test_a_start_past_the_end(folder: Path, refusal: Refusal) -> None:
    assert refusal("--start-frame", "12") == "--start-frame: the character has 12 frames (got 12); give 0 to 11"


# Features


def test_wrong_features(folder: Path, refusal: Refusal, tmp_path: Path) -> None:
    remedy = "give a NumPy file with float32 [N, 512]"
    (folder / "aud_ave.npy").unlink()
    assert refusal() == f"{folder / 'aud_ave.npy'}: features: no such file; {remedy}"
    other = tmp_path / "speech of me.npy"
    np.save(other, np.zeros((4, 256), np.float32))
    assert refusal("--features", str(other)) == f"{other}: features: wrong shape (got (4, 256)); {remedy}"
    np.save(other, np.full((4, 512), np.nan, np.float32))
    assert refusal("--features", str(other)) == (
        f"{other}: features row 0: holds NaN or infinity; compute the features again"
    )


def test_wrong_features_in_an_array(folder: Path, tmp_path: Path) -> None:
    before = small.files_in(tmp_path)
    for array, message in (
        (
            np.zeros((4, 512), np.int64),
            r"features: wrong type \(got 'int64'\); give a NumPy file with float32 \[N, 512\]",
        ),
        (np.zeros((4, 5), np.float32), r"features: wrong shape \(got \(4, 5\)\); "),
        (np.full((4, 512), np.inf, np.float32), "features row 0: holds NaN or infinity; compute the features again"),
    ):
        with pytest.raises(PackageError, match=message):
            gpupipe.render(folder, tmp_path / "talk.mp4", features=array, device="cpu")  # type: ignore[arg-type]
    assert small.files_in(tmp_path) == before


# Models


def test_no_model(folder: Path, refusal: Refusal, tmp_path: Path) -> None:
    model = folder / "checkpoint" / "model_best.onnx"
    model.unlink()
    assert refusal() == f"{model}: model: no such file; give one with --model"
    other = tmp_path / "notes.onnx"
    other.write_text("no model")
    message = refusal("--model", str(other))
    assert message.startswith(f"{other}: model: cannot be opened: ")
    assert message.endswith("; export it again, or see `gpupipe doctor`")


VISUAL, AUDIO, DRAWN = ["b", 6, 32, 32], ["b", 32, 16, 16], ["b", 3, 32, 32]


@pytest.mark.parametrize(
    ("inputs", "outputs", "what"),
    [
        ([VISUAL], [VISUAL], "1 inputs and 1 outputs instead of 2 and 1"),
        ([VISUAL, AUDIO, AUDIO], [VISUAL], "3 inputs and 1 outputs instead of 2 and 1"),
        ([VISUAL, AUDIO], [VISUAL, VISUAL], "2 inputs and 2 outputs instead of 2 and 1"),
        ([["b", 4, 32, 32], AUDIO], [["b", 4, 32, 32]], "not exactly one input with 6 channels"),
        ([VISUAL, VISUAL], [VISUAL], "not exactly one input with 6 channels"),
        ([VISUAL, ["b", 32, 16, 8]], [VISUAL], "in1 has another shape"),
        ([VISUAL, ["b", 512]], [VISUAL], "in1 has another shape"),
        ([VISUAL, AUDIO], [VISUAL], "out0 has another shape"),
    ],
)
def test_a_model_of_another_kind(
    folder: Path, refusal: Refusal, inputs: list[Any], outputs: list[Any], what: str
) -> None:
    model = folder / "checkpoint" / "model_best.onnx"
    small.write_other_model(model, inputs, outputs)
    found = ", ".join(
        f"{name}{number}{shape} tensor(float)"
        for name, shapes in (("in", inputs), ("out", outputs))
        for number, shape in enumerate(shapes)
    )
    assert refusal() == (
        f"{model}: model: is no lip-sync model: {what} (got {found!r}); "
        "give one with inputs [B,6,S,S] and [B,32,16,16] and one output [B,3,S,S]"
    )


def test_a_model_of_another_size(folder: Path, refusal: Refusal, tmp_path: Path) -> None:
    small.write_model(tmp_path / "big.onnx", size=64)
    assert refusal("--model", str(tmp_path / "big.onnx")) == (
        f"{tmp_path / 'big.onnx'}: model: the model is for 64x64 images, the crops (40x40) hold 32; "
        "use the model that belongs to the character"
    )


def test_a_model_for_fixed_batches(folder: Path, refusal: Refusal, tmp_path: Path) -> None:
    model = tmp_path / "five.onnx"
    small.write_model(model, batch=5)
    assert refusal("--model", str(model), "--batch", "8") == (
        f"{model}: --batch: the model takes batches of 5 only (got 8); use a multiple of 5"
    )
    output = tmp_path / "talk.mp4"
    assert main(["render", str(folder), "-o", str(output), "--model", str(model), "--batch", "10", "--quiet"]) == 0
    assert small.frames_in(output) == 12


@pytest.mark.parametrize("batch", ["1", "5", "8"])
def test_a_model_that_gives_nan(folder: Path, refusal: Refusal, batch: str) -> None:
    features = small.features(12)
    features[7, 0] = features[9, 0] = -0.5
    np.save(folder / "aud_ave.npy", features)
    model = folder / "checkpoint" / "model_best.onnx"
    assert refusal("--batch", batch) == (
        f"{model}: output frame 7: the model gave NaN; check the model and the features; a float16 export may overflow"
    )


def test_a_model_that_fails(folder: Path, refusal: Refusal) -> None:
    features = small.features(12)
    features[10, 0] = 2.0
    np.save(folder / "aud_ave.npy", features)
    model = folder / "checkpoint" / "model_best.onnx"
    for output in ("talk.mp4", "images/"):
        message = refusal(output=output)
        assert message.startswith(f"{model}: output frame 10: the model failed: ")
        assert message.endswith("; export it again")


def test_features_that_a_float16_model_cannot_hold(folder: Path, refusal: Refusal) -> None:
    model = folder / "checkpoint" / "model_best.onnx"
    small.write_model(model, dtype="float16")
    features = small.features(12)
    features[3, 0] = -1e-3
    np.save(folder / "aud_ave.npy", features)
    assert refusal().startswith(f"{model}: output frame 3: the model gave NaN")


# Options


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--encoder", "nothing"],
            "--encoder: is no video encoder of this PyAV (got 'nothing'); use libx264, or see `gpupipe doctor`",
        ),
        (
            ["--encoder", "aac"],
            "--encoder: is no video encoder of this PyAV (got 'aac'); use libx264, or see `gpupipe doctor`",
        ),
        (["--encoder", "gif"], "--encoder: takes neither nv12 nor yuv420p (got 'gif'); use libx264"),
        (["--encoder", "mpeg4", "--crf", "3"], "--crf: mpeg4 has no constant quality (got 3); leave --crf out"),
        (
            ["--encoder", "mpeg4", "--preset", "fast"],
            "--preset: mpeg4 has no presets (got 'fast'); leave --preset out",
        ),
        (["--crf", "52"], "--crf: out of range (got 52); give 0 to 51"),
        (
            ["--preset", "p4"],
            "--preset: libx264 has no such preset (got 'p4'); give one of ultrafast, superfast, veryfast, faster, "
            "fast, medium, slow, slower, veryslow, placebo",
        ),
        (["--encoder", "h264_nvenc", "--crf", "60"], "--crf: out of range (got 60); give 1 to 51"),
        (["--encoder", "hevc_nvenc", "--crf", "0"], "--crf: out of range (got 0); give 1 to 51"),
        (
            ["--encoder", "av1_nvenc", "--preset", "placebo"],
            "--preset: av1_nvenc has no such preset (got 'placebo'); give one of default, slow, medium, fast, "
            "p1, p2, p3, p4, p5, p6, p7",
        ),
        (
            ["--provider", "cuda"],
            "--provider: needs a GPU to composite on (got 'cuda'); "
            "use --device cuda (see `gpupipe doctor`), or --provider cpu",
        ),
    ],
)
def test_an_option_that_does_not_fit(refusal: Refusal, arguments: list[str], message: str) -> None:
    assert refusal(*arguments) == message


def test_images_hold_bgr24(refusal: Refusal) -> None:
    message = "--pixel-format: images hold bgr24 (got 'nv12'); leave it out"
    assert refusal("--pixel-format", "nv12", output="images/") == message


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch": 0}, "batch: out of range (got 0); give 1 to 512"),
        ({"batch": MAX_BATCH + 1}, "batch: out of range (got 513); give 1 to 512"),
        ({"batch": True}, "batch: not a whole number (got True); give 1 to 512, or auto"),
        ({"workers": 0}, "workers: out of range (got 0); give 1 to 1024"),
        ({"frames": 0}, "frames: out of range (got 0); give 1 or more"),
        ({"start_frame": -1}, "start_frame: out of range (got -1); give 0 or more"),
        ({"start_frame": 12}, "start_frame: the character has 12 frames (got 12); give 0 to 11"),
        ({"start_frame": 10**30}, f"start_frame: the character has 12 frames (got {10**30}); give 0 to 11"),
        ({"inference_threads": 0}, "inference_threads: out of range (got 0); give 1 to 1024"),
        ({"jpeg_quality": 0}, "jpeg_quality: out of range (got 0); give 1 to 100"),
        ({"jpeg_quality": 101}, "jpeg_quality: out of range (got 101); give 1 to 100"),
        ({"segment_frames": 0}, "segment_frames: out of range (got 0); give 1 or more"),
        ({"encoder_threads": -1}, "encoder_threads: out of range (got -1); give 1 to 1024"),
        ({"encoder_threads": 0}, "encoder_threads: out of range (got 0); give 1 to 1024"),
        ({"crf": -1}, "crf: out of range (got -1); give 0 or more"),
        ({"crf": 52}, "crf: out of range (got 52); give 0 to 51"),
        ({"sound": "no"}, "sound: neither true nor false (got 'no')"),
        ({"pixel_format": "rgb24"}, "pixel_format: no such choice (got 'rgb24'); give nv12 or bgr24"),
        ({"device": "gpu"}, "device: no such device (got 'gpu'); give auto, cpu, cuda or cuda:N"),
        (
            {"provider": "cuda"},
            "provider: needs a GPU to composite on (got 'cuda'); "
            'use device="cuda" (see `gpupipe doctor`), or provider="cpu"',
        ),
        ({"provider": "cude"}, "provider: no such choice (got 'cude'); give auto, cpu, cuda or tensorrt"),
        ({"image_format": "bmp"}, "image_format: no such choice (got 'bmp'); give jpg or png"),
        ({"audio": 7}, "audio: not a path (got 7); give the name of a file"),
    ],
)
def test_a_wrong_option_from_python(folder: Path, tmp_path: Path, options: dict[str, Any], message: str) -> None:
    before = small.files_in(tmp_path)
    with pytest.raises(OptionError) as caught:
        gpupipe.render(folder, tmp_path / "talk.mp4", **({"device": "cpu"} | options))
    assert str(caught.value) == message
    assert isinstance(caught.value, ValueError)
    assert small.files_in(tmp_path) == before


# Devices


def test_cuda_without_a_gpu(folder: Path, tmp_path: Path) -> None:
    before = small.files_in(tmp_path)
    for arguments, start, end in (
        (["--device", "cuda"], "error: ", ", or use --device cpu"),
        (
            ["--encoder", "h264_nvenc", "--device", "cpu"],
            "error: --encoder: cannot be opened: ",
            " (got 'h264_nvenc'); it needs an NVIDIA GPU that encodes, and its driver, 570 or later; "
            "see `gpupipe doctor` for the encoders that open here",
        ),
    ):
        process = gpupipe_process("render", str(folder), "-o", str(tmp_path / "talk.mp4"), *arguments)
        out, err = process.communicate(timeout=60)
        assert (process.returncode, out, err.count("\n")) == (1, "", 1)
        assert err.startswith(start)
        assert err.rstrip("\n").endswith(end)
        assert small.files_in(tmp_path) == before


def test_a_device_error_is_raised_in_python(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_device(index: int) -> None:
        raise DeviceError("there is no NVIDIA GPU in this machine")

    monkeypatch.setattr("gpupipe.engine.opening.open_device", no_device)
    with pytest.raises(DeviceError, match="there is no NVIDIA GPU"):
        gpupipe.render(folder, tmp_path / "talk.mp4", device="cuda")
    stats = gpupipe.render(folder, tmp_path / "talk.mp4", device="auto")
    assert (stats.device, stats.provider) == ("cpu", "cpu")
    assert stats.notes == ("compositing on the CPU: there is no NVIDIA GPU in this machine",)


@pytest.mark.cuda
def test_a_provider_that_was_not_built_in(refusal: Refusal) -> None:
    import onnxruntime

    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("this ONNX Runtime has the CUDA provider")
    assert refusal("--provider", "cuda", device="cuda") == (
        "--provider: this ONNX Runtime was built without CUDAExecutionProvider (got 'cuda'); "
        "pip uninstall -y onnxruntime, then pip install 'gpupipe[cuda]'; or use --provider cpu"
    )


# Outputs


def test_an_output_of_another_kind(refusal: Refusal, tmp_path: Path) -> None:
    remedy = "end it in .mp4, .mkv for a video, or in / for a folder of images"
    for name, suffix in (("talk.avi", ".avi"), ("talk", ""), ("talk.mp4.txt", ".txt")):
        assert refusal(output=name) == (
            f"{tmp_path / name}: output: neither a video nor a folder (got {suffix!r}); {remedy}"
        )


def test_an_output_that_exists(refusal: Refusal, tmp_path: Path) -> None:
    (tmp_path / "talk.mp4").write_bytes(b"mine")
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "frame_0003.png").write_bytes(b"mine")
    remedy = "use --overwrite or another"
    assert refusal() == f"{tmp_path / 'talk.mp4'}: output: exists already; {remedy} name"
    assert refusal(output="images") == f"{tmp_path / 'images'}: output: holds images already; {remedy} folder"
    assert (
        refusal(output="talk.mp4/") == f"{tmp_path / 'talk.mp4'}: output: is a file, not a folder; use another folder"
    )


def test_an_output_that_exists_outlives_a_failed_render(folder: Path, refusal: Refusal, tmp_path: Path) -> None:
    features = small.features(12)
    features[10, 0] = 2.0
    np.save(folder / "aud_ave.npy", features)
    (tmp_path / "talk.mp4").write_bytes(b"mine")
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "frame_0003.png").write_bytes(b"mine")
    for output in ("talk.mp4", "images"):
        assert "the model failed" in refusal("--overwrite", output=output)
    assert (tmp_path / "talk.mp4").read_bytes() == b"mine"
    assert (tmp_path / "images" / "frame_0003.png").read_bytes() == b"mine"


def test_an_output_folder_that_is_missing(refusal: Refusal, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for parent in ("none", "file"):
        for name in ("talk.mp4", "images/"):
            assert refusal(output=f"{parent}/{name}") == (
                f"{tmp_path / parent}: output: no such folder; create it first"
            )
    assert refusal("--stats", f"{tmp_path}/none/s.json") == f"{tmp_path / 'none'}: no such folder; create it first"
    assert refusal("--trace", f"{tmp_path}/none/s.json") == f"{tmp_path / 'none'}: no such folder; create it first"


@contextlib.contextmanager
def bound_by_rights() -> Iterator[None]:
    """Let the rights of files count for this thread and those it starts, even if it is root's.

    Linux: the capability to pass over them (CAP_DAC_OVERRIDE, 1) is given up, and taken back at the end.
    """
    if sys.platform == "win32" or os.geteuid() != 0:
        yield
        return
    libc = ctypes.CDLL(None, use_errno=True)
    if not hasattr(libc, "capset"):
        pytest.skip("root writes everywhere here")
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)  # version 3, this thread
    sets = (ctypes.c_uint32 * 6)()  # effective, permitted, inheritable; then the same for capabilities 32 and up
    assert libc.capget(header, sets) == 0
    effective = sets[0]
    sets[0] = effective & ~(1 << 1)
    assert libc.capset(header, sets) == 0
    try:
        yield
    finally:
        sets[0] = effective
        assert libc.capset(header, sets) == 0


@pytest.mark.skipif(sys.platform == "win32", reason="a folder's rights are not in its mode there")
def test_an_output_folder_that_is_not_writable(refusal: Refusal, tmp_path: Path) -> None:
    locked = tmp_path / "locked"
    (locked / "images").mkdir(parents=True)
    (locked / "talk.mp4").write_bytes(b"mine")
    for path in (locked / "images", locked):
        path.chmod(0o555)
    remedy = "output: cannot be written to: Permission denied; use another folder"
    try:
        with bound_by_rights():
            assert refusal(output="locked/new.mp4") == f"{locked}: {remedy}"
            assert refusal("--overwrite", output="locked/talk.mp4") == f"{locked}: {remedy}"
            assert refusal(output="locked/new/") == f"{locked}: {remedy}"
            assert refusal(output="locked/images") == f"{locked / 'images'}: {remedy}"
    finally:
        locked.chmod(0o755)
        (locked / "images").chmod(0o755)


FULL_DISK = """
import resource, signal, sys
from gpupipe.cli import main
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # so that writing past the limit fails with EFBIG
character, output, *limits = sys.argv[1:]
for limit in limits:
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(limit), resource.RLIM_INFINITY))
    print(main(["render", character, "-o", output, "--device", "cpu", "--overwrite", "--quiet"]))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the limit of a file's size is as on Linux")
@pytest.mark.parametrize("output", ["talk.mp4", "talk.mkv", "images/"])
def test_a_full_disk(folder: Path, tmp_path: Path, output: str) -> None:
    path = tmp_path / output
    gpupipe.render(folder, f"{tmp_path}/{output}", device="cpu")
    size = max(file.stat().st_size for file in ([path] if path.is_file() else path.iterdir()))
    before = small.files_in(tmp_path)
    limits = [0, 100, size // 2, size - 1]
    process = gpupipe_process(str(folder), f"{tmp_path}/{output}", *map(str, limits), program=FULL_DISK)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out.split()) == (0, ["1"] * len(limits))
    said = f"error: {path}: cannot be written: File too large; check the folder, its rights and its free space"
    assert [line for line in err.splitlines() if "go on with --resume" not in line] == [said] * len(limits)
    left = {name: data for name, data in small.files_in(tmp_path).items() if ".parts" not in str(name)}
    assert left == before


# Interruptions


@contextlib.contextmanager
def heard(*names: str) -> Iterator[None]:
    """Let signals do what they do by default, here and in what is started here.

    One that this run ignores (all of it runs under nohup, say) would be ignored in a process that it starts too.
    """
    usual = {"SIGINT": signal.default_int_handler}
    numbers = [(name, getattr(signal, name)) for name in names]
    before = [(number, signal.signal(number, usual.get(name, signal.SIG_DFL))) for name, number in numbers]
    try:
        yield
    finally:
        for number, handler in before:
            signal.signal(number, handler)


@pytest.fixture
def ctrl_c() -> Iterator[None]:
    """Ctrl-C is an exception, even in a run that ignores it."""
    with heard("SIGINT"):
        yield


def running_threads() -> set[str]:
    return {thread.name for thread in threading.enumerate()}


@pytest.mark.usefixtures("ctrl_c")
def test_ctrl_c_while_loading(
    folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from gpupipe.media.video import read_frames

    def interrupted(path: Path, *rest: Any) -> Iterator[Any]:
        for number, frame in enumerate(read_frames(path, *rest)):
            if number == 3 and path.name == "full_body_video.mp4":
                signal.raise_signal(signal.SIGINT)
            yield frame

    monkeypatch.setattr("gpupipe.engine.order.read_frames", interrupted)
    before, threads = small.files_in(tmp_path), running_threads()
    for output in ("talk.mp4", "images/"):
        assert main(["render", str(folder), "-o", f"{tmp_path}/{output}", "--device", "cpu"]) == 130
        assert capfd.readouterr() == ("", "interrupted\n")
        assert small.files_in(tmp_path) == before
        assert running_threads() == threads


@pytest.mark.usefixtures("ctrl_c")
@pytest.mark.parametrize(("output", "kind"), [("talk.mp4", "SegmentWriter"), ("images/", "ImageOutput")])
def test_ctrl_c_while_rendering(
    folder: Path,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    output: str,
    kind: str,
) -> None:
    room = {"SegmentWriter": video_output, "ImageOutput": image_output}[kind]
    write = getattr(room, kind).write

    def interrupted(self: Any, frames: Any) -> None:
        write(self, frames)
        os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(getattr(room, kind), "write", interrupted)
    before, threads = small.files_in(tmp_path), running_threads()
    assert (
        main(["render", str(folder), "-o", f"{tmp_path}/{output}", "--device", "cpu", "--batch", "2", "--quiet"]) == 130
    )
    assert capfd.readouterr() == ("", "interrupted\n")
    assert small.files_in(tmp_path) == before
    assert running_threads() == threads


@pytest.mark.skipif(sys.platform == "win32", reason="sends signals to another process")
@pytest.mark.parametrize(
    ("sent", "told"), [("SIGINT", (130, "interrupted\n")), ("SIGTERM", (143, "")), ("SIGHUP", (129, ""))]
)
def test_ended_from_outside(folder: Path, tmp_path: Path, sent: str, told: tuple[int, str]) -> None:
    np.save(folder / "aud_ave.npy", small.features(4000))
    (tmp_path / "talk.mp4").write_bytes(b"mine")
    before = small.files_in(tmp_path)
    slow = ("--preset", "placebo", "--encoder-threads", "1", "--device", "cpu", "--overwrite")
    with heard(sent):
        process = gpupipe_process("render", str(folder), "-o", str(tmp_path / "talk.mp4"), *slow)
    assert process.stdout is not None
    assert process.stdout.readline().startswith("Processed 20/4000 frames (")
    assert len(small.files_in(tmp_path)) > len(before)
    process.send_signal(getattr(signal, sent))
    _, err = process.communicate(timeout=60)
    assert (process.returncode, err) == told
    assert small.files_in(tmp_path) == before


@pytest.mark.parametrize("program", [None, "import sys; from gpupipe.cli import main; sys.exit(main())"])
@pytest.mark.parametrize("package", ["numpy", "av", "cv2"])
def test_ctrl_c_while_importing(tmp_path: Path, package: str, program: str | None) -> None:
    """A package whose import is interrupted, in another's place."""
    (tmp_path / f"{package}.py").write_text(
        "import signal\n"
        # Inside an exec of text, and where an exception would be lost.
        "try: exec('signal.raise_signal(signal.SIGINT)')\n"
        "except BaseException: raise ImportError\n"
    )
    path = os.pathsep.join([str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])])
    with heard("SIGINT"):
        process = gpupipe_process("render", "none", "-o", "talk.mp4", program=program, PYTHONPATH=path)
    assert process.communicate(timeout=60) == ("", "interrupted\n")
    assert process.returncode == 130


def test_ctrl_c_that_is_ignored_stays_ignored(tmp_path: Path) -> None:
    program = (
        "import signal, sys; signal.signal(signal.SIGINT, signal.SIG_IGN)\n"
        "from gpupipe.cli import main\n"
        "code = main(['inspect', 'none'])\n"
        "sys.exit(code if signal.getsignal(signal.SIGINT) is signal.SIG_IGN else 99)"
    )
    process = gpupipe_process(program=program)
    assert process.communicate(timeout=60)[1] == "error: none: no such character folder; give a folder\n"
    assert process.returncode == 1


def test_closing_the_frames_early_ends_the_threads(folder: Path) -> None:
    threads = running_threads()
    frames = gpupipe.frames(folder, device="cpu", batch=2, workers=2, inference_threads=2)
    first = next(iter(frames))
    assert first.shape == (96, 96)
    assert {"prepare", "infer", "paste"} <= running_threads()
    frames.close()  # type: ignore[attr-defined]
    assert running_threads() == threads


def test_a_progress_function_that_fails_stops_the_render(folder: Path, tmp_path: Path) -> None:
    def fail(_: Any) -> None:
        raise RuntimeError("no")

    before, threads = small.files_in(tmp_path), running_threads()
    with pytest.raises(RuntimeError, match="no"):
        gpupipe.render(folder, tmp_path / "talk.mp4", device="cpu", progress=fail)
    assert small.files_in(tmp_path) == before
    assert running_threads() == threads


def test_an_error_can_name_another_file() -> None:
    error = OutputError("cannot be written", file="part", field="frame", value=3, remedy="free some space")
    assert str(error.naming("whole.mp4")) == "whole.mp4: frame: cannot be written (got 3); free some space"
    assert type(error.naming("whole.mp4")) is OutputError


@pytest.mark.skipif(sys.platform == "win32", reason="kills another process by a signal")
@pytest.mark.parametrize("output", ["talk.mp4", "images/", "existing/"])
def test_one_process_an_output_and_what_a_killed_one_leaves(folder: Path, tmp_path: Path, output: str) -> None:
    (tmp_path / "existing").mkdir()
    np.save(folder / "aud_ave.npy", small.features(4000))
    where = tmp_path / "existing" if output == "existing/" else tmp_path
    slow = ("--preset", "placebo", "--encoder-threads", "1", "--device", "cpu", "--segment-frames", "4000")
    process = gpupipe_process("render", str(folder), "-o", f"{tmp_path}/{output}", *slow)
    try:
        wait_until(lambda: any(where.glob("*.parts/unfinished-*seg*")))
        with pytest.raises(OutputError, match=f"is being rendered by process {process.pid}; wait for it"):
            gpupipe.render(folder, f"{tmp_path}/{output}", frames=3, device="cpu", overwrite=True)
    finally:
        process.kill()
        process.communicate()
    assert any(where.glob("*.parts/unfinished-*"))
    gpupipe.render(folder, f"{tmp_path}/{output}", frames=3, device="cpu")  # nothing of it was finished
    assert not list(where.glob("*.parts"))


def test_host_memory_is_counted_before_anything_is_decoded(
    folder: Path, refusal: Refusal, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The frames, the resizing of the largest rectangle, and the buffers."""
    rects = [small.rectangle(frame) for frame in range(12)]
    rects[5] = [-2000, -2000, 2000, 1900]
    small.write_rectangles(folder, rects)

    def decoded(*_: Any) -> Iterator[Any]:
        raise AssertionError("a frame was decoded")

    monkeypatch.setattr("gpupipe.engine.order.read_frames", decoded)
    message = refusal("--max-memory", "100M", "--workers", "1")
    assert message.startswith("--max-memory: the job wants ")
    assert "resizing 483.6 MB" in message  # 4000 x 3900 pixels of 31 bytes
    assert "104.9 MB are available" in message
    for way_out in ("nv12", "--frames", "--workers", "--max-memory"):
        assert way_out in message
    monkeypatch.setattr("gpupipe.engine.backend.memory_available_bytes", lambda: 200_000_000)
    message = refusal()
    assert message.startswith("the job wants ")
    assert "200.0 MB are available" in message


def test_a_job_that_fits_is_rendered(folder: Path, tmp_path: Path) -> None:
    gpupipe.render(folder, tmp_path / "talk.mp4", device="cpu", max_memory=50_000_000)
    assert small.frames_in(tmp_path / "talk.mp4") == 12


def wait_until(true: Callable[[], bool], seconds: float = 60.0) -> None:
    """Wait for what another process does."""
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it never came"
        time.sleep(0.02)
