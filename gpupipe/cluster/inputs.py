"""The files that a job needs, in bundles that are known by what they hold."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Final

from gpupipe.character.folder import (
    AUDIO_ENCODER,
    BODY,
    CROPS,
    FEATURES,
    MODEL,
    MODEL_INPUTS,
    RECTANGLES,
    ROIS,
    SOUND,
    Character,
)
from gpupipe.cluster.work import Bundle, Content, JobSpec
from gpupipe.errors import OptionError, PackageError, reason
from gpupipe.model.external import weight_files
from gpupipe.options import JobKeywords, options_of

HashOf = Callable[[Path], str]

FILES: Final = ("model", "features", "audio", "audio_encoder")
"""Options that name a file."""
OWN: Final = ("resume", "overwrite", "segments", "encoders")
"""Options that are not the nodes' business."""


def spec_of(
    job: str, character: Character, output: Path | str, options: JobKeywords, *, whole: bool, hash_of: HashOf
) -> JobSpec:
    """A job as a node is told of it.

    Args:
        job: what tells it from all other jobs.
        character: whom.
        output: a video, or a folder.
        options: of the job.
        whole: whether the character is to be loaded as a whole.
        hash_of: gives a file's SHA-256.

    Raises:
        OptionError: the features are an array, or a file that an option names is not there.
        PackageError: a file cannot be read.
    """
    rest: dict[str, Any] = {name: value for name, value in options.items() if name not in (*FILES, *OWN)}
    named: dict[str, tuple[Bundle, str]] = {}
    for name in FILES:
        path = options.get(name)
        if path is None:
            continue
        if not isinstance(path, (str, os.PathLike)):
            raise OptionError(
                "is an array",
                field=options_of(JobKeywords)[name].flag,
                remedy="save it with numpy.save, and give the file",
            )
        named[name] = file_bundle(Path(path), hash_of, field=options_of(JobKeywords)[name].flag, model=name == "model")
    masked = bool(options.get("masked_video", False))
    suffix = "/" if str(output).endswith(("/", os.sep)) or Path(output).is_dir() else Path(output).suffix
    return JobSpec(job, suffix, character_bundle(character, hash_of, masked=masked), named, rest, whole)


def character_bundle(character: Character, hash_of: HashOf, *, masked: bool) -> Bundle:
    """What a character is made of; of the recorded inputs only where they are used.

    Raises:
        PackageError: a file cannot be read.
    """
    root = character.path.resolve()
    there = character_files(root, masked=masked)
    return _bundle(root, there, hash_of, absent=[name for name in _known(masked) if name not in there])


def character_files(root: Path, *, masked: bool = False) -> list[str]:
    """The files of a character's folder that are there and used, by their names below it."""
    there = [name for name in _known(masked) if (root / name).is_file()]
    for name in (MODEL, AUDIO_ENCODER):
        if name in there:
            there += [path.relative_to(root).as_posix() for path in _weights(root / name)]
    return there


def model_files(path: Path) -> list[str]:
    """A model's file, and those of its weights, by their names in its folder."""
    return [path.name, *(each.name for each in _weights(path))]


def _known(masked: bool) -> list[str]:
    return [BODY, CROPS, RECTANGLES, FEATURES, MODEL, AUDIO_ENCODER, SOUND, *((ROIS, MODEL_INPUTS) if masked else ())]


def file_bundle(path: Path, hash_of: HashOf, *, field: str, model: bool = False) -> tuple[Bundle, str]:
    """One file, and what it names if it is a model.

    Raises:
        OptionError: there is no such file.
        PackageError: it cannot be read.
    """
    if not path.is_file():
        raise OptionError("no such file", file=path, field=field, remedy="give the name of a file")
    root = path.resolve().parent
    names = model_files(path.resolve()) if model else [path.resolve().name]
    return _bundle(root, names, hash_of), path.resolve().name


def options_on_node(spec: JobSpec, roots: Mapping[str, Path]) -> JobKeywords:
    """The options of a job, with its files where a node has them.

    Args:
        spec: the job.
        roots: where the bundles are, by their keys.
    """
    files = {name: roots[bundle.key] / file for name, (bundle, file) in spec.files.items()}
    options: JobKeywords = {**spec.options, **files}  # type: ignore[typeddict-item]
    return options


def _weights(model: Path) -> Iterable[Path]:
    return [path for path in weight_files(model, "model") if path.is_file()]


def _bundle(root: Path, names: Iterable[str], hash_of: HashOf, absent: Iterable[str] = ()) -> Bundle:
    found = []
    for name in dict.fromkeys(names):
        try:
            found.append(Content(name, (root / name).stat().st_size, hash_of(root / name)))
        except OSError as error:
            raise PackageError(
                f"cannot be read: {reason(error)}", file=root / name, remedy="check its rights"
            ) from error
    return Bundle(str(root), tuple(found), tuple(absent))
