"""GPU-resident compositing of lip-synced avatar video.

from gpupipe import Character, render, frames

render("character/", "talk.mp4", features="speech.npy")
"""

from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gpupipe.character import Character as Character
    from gpupipe.errors import GpupipeError as GpupipeError
    from gpupipe.render import RenderStats as RenderStats
    from gpupipe.render import frames as frames
    from gpupipe.render import render as render

__all__ = ["Character", "GpupipeError", "RenderStats", "__version__", "frames", "render"]

try:
    __version__ = version("gpupipe")
except PackageNotFoundError:  # run from a source folder that is not installed
    __version__ = "0+unknown"

_HOME = {
    "Character": "gpupipe.character",
    "GpupipeError": "gpupipe.errors",
    "RenderStats": "gpupipe.render",
    "frames": "gpupipe.render",
    "render": "gpupipe.render",
}


def __getattr__(name: str) -> Any:
    # Importing a room must not load the others: `gpupipe.errors` needs neither OpenCV nor ONNX Runtime.
    if name in _HOME:
        from importlib import import_module

        return getattr(import_module(_HOME[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
