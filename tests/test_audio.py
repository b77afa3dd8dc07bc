"""`audio` and `mel`: the mel spectrogram against librosa, windows and rows against the formula, streaming, memory."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from gpupipe.errors import InferenceError, MediaError
from gpupipe.speech import windows as audio

F32 = NDArray[np.float32]
TOLERANCE = 1e-4
"""Largest difference from librosa that is allowed, after normalisation to -4 … 4."""
BLOCK = 256 * 200
"""Samples between the blocks that the stream computes in one go: where chunking could show."""


@pytest.fixture(scope="module")
def librosa() -> ModuleType:
    # Numba makes this a slow import, so it waits until a test asks.
    module: ModuleType = pytest.importorskip("librosa")
    return module


def reference_mel(librosa: ModuleType, pcm: F32) -> NDArray[np.float64]:
    from scipy.signal import lfilter

    emphasised = lfilter([1, -0.97], [1], pcm.astype(np.float64))
    spectrum = librosa.stft(
        emphasised, n_fft=800, hop_length=200, win_length=800, window="hann", center=True, pad_mode="constant"
    )
    bands = librosa.filters.mel(sr=16000, n_fft=800, n_mels=80, fmin=55, fmax=7600, htk=False, norm="slaney")
    level = 20 * np.log10(np.maximum(1e-5, bands @ np.abs(spectrum))) - 20
    result: NDArray[np.float64] = np.clip(8 * (level + 100) / 100 - 4, -4, 4)
    return result


def speech_like(samples: int, seed: int = 0) -> F32:
    """A buzz of gliding pitch through two moving formants, in syllables, over a little noise."""
    random = np.random.default_rng(seed)
    t = np.arange(samples) / 16000
    pitch = 120 + 30 * np.sin(2 * np.pi * 0.7 * t)
    phase = 2 * np.pi * np.cumsum(pitch) / 16000
    formants = 500 + 300 * np.sin(2 * np.pi * 1.3 * t), 1500 + 600 * np.sin(2 * np.pi * 0.9 * t)
    voice = np.zeros(samples)
    for harmonic in range(1, 40):
        hz = harmonic * pitch
        gain = sum(np.exp(-(((hz - formant) / 200) ** 2)) for formant in formants)
        voice += np.where(hz < 7000, gain, 0) * np.sin(harmonic * phase)
    syllables = np.clip(np.sin(2 * np.pi * 4 * t), 0, None)
    signal = 0.2 * syllables * voice + 0.003 * random.standard_normal(samples)
    return signal.astype(np.float32)


SIGNALS: dict[str, Callable[[int], F32]] = {
    "speech": speech_like,
    "noise": lambda n: np.random.default_rng(1).uniform(-0.5, 0.5, n).astype(np.float32),
    "silence": lambda n: np.zeros(n, np.float32),
    "clipping": lambda n: np.clip(20 * speech_like(n), -1, 1),
    "sine": lambda n: np.sin(2 * np.pi * 440 * np.arange(n) / 16000).astype(np.float32),
    "faint sine": lambda n: (1e-4 * np.sin(2 * np.pi * 3000 * np.arange(n) / 16000)).astype(np.float32),
    "click": lambda n: (np.arange(n) == n // 2).astype(np.float32),
    "beyond full scale": lambda n: 4 * speech_like(n),
}


@pytest.mark.parametrize("signal", SIGNALS)
@pytest.mark.parametrize("samples", [16_000, 3 * BLOCK + 77])
def test_mel_equals_librosa(librosa: ModuleType, signal: str, samples: int) -> None:
    pcm = SIGNALS[signal](samples)
    mel = audio.mel_spectrogram(pcm)
    assert mel.dtype == np.float32
    assert mel.shape == (80, 1 + samples // 200)
    np.testing.assert_allclose(mel, reference_mel(librosa, pcm), atol=TOLERANCE, rtol=0)


def test_mel_uses_the_whole_range() -> None:
    mel = audio.mel_spectrogram(SIGNALS["clipping"](32_000))
    assert mel.max() > 1
    assert (audio.mel_spectrogram(SIGNALS["silence"](32_000)) == -4).all()


LENGTHS = sorted(
    {n + d for n in (400, 800, 3000, 3200, 3840, BLOCK - 400, BLOCK, BLOCK + 400, 2 * BLOCK) for d in (-1, 0, 1)}
    | {3000 + 200 * columns for columns in range(17)}
    | {1, 199, 200, 201, 16_000}
)


@pytest.mark.filterwarnings("ignore:n_fft=800 is too large")
def test_mel_equals_librosa_at_every_boundary(librosa: ModuleType) -> None:
    pcm = speech_like(max(LENGTHS))
    for samples in LENGTHS:
        mel = audio.mel_spectrogram(pcm[:samples])
        np.testing.assert_allclose(
            mel, reference_mel(librosa, pcm[:samples]), atol=TOLERANCE, rtol=0, err_msg=f"{samples} samples"
        )


def test_mel_refuses_what_is_not_mono_float32() -> None:
    with pytest.raises(ValueError, match=r"float32 \[n\] \(got float64"):
        audio.mel_spectrogram(np.zeros(4000))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"\[2, 4000\]"):
        audio.mel_spectrogram(np.zeros((2, 4000), np.float32))
    stream = audio.MelStream()
    stream.finish()
    with pytest.raises(ValueError, match="finished"):
        stream.push(np.zeros(1, np.float32))


@settings(max_examples=60, deadline=None)
@given(
    samples=st.integers(0, 3 * BLOCK),
    cuts=st.lists(st.integers(0, 3 * BLOCK), max_size=12),
    seed=st.integers(0, 3),
)
def test_chunks_do_not_matter(samples: int, cuts: list[int], seed: int) -> None:
    pcm = np.random.default_rng(seed).standard_normal(samples).astype(np.float32)
    stream = audio.MelStream()
    parts = [stream.push(chunk) for chunk in np.split(pcm, sorted(min(cut, samples) for cut in cuts))]
    assert stream.samples == samples
    streamed = np.concatenate([*parts, stream.finish()], axis=1)
    np.testing.assert_array_equal(streamed, audio.mel_spectrogram(pcm))


@pytest.mark.parametrize("chunk", [1, 199, 200, 201, 16_000])
def test_equal_chunks_do_not_matter(chunk: int) -> None:
    pcm = speech_like(4001 if chunk == 1 else 2 * BLOCK + 401)
    stream = audio.MelStream()
    parts = [stream.push(pcm[at : at + chunk]) for at in range(0, len(pcm), chunk)]
    np.testing.assert_array_equal(np.concatenate([*parts, stream.finish()], axis=1), audio.mel_spectrogram(pcm))


def reference_starts(columns: int) -> list[int]:
    windows = int((columns - 16) / 80 * 25) + 2
    return [min(int(80 * k / 25), columns - 16) for k in range(windows)]


def test_windows_follow_the_rule_at_every_boundary() -> None:
    for columns in [*range(16, 120), 384, 672, 1674, 4801]:
        starts = audio.window_starts(columns)
        assert starts.tolist() == reference_starts(columns), columns
        assert audio.feature_rows(columns) == len(starts) + 2
    mel = np.random.default_rng(0).standard_normal((80, 47)).astype(np.float32)
    expected = np.stack([mel[None, :, start : start + 16] for start in reference_starts(47)])
    windows = audio.mel_windows(mel)
    np.testing.assert_array_equal(windows, expected)
    assert windows.flags.c_contiguous


@settings(max_examples=60, deadline=None)
@given(
    columns=st.integers(16, 700),
    batch=st.integers(1, 40),
    cuts=st.lists(st.integers(0, 700), max_size=8),
)
def test_streamed_windows_are_all_windows(columns: int, batch: int, cuts: list[int]) -> None:
    mel = np.random.default_rng(columns).standard_normal((80, columns)).astype(np.float32)
    blocks = np.split(mel, sorted(min(cut, columns) for cut in cuts), axis=1)
    batches = list(audio.iter_windows(blocks, batch))
    assert all(len(windows) == batch for windows in batches[:-1])
    np.testing.assert_array_equal(np.concatenate(batches), audio.mel_windows(mel))


def projection(windows: F32) -> F32:
    """A stand-in encoder whose rows tell its windows apart, each by itself."""
    flat = windows.reshape(len(windows), 1280)
    return np.stack([np.concatenate((row[:256], row[-256:])) for row in flat])


@pytest.mark.parametrize("batch", [1, 7, 32])
@pytest.mark.parametrize("samples", [3000, 16_000, 2 * BLOCK + 5])
def test_features_are_the_encoded_windows(samples: int, batch: int) -> None:
    pcm, sizes = speech_like(samples), []

    def encode(windows: F32) -> F32:
        sizes.append(windows.shape)
        return projection(windows)

    features = audio.features_from_pcm(np.array_split(pcm, 5), encode, batch)
    rows = projection(audio.mel_windows(audio.mel_spectrogram(pcm)))
    np.testing.assert_array_equal(features, np.concatenate((rows[:1], rows, rows[-1:])))
    assert features.dtype == np.float32
    assert set(sizes) == {(batch, 1, 80, 16)}


@pytest.mark.parametrize("seconds", [0.1, 0.1874, 0.1875, 0.2, 0.25, 0.5, 1, 1.01, 2.5, 4.8, 20.92, 30, 60])
def test_row_counts(seconds: float) -> None:
    samples = round(seconds * 16_000)
    columns = 1 + samples // 200
    chunks = [np.zeros(samples, np.float32)]
    if columns < 16:
        with pytest.raises(MediaError, match=r"^talk\.wav: the speech is shorter than one window of 16 mel columns"):
            audio.features_from_pcm(chunks, lambda windows: np.zeros((32, 512), np.float32), file="talk.wav")
        return
    features = audio.features_from_pcm(chunks, lambda windows: np.zeros((32, 512), np.float32))
    assert features.shape == (int((columns - 16) / 80 * 25) + 4, 512)


def test_published_counts() -> None:
    assert audio.mel_spectrogram(np.zeros(round(20.92 * 16_000), np.float32)).shape == (80, 1674)
    assert audio.feature_rows(1674) == 522


@pytest.mark.talker
def test_filmed_speech(librosa: ModuleType, talker: Path) -> None:
    from gpupipe.media.sound import read_pcm

    pcm = np.concatenate(list(read_pcm(talker / "aud.wav")))
    mel = audio.mel_spectrogram(pcm)
    assert mel.shape == (80, 1674)
    np.testing.assert_allclose(mel, reference_mel(librosa, pcm), atol=TOLERANCE, rtol=0)
    assert audio.feature_rows(mel.shape[1]) == len(np.load(talker / "aud_ave.npy", mmap_mode="r")) == 522


def test_a_short_speech_says_so() -> None:
    message = (
        "a.wav: the speech is shorter than one window of 16 mel columns (got '9 columns, 0.100 s'); "
        "give at least 0.1875 s of sound"
    )
    for call in (audio.window_count, audio.window_starts, audio.feature_rows):
        with pytest.raises(MediaError) as caught:
            call(9, file="a.wav")
        assert str(caught.value) == message
    with pytest.raises(MediaError, match="shorter than one window"):
        audio.mel_windows(np.zeros((80, 15), np.float32))
    with pytest.raises(MediaError, match="shorter than one window"):
        audio.features_from_pcm([], projection)


def test_a_wrong_encoder_says_so() -> None:
    pcm = [speech_like(16_000)]
    with pytest.raises(InferenceError, match=r"must give finite \[8, 512\] \(got \[8, 256\]\)"):
        audio.features_from_pcm(pcm, lambda windows: np.zeros((8, 256), np.float32), 8)
    with pytest.raises(InferenceError, match="NaN or infinity"):
        audio.features_from_pcm(pcm, lambda windows: np.full((8, 512), np.nan, np.float32), 8)
    with pytest.raises(ValueError, match="batch"):
        audio.features_from_pcm(pcm, projection, 0)


def test_frame_counts() -> None:
    assert audio.frame_count(20.92, 25) == 523
    assert audio.frame_count(334_720 / 16_000, 25.0) == 523
    assert audio.frame_count(Fraction(334_721, 16_000), 25) == 523  # a sample more than fits: rounding
    assert audio.frame_count(Fraction(334_739, 16_000), 25) == 524
    assert audio.frame_count(0, 30) == 0
    assert audio.frame_count(1001 / 1000, Fraction(30_000, 1001)) == 30
    assert audio.frame_count(1001 / 1000, 30_000 / 1001) == 30
    for fps in (Fraction(24), Fraction(25), Fraction(30_000, 1001), Fraction(30), Fraction(50), Fraction(60_000, 1001)):
        for samples in range(1, 40_000, 1111):
            duration = Fraction(samples, 16_000)
            assert -0.01 <= audio.frame_count(float(duration), fps) - duration * fps < 1
    for wrong, rate in ((-1.0, 25.0), (1.0, 0.0), (float("nan"), 25.0), (float("inf"), 25.0)):
        with pytest.raises(ValueError, match="duration"):
            audio.frame_count(wrong, rate)


@pytest.mark.parametrize("fps", [Fraction(24), Fraction(30_000, 1001), Fraction(30), Fraction(50), Fraction(25, 2)])
@pytest.mark.parametrize("rows", [1, 2, 522])
def test_rows_are_resampled_in_time(fps: Fraction, rows: int) -> None:
    features = np.random.default_rng(2).uniform(0, 5, (rows, 512)).astype(np.float32)
    resampled = audio.resample_rows(features, fps)
    times = np.arange(audio.frame_count(Fraction(rows, 25), fps)) / float(fps)
    expected = np.stack([np.interp(times, np.arange(rows) / 25, column) for column in features.T], axis=1)
    assert resampled.dtype == np.float32
    # Float32 arithmetic on values below 5, and float64 positions in the reference.
    np.testing.assert_allclose(resampled, expected, atol=2e-6, rtol=0)


def test_the_models_own_rate_changes_nothing() -> None:
    features = np.random.default_rng(3).uniform(0, 5, (9, 512)).astype(np.float32)
    assert audio.resample_rows(features, 25) is features
    assert audio.resample_rows(features, Fraction(25)) is features
    # Every second row at 50 a second is a source row, exactly, however far along.
    long = np.random.default_rng(4).uniform(0, 5, (9000, 2)).astype(np.float32)
    np.testing.assert_array_equal(audio.resample_rows(long, 50)[::2], long)
    assert audio.resample_rows(features[:0], 30).shape == (0, 512)
    with pytest.raises(ValueError, match="rates must be above 0"):
        audio.resample_rows(features, 0)


HOUR = """
import re
import numpy as np
from gpupipe.speech.windows import features_from_pcm

def memory(field):
    return int(re.search(field + r":\\s+(\\d+) kB", open("/proc/self/status").read()).group(1)) / 1024

def hour(seconds):
    random = np.random.default_rng(0)
    for _ in range(seconds):
        yield random.uniform(-0.5, 0.5, 16_000).astype(np.float32)

def encode(windows):
    return np.resize(np.abs(windows.mean(axis=(1, 2))), (len(windows), 512))

features_from_pcm(hour(2), encode)
before = memory("VmRSS")
features = features_from_pcm(hour(3600), encode)
print(len(features), memory("VmHWM") - before)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads the peak from /proc")
def test_an_hour_of_speech_fits_in_little_memory() -> None:
    ran = subprocess.run([sys.executable, "-c", HOUR], capture_output=True, text=True, check=True, timeout=300)
    rows, growth_mib = ran.stdout.split()
    assert int(rows) == int((288_001 - 16) / 80 * 25) + 4
    # The features themselves are 176 MiB.
    assert 176 < float(growth_mib) < 260
