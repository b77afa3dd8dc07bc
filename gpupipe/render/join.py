"""Joining the segments of an output that several processes, or machines, have rendered."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

from gpupipe.errors import OutputError
from gpupipe.render.durable import hash_of
from gpupipe.render.image_output import join_images, parts_beside
from gpupipe.render.manifest import Manifest, read_manifest
from gpupipe.render.output import is_video
from gpupipe.render.parts import Parts, Start, naming, parts_folder
from gpupipe.render.video_output import join_segments


def join_parts(output: Path | str, *, overwrite: bool = False) -> Manifest:
    """Join the segments beside an output, which `render --segments` has left there, and give it its name.

    Args:
        output: the video, or the folder of images, as the renders were given it.
        overwrite: replace what has that name.

    Returns:
        What was joined.

    Raises:
        OutputError: segments are missing, or not what was written; the sound has changed; or it cannot be written.
    """
    video, path = is_video(output), Path(output)
    named = path if video else parts_beside(path)
    folder = parts_folder(named)
    manifest = read_manifest(folder)
    if manifest is None:
        raise OutputError("no such parts", file=folder, remedy="render them with --segments, or with --resume")
    if video and path.exists() and not overwrite:
        raise OutputError("exists already", file=path, field="output", remedy="use --overwrite or another name")
    sound = None if manifest.sound is None else Path(manifest.sound)
    if sound is not None and (not sound.is_file() or hash_of(sound) != manifest.fingerprint.get("sound")):
        raise OutputError("is not what it was when this was begun", file=sound, field="sound", remedy="put it back")
    parts = Parts(named, manifest, Start(resume=True))
    try:
        missing = [number for number in range(manifest.count) if number not in parts.finished]
        if missing:
            some = ", ".join(map(str, missing[:8])) + (", …" if len(missing) > 8 else "")
            raise OutputError(
                f"{len(missing)} of {manifest.count} segments are missing, or not what was written: {some}",
                file=folder,
                remedy="render them with --segments",
            )
        with naming(path):
            if video:
                assert manifest.fps is not None
                (suffix,) = {parts.path.joinpath(one.name).suffix for one in manifest.segments.values()}
                join_segments(parts, suffix, Fraction(manifest.fps), sound)
            else:
                join_images(parts, path)
    except BaseException:
        parts.leave()
        raise
    return manifest
