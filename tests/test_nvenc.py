"""Frames encoded where the GPU has drawn them: the real FFmpeg, and NVENC in software (tests/softcuda/nvenc), which
reads a frame when its packet is asked for and loses nothing."""

from __future__ import annotations

import ctypes
import gc
import json
import os
import subprocess
import sys
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import small
from conftest import gives_back, on_softcuda
from engine_scene import eventually

from gpupipe.compose.surface import SurfaceFormat
from gpupipe.compose.table import device_shape
from gpupipe.engine.surfaces import Memory, SurfacePool
from gpupipe.errors import Cancelled, OptionError, OutputError
from gpupipe.gpu.device import Device, open_device
from gpupipe.gpu.types import DeviceArray, PitchedRows
from gpupipe.media import encode
from gpupipe.media.encode import VideoWriter
from gpupipe.media.encoders import NVENC_DELAY, EncoderOptions
from gpupipe.media.video import read_frames
from gpupipe.render.engine import Engine
from gpupipe.render.render import frames, render

pytestmark = [pytest.mark.cuda, pytest.mark.timeout(120)]

WIDTH, HEIGHT = 202, 50  # neither rows that fill the pitch, nor whole macroblocks
GPU: dict[str, Any] = {"device": "cuda", "provider": "cpu", "encoder": "h264_nvenc"}
ON_THE_GPU = "h264_nvenc encodes the frames where the GPU has drawn them"

Counted = Callable[[], dict[str, Any]]


def counters() -> dict[str, Any]:
    text = ctypes.create_string_buffer(4096)
    ctypes.CDLL("libnvidia-encode.so.1").softcudaNvencStats(text, ctypes.c_size_t(len(text)))
    counted: dict[str, Any] = json.loads(text.value)
    return counted


@pytest.fixture
def nvenc(monkeypatch: pytest.MonkeyPatch) -> Counted:
    """Let softcuda have an encoder; what it has done since then: `opened`, `open`, `registered`, and the frames that it
    was given, in `device` memory and from the `host`."""
    if not on_softcuda():
        pytest.skip("counts what softcuda's encoder is given, and this run is on a GPU")
    monkeypatch.setenv("SOFTCUDA_NVENC", "1")
    gc.collect()

    def told() -> dict[str, Any]:
        found = counters()
        given: dict[str, Any] = found["devices"].get("0", {"device": 0, "host": 0})
        return found | given

    before = told()
    return lambda: {
        name: value - (0 if name == "open" else before[name])
        for name, value in told().items()
        if isinstance(value, int)
    }


class Surfaces:
    """Frames in device memory; each is spoilt as soon as it is given back, and drawn on again."""

    def __init__(self, device: Device) -> None:
        self.device = device
        self.free: list[DeviceArray] = []
        self.back: list[int] = []
        self.most = self.lent = 0
        self._pitch = -(-WIDTH // 16) * 16

    def draw(self, array: DeviceArray, frame: small.Frame) -> None:
        staging = self.device.pinned(frame.shape, np.uint8)
        staging[...] = frame
        rows = PitchedRows(len(frame), WIDTH, WIDTH, self._pitch)
        self.device.copy(array, staging, self.device.upload_stream, rows=rows)
        self.device.synchronize()

    def write(self, writer: VideoWriter, number: int, frame: small.Frame) -> None:
        array = self.free.pop() if self.free else self.device.empty((HEIGHT * 3 // 2, self._pitch), np.uint8)
        self.draw(array, frame)
        self.lent += 1

        def read() -> None:
            self.draw(array, 255 - frame)
            self.free.append(array)
            self.back.append(number)
            self.lent -= 1

        writer.write(array, read)
        self.most = max(self.most, self.lent)


def opened(path: Path, preset: str, gpu: Device | None) -> VideoWriter:
    return VideoWriter(
        path,
        width=WIDTH,
        height=HEIGHT,
        fps=Fraction(25),
        pixel_format="nv12",
        options=EncoderOptions("h264_nvenc", preset=preset, gpu=0),
        gpu=gpu,
    )


def noise(count: int) -> list[small.Frame]:
    return list(np.random.default_rng(5).integers(0, 256, (count, HEIGHT * 3 // 2, WIDTH), np.uint8))


@pytest.mark.parametrize(
    ("preset", "lookahead", "first", "held"),
    [
        ("p1", 0, [0, 1, 2, 3, 4, 5], range(0, 4)),
        ("p4", 0, [0, 4, 1, 2, 3, 8], range(4, 16)),  # B frames come after the P frame behind them
        ("p7", 20, [0, 4, 1, 2, 3, 8], range(20, 30)),
        ("p7", 31, [0, 4, 1, 2, 3, 8], range(24, NVENC_DELAY)),  # FFmpeg cuts it down to what the delay has room for
    ],
)
def test_a_frame_is_given_back_with_its_packet(
    tmp_path: Path,
    nvenc: Counted,
    monkeypatch: pytest.MonkeyPatch,
    preset: str,
    lookahead: int,
    first: list[int],
    held: range,
) -> None:
    monkeypatch.setenv("SOFTCUDA_NVENC_LOOKAHEAD", str(lookahead))
    device, given = open_device(), noise(90)
    surfaces = Surfaces(device)
    with opened(tmp_path / "device.mp4", preset, device) as writer:
        for number, frame in enumerate(given):
            surfaces.write(writer, number, frame)
    assert surfaces.back[: len(first)] == first
    assert sorted(surfaces.back) == list(range(len(given)))
    assert surfaces.most in held
    counted = nvenc()
    assert (counted["device"], counted["host"], counted["registered"]) == (len(given), 0, len(surfaces.free))
    np.testing.assert_array_equal(list(read_frames(tmp_path / "device.mp4", "nv12")), given)
    with opened(tmp_path / "host.mp4", preset, None) as writer:
        for frame in given:
            writer.write(frame)
    assert nvenc()["host"] == len(given)
    assert (tmp_path / "device.mp4").read_bytes() == (tmp_path / "host.mp4").read_bytes()


@pytest.mark.parametrize("count", [1, 2, 3])
def test_files_shorter_than_the_encoders_delay(tmp_path: Path, nvenc: Counted, count: int) -> None:
    device, given = open_device(), noise(count)
    surfaces = Surfaces(device)
    with opened(tmp_path / "a.mkv", "p7", device) as writer:
        for number, frame in enumerate(given):
            surfaces.write(writer, number, frame)
        assert surfaces.back == []
    assert sorted(surfaces.back) == list(range(count))
    np.testing.assert_array_equal(list(read_frames(tmp_path / "a.mkv", "nv12")), given)


def test_an_encoder_that_gives_no_packets_is_an_error_and_no_standstill(
    tmp_path: Path, nvenc: Counted, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(encode, "NVENC_DELAY", 5)  # less than the encoder keeps
    device = open_device()
    surfaces = Surfaces(device)
    writer = opened(tmp_path / "a.mp4", "p7", device)
    given = noise(6)
    for number in range(5):
        surfaces.write(writer, number, given[number])
    with pytest.raises(OutputError, match="h264_nvenc gives no packets for 6 frames; use libx264"):
        surfaces.write(writer, 5, given[5])
    writer.abort()
    assert sorted(surfaces.back) == list(range(6))  # read to the end, then given back


def test_an_abandoned_encoder_has_read_what_it_gives_back(
    tmp_path: Path, nvenc: Counted, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And it is closed when it gives back what it had no packet for."""
    device = open_device()
    surfaces = Surfaces(device)
    writer = opened(tmp_path / "a.mp4", "p4", device)
    for number, frame in enumerate(noise(9)):
        surfaces.write(writer, number, frame)
    assert surfaces.back == []
    still_open: list[int] = []
    monkeypatch.setattr(surfaces, "draw", lambda *_: still_open.append(nvenc()["open"]))
    writer.abort()
    assert sorted(surfaces.back) == list(range(9))
    assert still_open == [0] * 9
    assert nvenc()["open"] == 0  # though the writer is still there


def test_only_encoders_and_formats_that_read_gpu_memory(tmp_path: Path) -> None:
    for encoder, pixel_format in (("libx264", "nv12"), ("h264_nvenc", "bgr24")):
        with pytest.raises(ValueError, match="in GPU memory"):
            VideoWriter(
                tmp_path / "a.mp4",
                width=64,
                height=64,
                fps=Fraction(25),
                pixel_format=pixel_format,  # type: ignore[arg-type]
                options=EncoderOptions(encoder),
                gpu=open_device(),
            )


def test_surfaces_of_a_gpu_without_a_host_side() -> None:
    format, device = SurfaceFormat("nv12", WIDTH, HEIGHT), open_device()
    pool = SurfacePool(device)
    taken: list[Memory] = pool.borrow(format, 3, on_host=False)
    assert [memory.host for memory in taken] == [None] * 3
    assert all(memory.device is not None and memory.device.shape == device_shape(format) for memory in taken)
    pool.give_back(format, taken, on_host=False)
    assert pool.bytes_wanted(format, 3, on_host=False) == 0
    assert pool.bytes_wanted(format, 3) == 3 * int(np.prod(device_shape(format)))
    (other,) = pool.borrow(format, 1)
    assert other.host is not None


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return small.small_character(tmp_path / "small")


def speech(rows: int) -> Any:
    return small.features(rows, seed=7)


def of_the_cpu(folder: Path, rows: int) -> list[small.Frame]:
    return list(frames(folder, device="cpu", features=speech(rows)))


@pytest.mark.parametrize("preset", ["p1", "p4", "p7"])
@pytest.mark.parametrize(("batch", "encoders"), [(1, 1), (8, 1), (3, 2)])
def test_a_render_that_leaves_its_frames_on_the_gpu(
    folder: Path, tmp_path: Path, nvenc: Counted, preset: str, batch: int, encoders: int
) -> None:
    rows, before = 100, open_device().free_bytes
    stats = render(
        folder,
        tmp_path / "talk.mp4",
        **GPU,
        features=speech(rows),
        preset=preset,
        batch=batch,
        encoders=encoders,
        segment_frames=45,
    )
    counted = nvenc()
    assert stats.notes == (ON_THE_GPU,)
    assert stats.frames == rows
    # One more frame finds out whether the encoder opens; each segment has an encoder of its own.
    assert (counted["device"], counted["host"], counted["opened"], counted["open"]) == (rows + 1, 0, 4, 0)
    np.testing.assert_array_equal(list(read_frames(tmp_path / "talk.mp4", "nv12")), of_the_cpu(folder, rows))
    assert gives_back(before, open_device().free_bytes)


def test_nothing_is_downloaded(
    folder: Path, tmp_path: Path, softcuda_stats: Callable[..., dict[str, Any]], nvenc: Counted
) -> None:
    def counted(rows: int) -> dict[str, Any]:
        features = tmp_path / "features.npy"
        np.save(features, speech(rows))
        command = [sys.executable, "-m", "gpupipe", "render", str(folder), "-o", str(tmp_path / "talk.mp4"), "--quiet"]
        command += ["--overwrite", "--no-audio", "--device", "cuda", "--provider", "cpu", "--batch", "4"]
        return softcuda_stats([*command, "--features", str(features), "--encoder", "h264_nvenc"])

    short, long = counted(40), counted(120)
    batches = long["launches"]["prepare"] - short["launches"]["prepare"]
    assert long["d2h_bytes"] == 4 * long["launches"]["prepare"]  # a word of status a batch, and not a frame
    assert 0 < batches <= 80
    assert long["mallocs"] == short["mallocs"]
    assert long["pinned_allocs"] == short["pinned_allocs"]
    assert long["pageable_async_copies"] == 0
    assert long["syncs"] - short["syncs"] <= 2 * batches


@pytest.mark.parametrize(
    ("device", "pixel_format", "note"),
    [
        ("cuda", "bgr24", "h264_nvenc is given the frames by way of the host: on a GPU it reads nv12"),
        ("cpu", "nv12", "h264_nvenc is given the frames by way of the host: the CPU draws them"),
    ],
)
def test_other_frames_go_by_way_of_the_host(
    folder: Path, tmp_path: Path, nvenc: Counted, device: str, pixel_format: Any, note: str
) -> None:
    options: dict[str, Any] = {"pixel_format": pixel_format, "features": speech(20)}
    stats = render(folder, tmp_path / "talk.mp4", **GPU | {"device": device}, **options)
    assert [told for told in stats.notes if told.startswith(note)] == list(stats.notes)
    counted = nvenc()
    assert (counted["device"], counted["host"], counted["opened"]) == (0, stats.frames, 1)
    render(folder, tmp_path / "cpu.mp4", **GPU | {"device": "cpu"}, **options)
    assert (tmp_path / "talk.mp4").read_bytes() == (tmp_path / "cpu.mp4").read_bytes()
    if pixel_format == "nv12":
        np.testing.assert_array_equal(
            list(read_frames(tmp_path / "talk.mp4", "nv12")), of_the_cpu(folder, stats.frames)
        )


TWO_GPUS = """
import ctypes, sys
import numpy as np
from pathlib import Path
from gpupipe.compose.surface import Surface, SurfaceFormat
from gpupipe.compose.table import device_shape
from gpupipe.gpu.device import open_device
from gpupipe.media.video import probe
from gpupipe.options import OutputOptions
from gpupipe.render.manifest import Manifest
from gpupipe.render.output import open_output
from gpupipe.render.segments import Segments

body, path, pixel_format = probe(Path(sys.argv[1])), Path(sys.argv[2]), sys.argv[3]
gpus = [open_device(0), open_device(1)]
options = OutputOptions(encoder="h264_nvenc", preset="p1")
manifest = Manifest({}, 8, 2)
sink = open_output(path, body, pixel_format, options, segments=Segments(8, 2), manifest=manifest, gpus=gpus)
writers = [sink.writer(gpu) for gpu in gpus]
format = SurfaceFormat(pixel_format, body.width, body.height)
for index in range(8):
    number = (1, 1, 0, 1)[index // 2]  # the first segment is drawn on the second GPU
    drawn = gpus[number].empty(device_shape(format), np.uint8)
    gpus[number].clear(drawn, gpus[number].compute_stream)
    gpus[number].synchronize()
    host = np.zeros(format.shape, np.uint8) if writers[number].on_host else None
    writers[number].write(Surface(format, host, drawn, index))
for writer in writers:
    writer.close()
sink.commit()
text = ctypes.create_string_buffer(4096)
ctypes.CDLL("libnvidia-encode.so.1").softcudaNvencStats(text, ctypes.c_size_t(len(text)))
print(text.value.decode())
"""


@pytest.mark.parametrize("pixel_format", ["nv12", "bgr24"])
def test_every_gpu_encodes_what_it_has_drawn(folder: Path, tmp_path: Path, nvenc: Counted, pixel_format: str) -> None:
    arguments = [str(folder / "full_body_video.mp4"), str(tmp_path / "talk.mp4"), pixel_format]
    done = subprocess.run(
        [sys.executable, "-c", TWO_GPUS, *arguments],
        env=os.environ | {"SOFTCUDA_DEVICES": "2"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    given = json.loads(done.stdout)["devices"]
    if pixel_format == "nv12":  # and one frame on each GPU, to try the encoder
        assert given == {"0": {"device": 3, "host": 0}, "1": {"device": 7, "host": 0}}
    else:
        assert given == {"0": {"device": 0, "host": 2}, "1": {"device": 0, "host": 6}}
    assert len(list(read_frames(tmp_path / "talk.mp4", "nv12"))) == 8


def test_a_render_on_two_gpus(folder: Path, tmp_path: Path, nvenc: Counted) -> None:
    np.save(tmp_path / "features.npy", speech(120))
    command = [sys.executable, "-m", "gpupipe", "render", str(folder), "-o", str(tmp_path / "talk.mp4"), "--quiet"]
    command += ["--features", str(tmp_path / "features.npy"), "--segment-frames", "10", "--encoders", "2"]
    command += ["--device", "cuda:0,cuda:1", "--provider", "cpu", "--encoder", "h264_nvenc"]
    done = subprocess.run(
        command, env=os.environ | {"SOFTCUDA_DEVICES": "2"}, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    np.testing.assert_array_equal(list(read_frames(tmp_path / "talk.mp4", "nv12")), of_the_cpu(folder, 120))


def test_a_driver_that_allows_no_more_encoders(
    folder: Path, tmp_path: Path, nvenc: Counted, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, free = small.files_in(tmp_path), open_device().free_bytes

    def others_come(progress: Any) -> None:
        monkeypatch.setenv("SOFTCUDA_NVENC_SESSIONS", "1")  # which is in use already

    with pytest.raises(OptionError) as caught:
        render(
            folder,
            tmp_path / "talk.mp4",
            **GPU,
            features=speech(400),
            segment_frames=100,
            encoders=2,
            progress=others_come,
        )
    assert str(caught.value) == (
        "encoder: cannot be opened: Cannot allocate memory (got 'h264_nvenc'); the driver may allow no more encoders "
        "at a time: use fewer encoders, end other programs that encode, or use libx264"
    )
    left = small.files_in(tmp_path)  # and a segment, if the other encoder had finished one by then
    assert {name: data for name, data in left.items() if ".parts" not in name} == before
    assert nvenc()["open"] == 0  # though the error is still there
    del caught
    gc.collect()
    assert gives_back(free, open_device().free_bytes)
    monkeypatch.setenv("SOFTCUDA_NVENC_SESSIONS", "0")
    with pytest.raises(OptionError, match="the driver may allow no more encoders"):  # before a frame is drawn
        render(folder, tmp_path / "other.mp4", **GPU)
    assert not (tmp_path / "other.mp4").exists()


def test_no_encoder_is_found_out_before_a_frame_is_drawn(
    folder: Path, tmp_path: Path, nvenc: Counted, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SOFTCUDA_NVENC", "0")
    monkeypatch.setattr(Engine, "open_session", lambda *_, **__: pytest.fail("a session was opened"))
    before = small.files_in(tmp_path)
    with pytest.raises(OptionError) as caught:
        render(folder, tmp_path / "talk.mp4", **GPU)
    assert str(caught.value) == (
        "encoder: cannot be opened: Function not implemented (got 'h264_nvenc'); it needs an NVIDIA GPU that encodes, "
        "and its driver, 570 or later; see `gpupipe doctor` for the encoders that open here"
    )
    assert small.files_in(tmp_path) == before


def test_a_render_that_is_stopped_gives_everything_back(folder: Path, tmp_path: Path, nvenc: Counted) -> None:
    free = open_device().free_bytes
    with Engine(device="cuda") as engine:
        options: dict[str, Any] = {"provider": "cpu", "encoder": "h264_nvenc", "features": speech(100), "preset": "p7"}
        wanted = engine.render(folder, tmp_path / "whole.mp4", **options)
        held = open_device().free_bytes

        def stop(progress: Any) -> None:
            if progress.done == 40:
                raise Cancelled("enough")

        before = small.files_in(tmp_path)
        for _ in range(3):
            with pytest.raises(Cancelled, match="enough"):
                engine.render(folder, tmp_path / "talk.mp4", progress=stop, **options)
            assert small.files_in(tmp_path) == before
            assert nvenc()["open"] == 0
            eventually(lambda: not engine._sessions and not engine._handling, "a session is not at its end")
        engine.render(folder, tmp_path / "again.mp4", **options)
        assert gives_back(held, open_device().free_bytes)
        assert (tmp_path / "again.mp4").read_bytes() == (tmp_path / "whole.mp4").read_bytes()
        assert wanted.frames == 100
    gc.collect()
    assert nvenc()["open"] == 0
    assert gives_back(free, open_device().free_bytes)


def test_a_video_that_cannot_be_written_gives_everything_back(
    folder: Path, tmp_path: Path, nvenc: Counted, monkeypatch: pytest.MonkeyPatch
) -> None:
    free = open_device().free_bytes
    monkeypatch.setattr(VideoWriter, "_mend_dts", failing_after(VideoWriter._mend_dts, 30))
    with pytest.raises(OutputError, match="No space left on device"):
        render(folder, tmp_path / "talk.mp4", **GPU, features=speech(100))
    gc.collect()
    assert nvenc()["open"] == 0
    assert gives_back(free, open_device().free_bytes)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["small"]


def failing_after(method: Callable[..., None], calls: int) -> Callable[..., None]:
    left = iter(range(calls))

    def failing(*arguments: Any) -> None:
        if next(left, None) is None:
            raise OSError(28, "No space left on device")
        method(*arguments)

    return failing
