"""Where finished frames go: what is written, when it appears, and what is taken away."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
import pytest
import small

from gpupipe.compose.surface import Surface, SurfaceFormat
from gpupipe.errors import OptionError, OutputError
from gpupipe.media.images import image_name, write_image
from gpupipe.media.video import VideoInfo, probe, read_frames
from gpupipe.options import OutputOptions
from gpupipe.render.manifest import Manifest
from gpupipe.render.output import Output, Writer, is_video, open_output
from gpupipe.render.segments import Segments

LOSSLESS: dict[str, Any] = {"crf": 0, "preset": "ultrafast"}


@pytest.fixture
def body(tmp_path: Path) -> VideoInfo:
    """A body video of 96x64 at 25 fps."""
    return probe(small.small_character(tmp_path / "character") / "full_body_video.mp4")


def nv12(count: int) -> list[small.Frame]:
    return list(np.random.default_rng(3).integers(16, 236, (count, 96, 96), np.uint8))


def bgr24(count: int) -> list[small.Frame]:
    return small.pictures(96, 64, count, seed=4)


def opened(output: Any, body: VideoInfo, pixel_format: Any, options: OutputOptions, **more: Any) -> Output:
    """An output for as many frames as are written."""
    segments = Segments(1 << 20, options.segment_frames)
    manifest = Manifest({}, segments.total, segments.frames)
    return open_output(output, body, pixel_format, options, segments=segments, manifest=manifest, **more)


def write(sink: Output, frames: list[small.Frame], *, unfinished: bool = False) -> Writer:
    """Write frames as an engine hands them over: each on one surface, which is drawn on again once it is released."""
    lent: list[int] = []
    writer = sink.writer()
    for number, frame in enumerate(frames):
        height = frame.shape[0] if frame.ndim == 3 else frame.shape[0] * 2 // 3
        format = SurfaceFormat("bgr24" if frame.ndim == 3 else "nv12", frame.shape[1], height)
        pixels = frame.copy()

        def back(surface: Surface, pixels: Any = pixels) -> None:
            lent.remove(surface.index)
            pixels[...] = 77

        lent.append(number)
        writer.write(Surface(format, pixels, index=number, _give_back=back))
    assert len(lent) <= 3, "surfaces are released as they are written"
    if not unfinished:
        writer.close()
    return writer


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize(
    ("output", "video"),
    [
        ("talk.mp4", True),
        ("talk.MKV", True),
        ("a b/ü.mkv", True),
        ("images/", False),
        ("talk.mp4/", False),
        (Path("talk.mp4"), True),
    ],
)
def test_what_names_a_video(output: Path | str, video: bool) -> None:
    assert is_video(output) is video


def test_a_folder_is_no_video(tmp_path: Path) -> None:
    (tmp_path / "frames.mp4").mkdir()
    assert is_video(tmp_path / "frames.mp4") is False
    with pytest.raises(OutputError, match="neither a video nor a folder"):
        is_video(tmp_path / "new")
    with pytest.raises(OutputError, match=r"\(got '.gif'\)"):
        is_video(tmp_path / "new.gif")
    with pytest.raises(OutputError, match="neither a video nor a folder"):
        is_video("")  # as from an empty variable: not the folder one happens to be in


@pytest.mark.parametrize("name", ["talk.mp4", "talk.mkv", "TALK.MP4", "Vidéo 影 (1).mp4"])
@pytest.mark.parametrize("segment_frames", [1, 4, 250])
def test_a_video_holds_the_frames_that_were_written(
    body: VideoInfo, tmp_path: Path, name: str, segment_frames: int
) -> None:
    frames = nv12(9)
    sink = opened(tmp_path / name, body, "nv12", OutputOptions(**LOSSLESS, segment_frames=segment_frames))
    write(sink, frames)
    assert not (tmp_path / name).exists()
    sink.commit()
    assert names(tmp_path) == sorted(["character", name])
    np.testing.assert_array_equal(list(read_frames(tmp_path / name, "nv12")), frames)
    with av.open(str(tmp_path / name)) as container:
        keys = [packet.is_keyframe for packet in container.demux(video=0) if packet.size]
    assert [n for n, key in enumerate(keys) if key] == list(range(0, 9, segment_frames))


def test_a_video_appears_only_when_complete(body: VideoInfo, tmp_path: Path) -> None:
    path = tmp_path / "talk.mp4"
    path.write_bytes(b"mine")
    sink = opened(path, body, "nv12", OutputOptions(**LOSSLESS, overwrite=True))
    write(sink, nv12(3))
    assert path.read_bytes() == b"mine"
    sink.commit()
    assert small.frames_in(path) == 3
    sink.leave()  # as a with block would do at its end
    assert small.frames_in(path) == 3


@pytest.mark.parametrize("output", ["talk.mp4", "talk.mkv", "images/", "existing"])
@pytest.mark.parametrize("written", [0, 3, 6])
def test_aborting_leaves_what_is_finished_beside(body: VideoInfo, tmp_path: Path, output: str, written: int) -> None:
    (tmp_path / "existing").mkdir()
    (tmp_path / "existing" / "frame_0000.jpg").write_bytes(b"mine")
    before = small.files_in(tmp_path)
    options = OutputOptions(**LOSSLESS, segment_frames=4, overwrite=True)
    sink = opened(f"{tmp_path}/{output}", body, "bgr24", options)
    writer = write(sink, bgr24(written), unfinished=True)
    assert small.files_in(tmp_path) != before
    writer.abort()
    for _ in range(2):
        sink.leave()
        left = {name: data for name, data in small.files_in(tmp_path).items() if ".parts" not in str(name)}
        assert left == before
        parts = [name for name in small.files_in(tmp_path) if ".parts" in str(name) and "segment_00000" in str(name)]
        assert bool(parts) == (written > 4), "a segment has four frames, and is kept with its last"


def test_a_new_folder_of_images(body: VideoInfo, tmp_path: Path) -> None:
    frames = bgr24(12)
    sink = opened(f"{tmp_path}/bilder ü 影/", body, "bgr24", OutputOptions(image_format="png"), workers=3)
    write(sink, frames)
    folder = tmp_path / "bilder ü 影"
    assert not folder.exists()
    sink.commit()
    assert names(tmp_path) == ["bilder ü 影", "character"]
    assert names(folder) == [f"frame_{number:04d}.png" for number in range(12)]
    for number, frame in enumerate(frames):
        read = cv2.imdecode(np.fromfile(folder / image_name(number, "png"), np.uint8), cv2.IMREAD_COLOR)
        np.testing.assert_array_equal(read, frame)
    if sys.platform != "win32":
        assert folder.stat().st_mode & 0o777 == 0o755


def test_an_existing_folder_keeps_what_is_not_ours(body: VideoInfo, tmp_path: Path) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    for name in ("frame_0000.jpg", "frame_0001.jpg", "frame_12345.jpg", "frame_0002.png", "frame_1.jpg", "notes.txt"):
        (folder / name).write_bytes(b"mine")
    with pytest.raises(OutputError, match="holds images already"):
        opened(folder, body, "bgr24", OutputOptions())
    sink = opened(folder, body, "bgr24", OutputOptions(overwrite=True))
    write(sink, bgr24(2))
    sink.commit()
    assert names(folder) == ["frame_0000.jpg", "frame_0001.jpg", "frame_1.jpg", "notes.txt"]
    assert (folder / "frame_0000.jpg").read_bytes()[:2] == b"\xff\xd8"
    assert (folder / "notes.txt").read_bytes() == b"mine"


def test_an_empty_folder_needs_no_overwrite(body: VideoInfo, tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    sink = opened(tmp_path / "images", body, "bgr24", OutputOptions())
    write(sink, bgr24(2))
    sink.commit()
    assert names(tmp_path / "images") == ["frame_0000.jpg", "frame_0001.jpg"]


def test_jpeg_quality(tmp_path: Path) -> None:
    (frame,) = bgr24(1)
    for quality in (30, 95):
        write_image(tmp_path / f"{quality}.jpg", frame, jpeg_quality=quality)
        done, wanted = cv2.imencode(".jpg", frame, [cv2.IMWRITE_JPEG_QUALITY, quality])
        assert done
        assert (tmp_path / f"{quality}.jpg").read_bytes() == wanted.tobytes()


def test_an_image_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").mkdir()
    with pytest.raises(OutputError) as caught:
        write_image(tmp_path / "a.jpg", bgr24(1)[0], jpeg_quality=95)
    # Windows denies access where others say that it is a folder.
    assert str(caught.value).startswith(f"{tmp_path / 'a.jpg'}: cannot be written: ")
    assert str(caught.value).endswith("; check the folder, its rights and its free space")


@pytest.mark.skipif(os.name == "nt", reason="an open file cannot be taken away there")
@pytest.mark.parametrize("output", ["talk.mp4", "images/"])
def test_a_work_folder_that_disappears(body: VideoInfo, tmp_path: Path, output: str) -> None:
    """As when somebody tidies up: what fails names the output."""
    sink = opened(f"{tmp_path}/{output}", body, "bgr24", OutputOptions(**LOSSLESS, segment_frames=2))
    (work,) = tmp_path.glob("*.parts")
    shutil.rmtree(work)
    with pytest.raises(OutputError) as caught:
        write(sink, bgr24(6))
    assert str(caught.value).startswith(f"{tmp_path / output}: cannot be written: No such file or directory")
    sink.leave()
    assert names(tmp_path) == ["character"]


@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
@pytest.mark.parametrize(
    ("encoder", "codec"),
    [("libx265", "hevc"), ("libsvtav1", "av1"), ("libvpx-vp9", "vp9"), ("mpeg4", "mpeg4"), ("h264", "h264")],
)
def test_other_encoders(body: VideoInfo, tmp_path: Path, encoder: str, codec: str, suffix: str) -> None:
    if encoder not in av.codecs_available:
        pytest.skip(f"this PyAV has no {encoder}")
    path = tmp_path / f"talk{suffix}"
    sink = opened(path, body, "nv12", OutputOptions(encoder=encoder, segment_frames=4))
    write(sink, nv12(9))
    sink.commit()
    with av.open(str(path)) as container:
        assert container.streams.video[0].codec_context.codec.canonical_name == codec
        assert container.streams.video[0].average_rate == 25
    assert small.frames_in(path) == 9


QUIETLY = """
import os, sys
from fractions import Fraction
import numpy as np
from gpupipe.media.encode import VideoWriter
from gpupipe.media.encoders import EncoderOptions

options = {"fps": Fraction(25), "pixel_format": "nv12", "options": EncoderOptions(sys.argv[2])}
for width, height in ((64, 48), (640, 360)):  # SVT-AV1 has more to say about small pictures
    with VideoWriter(sys.argv[1], width=width, height=height, **options) as writer:
        for _ in range(3):
            writer.write(np.full((height * 3 // 2, width), 128, np.uint8))
"""


@pytest.mark.parametrize("encoder", ["libx264", "libx265", "libsvtav1", "libvpx-vp9", "mpeg4"])
def test_encoders_are_quiet(tmp_path: Path, encoder: str) -> None:
    if encoder not in av.codecs_available:
        pytest.skip(f"this PyAV has no {encoder}")
    env = {name: value for name, value in os.environ.items() if name != "SVT_LOG"}
    command = [sys.executable, "-c", QUIETLY, str(tmp_path / "talk.mkv"), encoder]
    done = subprocess.run(command, capture_output=True, text=True, env=env, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert small.frames_in(tmp_path / "talk.mkv") == 3


def test_an_encoder_may_be_heard_if_asked_for(tmp_path: Path) -> None:
    if "libsvtav1" not in av.codecs_available:
        pytest.skip("this PyAV has no libsvtav1")
    command = [sys.executable, "-c", QUIETLY, str(tmp_path / "talk.mkv"), "libsvtav1"]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"SVT_LOG": "3"}, check=False)
    assert done.returncode == 0
    assert "SVT-AV1 Encoder Lib" in done.stderr


def test_a_codec_that_the_file_cannot_hold(body: VideoInfo, tmp_path: Path) -> None:
    before = small.files_in(tmp_path)
    for encoder, suffix, remedy in (
        ("libvpx", ".mp4", "use libx264, or write an .mkv file"),
        ("utvideo", ".mkv", "use libx264"),
    ):
        with pytest.raises(OptionError) as caught:
            opened(tmp_path / f"talk{suffix}", body, "nv12", OutputOptions(encoder=encoder))
        assert str(caught.value) == f"encoder: does not go into {suffix} files (got {encoder!r}); {remedy}"
        assert small.files_in(tmp_path) == before


def test_an_encoders_other_name_has_the_same_defaults(body: VideoInfo, tmp_path: Path) -> None:
    written: list[Any] = []
    for encoder in ("libx264", "h264"):
        path = tmp_path / f"{encoder}.mkv"
        sink = opened(path, body, "nv12", OutputOptions(encoder=encoder))
        write(sink, nv12(3))
        sink.commit()
        with av.open(str(path)) as container:
            written.append([bytes(packet) for packet in container.demux(video=0)])
    assert written[0] == written[1]


AT_THE_END_OF_MEMORY = """
import itertools, mmap, os, sys, tempfile
from fractions import Fraction
from pathlib import Path
import numpy as np
from gpupipe.media.encode import VideoWriter
from gpupipe.media.encoders import EncoderOptions

folder, pixel_format = Path(sys.argv[1]), sys.argv[2]
for width, height in itertools.product((2, 16, 18, 48, 98, 642), (16, 18)):
    shape = (height, width, 3) if pixel_format == "bgr24" else (height * 3 // 2, width)
    size = int(np.prod(shape))
    pages = -(-size // mmap.PAGESIZE) * mmap.PAGESIZE
    with tempfile.TemporaryFile() as file:
        file.truncate(pages + mmap.PAGESIZE)
        memory = mmap.mmap(file.fileno(), pages + mmap.PAGESIZE)
        file.truncate(pages)
    frame = np.frombuffer(memory, np.uint8, size, pages - size).reshape(shape)
    size = {"width": width, "height": height}
    with VideoWriter(folder / "talk.mp4", **size, fps=Fraction(25), pixel_format=pixel_format) as writer:
        writer.write(frame)
        writer.write(frame)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="a page behind the end of its file ends the process there only")
@pytest.mark.parametrize("pixel_format", ["nv12", "bgr24"])
def test_nothing_is_read_beyond_a_frame(tmp_path: Path, pixel_format: str) -> None:
    done = subprocess.run([sys.executable, "-c", AT_THE_END_OF_MEMORY, str(tmp_path), pixel_format], check=False)
    assert done.returncode == 0
