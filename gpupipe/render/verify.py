"""Whether a finished output is whole, and its parts, where they are kept."""

from __future__ import annotations

from pathlib import Path

from gpupipe.media.verify import Verified, verify_images, verify_video
from gpupipe.render.image_output import images_in, parts_beside
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
    found = verify_video(path) if path.is_file() and is_video(path) else verify_images(path, images_in(path))
    found.problems += [line for parts in dict.fromkeys((path, parts_beside(path))) for line in wrong_parts(parts)]
    return found
