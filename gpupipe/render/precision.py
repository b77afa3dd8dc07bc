"""Which file a job's model is: the character's own, or one made of it in the precision that was asked for."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import NamedTuple

from gpupipe.character.folder import Character, GpupipeWarning
from gpupipe.log import Log
from gpupipe.model.cache import optimised
from gpupipe.model.optimise import below_floor
from gpupipe.options import ModelOptions
from gpupipe.render.samples import sample_set

_log = Log(__name__)


class ModelFile(NamedTuple):
    """A job's model.

    Attributes:
        path: the ONNX file.
        notes: what to say of it.
    """

    path: Path
    notes: tuple[str, ...] = ()


def model_file(character: Character, options: ModelOptions) -> ModelFile:
    """The file of the model to be run.

    For fp32, which defines what is drawn, and for tf32, it is the one given, as it is. For fp16 and int8 it is made of
    that one, once, with frames and speech of the character, and kept in the user's cache folder.

    Raises:
        InferenceError: it cannot be made, or draws too badly.
        GpupipeError: the onnx package, which making one needs, is not installed.

    Warns:
        GpupipeWarning: it is being made, which takes a while.
    """
    path = character.model_path if options.model is None else Path(options.model)
    precision = options.precision
    if precision not in ("fp16", "int8") or not path.is_file():  # opening it says that it is missing
        return ModelFile(path)
    said: list[str] = []

    def told(_: str) -> None:
        if not said:
            said.append(f"{path}: is made {precision} once, and kept; this takes a while")
            warnings.warn(said[0], GpupipeWarning, stacklevel=2)

    with _log.timed("model made", path=path, precision=precision) as fields:
        found = optimised(path, precision, sample_set(character), told=told)
        fields["from_cache"] = not found.made
    if not found.quality.passes:
        raise below_floor(
            found.quality,
            precision,
            path,
            f"use another --precision; or make it with `gpupipe optimize --precision {precision} --force`, look at its "
            "--report, and give it with --model",
        )
    return ModelFile(found.path, (f"the model in {precision}: {found.quality.summary()}, against fp32",))
