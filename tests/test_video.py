"""video, handover and encode: decoding against OpenCV and FFmpeg's own planes; segments, joins, tags and times."""

from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
import pytest

from gpupipe.colour import Colour, PixelFormat
from gpupipe.errors import MediaError, OptionError, OutputError
from gpupipe.media.encode import VideoWriter
from gpupipe.media.encoders import EncoderOptions
from gpupipe.media.handover import HandOver
from gpupipe.media.join import join
from gpupipe.media.video import probe, read_frames

SIZE: dict[str, Any] = {"width": 64, "height": 48}
LOSSLESS = EncoderOptions("libx264", crf=0)


def noise(count: int, pixel_format: PixelFormat, seed: int = 0) -> np.ndarray:
    shape = (72, 64) if pixel_format == "nv12" else (48, 64, 3)
    return np.random.default_rng(seed).integers(16, 235, (count, *shape), dtype=np.uint8)


def write(path: Path, frames: np.ndarray, **more: Any) -> None:
    settings: dict[str, Any] = {"fps": Fraction(25), "pixel_format": "nv12", "options": LOSSLESS, **SIZE, **more}
    with VideoWriter(path, **settings) as writer:
        for frame in frames:
            writer.write(frame)


@pytest.mark.parametrize("height", [48, 50])  # handed over as it is, or copied
@pytest.mark.parametrize("fps", [Fraction(25), Fraction(30000, 1001), Fraction(24), Fraction(50)])
def test_nv12_goes_through_a_lossless_encoder_unchanged(tmp_path: Path, fps: Fraction, height: int) -> None:
    frames = np.random.default_rng(1).integers(0, 256, (7, height * 3 // 2, 64), dtype=np.uint8)
    write(tmp_path / "a.mp4", frames, fps=fps, height=height)
    assert np.array_equal(np.stack(list(read_frames(tmp_path / "a.mp4", "nv12"))), frames)
    info = probe(tmp_path / "a.mp4")
    assert (info.width, info.height, info.frames, info.fps) == (64, height, 7, fps)


@pytest.mark.parametrize("keyframes", [True, False])
def test_frames_that_an_edit_list_leaves_out_do_not_count(tmp_path: Path, keyframes: bool) -> None:
    """What `ffmpeg -ss 0.4 -c copy` writes: the packets from the keyframe on, the first ten not to be shown."""
    frames = noise(30, "nv12")  # every one of them a keyframe
    if not keyframes:
        frames = frames[:1] + np.arange(20, dtype=np.uint8).repeat(2)[:30, None, None]
    write(tmp_path / "whole.mp4", frames)
    with av.open(str(tmp_path / "whole.mp4")) as whole, av.open(str(tmp_path / "cut.mp4"), "w") as cut:
        stream = cut.add_stream_from_template(whole.streams.video[0])
        for packet in whole.demux(video=0):
            if packet.size and packet.pts is not None and packet.dts is not None and packet.time_base is not None:
                early = int(Fraction(4, 10) / packet.time_base)
                packet.pts, packet.dts, packet.stream = packet.pts - early, packet.dts - early, stream
                cut.mux(packet)
    capture, shown = cv2.VideoCapture(str(tmp_path / "cut.mp4")), 0
    while capture.read()[0]:
        shown += 1
    info = probe(tmp_path / "cut.mp4")
    assert info.frames == shown == 20
    assert info.timing_error_seconds < 0.001
    assert np.array_equal(np.stack(list(read_frames(info.path, "nv12", info.frames))), frames[10:])


@pytest.mark.parametrize("size", [(63, 48), (64, 47), (63, 47)])
def test_420_needs_an_even_size(tmp_path: Path, size: tuple[int, int]) -> None:
    path, (width, height) = tmp_path / "a.mp4", size
    remedy = "write a folder of images in bgr24, or crop the body video"
    said = f"{path}: size: {{}} needs an even width and height (got '{width}x{height}'); {remedy}"
    with pytest.raises(OutputError) as caught:
        VideoWriter(path, width=width, height=height, fps=Fraction(25), pixel_format="bgr24")
    assert str(caught.value) == said.format("video")
    assert not path.exists()
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv444p"
        container.mux(stream.encode(av.VideoFrame.from_ndarray(np.zeros((height, width, 3), np.uint8), "bgr24")))
        container.mux(stream.encode(None))
    assert next(read_frames(path, "bgr24")).shape == (height, width, 3)
    with pytest.raises(MediaError) as refused:
        next(read_frames(path, "nv12"))
    assert str(refused.value) == said.format("nv12")


def test_a_video_that_is_stored_turned_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "upright.mp4", noise(3, "nv12"))
    content = bytearray((tmp_path / "upright.mp4").read_bytes())
    matrix = content.index(b"tkhd") + 44  # ISO/IEC 14496-12, 8.3.2: after 40 bytes of the box's own fields
    turned = np.array([0, 1 << 16, 0, -1 << 16, 0, 0, 0, 0, 1 << 30], ">i4").tobytes()
    content[matrix : matrix + len(turned)] = turned
    path = tmp_path / "turned.mp4"
    path.write_bytes(content)
    with pytest.raises(
        MediaError, match=r"turned.mp4: rotation: is stored turned.* \(got -90\); write it again upright"
    ):
        next(read_frames(path, "nv12"))
    shown = cv2.VideoCapture(str(path)).read()[1]
    assert shown is not None
    assert shown.shape == (64, 48, 3)  # of 64x48 pixels stored


def test_a_buffer_may_be_used_again_after_write(tmp_path: Path) -> None:
    frames = noise(20, "nv12")
    buffer = np.empty_like(frames[0])
    with VideoWriter(tmp_path / "a.mp4", fps=Fraction(25), pixel_format="nv12", options=LOSSLESS, **SIZE) as writer:
        for frame in frames:
            buffer[:] = frame
            writer.write(buffer)
            buffer[:] = 0
    assert np.array_equal(np.stack(list(read_frames(tmp_path / "a.mp4", "nv12"))), frames)


@pytest.mark.parametrize(("encoder", "suffix"), [("ffv1", ".mkv"), ("libx264", ".mkv"), ("mpeg4", ".mp4")])
def test_encoders_that_take_other_layouts(tmp_path: Path, encoder: str, suffix: str) -> None:
    path = tmp_path / f"a{suffix}"
    frames = noise(9, "nv12")
    write(path, frames, options=EncoderOptions(encoder, crf=0 if encoder == "libx264" else None))
    read = np.stack(list(read_frames(path, "nv12")))
    assert read.shape == frames.shape
    if encoder != "mpeg4":
        assert np.array_equal(read, frames)


def planes(picture: av.VideoFrame) -> list[np.ndarray]:
    """The rows of each plane, without what pads them."""
    widths = {"nv12": (1, 1), "yuv420p": (1, 0.5, 0.5)}[picture.format.name]
    heights = (1, 0.5, 0.5)
    return [
        np.frombuffer(memoryview(plane), np.uint8).reshape(-1, plane.line_size)[
            : int(picture.height * high), : int(picture.width * wide)
        ]
        for plane, wide, high in zip(picture.planes, widths, heights, strict=False)
    ]


@pytest.mark.parametrize(
    ("encoder", "height", "copied"),
    [("libx264", 48, False), ("libx264", 50, True), ("h264_nvenc", 48, True)],
)
def test_nv12_is_handed_over_as_it_lies_where_that_is_safe(encoder: str, height: int, copied: bool) -> None:
    colour = Colour(1, 2)
    frame = np.random.default_rng(5).integers(0, 256, (height * 3 // 2, 64), dtype=np.uint8)
    if encoder not in av.codecs_available:
        pytest.skip(f"this PyAV has no {encoder}")
    picture = HandOver("nv12", colour, encoder)(frame)
    assert (picture.width, picture.height, picture.colorspace, picture.color_range) == (64, height, 1, 2)
    assert picture.format.name == "nv12"
    assert np.array_equal(np.concatenate(planes(picture)), frame)
    frame[0, 0] ^= 0xFF
    assert (planes(picture)[0][0, 0] != frame[0, 0]) == copied


def test_nv12_is_split_for_an_encoder_that_takes_planes() -> None:
    frame = noise(1, "nv12")[0]
    y, cb, cr = planes(HandOver("nv12", Colour(), "mpeg4")(frame))
    assert np.array_equal(y, frame[:48])
    assert np.array_equal(cb, frame[48:, 0::2])
    assert np.array_equal(cr, frame[48:, 1::2])


@pytest.mark.parametrize("encoder", ["libx264", "mpeg4"])
@pytest.mark.parametrize(("width", "height"), [(64, 48), (66, 50)])  # read where it lies, or copied
def test_bgr24_is_handed_over_in_the_streams_colours(encoder: str, width: int, height: int) -> None:
    colour = Colour(1, 1)
    frame = np.full((height, width, 3), (30, 200, 90), np.uint8)
    picture = HandOver("bgr24", colour, encoder)(frame)
    assert (picture.width, picture.height, picture.colorspace, picture.color_range) == (width, height, 1, 1)
    wanted = (colour.from_bgr @ np.array([30, 200, 90, 1])) >> 14
    found = [plane.reshape(-1) for plane in planes(picture)]
    if picture.format.name == "nv12":
        found = [found[0], found[1][0::2], found[1][1::2]]
    for plane, level in zip(found, wanted, strict=True):
        assert np.abs(plane.astype(int) - level).max() <= 1


def test_an_encoder_that_takes_no_420_is_refused() -> None:
    with pytest.raises(OptionError, match="takes neither nv12 nor yuv420p") as caught:
        HandOver("nv12", Colour(), "gif")
    assert str(caught.value).endswith("(got 'gif'); use libx264")


@pytest.mark.parametrize("pixel_format", ["nv12", "bgr24"])
def test_reading_agrees_with_pyav_and_opencv(tmp_path: Path, pixel_format: PixelFormat) -> None:
    path = tmp_path / "a.mp4"
    smooth = [cv2.GaussianBlur(frame, (0, 0), 3) for frame in noise(10, "bgr24")]
    write(path, np.stack(smooth), pixel_format="bgr24", options=EncoderOptions())
    ours = list(read_frames(path, pixel_format))
    with av.open(str(path)) as container:
        pictures = list(container.decode(video=0))
    assert len(ours) == len(pictures) == 10
    capture = cv2.VideoCapture(str(path))
    for frame, picture in zip(ours, pictures, strict=True):
        if pixel_format == "bgr24":
            assert np.array_equal(frame, picture.to_ndarray(format="bgr24"))
            shown: Any = capture.read()[1]
            assert np.array_equal(frame, shown)
        else:
            planar = picture.to_ndarray()  # yuv420p: Y, then Cb, then Cr
            assert np.array_equal(frame[:48], planar[:48])
            assert np.array_equal(frame[48:].reshape(-1, 2).T.ravel(), planar[48:].ravel())


def test_only_as_many_frames_as_asked_for(tmp_path: Path) -> None:
    write(tmp_path / "a.mp4", noise(9, "nv12"))
    assert len(list(read_frames(tmp_path / "a.mp4", "nv12", 4))) == 4
    assert len(list(read_frames(tmp_path / "a.mp4", "nv12", 0))) == 0


@pytest.mark.parametrize("matrix", [1, 5, 6, 9])
@pytest.mark.parametrize("range_", [1, 2])
def test_colour_tags_are_written_and_read(tmp_path: Path, matrix: int, range_: int) -> None:
    colour = Colour(matrix, range_, primaries=1, transfer=1)
    frames = np.random.default_rng(2).integers(0, 256, (3, 72, 64), dtype=np.uint8)
    write(tmp_path / "a.mp4", frames, colour=colour)
    assert probe(tmp_path / "a.mp4").colour == colour
    # Full range too: the planes are never rescaled.
    assert np.array_equal(np.stack(list(read_frames(tmp_path / "a.mp4", "nv12"))), frames)


@pytest.mark.parametrize("matrix", [1, 5])
@pytest.mark.parametrize("range_", [1, 2])
def test_bgr24_is_encoded_with_the_streams_matrix_and_range(tmp_path: Path, matrix: int, range_: int) -> None:
    """Flat colours come back as they were: written with one matrix and read with the same."""
    for bgr in ((30, 200, 90), (220, 40, 60), (128, 128, 128)):
        frames = np.full((2, 48, 64, 3), bgr, np.uint8)
        write(tmp_path / "a.mp4", frames, pixel_format="bgr24", colour=Colour(matrix, range_))
        read = next(read_frames(tmp_path / "a.mp4", "bgr24"))
        assert np.abs(read.astype(int) - bgr).max() <= 3


@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
@pytest.mark.parametrize("lengths", [[30, 30, 7], [30, 1], [30, 2], [5], [1], [1, 1, 1]])
@pytest.mark.parametrize("fps", [Fraction(25), Fraction(30000, 1001)])
def test_joined_parts_are_one_even_video(tmp_path: Path, suffix: str, lengths: list[int], fps: Fraction) -> None:
    frames = noise(sum(lengths), "nv12", seed=3)
    parts, start = [], 0
    for number, length in enumerate(lengths):
        parts.append(tmp_path / f"part{number}.mp4")
        write(parts[-1], frames[start : start + length], fps=fps)
        start += length
    join(parts, tmp_path / f"all{suffix}", fps)
    info = probe(tmp_path / f"all{suffix}")
    assert info.frames == len(frames)
    if len(frames) > 1 or suffix == ".mp4":
        assert info.fps == fps
    with av.open(str(tmp_path / f"all{suffix}")) as container:
        pictures = list(container.decode(video=0))
    tick = Fraction(1, 1000) if suffix == ".mkv" else Fraction(0)  # Matroska counts milliseconds
    for number, picture in enumerate(pictures):
        assert picture.pts is not None
        assert picture.time_base is not None
        assert abs(picture.pts * picture.time_base - number / fps) <= tick
    assert [p.key_frame for p in pictures if p.key_frame].count(True) >= len(lengths)
    assert np.array_equal(np.stack(list(read_frames(tmp_path / f"all{suffix}", "nv12"))), frames)


@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_joining_does_not_depend_on_who_encoded_what(tmp_path: Path, suffix: str) -> None:
    frames = noise(20, "nv12", seed=4)
    for name in ("one", "two"):
        write(tmp_path / f"{name}_b.mp4", frames[10:])
        write(tmp_path / f"{name}_a.mp4", frames[:10])
        join([tmp_path / f"{name}_a.mp4", tmp_path / f"{name}_b.mp4"], tmp_path / f"{name}{suffix}", Fraction(25))
    assert (tmp_path / f"one{suffix}").read_bytes() == (tmp_path / f"two{suffix}").read_bytes()


@pytest.mark.parametrize("count", [1, 2, 3])
def test_streams_shorter_than_the_encoders_delay(tmp_path: Path, count: int) -> None:
    """x265 gives such packets any decoding time, one time in four: the file must be right every time."""
    for _ in range(10):
        write(tmp_path / "a.mp4", noise(count, "nv12"), options=EncoderOptions("libx265"))
        with av.open(str(tmp_path / "a.mp4")) as container:
            packets = [packet for packet in container.demux(container.streams.video[0]) if packet.size]
        times = [(packet.dts, packet.pts) for packet in packets]
        assert all(dts is not None and pts is not None and dts <= pts for dts, pts in times)
        assert len(times) == count
