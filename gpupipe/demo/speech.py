"""The demo's speech: syllables sung by formants, in phrases with pauses. No words, but the rhythm of some."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from gpupipe.speech.mel import SAMPLE_RATE

# The first three formants in Hz of a, e, i, o, u and ə, after Peterson and Barney (1952).
_VOWELS = (
    (730, 1090, 2440),
    (530, 1840, 2480),
    (270, 2290, 3010),
    (570, 840, 2410),
    (300, 870, 2240),
    (490, 1350, 1690),
)
_BANDWIDTHS = (90.0, 120.0, 170.0)
_GAINS = (1.0, 0.55, 0.26)
_HARMONICS_TO = 5000.0
# Centre and width in Hz of the noise of s, sh, f and t.
_HISSES = ((5800, 1500), (3300, 1100), (4800, 2800), (4200, 2000))
_ROOM_NOISE = 1.5e-4


class _Syllable(NamedTuple):
    """One syllable: when it starts, how long it sounds, where it lies in its phrase (0 … 1), how loud it is."""

    start: float
    length: float
    place: float
    stress: float


def _rhythm(seconds: float, random: np.random.Generator) -> list[_Syllable]:
    """Syllables in phrases of one to three seconds, with pauses of a third to two thirds of a second between."""
    syllables: list[_Syllable] = []
    at = 0.16
    while at < seconds:
        count = int(random.integers(5, 12))
        for number in range(count):
            length = random.uniform(0.13, 0.21) * (1.35 if number == count - 1 else 1)
            stress = random.uniform(0.75, 1.0) if random.uniform() < 0.4 else random.uniform(0.35, 0.65)
            syllables.append(_Syllable(at, length, number / (count - 1), stress))
            at += length + (random.uniform(0.05, 0.10) if random.uniform() < 0.4 else 0.015)
        at += random.uniform(0.34, 0.66)
    return syllables


def _hiss(samples: int, centre: float, width: float, random: np.random.Generator) -> NDArray[np.float64]:
    """Noise about a frequency, of standard deviation 1."""
    spectrum = np.fft.rfft(random.standard_normal(samples))
    spectrum *= np.exp(-(((np.fft.rfftfreq(samples, 1 / SAMPLE_RATE) - centre) / width) ** 2))
    noise = np.fft.irfft(spectrum, samples)
    return np.asarray(noise / max(float(noise.std()), 1e-9))


def _voice(syllable: _Syllable, random: np.random.Generator) -> NDArray[np.float64]:
    """A vowel: harmonics of a gliding pitch, weighted by formants that glide in from a consonant's place."""
    time = np.arange(round(syllable.length * SAMPLE_RATE)) / SAMPLE_RATE
    part = time / syllable.length
    pitch = 132 - 34 * syllable.place + 22 * (syllable.stress - 0.5) * np.sin(np.pi * part) - 6 * part
    pitch = pitch * (1 + 0.012 * np.sin(2 * np.pi * 5.2 * time + random.uniform(0, 6)))
    phase = 2 * np.pi * np.cumsum(pitch) / SAMPLE_RATE
    vowel = np.array(_VOWELS[int(random.integers(len(_VOWELS)))], float)
    locus = np.array([320.0, random.choice([900.0, 1700.0, 2300.0]), 2500.0])
    formants = vowel + (locus - vowel) * np.exp(-time / 0.028)[:, None]
    sound = np.zeros_like(time)
    for number in range(1, int(_HARMONICS_TO / pitch.min()) + 1):
        frequency = number * pitch
        level = np.zeros_like(time)
        for index, (bandwidth, gain) in enumerate(zip(_BANDWIDTHS, _GAINS, strict=True)):
            level += gain / (1 + ((frequency - formants[:, index]) / bandwidth) ** 2)
        # The glottis gives 12 dB less an octave, the lips 6 dB more.
        sound += (level + 0.01) * (frequency / 120) ** -0.6 * np.sin(number * phase)
    rise, fall = np.clip(time / 0.035, 0, 1), np.clip((syllable.length - time) / 0.06, 0, 1)
    return np.asarray(sound * np.sin(rise * np.pi / 2) ** 2 * np.sin(fall * np.pi / 2) ** 2 * syllable.stress)


def synthesise(samples: int, seed: int = 0) -> NDArray[np.float32]:
    """Speech-like sound: voiced syllables with some hisses, grouped in phrases, silence (-76 dB) between them.

    Args:
        samples: how many, at 16 kHz; the beginning does not depend on it.
        seed: of rhythm, vowels and pitch.

    Returns:
        float32 `[samples]`, mono, full scale ±1, peaks near 0.4.
    """
    random = np.random.default_rng(seed)
    sound = np.zeros(samples + 2 * SAMPLE_RATE)
    for index, syllable in enumerate(_rhythm(samples / SAMPLE_RATE, random)):
        own = np.random.default_rng([seed, index])
        first = round(syllable.start * SAMPLE_RATE)
        voice = _voice(syllable, own) * 0.30
        if first + len(voice) > len(sound):
            break
        sound[first : first + len(voice)] += voice
        if own.uniform() < 0.4:
            length = round(own.uniform(0.03, 0.07) * SAMPLE_RATE)
            hiss = _hiss(length, *_HISSES[int(own.integers(len(_HISSES)))], own)
            begin = max(0, first - length // 2)
            sound[begin : begin + length] += hiss * np.hanning(length) * 0.04
    room = np.random.default_rng([seed, 2**31]).standard_normal(samples) * _ROOM_NOISE
    return np.clip(sound[:samples] + room, -0.98, 0.98).astype(np.float32)
