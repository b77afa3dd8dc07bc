"""An output whose segments others have drawn and encoded: put with its parts, and joined when all are there."""

from __future__ import annotations

import threading
from contextlib import suppress
from pathlib import Path

from gpupipe.log import Log
from gpupipe.media.encoders import EncoderOptions, part_suffix
from gpupipe.media.limits import DEFAULT, Limits
from gpupipe.media.video import VideoInfo
from gpupipe.options import OutputOptions
from gpupipe.render.durable import hash_of, put_in_place, remove
from gpupipe.render.image_output import join_images, open_parts
from gpupipe.render.manifest import Manifest
from gpupipe.render.naming import naming, require_new
from gpupipe.render.output import is_video
from gpupipe.render.parts import Parts, start_of
from gpupipe.render.segments import Segments
from gpupipe.render.video_output import join_segments, may_be_placed, require_placed

_log = Log(__name__)


class Gathered:
    """A video or a folder of images, made of segments that come in any order. Used from any thread.

    Args:
        output: where; see `output.is_video`.
        body: the body video, whose rate the output has.
        options: of the output.
        segments: those that are wanted; the ones that are finished already are left out.
        manifest: of what is rendered.
        sound: the file whose sound goes into a video.
        limits: under which the sound is read.

    Raises:
        OutputError: it exists already, cannot be written, or was begun with something else.
    """

    def __init__(
        self,
        output: Path | str,
        body: VideoInfo,
        options: OutputOptions,
        *,
        segments: Segments,
        manifest: Manifest,
        sound: Path | None = None,
        limits: Limits = DEFAULT,
    ) -> None:
        self.path, self._video = Path(output), is_video(output)
        self._body, self._sound, self._limits, self.segments = body, sound, limits, segments
        if self._video:
            require_new(self.path, overwrite=options.overwrite or may_be_placed(self.path, options))
            self._suffix = part_suffix(EncoderOptions.of(options).encoder, self.path.suffix)
            self._parts = Parts(self.path, manifest, start_of(options))
            try:
                require_placed(self._parts, manifest, options, self._suffix, body.fps, sound, limits)
            except BaseException:
                self._parts.leave()
                raise
        else:
            self._suffix = ""
            self._parts = open_parts(self.path, options, manifest)
        self._keeping = threading.Lock()
        self._open, self._kept = True, set[int]()
        segments.skip(self._parts.finished)

    def room(self, name: str) -> Path:
        """Where something may be written until it is complete; nobody else writes there."""
        return self._parts.unfinished(name)

    def keep(self, segment: int, written: Path, sha256: str) -> bool:
        """Keep a segment that was written completely, to a path from `room`: a file, or a folder of images.

        Args:
            segment: its number.
            written: the path; nothing is left there.
            sha256: what it is known by; see `durable.hash_of`.

        Returns:
            Whether it is what was drawn; else it is removed. One that was kept before stays.

        Raises:
            OutputError: it cannot be written.
        """
        with naming(self.path):
            if hash_of(written) != sha256:
                remove(written)
                return False
            with self._keeping:
                if not self._open or segment in self._kept:
                    remove(written)
                    return True
                put_in_place(written, self._parts.unfinished(self._parts.segment(segment, self._suffix).name))
                self._parts.finish(segment, self._suffix, self.segments.outputs(segment))
                self._kept.add(segment)
        return True

    def tidy(self, written: Path) -> None:
        """Leave nothing at a path from `room` that came when the output was complete, or left: nor the folder of the
        parts, if that was removed but for it."""
        with self._keeping:
            if not self._open and written.exists():
                remove(written)
                with suppress(OSError):  # there are others
                    written.parent.rmdir()

    def commit(self) -> None:
        """Join the segments, which are all there, and give the result its name.

        Raises:
            OutputError: it cannot be written.
            MediaError: the sound cannot be read.
        """
        with self._keeping:
            self._open = False
        with naming(self.path), _log.timed("segments joined", output=self.path, segments=len(self.segments.all)):
            if self._video:
                join_segments(self._parts, self._suffix, self._body.fps, self._sound, self._limits)
            else:
                join_images(self._parts, self.path)

    def leave(self) -> None:
        """Stop: what is finished stays beside the output, for who resumes or joins it. More than once is allowed."""
        with self._keeping:
            self._open = False
            self._parts.leave()
