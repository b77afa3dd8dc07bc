"""GPU-resident compositing of lip-synced avatar video.

from gpupipe import Character, render, frames

render("character/", "talk.mp4", features="speech.npy")
"""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("gpupipe")
except PackageNotFoundError:  # run from a source folder that is not installed
    __version__ = "0+unknown"

from gpupipe.character.folder import Character
from gpupipe.errors import GpupipeError
from gpupipe.render.engine import Engine
from gpupipe.render.render import frames, render
from gpupipe.render.stats import RenderStats

__all__ = ["Character", "Engine", "GpupipeError", "RenderStats", "__version__", "frames", "render"]
