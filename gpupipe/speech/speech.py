"""The speech of a render: its features, how many frames it lasts, and the sound that goes with the picture."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from gpupipe.character.features import check_features, read_features
from gpupipe.character.folder import Character, GpupipeWarning
from gpupipe.geometry import SPEECH_RATE
from gpupipe.media.limits import Limits
from gpupipe.media.sound import SoundInfo, probe_sound
from gpupipe.speech.encoder import ENCODER_BATCH, AudioEncoder, encode_speech
from gpupipe.speech.windows import frame_count, frames_of_rows

ROWS_SHORT = 2
"""The most rows that the published front end gives short of a sound's length: it has 25·T/80 - 0.69 rows, rounded
down, for T mel columns, which are 80 a second and one more."""

Features = NDArray[np.float32]
OpenEncoder = Callable[[Path, int], AudioEncoder]
"""Opens the audio encoder in a file, for so many windows at a time."""


@dataclass(frozen=True)
class Speech:
    """What a character says.

    Attributes:
        frames: output frames that it lasts, at the body's rate.
        rows: makes the feature rows, float32 `[N, 512]`, always 25 a second, by an audio encoder that
            it opens, if it needs one, with the function that it is given.
            What an output frame hears of them: `geometry.speech_position` and `SpeechRows.window`.
        sound: the file whose sound goes with the picture, or None.
    """

    frames: int
    rows: Callable[[OpenEncoder], Features]
    sound: Path | None


def open_speech(
    character: Character,
    *,
    features: Path | str | NDArray[np.floating] | None = None,
    audio: Path | str | None = None,
    audio_encoder: Path | str | None = None,
    with_sound: bool = True,
) -> Speech:
    """Find out what a character is to say.

    The sound is `audio`, or the one the character was filmed with. The features are those given, or those of `audio`,
    or the character's own. The speech lasts as long as the features; and as long as the sound, where the features are
    the sound's own (their number fits it): the front end gives up to two rows less than the sound lasts. Without sound,
    features that are there already keep their own length, which may be that much shorter; those that are made of
    `audio` last as long as that.

    Args:
        character: who says it.
        features: float32 `[N, 512]`, or the file that holds them.
        audio: the sound file.
        audio_encoder: the ONNX file that makes features of `audio`; None for the character's own.
        with_sound: whether the sound goes with the picture.

    Raises:
        PackageError: the features are missing or wrong.
        MediaError: the sound cannot be read.

    Warns:
        GpupipeWarning: the features are float64 or float16, and were converted.
    """
    fps = character.body.fps
    sound = Path(audio) if audio is not None else character.sound_path
    if audio is not None and features is None:
        encoder = character.audio_encoder_path if audio_encoder is None else Path(audio_encoder)
        source = Path(audio)
        lasting = frame_count(_probed(source, character.limits).end_seconds, fps)
        return Speech(
            lasting,
            lambda open_encoder: encode_speech(source, open_encoder(encoder, ENCODER_BATCH), character.limits),
            source if with_sound else None,
        )
    rows = load_features(character, features)
    lasting = frames_of_rows(len(rows), fps)
    if with_sound and sound is not None:
        heard = frame_count(_probed(sound, character.limits).end_seconds, fps)
        if 0 <= heard - lasting <= ROWS_SHORT * max(Fraction(1), fps / SPEECH_RATE) + 1:
            lasting = heard
    return Speech(lasting, lambda _: rows, sound if with_sound else None)


def _probed(sound: Path, limits: Limits) -> SoundInfo:
    """What a sound file says, and a warning if lips would be early or late by it."""
    info = probe_sound(sound, limits)
    if info.unknown_delay:
        warnings.warn(
            f"{sound}: begins with an encoder's delay of unknown length, 20 to 50 ms, by which sound and lips are late "
            "together; give m4a or wav to be rid of it",
            GpupipeWarning,
            stacklevel=5,
        )
    return info


def load_features(character: Character, features: Path | str | NDArray[np.floating] | None) -> Features:
    """Speech features from an array, a file, or the character's own, float32 `[N, 512]`.

    Raises:
        PackageError: they are missing or wrong.
    """
    if isinstance(features, np.ndarray):
        return check_features(features)
    return read_features(character.features_path if features is None else Path(features))
