"""`stream`: sound in, rows out, in any chunks and batches, when they must come, and how much is held."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from gpupipe.demo.models import encoder_model, save
from gpupipe.errors import InferenceError, MediaError
from gpupipe.geometry import speech_position
from gpupipe.model.runtime import SessionOptions, open_session
from gpupipe.speech.encoder import AudioEncoder
from gpupipe.speech.mel import mel_spectrogram
from gpupipe.speech.rows import SpeechRows
from gpupipe.speech.stream import FeatureStream, features_from_pcm
from gpupipe.threads import Worker, start_and_wait

F32 = NDArray[np.float32]
BLOCK = 256 * 200
"""Samples that the stream takes in one go."""
CHUNK = 320
"""20 ms."""


@pytest.fixture(scope="module")
def encoder_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo's speech encoder."""
    path = tmp_path_factory.mktemp("encoder") / "encoder.onnx"
    save(encoder_model(), path)
    return path


def voice(samples: int, seed: int = 0) -> F32:
    """Noise whose loudness changes."""
    random = np.random.default_rng(seed)
    loudness = np.repeat(random.uniform(0, 0.5, samples // 1000 + 1), 1000)[:samples]
    return (loudness * random.standard_normal(samples)).astype(np.float32)


def projection(windows: F32) -> F32:
    """A stand-in encoder whose rows tell its windows apart, each by itself."""
    flat = windows.reshape(len(windows), 1280)
    return np.stack([np.concatenate((row[:256], row[-256:])) for row in flat])


def expected_rows(pcm: F32) -> F32:
    """Every window's row, by the formula, the first and the last one doubled."""
    mel = mel_spectrogram(pcm)
    columns = mel.shape[1]
    starts = [min(int(80 * k / 25), columns - 16) for k in range(int((columns - 16) / 80 * 25) + 2)]
    rows = projection(np.stack([mel[None, :, start : start + 16] for start in starts]))
    return np.concatenate((rows[:1], rows, rows[-1:]))


def samples_wanted(row: int) -> int:
    """Samples that row `row` needs, by the rule: the last of its window's columns, and half a frame more."""
    return (int(80 * max(0, row - 1) / 25) + 15) * 200 + 400


def streamed(chunks: list[F32], encode: Callable[[F32], F32], batch: int, *, full_batches: bool = False) -> F32:
    rows = SpeechRows()
    stream = FeatureStream(encode, rows, batch=batch, full_batches=full_batches)
    for chunk in chunks:
        stream.push(chunk)
    assert not rows.finished
    stream.finish()
    assert rows.finished
    return rows.view(0, rows.count)


@pytest.mark.parametrize("batch", [1, 7, 32])
@pytest.mark.parametrize("samples", [3000, 16_000, 2 * BLOCK + 5])
def test_features_are_the_encoded_windows(samples: int, batch: int) -> None:
    pcm, sizes = voice(samples), []

    def encode(windows: F32) -> F32:
        sizes.append(windows.shape)
        return projection(windows)

    features = features_from_pcm(np.array_split(pcm, 5), encode, batch)
    np.testing.assert_array_equal(features, expected_rows(pcm))
    assert features.dtype == np.float32
    assert set(sizes) == {(batch, 1, 80, 16)}
    assert len(sizes) == -(-(len(features) - 2) // batch)  # no call more than the windows need


@settings(max_examples=50, deadline=None)
@given(
    samples=st.integers(3000, 2 * BLOCK),
    cuts=st.lists(st.integers(0, 2 * BLOCK), max_size=12),
    batch=st.integers(1, 9),
    full=st.booleans(),
)
def test_neither_chunks_nor_batches_matter(samples: int, cuts: list[int], batch: int, full: bool) -> None:
    pcm = voice(samples, samples)
    chunks = np.split(pcm, sorted(min(cut, samples) for cut in cuts))
    np.testing.assert_array_equal(streamed(chunks, projection, batch, full_batches=full), expected_rows(pcm))


@pytest.mark.parametrize("threads", [1, 2])
def test_an_encoder_gives_the_same_bits_live_and_from_a_file(encoder_file: Path, threads: int) -> None:
    """ONNX Runtime's CPU provider, with the demo's encoder: one batch size is as good as another."""
    pcm, options = voice(5 * 16_000 + 123), SessionOptions(threads=threads)
    whole = features_from_pcm([pcm], AudioEncoder(encoder_file, options), 64)
    assert whole.std() > 0.01
    for batch, chunk in ((1, 320), (4, 320), (4, 1111), (3, 16_000), (64, 16_000), (64, len(pcm))):
        encoder = AudioEncoder(encoder_file, options, batch=batch)
        assert encoder.batch == batch
        chunks = [pcm[at : at + chunk] for at in range(0, len(pcm), chunk)]
        np.testing.assert_array_equal(streamed(chunks, encoder, batch), whole, err_msg=f"{batch} {chunk}")


def test_on_a_gpu_one_thread_runs_the_encoder_for_all(encoder_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """ONNX Runtime keeps device memory for every thread that has run a session there."""
    ran: list[str] = []

    class Session:
        real: Any = open_session(encoder_file, SessionOptions())

        def __getattr__(self, name: str) -> Any:
            return getattr(self.real, name)

        def run(self, *given: Any) -> Any:
            ran.append(threading.current_thread().name)
            return self.real.run(*given)

    monkeypatch.setattr("gpupipe.speech.encoder.open_session", lambda *_, **__: Session())
    windows = np.zeros((1, 1, 80, 16), np.float32)
    encoder = AudioEncoder(encoder_file, SessionOptions("cuda"), batch=1)
    wanted = AudioEncoder(encoder_file, SessionOptions("cpu"), batch=1)(windows)
    found: list[Any] = []
    start_and_wait([Worker(f"job {number}", lambda: found.append(encoder(windows))) for number in range(3)])
    assert ran == ["MainThread", *["audio encoder_0"] * 3]
    assert all(np.array_equal(each, wanted) for each in found)
    with pytest.raises(InferenceError, match="failed"):
        encoder(windows[:, :, :79])
    encoder.close()
    assert "audio encoder_0" not in {thread.name for thread in threading.enumerate()}


def test_a_row_comes_when_its_sound_is_there() -> None:
    """Pushed in chunks of 20 ms: after each, exactly the rows whose samples are complete."""
    pcm, rows = voice(3 * 16_000), SpeechRows()
    stream = FeatureStream(projection, rows)
    came: dict[int, int] = {}
    for pushed in range(CHUNK, len(pcm) + 1, CHUNK):
        stream.push(pcm[pushed - CHUNK : pushed])
        wanted = sum(samples_wanted(row) <= pushed for row in range(100))
        assert rows.count == wanted
        for row in range(len(came), rows.count):
            came[row] = pushed
    assert (came[0], came[1], came[2]) == (3520, 3520, 4160)  # 0.2125 s and 0.25 s, at the chunk's end
    for row, pushed in came.items():
        late = 0.2125 if row == 0 else 0.1725
        assert row / 25 <= (pushed - CHUNK) / 16_000 < row / 25 + late
    np.testing.assert_array_equal(rows.view(0, rows.count), expected_rows(pcm)[: rows.count])
    before = rows.count
    stream.finish()
    assert rows.count == len(expected_rows(pcm)) > before


def test_a_row_comes_with_its_last_sample_and_not_before() -> None:
    pcm, rows = voice(16_000), SpeechRows()
    stream, pushed = FeatureStream(projection, rows), 0
    for row in range(1, 15):
        last = samples_wanted(row) - 1
        stream.push(pcm[pushed:last])
        assert rows.count == (row if row > 1 else 0)
        stream.push(pcm[last : last + 1])
        assert rows.count == row + 1
        pushed = last + 1


@pytest.mark.parametrize(
    ("fps", "look_ahead"),
    [
        (Fraction(25), 0.4525),
        (Fraction(24), 0.4925),
        (Fraction(30_000, 1001), 0.4925),
        (Fraction(30), 0.4925),
        (Fraction(50), 0.4925),
    ],
)
def test_how_far_a_frame_looks_ahead(fps: Fraction, look_ahead: float) -> None:
    """In sound: what must have been pushed before the window of frame i can be had, at most and, about, at worst."""
    pcm, rows = voice(4 * 16_000), SpeechRows()
    stream, pushed, worst = FeatureStream(projection, rows), 0, 0.0
    for frame in range(int(3 * fps)):
        row, fraction = speech_position(frame, fps)
        while not rows.ready(row, fraction):
            stream.push(pcm[pushed : pushed + 40])
            pushed += 40
        worst = max(worst, (pushed - 40) / 16_000 - float(frame / fps))
    assert look_ahead - 0.02 < worst + 0.0025 <= look_ahead + 1e-9


def test_chunks_may_be_empty() -> None:
    pcm, empty = voice(4000), np.empty(0, np.float32)
    np.testing.assert_array_equal(streamed([empty, pcm[:1], empty, pcm[1:], empty], projection, 4), expected_rows(pcm))


@pytest.mark.parametrize("seconds", [0.1, 0.1874, 0.1875, 0.2, 0.25, 0.5, 1, 1.01, 2.5, 4.8, 20.92, 30, 60])
def test_row_counts(seconds: float) -> None:
    samples = round(seconds * 16_000)
    columns = 1 + samples // 200
    chunks = [np.zeros(samples, np.float32)]
    if columns < 16:
        with pytest.raises(MediaError, match=r"^talk\.wav: the speech is shorter than one window of 16 mel columns"):
            features_from_pcm(chunks, lambda windows: np.zeros((32, 512), np.float32), file="talk.wav")
        return
    features = features_from_pcm(chunks, lambda windows: np.zeros((32, 512), np.float32))
    assert features.shape == (int((columns - 16) / 80 * 25) + 4, 512)


def test_a_short_speech_says_so() -> None:
    for chunks in ([], [np.zeros(2999, np.float32)]):
        with pytest.raises(MediaError, match="shorter than one window"):
            features_from_pcm(chunks, projection)
    rows = SpeechRows()
    stream = FeatureStream(projection, rows, file="live")
    stream.push(np.zeros(1600, np.float32))
    with pytest.raises(MediaError, match=r"^live: the speech is shorter than one window .*; give at least 0\.1875 s"):
        stream.finish()
    assert (rows.count, rows.finished) == (0, False)


def test_a_wrong_encoder_says_so() -> None:
    pcm = [voice(16_000)]
    with pytest.raises(InferenceError, match=r"must give finite \[8, 512\] \(got \[8, 256\]\)"):
        features_from_pcm(pcm, lambda windows: np.zeros((8, 256), np.float32), 8)
    with pytest.raises(InferenceError, match="NaN or infinity"):
        features_from_pcm(pcm, lambda windows: np.full((8, 512), np.nan, np.float32), 8)
    with pytest.raises(ValueError, match="batch"):
        features_from_pcm(pcm, projection, 0)


def test_wrong_sound_says_so() -> None:
    stream = FeatureStream(projection, SpeechRows(), file="live")
    bad = np.zeros(400, np.float32)
    bad[300] = np.nan
    with pytest.raises(MediaError, match=r"^live: the sound holds NaN or infinity; "):
        stream.push(bad)
    with pytest.raises(ValueError, match=r"float32 \[n\] \(got float64 \[4\]\)"):
        stream.push(np.zeros(4))  # type: ignore[arg-type]
    stream.push(np.zeros(4000, np.float32))
    stream.finish()
    for call in (stream.finish, lambda: stream.push(np.zeros(1, np.float32))):
        with pytest.raises(ValueError, match="finished"):
            call()


HALF_AN_HOUR = """
import re
import numpy as np
from gpupipe.speech.stream import features_from_pcm

def memory(field):
    return int(re.search(field + r":\\s+(\\d+) kB", open("/proc/self/status").read()).group(1)) / 1024

def speech(seconds):
    random = np.random.default_rng(0)
    for _ in range(seconds):
        yield random.uniform(-0.5, 0.5, 16_000).astype(np.float32)

def encode(windows):
    return np.resize(np.abs(windows.mean(axis=(1, 2))), (len(windows), 512))

features_from_pcm(speech(2), encode)
before = memory("VmRSS")
features = features_from_pcm(speech(1800), encode)
print(len(features), memory("VmHWM") - before)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads the peak from /proc")
def test_half_an_hour_of_speech_fits_in_little_memory() -> None:
    ran = subprocess.run([sys.executable, "-c", HALF_AN_HOUR], capture_output=True, text=True, check=True, timeout=300)
    rows, growth_mib = ran.stdout.split()
    assert int(rows) == int((144_001 - 16) / 80 * 25) + 4
    # The features themselves are 88 MiB.
    assert 88 < float(growth_mib) < 172
