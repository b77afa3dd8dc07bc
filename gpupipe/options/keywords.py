"""The options as keywords of Python functions, and as fields of JSON objects.

mypy needs the keywords written out; a test compares them with the dataclasses, name by name and type by type.
"""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypedDict, TypeVar, cast

from gpupipe.colour import PixelFormat
from gpupipe.errors import OptionError, in_python
from gpupipe.options.declare import DEVICES, All, Auto, Option, declared, listed
from gpupipe.options.groups import (
    GROUPS,
    EngineOptions,
    ImageFormat,
    ModelOptions,
    OutputOptions,
    Precision,
    ProviderChoice,
    SpeechOptions,
)

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

LONGEST_NAME: Final = 40
"""Letters that an error shows of a name that it does not know."""

F = TypeVar("F", bound=Callable[..., Any])


class LimitKeywords(TypedDict, total=False):
    """Of what only looks at files: what is taken from strangers."""

    max_pixels: int
    max_frames: int
    isolate: bool


class EngineKeywords(LimitKeywords, total=False):
    """Of `Engine()`."""

    device: str
    workers: int | Auto | None
    feature_cache: int | str | None
    max_memory: int | None
    cache: int | Auto | All | None


class ModelKeywords(TypedDict, total=False):
    """Of `Engine.load()`: how the model is run."""

    model: Path | str | None
    provider: ProviderChoice
    batch: int | Auto | None
    runs: int | Auto | None
    inference_threads: int | None
    precision: Precision


class LiveKeywords(ModelKeywords, total=False):
    """Of `Engine.live()`: a speech that still comes."""

    audio_encoder: Path | str | None
    start_frame: int
    masked_video: bool
    pixel_format: PixelFormat | None


class JobFramesKeywords(LiveKeywords, total=False):
    """Of `Engine.frames()`: a job whose frames are handed out."""

    features: Path | str | NDArray[np.float32] | None
    audio: Path | str | None
    frames: int | None


class JobKeywords(JobFramesKeywords, total=False):
    """Of `Engine.submit()` and `Engine.render()`: a job whose frames are written."""

    sound: bool
    encoder: str
    crf: int | None
    preset: str | None
    encoder_threads: int | None
    encoders: int | Auto | None
    segment_frames: int
    resume: bool
    segments: str | None
    image_format: ImageFormat
    jpeg_quality: int
    overwrite: bool


class FramesKeywords(EngineKeywords, JobFramesKeywords, total=False):
    """Of `frames()`."""


class RenderKeywords(EngineKeywords, JobKeywords, total=False):
    """Of `render()`."""


class TuneKeywords(TypedDict, total=False):
    """Of `tune()`: what a tuning is for."""

    device: str
    max_memory: int | None
    model: Path | str | None
    provider: ProviderChoice
    precision: Precision
    features: Path | str | NDArray[np.float32] | None
    encoder: str


def split(
    keywords: Mapping[str, Any], taking: type = RenderKeywords, *, by: str = "render()"
) -> tuple[EngineOptions, ModelOptions, SpeechOptions, OutputOptions]:
    """Sort keywords into the options that they are, and check them.

    Args:
        keywords: as a function got them.
        taking: the TypedDict of those that it takes.
        by: the function, for its caller.

    Raises:
        TypeError: there is no such keyword.
        OptionError: a value that the option cannot have.
    """
    for name in keywords:
        if name not in taking.__annotations__:
            raise TypeError(f"{by} got an unexpected keyword argument {name!r}")
    engine, model, speech, output = (
        group(**{name: keywords[name] for name in declared(group) if name in keywords}) for group in GROUPS
    )
    return (
        cast(EngineOptions, engine),
        cast(ModelOptions, model),
        cast(SpeechOptions, speech),
        cast(OutputOptions, output),
    )


def divided(keywords: Mapping[str, Any], taking: type, *, by: str) -> tuple[EngineKeywords, JobKeywords]:
    """Keywords of a function that opens an engine for one job: the engine's, and the job's. Checks both.

    Raises:
        TypeError, OptionError: as `split`.
    """
    split(keywords, taking, by=by)
    engine = {name: value for name, value in keywords.items() if name in declared(EngineOptions)}
    job = {name: value for name, value in keywords.items() if name not in engine}
    return cast(EngineKeywords, engine), cast(JobKeywords, job)


def from_json(values: Mapping[str, object], folder: Path) -> JobKeywords:
    """The options of a job from a JSON object.

    Args:
        values: by name, as in Python: `start_frame`; paths are text.
        folder: what relative paths are relative to.

    Raises:
        OptionError: an option that there is not, or a value that it cannot have; names it as JSON does.
    """
    known = options_of(JobKeywords)
    keywords = {}
    for name, value in values.items():
        if name in declared(EngineOptions):
            remedy = "give it on the command line"
            raise OptionError("is the same for all jobs", field=name, value=value, remedy=remedy)
        if name not in known:
            shown = name if name.isidentifier() and len(name) <= LONGEST_NAME else repr(name[:LONGEST_NAME])
            raise OptionError("no such option", field=shown, remedy=_nearest(name, known))
        keywords[name] = known[name].from_json(value, folder)
    return cast(JobKeywords, keywords)


def _nearest(name: str, known: Mapping[str, Option]) -> str:
    """What to write for a name that there is not. Those who know the command line write its names."""
    names = {said.flag.lstrip("-").replace("-", "_"): said.name for said in known.values()}
    names |= {own: own for own in known}
    near = difflib.get_close_matches(name[:LONGEST_NAME].lstrip("-").replace("-", "_"), names, n=1)
    return f"write {names[near[0]]}" if near else f"there are {', '.join(known)}"


def documented(keywords: type) -> Callable[[F], F]:
    """Let `help()` show a function's options, which are `**options: Unpack[keywords]`, with defaults and meanings."""

    def document(function: F) -> F:
        known = options_of(keywords)
        signature = inspect.signature(function)
        kept = [entry for entry in signature.parameters.values() if entry.kind is not entry.VAR_KEYWORD]
        added = [
            inspect.Parameter(
                name, inspect.Parameter.KEYWORD_ONLY, default=known[name].default, annotation=hint.__forward_arg__
            )
            for name, hint in keywords.__annotations__.items()
        ]
        function.__signature__ = signature.replace(parameters=[*kept, *added])  # type: ignore[attr-defined]
        lines = [f"    {name}: {in_python(meaning(said))}" for name, said in known.items()]
        function.__doc__ = "\n".join([inspect.cleandoc(function.__doc__ or ""), "", "Options:", *lines])
        return function

    return document


def meaning(said: Option) -> str:
    """What an option does, the values it can have and its default, in a line for people who write Python."""
    if said.kind == "switch":
        return said.help if said.default is False else f"False: {said.help}"
    values = DEVICES if said.kind == "device" else said.choices
    among = ": " + listed([f'"{value}"' for value in values]) if values else ""
    return f"{said.help}{among} [default: {said.default_text}]"


def options_of(keywords: type) -> dict[str, Option]:
    """The options of a TypedDict, in the order of the dataclasses."""
    return {
        name: said for group in GROUPS for name, said in declared(group).items() if name in keywords.__annotations__
    }
