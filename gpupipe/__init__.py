"""GPU-resident compositing of lip-synced avatar video.

from gpupipe import Character, render, frames

render("character/", "talk.mp4", features="speech.npy")
"""

from __future__ import annotations

from importlib import import_module

TYPE_CHECKING = False  # to type checkers it is True; importing typing takes longer than all else here
if TYPE_CHECKING:
    from gpupipe.character.folder import Character
    from gpupipe.errors import GpupipeError
    from gpupipe.render.engine import Engine
    from gpupipe.render.render import frames, render
    from gpupipe.render.stats import RenderStats
    from gpupipe.trace import Trace

    __version__: str

_HOMES = {
    "Character": "gpupipe.character.folder",
    "Engine": "gpupipe.render.engine",
    "GpupipeError": "gpupipe.errors",
    "RenderStats": "gpupipe.render.stats",
    "Trace": "gpupipe.trace",
    "frames": "gpupipe.render.render",
    "render": "gpupipe.render.render",
}
"""Where each name comes from. It is imported when it is first asked for, so that importing gpupipe costs nothing."""

__all__ = ["Character", "Engine", "GpupipeError", "RenderStats", "Trace", "__version__", "frames", "render"]

# The function `render` has the name of a package. Importing a package puts it into its parent, once: let that be now,
# and take it out again, so that `gpupipe.render` is the function whatever is imported later.
import_module("gpupipe.render")
globals().pop("render")


def __getattr__(name: str) -> object:
    if name == "__version__":
        found: object = _version()
    elif name in _HOMES:
        found = getattr(import_module(_HOMES[name]), name)
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def _version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("gpupipe")
    except PackageNotFoundError:  # run from a source folder that is not installed
        return "0+unknown"
