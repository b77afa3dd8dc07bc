"""The network that hears: mel windows to feature rows, and sound files to features."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gpupipe.errors import InferenceError, OutputError, reason
from gpupipe.geometry import SPEECH_WIDTH
from gpupipe.log import Log
from gpupipe.machine import cpu_count
from gpupipe.media.limits import DEFAULT, Limits
from gpupipe.media.sound import read_pcm
from gpupipe.model.one_thread import OneThread
from gpupipe.model.runtime import Provider, SessionOptions, failures, open_session
from gpupipe.speech.mel import MEL_BANDS
from gpupipe.speech.stream import features_from_pcm
from gpupipe.speech.windows import WINDOW_COLUMNS

ENCODER_BATCH = 64
"""Windows that the audio encoder gets at a time from a whole file; `stream.LIVE_BATCH` from live speech."""

_log = Log(__name__)

Features = NDArray[np.float32]


class AudioEncoder:
    """The network that turns windows of mel columns into feature rows.

    Args:
        path: ONNX file with one input `[B, 1, 80, 16]` and one output `[B, 512]`, float32.
        options: how to run it.
        batch: windows that it is to get at a time.

    Attributes:
        path: the ONNX file.
        batch: windows that it takes at a time: those asked for, unless its graph says another number.

    Raises:
        InferenceError: the file is missing, or is no audio encoder.
    """

    def __init__(self, path: Path, options: SessionOptions, *, batch: int = ENCODER_BATCH) -> None:
        self.path = path
        if options.provider == "tensorrt":
            options = options_for_encoder(path, options, batch)
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
        self.batch = _batch_of(inputs[0], batch)
        self._input = inputs[0].name
        self._thread = None if options.provider == "cpu" else OneThread("audio encoder")

    def close(self) -> None:
        """Release the session, once what is under way is done."""
        if self._thread is not None:
            self._thread.close()
        self._session = None

    def __call__(self, windows: Features) -> Features:
        """Feature rows, float32 `[B, 512]`, for windows float32 `[B, 1, 80, 16]`."""

        def run() -> Features:
            rows: Features = self._session.run(None, {self._input: windows})[0]
            return rows

        try:
            return run() if self._thread is None else self._thread(run)
        except failures() as error:
            raise InferenceError(
                f"failed: {reason(error)}", file=self.path, field="audio encoder", remedy="export it again"
            ) from error


def options_for_encoder(path: Path, options: SessionOptions, batch: int) -> SessionOptions:
    """TensorRT options with the one shape that the encoder at `path` is run with, given the batch asked for."""
    (node,) = open_session(path, SessionOptions(), field="audio encoder", option="--audio-encoder").get_inputs()[:1]
    return replace(options, profile={node.name: (_batch_of(node, batch), 1, MEL_BANDS, WINDOW_COLUMNS)})


def _batch_of(node: Any, wanted: int) -> int:
    first = node.shape[0]
    return first if isinstance(first, int) else wanted


def encode_speech(sound: Path, encoder: AudioEncoder, limits: Limits = DEFAULT) -> Features:
    """The features of a sound file, as `aud_ave.npy` holds them.

    Args:
        sound: any file that FFmpeg reads.
        encoder: the audio encoder, opened.
        limits: what is taken of the file.

    Returns:
        float32 `[N, 512]`, 25 rows a second, the first and the last one doubled.

    Raises:
        MediaError: the sound cannot be read, or is shorter than one window.
        InferenceError: the encoder fails.
    """
    return features_from_pcm(read_pcm(sound, limits=limits), encoder, encoder.batch, file=sound)


def write_features(
    output: Path,
    sound: Path,
    encoder: Path,
    *,
    provider: Provider = "cpu",
    overwrite: bool = False,
    limits: Limits = DEFAULT,
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
    with _log.timed("audio encoder opened", path=encoder, provider=provider):
        opened = AudioEncoder(encoder, SessionOptions(provider, threads=cpu_count()))
    with _log.timed("sound encoded", path=sound):
        features = encode_speech(sound, opened, limits)
    part = output.with_name(f".{output.name}.partial")
    try:
        with part.open("wb") as file:
            np.save(file, features)
        part.replace(output)
    except OSError as error:
        raise OutputError(f"cannot be written: {reason(error)}", file=output, remedy="use another folder") from error
    finally:
        part.unlink(missing_ok=True)
    return len(features)
