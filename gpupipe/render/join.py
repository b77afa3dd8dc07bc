"""Joining the segments of an output that several processes, or machines, have rendered."""

from __future__ import annotations

from fractions import Fraction
from itertools import islice
from pathlib import Path

from gpupipe.errors import OutputError
from gpupipe.log import Log
from gpupipe.media.limits import DEFAULT, Limits
from gpupipe.render.durable import hash_of
from gpupipe.render.image_output import join_images, parts_beside
from gpupipe.render.manifest import Manifest, read_manifest
from gpupipe.render.naming import naming, naming_errors, require_new
from gpupipe.render.output import is_video
from gpupipe.render.parts import Parts, Start, parts_folder
from gpupipe.render.video_output import join_segments

_log = Log(__name__)

SHOWN = 8
"""The most segments that an error lists."""


def join_parts(output: Path | str, *, overwrite: bool = False, limits: Limits = DEFAULT) -> Manifest:
    """Join the segments beside an output, which `render --segments` has left there, and give it its name.

    Args:
        output: the video, or the folder of images, as the renders were given it.
        overwrite: replace what has that name.
        limits: what is taken of the sound. Where a process of its own decodes it, as `isolate` has it, it is encoded
            and not copied, as such a render does.

    Returns:
        What was joined.

    Raises:
        MediaError: the sound cannot be read, or goes beyond the limits.
        OutputError: segments are missing, or not what was written; others still render some; the sound has changed; or
            it cannot be written.
    """
    video, path = is_video(output), Path(output)
    named = path if video else parts_beside(path)
    folder = parts_folder(named)
    manifest = read_manifest(folder)
    if manifest is None:
        raise OutputError("no such parts", file=folder, remedy="render them with --segments, or with --resume")
    if video != (manifest.fps is not None):
        kind, end = ("images", " in /") if video else ("a video", "")
        raise OutputError(f"are of {kind}", file=folder, remedy=f"give the output as the renders had it: it ends{end}")
    if video:
        require_new(path, overwrite=overwrite)
    sound = None if manifest.sound is None else Path(manifest.sound)
    if sound is not None and _hash(sound) != manifest.fingerprint.get("sound"):
        raise OutputError("is not what it was when this was begun", file=sound, field="sound", remedy="put it back")
    parts = Parts(named, manifest, Start(resume=True))
    try:
        if missing := manifest.count - len(parts.finished):
            some = islice((str(n) for n in range(manifest.count) if n not in parts.finished), SHOWN)
            listed = ", ".join(some) + (", …" if missing > SHOWN else "")
            raise OutputError(
                f"{missing} of {manifest.count} segments are missing, or not what was written: {listed}",
                file=folder,
                remedy="render them with --segments",
            )
        with naming(path), _log.timed("segments joined", output=path, segments=manifest.count):
            if video:
                assert manifest.fps is not None
                join_segments(parts, manifest.suffix, Fraction(manifest.fps), sound, limits)
            else:
                join_images(parts, path)
    except BaseException:
        parts.leave()
        raise
    return manifest


def _hash(sound: Path) -> str | None:
    with naming_errors(sound):
        return hash_of(sound) if sound.is_file() else None
