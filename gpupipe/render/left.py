"""Parts that are left beside an output which is complete: whoever gave it its name ended before they were removed."""

from __future__ import annotations

import logging
from fractions import Fraction
from pathlib import Path
from typing import Final

from gpupipe.errors import GpupipeError
from gpupipe.log import Log
from gpupipe.media.limits import DEFAULT, Limits
from gpupipe.render.durable import hash_of_files
from gpupipe.render.image_output import images_in, parts_beside
from gpupipe.render.manifest import Manifest, read_manifest
from gpupipe.render.naming import naming
from gpupipe.render.output import is_video
from gpupipe.render.parts import Parts, Start, parts_folder
from gpupipe.render.video_output import is_joined_of

_log = Log(__name__)

_NOTHING: Final = Manifest({}, 1, 1)


def remove_left(output: Path | str, limits: Limits = DEFAULT) -> None:
    """Remove the parts beside a complete output, if it is what they make, or none of them is finished.

    Others stay, as of a render that was to replace it; so do those that another process works on.

    Args:
        output: the video, or the folder of images.
        limits: what is taken of the sound.
    """
    path, video = Path(output), is_video(output)
    named = path if video else parts_beside(path)
    if not parts_folder(named).is_dir():
        return
    try:
        with naming(path):
            _remove(path, named, video, limits)
    except GpupipeError as error:
        _log.event("parts stay", logging.WARNING, output=path, error=str(error))


def _remove(path: Path, named: Path, video: bool, limits: Limits) -> None:
    manifest = read_manifest(parts_folder(named))
    if manifest is None or not manifest.segments:
        Parts(named, _NOTHING, Start(), named=path).remove()
        return
    if video != (manifest.fps is not None) or not (video or _are_images_of(manifest, path)):
        return
    parts = Parts(named, manifest, Start(resume=True), named=path)
    try:
        if manifest.fps is not None:
            sound = None if manifest.sound is None else Path(manifest.sound)
            if not is_joined_of(parts, manifest, manifest.suffix, Fraction(manifest.fps), sound, limits):
                return
        parts.remove()
    finally:
        parts.leave()


def _are_images_of(manifest: Manifest, folder: Path) -> bool:
    """Whether the images in a folder are those of all segments, from which they have been moved."""
    images = sorted(images_in(folder), key=lambda image: int(image.stem.removeprefix("frame_")))
    return len(manifest.segments) == manifest.count and all(
        hash_of_files(sorted(images[one.start : one.stop])) == one.sha256 for one in manifest.segments.values()
    )
