"""`gpupipe features`: a sound in, speech features out."""

from __future__ import annotations

import argparse
from pathlib import Path

from gpupipe.character.folder import AUDIO_ENCODER
from gpupipe.cli.arguments import add_options, given
from gpupipe.geometry import SPEECH_RATE
from gpupipe.media.limits import Limits
from gpupipe.options import LimitKeywords
from gpupipe.speech import write_features


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The parameters of `write_features`."""
    add = parser.add_argument
    add("character", type=Path, metavar="CHARACTER", help="the character's folder")
    add("audio", type=Path, metavar="SOUND", help="any sound or video file")
    add("-o", "--output", type=Path, required=True, metavar="F.npy", help="float32 [N, 512], 25 a second")
    add("--audio-encoder", type=Path, metavar="M.onnx", help="[default: the character's own]")
    add("--provider", choices=("cpu", "cuda", "tensorrt"), default="cpu", help="what runs the encoder")
    add("--overwrite", action="store_true", help="replace an existing file")
    add_options(parser, LimitKeywords)


def run(options: argparse.Namespace) -> int:
    """Write the features, and tell how many there are."""
    encoder = options.audio_encoder or options.character / AUDIO_ENCODER
    rows = write_features(
        options.output,
        options.audio,
        encoder,
        provider=options.provider,
        overwrite=options.overwrite,
        limits=Limits(**given(options, LimitKeywords)),
    )
    print(f"{options.output}: {rows} rows of speech features, {rows / SPEECH_RATE:.2f} s")
    return 0
