"""The speech of a render: its features, how many frames it lasts, and the sound that goes with the picture."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gpupipe.character.folder import Character, read_features
from gpupipe.errors import InferenceError, OutputError, PackageError, reason
from gpupipe.geometry import SPEECH_RATE, SPEECH_WIDTH
from gpupipe.machine import cpu_count
from gpupipe.media.sound import probe_sound, read_pcm
from gpupipe.model.runtime import Provider, SessionOptions, failures, open_session
from gpupipe.speech.mel import MEL_BANDS
from gpupipe.speech.windows import WINDOW_COLUMNS, features_from_pcm, frame_count, resample_rows

ENCODER_BATCH = 64
"""Windows that the audio encoder gets at a time."""

ROWS_SHORT = 2
"""The most rows that the published front end gives short of a sound's length: it has 25·T/80 - 0.69 rows, rounded
down, for T mel columns, which are 80 a second and one more."""

Features = NDArray[np.float32]


class AudioEncoder:
    """The network that turns windows of mel columns into feature rows.

    Args:
        path: ONNX file with one input `[B, 1, 80, 16]` and one output `[B, 512]`, float32.
        options: how to run it.

    Raises:
        InferenceError: the file is missing, or is no audio encoder.
    """

    def __init__(self, path: Path, options: SessionOptions) -> None:
        self.path = path
        if options.provider == "tensorrt":
            options = options_for_encoder(path, options)
        self._session: Any = open_session(path, options, field="audio encoder", option="--audio-encoder")
        inputs, outputs = self._session.get_inputs(), self._session.get_outputs()
        wanted = ((inputs, (1, MEL_BANDS, WINDOW_COLUMNS)), (outputs, (SPEECH_WIDTH,)))
        for nodes, shape in wanted:
            if len(nodes) != 1 or tuple(nodes[0].shape[1:]) != shape or nodes[0].type != "tensor(float)":
                found = ", ".join(f"{node.name}{list(node.shape)} {node.type}" for node in (*inputs, *outputs))
                raise InferenceError(
                    "is no audio encoder",
                    file=path,
                    field="audio encoder",
                    value=found,
                    remedy=f"give one with input [B,1,{MEL_BANDS},{WINDOW_COLUMNS}] and output [B,{SPEECH_WIDTH}]",
                )
        self.batch = inputs[0].shape[0] if isinstance(inputs[0].shape[0], int) else ENCODER_BATCH
        self._input = inputs[0].name

    def __call__(self, windows: Features) -> Features:
        """Feature rows, float32 `[B, 512]`, for windows float32 `[B, 1, 80, 16]`."""
        try:
            rows: Features = self._session.run(None, {self._input: windows})[0]
        except failures() as error:
            raise InferenceError(
                f"failed: {reason(error)}", file=self.path, field="audio encoder", remedy="export it again"
            ) from error
        return rows


def options_for_encoder(path: Path, options: SessionOptions) -> SessionOptions:
    """TensorRT options with the one shape that the encoder at `path` is run with."""
    (node,) = open_session(path, SessionOptions(), field="audio encoder", option="--audio-encoder").get_inputs()[:1]
    batch = node.shape[0] if isinstance(node.shape[0], int) else ENCODER_BATCH
    return replace(options, profile={node.name: (batch, 1, MEL_BANDS, WINDOW_COLUMNS)})


def encode_speech(sound: Path, encoder: Path, options: SessionOptions) -> Features:
    """The features of a sound file, as `aud_ave.npy` holds them.

    Args:
        sound: any file that FFmpeg reads.
        encoder: the audio encoder's ONNX file.
        options: how to run it.

    Returns:
        float32 `[N, 512]`, 25 rows a second, the first and the last one doubled.

    Raises:
        MediaError: the sound cannot be read, or is shorter than one window.
        InferenceError: the encoder cannot be opened, or fails.
    """
    network = AudioEncoder(encoder, options)
    return features_from_pcm(read_pcm(sound), network, network.batch, file=sound)


def write_features(
    output: Path, sound: Path, encoder: Path, *, provider: Provider = "cpu", overwrite: bool = False
) -> int:
    """Write the features of a sound file as `aud_ave.npy` holds them; the file appears when it is complete.

    Returns:
        The number of rows.

    Raises:
        OutputError: the file exists already, or cannot be written.
        MediaError, InferenceError: as `encode_speech`.
    """
    if output.exists() and not overwrite:
        raise OutputError("exists already", file=output, field="output", remedy="use --overwrite or another name")
    if not output.parent.is_dir():
        raise OutputError("no such folder", file=output.parent, field="output", remedy="create it first")
    features = encode_speech(sound, encoder, SessionOptions(provider, threads=cpu_count()))
    part = output.with_name(f".{output.name}.partial")
    try:
        with part.open("wb") as file:
            np.save(file, features)
        part.replace(output)
    except OSError as error:
        raise OutputError(f"cannot be written: {error.strerror}", file=output, remedy="use another folder") from error
    finally:
        part.unlink(missing_ok=True)
    return len(features)


@dataclass(frozen=True)
class Speech:
    """What a character says.

    Attributes:
        frames: output frames that it lasts, at the body's rate.
        features: makes the features at the body's rate, float32 `[N, 512]`, row i for output frame i; rows beyond the
            last are zeros to the model.
        sound: the file whose sound goes with the picture, or None.
    """

    frames: int
    features: Callable[[SessionOptions], Features]
    sound: Path | None


def open_speech(
    character: Character,
    *,
    features: Path | str | Features | None = None,
    audio: Path | str | None = None,
    audio_encoder: Path | str | None = None,
    with_sound: bool = True,
) -> Speech:
    """Find out what a character is to say.

    The sound is `audio`, or the one the character was filmed with. The features are those given, or those of `audio`,
    or the character's own. The speech lasts as long as the features; and as long as the sound, where the features are
    the sound's own (their number fits it): the front end gives up to two rows less than the sound lasts.

    A body at another rate than 25 frames a second takes features resampled to its own (`audio.resample_rows`).

    Raises:
        PackageError: the features are missing or wrong.
        MediaError: the sound cannot be read.
    """
    fps = character.body.fps
    sound = Path(audio) if audio is not None else character.sound_path
    if audio is not None and features is None:
        encoder = character.audio_encoder_path if audio_encoder is None else Path(audio_encoder)
        source = Path(audio)

        def encoded(options: SessionOptions) -> Features:
            return resample_rows(encode_speech(source, encoder, options), fps)

        lasting = frame_count(probe_sound(source).end_seconds, fps)
        return Speech(lasting, encoded, source if with_sound else None)
    rows = resample_rows(load_features(character, features), fps)
    lasting = len(rows)
    if with_sound and sound is not None:
        heard = frame_count(probe_sound(sound).end_seconds, fps)
        if 0 <= heard - lasting <= ROWS_SHORT * max(Fraction(1), fps / SPEECH_RATE) + 1:
            lasting = heard
    return Speech(lasting, lambda _: rows, sound if with_sound else None)


def load_features(character: Character, features: Path | str | Features | None) -> Features:
    """Speech features from an array, a file, or the character's own, float32 `[N, 512]`.

    Raises:
        PackageError: they are missing or wrong.
    """
    if not isinstance(features, np.ndarray):
        return read_features(character.features_path if features is None else Path(features))
    if features.dtype != np.float32 or features.ndim != 2 or features.shape[1] != SPEECH_WIDTH or not len(features):
        raise PackageError(
            "wrong shape or type",
            field="features",
            value=f"{features.dtype} {features.shape}",
            remedy=f"give float32 [N, {SPEECH_WIDTH}]",
        )
    if not np.isfinite(features).all():
        raise PackageError("holds NaN or infinity", field="features", remedy="compute the features again")
    return features
