"""`sound`, `sound_file` and `soundtrack`: click tracks and known samples through files that PyAV's encoders wrote."""

from __future__ import annotations

import heapq
import io
import wave
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from av.stream import Disposition
from numpy.typing import NDArray

from gpupipe.errors import MediaError, OutputError
from gpupipe.media.sound import SoundInfo, decode_sound, probe_sound, read_pcm
from gpupipe.media.soundtrack import sound_packets
from gpupipe.speech.windows import frame_count

F32 = NDArray[np.float32]
CLICKS = (0.25, 0.731, 1.5, 1.9)
SECONDS = 2.3
CLICK_TOLERANCE = 0.003
"""A click lasts 2 ms, and a codec smears it by about as much."""


def channels_of(layout: str) -> int:
    return av.AudioLayout(layout).nb_channels


def click_track(rate: int, layout: str, seconds: float = SECONDS) -> F32:
    track = np.zeros((channels_of(layout), round(seconds * rate)), np.float32)
    for at in CLICKS:
        track[:, round(at * rate) : round((at + 0.002) * rate)] = 0.8
    return track


def sound_frames(stream: av.AudioStream, samples: F32, delay: float = 0) -> Iterator[av.Packet[av.AudioStream]]:
    """The packets of float32 `[channels, n]` samples that start `delay` seconds after 0."""
    context = stream.codec_context
    frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(samples), format="fltp", layout=context.layout.name)
    frame.sample_rate, frame.time_base, frame.pts = context.rate, Fraction(1, context.rate), round(delay * context.rate)
    convert = av.AudioResampler(format=context.format.name, layout=context.layout.name, rate=context.rate)
    for part in convert.resample(frame):
        yield from stream.encode(part)
    yield from stream.encode(None)


def write_sound(path: Path, codec: str, rate: int, layout: str, samples: F32, **options: Any) -> Path:
    with av.open(str(path), "w", **options) as container:
        try:
            stream = container.add_stream(codec, rate=rate, layout=layout)
        except av.codec.codec.UnknownCodecError:
            pytest.skip(f"this build of FFmpeg has no encoder {codec}")
        assert isinstance(stream, av.AudioStream)
        for packet in sound_frames(stream, samples):
            container.mux(packet)
    return path


def picture(stream: av.VideoStream, frames: int) -> Iterator[av.Packet[av.VideoStream]]:
    rate = stream.codec_context.framerate
    for index in range(frames):
        frame = av.VideoFrame.from_ndarray(np.full((48, 64, 3), index % 250, np.uint8), format="rgb24")
        frame.pts, frame.time_base = index, 1 / Fraction(rate)
        yield from stream.encode(frame)
    yield from stream.encode(None)


def add_picture(container: av.container.OutputContainer, fps: Fraction) -> av.VideoStream:
    stream = container.add_stream("libx264", rate=fps)
    stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
    return stream


def merged(*packets: Iterator[av.Packet[Any]]) -> Iterator[av.Packet[Any]]:
    return heapq.merge(*packets, key=by_time)


def by_time(packet: av.Packet[Any]) -> Fraction:
    assert packet.dts is not None
    return packet.dts * packet.time_base


def write_video(path: Path, codec: str, rate: int, delay: float = 0) -> Path:
    """A video of 3 s whose click track starts `delay` seconds after the picture."""
    with av.open(str(path), "w") as container:
        video = add_picture(container, Fraction(25))
        stream = container.add_stream(codec, rate=rate, layout="mono")
        assert isinstance(stream, av.AudioStream)
        container.start_encoding()
        sound = sound_frames(stream, click_track(rate, "mono"), delay)
        for packet in merged(sound, picture(video, 75)):
            container.mux(packet)
    return path


def pcm_of(path: Path, rate: int = 16_000) -> F32:
    return np.concatenate(list(read_pcm(path, rate)))


def click_errors(samples: NDArray[Any], rate: int, shift: float = 0) -> list[float]:
    """Seconds from where each click should be to where the samples first reach half of their loudest."""
    errors = []
    for at in CLICKS:
        first = round((at + shift - 0.1) * rate)
        near = np.abs(samples[first : round((at + shift + 0.1) * rate)])
        assert near.max() > 0.4 * np.abs(samples).max()
        errors.append((first + int(np.argmax(near > near.max() / 2))) / rate - at - shift)
    return errors


FORMATS = [
    ("wav", "pcm_s16le", 44_100, "stereo"),
    ("wav", "pcm_u8", 8_000, "mono"),
    ("wav", "pcm_s24le", 48_000, "5.1"),
    ("wav", "pcm_f32le", 22_050, "mono"),
    ("mp3", "libmp3lame", 44_100, "stereo"),
    ("mp3", "libmp3lame", 8_000, "mono"),
    ("mp3", "libmp3lame", 24_000, "mono"),
    ("m4a", "aac", 44_100, "stereo"),
    ("m4a", "aac", 48_000, "5.1"),
    ("m4a", "aac", 16_000, "mono"),
    ("m4a", "aac", 8_000, "mono"),
    ("m4a", "alac", 44_100, "stereo"),
    ("mov", "aac", 48_000, "stereo"),
    ("mp4", "libmp3lame", 48_000, "stereo"),
    ("mka", "aac", 48_000, "5.1"),
    ("mka", "aac", 44_100, "mono"),
    ("flac", "flac", 48_000, "mono"),
    ("flac", "flac", 44_100, "5.1"),
    ("aac", "aac", 48_000, "stereo"),
    ("aac", "aac", 16_000, "mono"),
    ("ts", "aac", 48_000, "mono"),
    ("flv", "aac", 44_100, "mono"),
    ("opus", "libopus", 48_000, "stereo"),
    ("opus", "libopus", 16_000, "mono"),
    ("webm", "libopus", 48_000, "mono"),
]


@pytest.mark.parametrize(("kind", "codec", "rate", "layout"), FORMATS)
def test_clicks_stay_where_they_are(tmp_path: Path, kind: str, codec: str, rate: int, layout: str) -> None:
    path = write_sound(tmp_path / f"clicks.{kind}", codec, rate, layout, click_track(rate, layout))
    samples = pcm_of(path)
    assert samples.dtype == np.float32
    np.testing.assert_allclose(click_errors(samples, 16_000), 0, atol=CLICK_TOLERANCE)
    # These do not say how much of the last packet counts.
    slack = 1024 / rate if kind in ("mka", "aac", "ts", "flv") else 0.001
    assert abs(len(samples) / 16_000 - SECONDS) <= slack
    info = probe_sound(path)
    assert (info.rate, info.channels) == (48_000 if codec == "libopus" else rate, channels_of(layout))
    assert info.codec == {"libmp3lame": "mp3", "libopus": "opus"}.get(codec, codec)
    assert abs(info.duration_seconds - SECONDS) <= slack + 0.001


@pytest.mark.parametrize("rate", [16_000, 48_000])
def test_samples_come_as_they_are_stored(tmp_path: Path, rate: int) -> None:
    stored = np.random.default_rng(0).integers(-32768, 32768, 5 * rate // 2 + 7).astype(np.int16)
    with wave.open(str(tmp_path / "noise.wav"), "wb") as file:
        file.setparams((1, 2, rate, 0, "NONE", ""))
        file.writeframes(stored.tobytes())
    chunks = list(read_pcm(tmp_path / "noise.wav", rate))
    np.testing.assert_array_equal(np.concatenate(chunks), stored.astype(np.float32) / 32768)
    assert [rate <= len(chunk) < 2 * rate for chunk in chunks[:-1]] == [True, True]


@pytest.mark.parametrize("rate", [8_000, 22_050, 44_100, 48_000])
def test_a_tone_is_resampled_in_phase(tmp_path: Path, rate: int) -> None:
    tone = (0.5 * np.sin(2 * np.pi * 1000 * np.arange(rate) / rate)).astype(np.float32)[None]
    samples = pcm_of(write_sound(tmp_path / "tone.wav", "pcm_f32le", rate, "mono", tone))
    assert abs(len(samples) - 16_000) <= 1
    expected = 0.5 * np.sin(2 * np.pi * 1000 * np.arange(len(samples)) / 16_000)
    # The ends are where the filter meets silence.
    np.testing.assert_allclose(samples[200:-200], expected[200:-200], atol=1e-3)


MIX = {
    "stereo": (0.5, 0.5),
    # Front left, right, centre, low frequency, and two surrounds.
    "5.1": tuple(np.array([np.sqrt(0.5), np.sqrt(0.5), 1, 0, 0.5, 0.5]) / (2 + np.sqrt(2))),
}


@pytest.mark.parametrize("layout", MIX)
def test_the_mix_is_normalised(tmp_path: Path, layout: str) -> None:
    noise = np.random.default_rng(5).uniform(-1, 1, (channels_of(layout), 16_000)).astype(np.float32)
    path = write_sound(tmp_path / "mix.wav", "pcm_f32le", 16_000, layout, noise)
    np.testing.assert_allclose(pcm_of(path), np.asarray(MIX[layout]) @ noise, atol=1e-6)
    np.testing.assert_allclose(np.concatenate(list(decode_sound(path, rate=16_000, layout=layout)), axis=1), noise)


@pytest.mark.parametrize("channels", [3, 7, 12])
def test_channels_without_a_layout_are_mixed_too(tmp_path: Path, channels: int) -> None:
    with wave.open(str(tmp_path / "many.wav"), "wb") as file:
        file.setparams((channels, 2, 16_000, 0, "NONE", ""))
        file.writeframes(np.full((1600, channels), 8192, np.int16).tobytes())
    assert probe_sound(tmp_path / "many.wav").channels == channels
    np.testing.assert_allclose(pcm_of(tmp_path / "many.wav"), 0.25, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "codec", "delay"),
    [
        ("late.mp4", "aac", 0),
        ("late.mp4", "aac", 0.5),
        ("late.mkv", "aac", 0),
        ("late.mkv", "aac", 0.5),
        ("late.mov", "alac", 0.123),
        ("late.ts", "aac", 0),  # the encoder's delay comes before the picture
        ("late.ts", "aac", 0.01),
        ("late.ts", "aac", 0.5),
    ],
)
def test_sound_that_starts_after_the_picture(tmp_path: Path, name: str, codec: str, delay: float) -> None:
    path = write_video(tmp_path / name, codec, 48_000, delay)
    samples = pcm_of(path)
    np.testing.assert_allclose(click_errors(samples, 16_000, delay), 0, atol=CLICK_TOLERANCE)
    # Where the format has no exact length: up to two codec frames of delay and padding.
    assert abs(probe_sound(path).end_seconds - len(samples) / 16_000) < 2 * 1024 / 48_000


@pytest.mark.parametrize("kind", ["aac", "ts"])
def test_a_delay_of_unknown_length_is_heard_and_told(tmp_path: Path, kind: str) -> None:
    """An encoder that does not name itself, as FFmpeg's does not where files must not depend on its version."""
    path, rate = tmp_path / f"clicks.{kind}", 48_000
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=rate, layout="mono")
        stream.codec_context.flags |= av.codec.context.Flags.bitexact
        for packet in sound_frames(stream, click_track(rate, "mono")):
            container.mux(packet)
    assert b"Lavc" not in path.read_bytes()
    assert probe_sound(path).unknown_delay
    np.testing.assert_allclose(np.array(click_errors(pcm_of(path), 16_000)), 1024 / rate, atol=CLICK_TOLERANCE)
    named = write_sound(tmp_path / f"named.{kind}", "aac", rate, "mono", click_track(rate, "mono"))
    assert not probe_sound(named).unknown_delay


def test_a_hole_is_silence(tmp_path: Path) -> None:
    rate, path = 48_000, tmp_path / "hole.mkv"
    samples = click_track(rate, "mono")
    with av.open(str(path), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=rate, layout="mono")
        for at in range(0, samples.shape[1], 4800):
            if not 0.8 <= at / rate < 1.4:
                frame = av.AudioFrame.from_ndarray((samples[:, at : at + 4800] * 32767).astype(np.int16), "s16", "mono")
                frame.sample_rate, frame.time_base, frame.pts = rate, Fraction(1, rate), at
                container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    heard = pcm_of(path)
    assert abs(len(heard) / 16_000 - SECONDS) < 0.002
    np.testing.assert_allclose(click_errors(heard, 16_000), 0, atol=CLICK_TOLERANCE)
    assert np.abs(heard[round(0.81 * 16_000) : round(1.39 * 16_000)]).max() == 0


def test_cover_art_and_odd_names(tmp_path: Path) -> None:
    plain = write_sound(tmp_path / "plain.mp3", "libmp3lame", 44_100, "stereo", click_track(44_100, "stereo"))
    covered = tmp_path / "take 1: final.mp3"
    with av.open(str(plain)) as source, av.open(f"file:{covered}", "w", format="mp3") as container:
        sound = container.add_stream_from_template(source.streams.audio[0])
        cover = container.add_stream("mjpeg", rate=25)
        cover.width, cover.height, cover.pix_fmt = 64, 48, "yuvj420p"
        cover.disposition = Disposition.attached_pic
        frame = av.VideoFrame.from_ndarray(np.zeros((48, 64, 3), np.uint8), format="rgb24")
        frame.pts = 0
        container.mux(cover.encode(frame) + cover.encode(None))
        for packet in source.demux(audio=0):
            if packet.dts is not None:
                packet.stream = sound
                container.mux(packet)
    with covered.open("ab") as file:
        file.write(b"TAG" + b"\xe9" * 125)
    np.testing.assert_array_equal(pcm_of(covered), pcm_of(plain))


@pytest.mark.talker
def test_filmed_sound(talker: Path) -> None:
    assert probe_sound(talker / "aud.wav") == SoundInfo("pcm_s16le", 16_000, 1, 334_739 / 16_000)
    with wave.open(str(talker / "aud.wav")) as file:
        stored = np.frombuffer(file.readframes(file.getnframes()), np.int16)
    np.testing.assert_array_equal(pcm_of(talker / "aud.wav"), stored.astype(np.float32) / 32768)


def broken(folder: Path, case: str) -> Path:
    path = folder / f"{case}.wav"
    if case == "empty":
        path.touch()
    elif case == "folder":
        path.mkdir()
    elif case == "text":
        path.write_text("not sound\n" * 500)
    elif case == "no samples":
        with wave.open(str(path), "wb") as file:
            file.setparams((1, 2, 16_000, 0, "NONE", ""))
    elif case == "not finite":
        write_sound(path, "pcm_f32le", 16_000, "mono", np.full((1, 4000), np.nan, np.float32))
    elif case == "no sound":
        with av.open(str(path), "w", format="mp4") as container:
            for packet in picture(add_picture(container, Fraction(25)), 5):
                container.mux(packet)
    return path


@pytest.mark.parametrize(
    ("case", "message"),
    [
        ("missing", "there is no such file; give a sound or video file that FFmpeg reads"),
        ("empty", "the file is empty (got '0 bytes'); "),
        ("folder", "this is a folder, not a sound file; "),
        ("text", "cannot be opened as a media file (got 'Invalid data found when processing input'); "),
        ("no samples", "the file holds no sound (got '0 samples'); "),
        ("no sound", "the file has no sound that FFmpeg decodes (got ['video']); "),
        ("not finite", "the sound holds NaN or infinite samples; "),
    ],
)
def test_what_cannot_be_read_says_so(tmp_path: Path, case: str, message: str) -> None:
    path = broken(tmp_path, case)
    with pytest.raises(MediaError) as caught:
        pcm_of(path)
    assert str(caught.value).startswith(f"{path}: {message}")
    assert "\n" not in str(caught.value)
    if case not in ("no samples", "not finite"):
        with pytest.raises(MediaError) as caught:
            probe_sound(path)
        assert str(caught.value).startswith(f"{path}: {message}")


@pytest.mark.parametrize(
    ("kind", "codec", "options"),
    [
        ("wav", "pcm_s16le", {}),
        ("flac", "flac", {}),
        ("mp3", "libmp3lame", {}),
        ("m4a", "aac", {}),
        ("m4a", "aac", {"options": {"movflags": "faststart"}}),
        ("mka", "aac", {}),
    ],
)
def test_a_file_that_is_cut_off_says_so(tmp_path: Path, kind: str, codec: str, options: dict[str, Any]) -> None:
    noise = np.random.default_rng(6).uniform(-0.5, 0.5, (1, 4 * 44_100)).astype(np.float32)
    path = write_sound(tmp_path / f"cut.{kind}", codec, 44_100, "mono", noise, **options)
    assert abs(len(pcm_of(path)) - 64_000) < 500
    data = path.read_bytes()
    path.write_bytes(data[: len(data) * 6 // 10])
    with pytest.raises(MediaError, match=r"cut off|cannot be opened") as caught:
        pcm_of(path)
    assert str(caught.value).startswith(f"{path}: ")


def test_a_wav_of_unknown_length_is_read_to_its_end(tmp_path: Path) -> None:
    path = write_sound(tmp_path / "live.wav", "pcm_s16le", 16_000, "mono", click_track(16_000, "mono"))
    data = bytearray(path.read_bytes())
    at = data.index(b"data") + 4
    data[at : at + 4] = b"\xff\xff\xff\xff"
    path.write_bytes(data)
    assert len(pcm_of(path)) == round(SECONDS * 16_000)


def join(path: Path, source: Path, fps: Fraction, frames: int, **options: Any) -> str:
    """Write a video with the sound of `source`, as a join of encoded segments does; tells whether it was copied."""
    with av.open(str(path.with_suffix(".h264.mp4")), "w") as container:
        for packet in picture(add_picture(container, fps), frames):
            container.mux(packet)
    with av.open(str(path), "w") as container, av.open(str(path.with_suffix(".h264.mp4"))) as segment:
        video = container.add_stream_from_template(segment.streams.video[0])

        def remuxed() -> Iterator[av.Packet[av.VideoStream]]:
            for packet in segment.demux(segment.streams.video[0]):
                if packet.dts is not None:
                    packet.stream = video
                    yield packet

        sound, packets = sound_packets(container, source, frames / fps, **options)
        assert sound is container.streams.audio[0]
        last = Fraction(-10)
        for packet in merged(packets, remuxed()):
            if packet.stream.index == sound.index:
                assert by_time(packet) >= last
                last = by_time(packet)
            container.mux(packet)
    copied = sound_bytes(path)
    return "copied" if copied == sound_bytes(source)[: len(copied)] else "encoded"


def sound_bytes(path: Path) -> list[bytes]:
    with av.open(str(path)) as container:
        return [bytes(packet) for packet in container.demux(audio=0) if packet.size]


def seconds_of(stream: av.AudioStream | av.VideoStream) -> Fraction:
    assert stream.duration is not None
    assert stream.time_base is not None
    return stream.duration * stream.time_base


def heard_and_seen(path: Path) -> tuple[NDArray[Any], int, float, float]:
    """Decoded sound, its rate, the time of its first sample after the first frame's, and the picture's seconds."""
    with av.open(str(path)) as container:
        sounds = list(container.decode(audio=0))
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        frames = list(container.decode(stream))
        assert stream.average_rate is not None
        seconds = len(frames) / float(stream.average_rate)
    assert sounds[0].time is not None
    assert frames[0].time is not None
    samples = np.concatenate([sound.to_ndarray()[0] for sound in sounds])
    return samples, sounds[0].sample_rate, sounds[0].time - frames[0].time, seconds


FPS = [Fraction(25), Fraction(30), Fraction(30_000, 1001)]
SOURCES = [
    ("m4a", "aac", 44_100, "stereo"),
    ("m4a", "aac", 48_000, "mono"),
    ("wav", "pcm_s16le", 16_000, "mono"),
    ("mp3", "libmp3lame", 24_000, "mono"),
    ("flac", "flac", 96_000, "stereo"),
    ("opus", "libopus", 48_000, "stereo"),
    ("wav", "pcm_s24le", 48_000, "5.1"),
]


@pytest.mark.parametrize("output", ["mp4", "mkv", "mov"])
@pytest.mark.parametrize(("kind", "codec", "rate", "layout"), SOURCES)
@pytest.mark.parametrize("fps", FPS, ids=["25", "30", "29.97"])
def test_the_muxed_click_is_heard_on_time(
    tmp_path: Path, output: str, kind: str, codec: str, rate: int, layout: str, fps: Fraction
) -> None:
    source = write_sound(tmp_path / f"clicks.{kind}", codec, rate, layout, click_track(rate, layout))
    frames = frame_count(SECONDS, fps)
    how = join(tmp_path / f"talk.{output}", source, fps, frames)
    assert how == ("copied" if kind == "m4a" and output != "mkv" else "encoded")
    samples, out_rate, start, picture_seconds = heard_and_seen(tmp_path / f"talk.{output}")
    assert out_rate == (rate if rate in (44_100, 48_000, 96_000) else 48_000)
    assert abs(start) < 0.001
    np.testing.assert_allclose(click_errors(samples, out_rate), 0, atol=CLICK_TOLERANCE)
    assert abs(len(samples) / out_rate - picture_seconds) < 1 / fps
    with av.open(str(tmp_path / f"talk.{output}")) as container:
        assert [stream.type for stream in container.streams] == ["video", "audio"]
        sound, video = container.streams.audio[0], container.streams.video[0]
        assert sound.codec_context.name == "aac"
        assert sound.codec_context.channels == min(2, channels_of(layout))
        if output != "mkv":
            assert abs(seconds_of(sound) - seconds_of(video)) < 1 / fps


@pytest.mark.parametrize("output", ["mp4", "mkv"])
@pytest.mark.parametrize(("kind", "stored_rate"), [("m4a", 48_000), ("m4a", 8_000), ("wav", 48_000)])
@pytest.mark.parametrize("frames", [1, 13, 48, 90])
def test_sound_is_cut_and_padded_to_the_picture(
    tmp_path: Path, output: str, kind: str, stored_rate: int, frames: int
) -> None:
    codec = "aac" if kind == "m4a" else "pcm_s16le"
    source = write_sound(tmp_path / f"clicks.{kind}", codec, stored_rate, "mono", click_track(stored_rate, "mono"))
    join(tmp_path / f"talk.{output}", source, Fraction(25), frames)
    samples, rate, start, seconds = heard_and_seen(tmp_path / f"talk.{output}")
    assert seconds == frames / 25
    assert abs(start) < 0.001
    assert abs(len(samples) / rate - seconds) < 1 / 25
    if frames == 90:
        np.testing.assert_allclose(click_errors(samples, rate), 0, atol=CLICK_TOLERANCE)
        assert np.abs(samples[round(2.4 * rate) :]).max() < 1e-3
    if output == "mp4":
        assert abs(probe_sound(tmp_path / "talk.mp4").duration_seconds - seconds) < 0.001


def samples_in(path: Path, **options: str) -> int:
    """Samples that FFmpeg's decoder gives of a file's sound."""
    with av.open(str(path), options=options) as container:
        return sum(frame.samples for frame in container.decode(audio=0))


@pytest.mark.parametrize("output", ["mp4", "mkv"])
@pytest.mark.parametrize(
    ("kind", "codec", "rate"), [("m4a", "aac", 48_000), ("m4a", "aac", 44_100), ("wav", "pcm_s16le", 96_000)]
)
@pytest.mark.parametrize("fps", [Fraction(50), Fraction(60_000, 1001), Fraction(60)], ids=["50", "59.94", "60"])
def test_sound_outlasts_no_picture_of_short_frames(
    tmp_path: Path, output: str, kind: str, codec: str, rate: int, fps: Fraction
) -> None:
    source = write_sound(tmp_path / f"clicks.{kind}", codec, rate, "mono", click_track(rate, "mono"))
    path = tmp_path / f"talk.{output}"
    shortest = longest = Fraction(0)
    # With these, packets of 1024 samples end anywhere between two frames; the last is longer than the source.
    for frames in (1, 7, 50, 100, 101, 102, 103, 160):
        join(path, source, fps, frames)
        samples, out_rate, start, seconds = heard_and_seen(path)
        assert out_rate == rate
        assert abs(start) < 0.001
        assert abs(seconds - frames / fps) < 1e-6
        over = Fraction(len(samples), rate) - frames / fps
        shortest, longest = min(shortest, over), max(longest, over)
        if output == "mp4":
            # A player that knows no edit lists hears the encoder's delay too, and nothing else.
            assert samples_in(path, ignore_editlist="1") == len(samples) + 1024
    assert longest <= 1 / fps
    assert shortest >= min(Fraction(0), 1 / fps - Fraction(1024, rate))
    np.testing.assert_allclose(click_errors(samples, rate), 0, atol=CLICK_TOLERANCE)


def test_copied_packets_are_the_sources(tmp_path: Path) -> None:
    source = write_sound(tmp_path / "speech.m4a", "aac", 48_000, "mono", click_track(48_000, "mono"))
    assert join(tmp_path / "talk.mp4", source, Fraction(25), 58) == "copied"
    assert sound_bytes(tmp_path / "talk.mp4") == sound_bytes(source)
    # Silence has to be added: more than a frame is missing.
    assert join(tmp_path / "longer.mp4", source, Fraction(25), 59) == "encoded"
    assert join(tmp_path / "told.mp4", source, Fraction(25), 59, frame_seconds=0.2) == "copied"
    film = write_video(tmp_path / "film.mp4", "aac", 48_000)
    assert join(tmp_path / "talk1.mp4", film, Fraction(25), 58) == "copied"
    np.testing.assert_allclose(click_errors(heard_and_seen(tmp_path / "talk1.mp4")[0], 48_000), 0, atol=CLICK_TOLERANCE)
    # The sound of this one does not start with its picture.
    late = write_video(tmp_path / "late.mp4", "aac", 48_000, 0.5)
    assert join(tmp_path / "talk2.mp4", late, Fraction(25), 50) == "encoded"
    samples, rate, start, _ = heard_and_seen(tmp_path / "talk2.mp4")
    track = np.concatenate((samples, np.zeros(rate, samples.dtype)))
    assert abs(np.argmax(np.abs(track) > 0.3) / rate + start - 0.5 - CLICKS[0]) < CLICK_TOLERANCE


def test_what_cannot_be_muxed_says_so(tmp_path: Path) -> None:
    source = write_sound(tmp_path / "speech.wav", "pcm_s16le", 16_000, "mono", click_track(16_000, "mono"))
    with av.open(io.BytesIO(), "w", format="webm") as container, pytest.raises(OutputError, match="cannot hold AAC"):
        sound_packets(container, source, 1.0)
    with av.open(io.BytesIO(), "w", format="mp4") as container:
        with pytest.raises(ValueError, match="duration_seconds"):
            sound_packets(container, source, 0)
        with pytest.raises(MediaError, match="no such file"):
            sound_packets(container, tmp_path / "none.wav", 1)
        assert not container.streams
