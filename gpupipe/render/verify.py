"""Whether a finished output is whole, and its parts, where they are kept."""

from __future__ import annotations

import re
from pathlib import Path

import cv2

from gpupipe.errors import OutputError
from gpupipe.media.verify import Verified, verify_video
from gpupipe.render.image_output import images_in
from gpupipe.render.output import is_video
from gpupipe.render.parts import wrong_parts


def verify(output: Path | str) -> Verified:
    """Decode an output from its first frame to its last, and hash its parts if there are any.

    Args:
        output: a video, or a folder of images.

    Raises:
        MediaError: the video is missing, truncated, or none.
        OutputError: it is neither a video nor a folder of images.
    """
    path = Path(output)
    found = verify_video(path) if path.is_file() and is_video(path) else _verify_images(path)
    found.problems += wrong_parts(path)
    return found


def _verify_images(folder: Path) -> Verified:
    images = {int(re.sub(r"\D", "", path.stem)): path for path in images_in(folder)}
    if not images:
        raise OutputError(
            "neither a video nor a folder of images", file=folder, remedy="give what a render has written"
        )
    found = Verified(folder)
    found.problems += [f"frame {number} is missing" for number in range(max(images)) if number not in images]
    for _, path in sorted(images.items()):
        picture = cv2.imread(str(path))
        if picture is None:
            found.problems.append(f"{path.name} cannot be decoded")
            continue
        size = (picture.shape[1], picture.shape[0])
        if not found.frames:
            found.width, found.height = size
        elif size != (found.width, found.height):
            found.problems.append(f"{path.name} is {size[0]}x{size[1]}")
        found.frames += 1
    return found
