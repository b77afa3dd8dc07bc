"""Whom to render, and with which model: what a character has, or what is made here."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from gpupipe.character.folder import Character
from gpupipe.demo import make_demo
from gpupipe.demo.full import FULL_SIZE, full_model
from gpupipe.demo.graph import Dtype, save
from gpupipe.doctor.sample import model_bytes, write_character
from gpupipe.geometry import CropLayout
from gpupipe.model.runtime import SessionOptions, open_session
from gpupipe.model.signature import Signature
from on_gpu.bench import Settings

DTYPES: tuple[Dtype, ...] = ("float32", "float16")
FILMED = 60
"""Frames of a made-up character."""


def can_draw() -> bool:
    """Whether the demo can be made, which needs a package more."""
    return importlib.util.find_spec("onnx") is not None


def made_models(folder: Path, size: int) -> tuple[dict[str, Path], str]:
    """Models of both types for crops of one size, in files, and what they are."""
    full = size == FULL_SIZE and can_draw()
    files = {}
    for dtype in DTYPES:
        files[str(dtype)] = path = folder / f"{dtype}.onnx"
        if full:
            save(full_model(dtype), path)
        else:
            path.write_bytes(model_bytes(size, 0, half=dtype == "float16"))
    return files, "the published model's structure and cost" if full else "a small one of random weights"


def found_models(character: Character, folder: Path) -> tuple[dict[str, Path], str]:
    """A character's own model, by its type; else one made for its crops.

    Raises:
        InferenceError: it cannot be opened, or does not fit.
    """
    path = character.model_path
    if not path.is_file():
        return made_models(folder, character.layout.model_size)
    signature = Signature(path, open_session(path, SessionOptions()))
    signature.check_size(character.layout)
    return {str(signature.dtype): path}, "the character's own"


def made_characters(folder: Path, settings: Settings, layout: CropLayout) -> list[Character]:
    """A character of each size: the demo's where it can be drawn, else of noise, which costs an encoder more."""
    found = []
    for size in settings.sizes:
        path, frames = folder / "x".join(map(str, size)), min(FILMED, settings.rendered)
        if layout.model_size == FULL_SIZE and can_draw():
            make_demo(path, frames=frames, size=size, model_size=layout.model_size)
        else:
            write_character(path, model_size=layout.model_size, body_size=size, frames=frames)
        found.append(Character.load(path))
    return found
