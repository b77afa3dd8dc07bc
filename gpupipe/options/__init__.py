"""What can be asked for, declared once: frozen dataclasses whose fields hold what every spelling of them needs.

The command line's arguments, the lines of a job file, the keywords of Python functions, their checks and their help are
all made from `EngineOptions`, `ModelOptions`, `SpeechOptions` and `OutputOptions`. Touches no device and no file.
"""

from gpupipe.options.declare import All, Option, bytes_of_environment, declared, option, read_bytes
from gpupipe.options.groups import (
    BATCH,
    MAX_BATCH,
    EngineOptions,
    ImageFormat,
    ModelOptions,
    OutputOptions,
    Precision,
    ProviderChoice,
    SpeechOptions,
)
from gpupipe.options.keywords import (
    EngineKeywords,
    FramesKeywords,
    JobFramesKeywords,
    JobKeywords,
    LimitKeywords,
    LiveKeywords,
    ModelKeywords,
    RenderKeywords,
    TuneKeywords,
    divided,
    documented,
    from_json,
    options_of,
    split,
)
from gpupipe.options.serving import MOST_LOAD, ServeOptions

__all__ = [
    "BATCH",
    "MAX_BATCH",
    "MOST_LOAD",
    "All",
    "EngineKeywords",
    "EngineOptions",
    "FramesKeywords",
    "ImageFormat",
    "JobFramesKeywords",
    "JobKeywords",
    "LimitKeywords",
    "LiveKeywords",
    "ModelKeywords",
    "ModelOptions",
    "Option",
    "OutputOptions",
    "Precision",
    "ProviderChoice",
    "RenderKeywords",
    "ServeOptions",
    "SpeechOptions",
    "TuneKeywords",
    "bytes_of_environment",
    "declared",
    "divided",
    "documented",
    "from_json",
    "option",
    "options_of",
    "read_bytes",
    "split",
]
