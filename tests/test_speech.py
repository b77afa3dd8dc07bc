"""Speech in, talking video with sound out: whole renders with sound, checked in the decoded file."""

import subprocess
import sys
import wave
from fractions import Fraction
from math import ceil
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
import onnxruntime
import pytest
import reference

from gpupipe.character.folder import Character, GpupipeWarning
from gpupipe.cli import main
from gpupipe.demo import make_demo
from gpupipe.demo.mouth import patch, tiny_reference
from gpupipe.errors import InferenceError, MediaError
from gpupipe.geometry import BORDER, frame_order, speech_position
from gpupipe.media.video import read_frames
from gpupipe.model.runtime import SessionOptions
from gpupipe.render.render import frames, render
from gpupipe.speech.encoder import AudioEncoder
from gpupipe.speech.mel import mel_spectrogram
from gpupipe.speech.rows import SpeechRows
from gpupipe.speech.speech import open_speech
from gpupipe.speech.windows import frame_count

RATES = {"25": Fraction(25), "30": Fraction(30), "29.97": Fraction(30000, 1001)}


@pytest.fixture(scope="module", params=RATES)
def person(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small character at each rate."""
    fps = RATES[request.param]
    folder = tmp_path_factory.mktemp("person") / "person"
    return make_demo(folder, frames=20, size=(320, 192), model_size=160, fps=fps)


@pytest.fixture(scope="module")
def talker_demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A demo character that says enough to be measured."""
    return make_demo(tmp_path_factory.mktemp("demo") / "talker", frames=75, size=(480, 270))


def write_wav(path: Path, samples: np.ndarray, rate: int) -> Path:
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes((samples.clip(-1, 1) * 32767).astype("<i2").tobytes())
    return path


def clicks(path: Path, seconds: float, at: list[float], rate: int = 44_100) -> Path:
    samples = np.zeros(round(seconds * rate))
    for time in at:
        samples[round(time * rate) : round((time + 0.002) * rate)] = 0.9
    return write_wav(path, samples, rate)


def decoded_sound(path: Path) -> tuple[np.ndarray, int, float]:
    """All samples of a file's sound, their rate, and the time of the first."""
    with av.open(str(path)) as container:
        pieces = list(container.decode(audio=0))
    rate = pieces[0].sample_rate
    assert pieces[0].pts is not None
    assert pieces[0].time_base is not None
    return np.concatenate([p.to_ndarray()[0] for p in pieces]), rate, float(pieces[0].pts * pieces[0].time_base)


def durations(path: Path) -> tuple[float, float]:
    """Seconds of picture and of sound, by the file's own account."""
    with av.open(str(path)) as container:
        if path.suffix == ".mkv":
            ends = {"video": 0.0, "audio": 0.0}
            for packet in container.demux():
                if packet.pts is not None and packet.time_base is not None and packet.size:
                    end = float((packet.pts + (packet.duration or 0)) * packet.time_base)
                    ends[packet.stream.type] = max(ends[packet.stream.type], end)
            return ends["video"], ends["audio"]
        streams: Any = container.streams
        return tuple(float(s.duration * s.time_base) for s in (streams.video[0], streams.audio[0]))  # type: ignore[return-value]


@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
@pytest.mark.parametrize("seconds", [1.0, 1.37, 2.011])
def test_a_click_is_heard_with_its_frame_and_neither_is_cut(
    person: Path, tmp_path: Path, suffix: str, seconds: float
) -> None:
    fps = Character.load(person).body.fps
    at = [0.1, 0.5, seconds - 0.15]
    sound = clicks(tmp_path / "clicks.wav", seconds, at)
    stats = render(person, tmp_path / f"talk{suffix}", audio=sound, device="cpu", segment_frames=20)
    assert stats.frames == frame_count(seconds, fps) == int(np.ceil(round(seconds * fps, 6)))
    picture, heard = durations(tmp_path / f"talk{suffix}")
    assert abs(picture - stats.frames / fps) < 0.002
    assert abs(picture - heard) < 1 / fps
    assert heard > seconds - 0.002
    samples, rate, start = decoded_sound(tmp_path / f"talk{suffix}")
    with av.open(str(tmp_path / f"talk{suffix}")) as container:
        shown = [frame.time for frame in container.decode(video=0)]
    for time in at:
        frame = int(time * fps)
        lag = time - frame / float(fps)
        near = slice(*(max(0, round((time + side - start) * rate)) for side in (-0.04, 0.04)))
        loud = np.flatnonzero(np.abs(samples[near]) > 0.3)
        assert len(loud)
        first = start + (near.start + loud[0]) / rate
        assert abs(first - (shown[frame] + lag)) < 0.010


def test_aac_is_copied_and_cut_with_the_picture(person: Path, tmp_path: Path) -> None:
    sound = clicks(tmp_path / "clicks.wav", 2.0, [0.3])
    render(person, tmp_path / "first.mp4", audio=sound, device="cpu")
    render(person, tmp_path / "again.mp4", audio=tmp_path / "first.mp4", device="cpu")

    def packets(path: Path) -> list[bytes]:
        with av.open(str(path)) as container:
            return [bytes(packet) for packet in container.demux(container.streams.audio[0]) if packet.size]

    first, again = packets(tmp_path / "first.mp4"), packets(tmp_path / "again.mp4")
    assert first[: len(again)] == again
    assert len(again) >= len(first) - 2
    fps = Character.load(person).body.fps
    stats = render(person, tmp_path / "short.mp4", audio=sound, device="cpu", frames=13)
    picture, heard = durations(tmp_path / "short.mp4")
    assert stats.frames == 13
    assert abs(picture - 13 / fps) < 0.002
    assert abs(picture - heard) < 1 / fps


@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_sound_that_starts_after_the_picture_is_not_cut(person: Path, tmp_path: Path, suffix: str) -> None:
    """A video's sound that begins late lasts until its own end, not for its own length."""
    fps, rate, late = Character.load(person).body.fps, 48_000, 0.7
    source = tmp_path / f"late{suffix}"
    with av.open(str(source), "w") as container:
        video = container.add_stream("libx264", rate=25)
        video.width, video.height, video.pix_fmt = 64, 48, "yuv420p"
        sound = container.add_stream("aac", rate=rate, layout="mono")
        for number in range(50):
            frame = av.VideoFrame.from_ndarray(np.zeros((48, 64, 3), np.uint8), format="rgb24")
            frame.pts, frame.time_base = number, Fraction(1, 25)
            container.mux(video.encode(frame))
        samples = np.zeros((1, 2 * rate), np.float32)
        samples[0, int(1.8 * rate) : int(1.802 * rate)] = 0.9
        heard = av.AudioFrame.from_ndarray(samples, format="fltp", layout="mono")
        heard.sample_rate, heard.time_base, heard.pts = rate, Fraction(1, rate), int(late * rate)
        container.mux([*video.encode(None), *sound.encode(heard), *sound.encode(None)])
    stats = render(person, tmp_path / f"talk{suffix}", audio=source, device="cpu")
    assert 0 <= stats.frames - frame_count(late + 2, fps) <= 2  # AAC's padding counts where the length is not exact
    ours, our_rate, start = decoded_sound(tmp_path / f"talk{suffix}")
    assert abs(start + np.flatnonzero(np.abs(ours) > 0.3)[0] / our_rate - (late + 1.8)) < 0.010


def test_the_characters_own_sound_is_used_and_can_be_left_out(person: Path, tmp_path: Path) -> None:
    character = Character.load(person)
    stats = render(person, tmp_path / "own.mp4", features=person / "aud_ave.npy", device="cpu")
    picture, heard = durations(tmp_path / "own.mp4")
    assert stats.frames == 20
    assert abs(picture - heard) < 1 / character.body.fps
    ours, _, _ = decoded_sound(tmp_path / "own.mp4")
    assert np.abs(ours).max() > 0.05
    silent = render(person, tmp_path / "silent.mp4", device="cpu", sound=False)
    assert silent.frames == ceil(len(np.load(person / "aud_ave.npy")) * character.body.fps / 25)
    with av.open(str(tmp_path / "silent.mp4")) as container:
        assert not container.streams.audio


def test_speech_that_is_not_the_features_own_does_not_change_the_length(person: Path, tmp_path: Path) -> None:
    rows = np.zeros((60, 512), np.float32)
    character = Character.load(person)
    speech = open_speech(character, features=rows)
    assert speech.frames == ceil(60 * character.body.fps / 25)
    render(person, tmp_path / "long.mp4", features=rows, device="cpu")
    picture, heard = durations(tmp_path / "long.mp4")
    assert abs(picture - heard) < 1 / character.body.fps  # the rest is silence


def no_encoder(path: Path, batch: int) -> AudioEncoder:
    raise AssertionError(f"features that are given need no encoder: {path}")


def test_rows_stay_25_a_second_whatever_the_bodys_rate(person: Path, tmp_path: Path) -> None:
    """A ramp of one a row: a frame at t seconds hears 25 t - 8 … 25 t + 7, and 0 outside the speech."""
    character = Character.load(person)
    fps = character.body.fps
    ramp = np.repeat(np.arange(1, 52, dtype=np.float32)[:, None], 512, axis=1)
    np.save(tmp_path / "ramp.npy", ramp)
    own = np.load(person / "aud_ave.npy")
    for speech, wanted in (
        (open_speech(character, features=ramp, with_sound=False), ramp),
        (open_speech(character, features=tmp_path / "ramp.npy", with_sound=False), ramp),
        (open_speech(character, with_sound=False), own),
    ):
        rows = speech.rows(no_encoder)
        np.testing.assert_array_equal(rows, wanted)
        assert (speech.frames - 1) / fps < Fraction(len(wanted), 25) <= speech.frames / fps
    heard = SpeechRows(ramp)
    for frame in range(20, int(40 * fps / 25)):
        window = np.empty((16, 512), np.float32)
        heard.window(*speech_position(frame, fps), window)
        assert np.allclose(window[:, 0], float(25 * frame / fps) + 1 + np.arange(-8, 8), atol=1e-4)


@pytest.mark.parametrize("fps", [*RATES.values(), Fraction(50), Fraction(24)])
def test_frames_hear_rows_that_are_a_25th_of_a_second_apart(tmp_path: Path, fps: Fraction) -> None:
    """Whole frames, by the plain algorithm, the model in NumPy, and rows between rows in float64."""
    person = make_demo(tmp_path / "person", frames=8, size=(320, 192), model_size=160, fps=fps)
    character = Character.load(person)
    # The mouth opens and closes again within a few rows, and is open at the speech's end.
    features = np.abs(np.sin(np.arange(20) * 0.9))[:, None].repeat(512, axis=1).astype(np.float32)
    bodies, crops = (list(read_frames(info.path, "bgr24")) for info in (character.body, character.crops))
    padded = np.pad(features.astype(np.float64), ((9, 9), (0, 0)))
    got = list(frames(person, features=features, device="cpu", pixel_format="bgr24"))
    assert len(got) == ceil(20 * fps / 25)
    for number, (mine, source) in enumerate(zip(got, frame_order(len(got), 8), strict=True)):
        times = [Fraction(25 * number) / fps + k - 8 + 9 for k in range(16)]
        before = [int(time) for time in times]
        rest = np.array([float(time - int(time)) for time in times])[:, None]
        heard = (1 - rest) * padded[before] + rest * padded[[row + 1 for row in before]]
        visual = reference.visual_input(crops[source], character.layout)[None]
        prediction = tiny_reference(visual, heard.astype(np.float32).reshape(1, 32, 16, 16))[0]
        wanted = reference.composite_bgr24(
            prediction, crops[source], bodies[source], character.rects[source], character.layout
        )
        difference = np.abs(mine.astype(int) - wanted)
        # The rest of a row is told in 16 bits, and the model's arithmetic is not NumPy's to the last bit.
        assert difference.max() <= 2, f"frame {number}"
        assert (difference > 0).mean() < 0.005


def test_features_from_python_may_be_float64(talker_demo: Path) -> None:
    features = np.random.default_rng(0).random((10, 512))
    with pytest.warns(GpupipeWarning, match=r"^features: float64 converted to float32$"):
        speech = open_speech(Character.load(talker_demo), features=features, with_sound=False)
    assert speech.frames == 10
    rows = speech.rows(no_encoder)
    assert rows.dtype == np.float32
    np.testing.assert_array_equal(rows, features.astype(np.float32))


def test_speech_goes_back_and_forth_over_the_frames(person: Path, tmp_path: Path) -> None:
    """Silence of 3 s over 20 frames: each output frame is the picture of its place in the ping-pong order."""
    sound = write_wav(tmp_path / "silence.wav", np.zeros(48_000), 16_000)
    fps = Character.load(person).body.fps
    got = list(frames(person, audio=sound, device="cpu", start_frame=3))
    assert len(got) == 3 * fps if fps.denominator == 1 else len(got) == frame_count(3, fps)
    order = frame_order(len(got), 20, 3)
    for number in range(20, len(got)):
        same = int(np.flatnonzero(order == order[number])[0])
        assert np.array_equal(got[number], got[same])


def test_the_rendered_demo_really_talks(talker_demo: Path, tmp_path: Path) -> None:
    """The opening in the decoded file, what is darker than the closed mouth as filmed, follows the file's loudness."""
    character = Character.load(talker_demo)
    render(talker_demo, tmp_path / "talk.mp4", audio=talker_demo / "aud.wav", device="cpu")
    sound, rate, start = decoded_sound(tmp_path / "talk.mp4")
    layout, area = character.layout, patch(character.layout.model_size)
    inside = np.s_[BORDER + area.top : BORDER + area.bottom, BORDER + area.left : BORDER + area.right]
    pictures = list(read_frames(tmp_path / "talk.mp4", "bgr24"))
    filmed = list(read_frames(character.body.path, "bgr24"))
    dark, energy = np.zeros(len(pictures)), np.zeros(len(pictures))
    for number, (picture, source) in enumerate(zip(pictures, frame_order(len(pictures), character.count), strict=True)):
        rect = character.rects[source]
        spoken, closed = (
            np.asarray(cv2.resize(image[rect.y1 : rect.y2, rect.x1 : rect.x2], (layout.crop_size,) * 2), float)[inside]
            for image in (picture, filmed[source])
        )
        dark[number] = (closed - spoken).clip(0).sum()
        time = number / 25 - start
        heard = sound[max(0, round((time - 0.02) * rate)) : round((time + 0.06) * rate)]
        energy[number] = np.sqrt((heard.astype(float) ** 2).mean())
    assert np.corrcoef(dark, energy)[0, 1] > 0.9


def test_features_command_gives_what_the_folder_holds(
    talker_demo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "features.npy"
    command = ["features", str(talker_demo), str(talker_demo / "aud.wav"), "-o", str(out)]
    assert main(command) == 0
    rows = np.load(out)
    assert rows.dtype == np.float32
    assert np.allclose(rows, np.load(talker_demo / "aud_ave.npy"), atol=1e-5)
    # The same by hand: every window through the encoder, the first and the last row doubled.
    with wave.open(str(talker_demo / "aud.wav")) as file:
        pcm = np.frombuffer(file.readframes(-1), "<i2").astype(np.float32) / np.float32(32768)
    session = onnxruntime.InferenceSession(str(talker_demo / "checkpoint" / "audio_encoder.onnx"))
    mel = mel_spectrogram(pcm)
    columns = mel.shape[1]
    starts = [min(int(80 * k / 25), columns - 16) for k in range(int((columns - 16) / 80 * 25) + 2)]
    windows = np.stack([mel[None, :, start : start + 16] for start in starts])
    (encoded,) = session.run(None, {session.get_inputs()[0].name: windows})
    assert np.allclose(rows, np.concatenate([encoded[:1], encoded, encoded[-1:]]), atol=1e-5)
    capsys.readouterr()
    assert main(command) == 1
    assert capsys.readouterr().err.startswith(f"error: {out}: output: exists already")
    assert main([*command, "--overwrite"]) == 0


def test_too_short_a_sound(talker_demo: Path, tmp_path: Path) -> None:
    sound = write_wav(tmp_path / "short.wav", np.zeros(1600), 16_000)
    with pytest.raises(MediaError, match=r"short\.wav"):
        render(talker_demo, tmp_path / "talk.mp4", audio=sound, device="cpu")
    assert sorted(tmp_path.iterdir()) == [sound]


def test_what_is_no_audio_encoder_is_refused(talker_demo: Path, tmp_path: Path) -> None:
    model = talker_demo / "checkpoint" / "model_best.onnx"
    with pytest.raises(InferenceError, match="is no audio encoder"):
        AudioEncoder(model, SessionOptions())
    with pytest.raises(InferenceError, match="audio_encoder"):
        AudioEncoder(tmp_path / "none.onnx", SessionOptions())


@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak from /proc")
def test_long_speech_is_not_held_several_times(talker_demo: Path, tmp_path: Path) -> None:
    """20 minutes to features with the demo's encoder: the peak stays within 140 MiB of the start, result included."""
    second = np.random.default_rng(0).integers(-3000, 3000, 16_000, dtype=np.int16)
    with wave.open(str(tmp_path / "long.wav"), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(16_000)
        for _ in range(1200):
            file.writeframes(second.tobytes())
    program = """
import sys
from pathlib import Path
from gpupipe.machine import peak_rss_bytes
from gpupipe.model.runtime import SessionOptions
from gpupipe.speech.encoder import AudioEncoder, encode_speech
sound, encoder = map(Path, sys.argv[1:])
before = peak_rss_bytes()
rows = encode_speech(sound, AudioEncoder(encoder, SessionOptions()))
print(len(rows), (peak_rss_bytes() - before) >> 20)
"""
    encoder = talker_demo / "checkpoint" / "audio_encoder.onnx"
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "long.wav"), str(encoder)],
        capture_output=True,
        text=True,
        check=True,
    )
    rows, grown = map(int, done.stdout.split())
    assert rows == 1200 * 25 - 1
    assert grown < 140


def test_a_delay_of_unknown_length_is_told(talker_demo: Path, tmp_path: Path) -> None:
    """An AAC file without a container, by an encoder that does not name itself."""
    path = tmp_path / "speech.aac"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=48_000, layout="mono")
        stream.codec_context.flags |= av.codec.context.Flags.bitexact
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 48_000), np.float32), format="fltp", layout="mono")
        frame.sample_rate, frame.pts = 48_000, 0
        for packet in (*stream.encode(frame), *stream.encode(None)):
            container.mux(packet)
    with pytest.warns(GpupipeWarning, match=r"speech\.aac: begins with an encoder's delay of unknown length"):
        open_speech(Character.load(talker_demo), audio=path)
