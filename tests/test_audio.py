"""`mel` and `windows`: the mel spectrogram against librosa, windows and counts against the formula, in any chunks."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from gpupipe.errors import MediaError
from gpupipe.speech import mel as sound
from gpupipe.speech import windows as audio

F32 = NDArray[np.float32]
TOLERANCE = 1e-4
"""Largest difference from librosa that is allowed, after normalisation to -4 … 4."""
BLOCK = 256 * 200
"""Samples that the stream takes in one go: where chunking could show."""


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
    mel = sound.mel_spectrogram(pcm)
    assert mel.dtype == np.float32
    assert mel.shape == (80, 1 + samples // 200)
    np.testing.assert_allclose(mel, reference_mel(librosa, pcm), atol=TOLERANCE, rtol=0)


def test_mel_uses_the_whole_range() -> None:
    mel = sound.mel_spectrogram(SIGNALS["clipping"](32_000))
    assert mel.max() > 1
    assert (sound.mel_spectrogram(SIGNALS["silence"](32_000)) == -4).all()


LENGTHS = sorted(
    {n + d for n in (400, 800, 3000, 3200, 3840, BLOCK - 400, BLOCK, BLOCK + 400, 2 * BLOCK) for d in (-1, 0, 1)}
    | {3000 + 200 * columns for columns in range(17)}
    | {1, 199, 200, 201, 16_000}
)


@pytest.mark.filterwarnings("ignore:n_fft=800 is too large")
def test_mel_equals_librosa_at_every_boundary(librosa: ModuleType) -> None:
    pcm = speech_like(max(LENGTHS))
    for samples in LENGTHS:
        mel = sound.mel_spectrogram(pcm[:samples])
        np.testing.assert_allclose(
            mel, reference_mel(librosa, pcm[:samples]), atol=TOLERANCE, rtol=0, err_msg=f"{samples} samples"
        )


def test_mel_refuses_what_is_not_mono_float32() -> None:
    with pytest.raises(ValueError, match=r"float32 \[n\] \(got float64"):
        sound.mel_spectrogram(np.zeros(4000))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"\[2, 4000\]"):
        sound.mel_spectrogram(np.zeros((2, 4000), np.float32))
    stream = sound.MelStream()
    stream.finish()
    with pytest.raises(ValueError, match="finished"):
        stream.push(np.zeros(1, np.float32))
    with pytest.raises(ValueError, match="finished"):
        stream.finish()


def dense_mel(pcm: F32) -> F32:
    """The same by a matrix product over 256 columns at a time, as BLAS pleases."""
    emphasised = np.append(pcm[:1], pcm[1:] - 0.97 * pcm[:-1].astype(np.float64))
    columns = 1 + len(pcm) // 200
    padded = np.pad(emphasised, (400, 256 * 200 + 800))
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(800) / 800)
    blocks = []
    for first in range(0, columns, 256):
        frames = np.stack([padded[200 * c : 200 * c + 800] * window for c in range(first, min(first + 256, columns))])
        whole = np.pad(frames, ((0, 256 - len(frames)), (0, 0)))
        blocks.append((np.abs(np.fft.rfft(whole, axis=1)) @ sound.mel_filters().T)[: len(frames)])
    level = 20 * np.log10(np.maximum(1e-5, np.concatenate(blocks))) - 20
    return np.clip(8 * (level + 100) / 100 - 4, -4, 4).T.astype(np.float32)


@pytest.mark.parametrize("signal", SIGNALS)
def test_mel_equals_a_dense_matrix_product_bit_for_bit(signal: str) -> None:
    """The two differ in float64's last bits, as BLAS itself does from machine to machine; float32 drops those."""
    pcm = SIGNALS[signal](3 * BLOCK + 77)
    np.testing.assert_array_equal(sound.mel_spectrogram(pcm), dense_mel(pcm))


def test_a_column_comes_with_its_last_sample() -> None:
    pcm, stream = speech_like(2500), sound.MelStream()
    given = [stream.push(pcm[at : at + 1]).shape[1] for at in range(len(pcm))]
    # Column c is there with sample 200 c + 399.
    assert np.flatnonzero(given).tolist() == [200 * column + 399 for column in range(11)]
    assert set(given) == {0, 1}
    assert stream.finish().shape == (80, 2)


@settings(max_examples=60, deadline=None)
@given(
    samples=st.integers(0, 3 * BLOCK),
    cuts=st.lists(st.integers(0, 3 * BLOCK), max_size=12),
    seed=st.integers(0, 3),
)
def test_chunks_do_not_matter(samples: int, cuts: list[int], seed: int) -> None:
    pcm = np.random.default_rng(seed).standard_normal(samples).astype(np.float32)
    stream = sound.MelStream()
    parts = [stream.push(chunk) for chunk in np.split(pcm, sorted(min(cut, samples) for cut in cuts))]
    assert stream.samples == samples
    streamed = np.concatenate([*parts, stream.finish()], axis=1)
    np.testing.assert_array_equal(streamed, sound.mel_spectrogram(pcm))


@pytest.mark.parametrize("chunk", [1, 199, 200, 201, 16_000])
def test_equal_chunks_do_not_matter(chunk: int) -> None:
    pcm = speech_like(4001 if chunk == 1 else 2 * BLOCK + 401)
    stream = sound.MelStream()
    parts = [stream.push(pcm[at : at + chunk]) for at in range(0, len(pcm), chunk)]
    np.testing.assert_array_equal(np.concatenate([*parts, stream.finish()], axis=1), sound.mel_spectrogram(pcm))


def reference_starts(columns: int) -> list[int]:
    windows = int((columns - 16) / 80 * 25) + 2
    return [min(int(80 * k / 25), columns - 16) for k in range(windows)]


def test_windows_follow_the_rule_at_every_boundary() -> None:
    for columns in [*range(16, 120), 384, 672, 1674, 4801]:
        starts = audio.window_starts(columns)
        assert starts.tolist() == reference_starts(columns), columns
        assert audio.feature_rows(columns) == len(starts) + 2


def reference_windows(mel: F32) -> F32:
    return np.stack([mel[None, :, start : start + 16] for start in reference_starts(mel.shape[1])])


@settings(max_examples=60, deadline=None)
@given(columns=st.integers(16, 700), cuts=st.lists(st.integers(0, 700), max_size=8))
def test_streamed_windows_are_all_windows(columns: int, cuts: list[int]) -> None:
    mel = np.random.default_rng(columns).standard_normal((80, columns)).astype(np.float32)
    stream = audio.WindowStream()
    parts = [stream.push(block) for block in np.split(mel, sorted(min(cut, columns) for cut in cuts), axis=1)]
    parts.append(stream.finish())
    assert all(part.flags.c_contiguous and part.dtype == np.float32 for part in parts)
    np.testing.assert_array_equal(np.concatenate(parts), reference_windows(mel))


def test_a_window_comes_with_its_last_column() -> None:
    """After T columns: all windows k that end within them."""
    stream, given = audio.WindowStream(), 0
    for columns in range(1, 5000):
        given += len(stream.push(np.zeros((80, 1), np.float32)))
        assert given == sum(int(80 * k / 25) + 16 <= columns for k in range(given + 2))
        assert columns < 16 or given <= len(reference_starts(columns))


def test_samples_of_a_row() -> None:
    for row in range(2000):
        start = int(80 * max(0, row - 1) / 25)
        assert audio.samples_of_row(row) == (start + 15) * 200 + 400


def test_published_counts() -> None:
    assert sound.mel_spectrogram(np.zeros(round(20.92 * 16_000), np.float32)).shape == (80, 1674)
    assert audio.feature_rows(1674) == 522


@pytest.mark.talker
def test_filmed_speech(librosa: ModuleType, talker: Path) -> None:
    from gpupipe.media.sound import read_pcm

    pcm = np.concatenate(list(read_pcm(talker / "aud.wav")))
    mel = sound.mel_spectrogram(pcm)
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
    stream = audio.WindowStream()
    stream.push(np.zeros((80, 15), np.float32))
    with pytest.raises(MediaError, match=r"^a\.wav: the speech is shorter than one window .*'15 columns, 0\.175 s'"):
        stream.finish(file="a.wav")


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


def test_frames_cover_the_time_of_the_rows() -> None:
    for fps in (Fraction(24), Fraction(25), Fraction(30_000, 1001), Fraction(50), Fraction(25, 2)):
        for rows in (1, 2, 51, 522, 90_000):
            frames = audio.frames_of_rows(rows, fps)
            assert (frames - 1) / fps < Fraction(rows, 25) <= frames / fps
    assert audio.frames_of_rows(522, Fraction(25)) == 522
