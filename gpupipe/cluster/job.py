"""One job of a run: what it needs, what is there of it, and what is told of it."""

from __future__ import annotations

import threading
import time
import uuid
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from gpupipe.character.folder import Character
from gpupipe.cluster.inputs import HashOf, spec_of
from gpupipe.cluster.stats import ClusterStats, Tally
from gpupipe.cluster.work import JobSpec, Underway
from gpupipe.errors import GpupipeError
from gpupipe.media.limits import Limits
from gpupipe.options import JobKeywords, split
from gpupipe.render.gather import Gathered
from gpupipe.render.left import remove_left
from gpupipe.render.manifest import Manifest
from gpupipe.render.output import is_video
from gpupipe.render.plan import Plan
from gpupipe.render.queue import is_complete
from gpupipe.render.segments import Segments
from gpupipe.render.stats import OnProgress
from gpupipe.render.write import pixel_format_of


@dataclass(frozen=True)
class Asked:
    """What is asked for.

    Attributes:
        character: its folder.
        output: a video, or a folder of images.
        options: of the job.
        skip: whether there is nothing to do if the output is complete.
    """

    character: Path
    output: Path | str
    options: JobKeywords
    skip: bool = False


class ClusterJob:
    """A job on its way. Used from several threads.

    Args:
        number: of it, in its run.
        asked: what.
        limits: what is taken of files.
        hash_of: gives a file's SHA-256.
        progress: told how far it is.

    Attributes:
        id: what tells it from all other jobs, of other runs too.
        spec: what nodes are told of it, once it is opened.
        tally: what they have done.
    """

    def __init__(
        self, number: int, asked: Asked, limits: Limits, hash_of: HashOf, progress: OnProgress | None = None
    ) -> None:
        self.number, self.asked, self.tally = number, asked, Tally()
        self.id = uuid.uuid4().hex
        self.spec: JobSpec | None = None
        self.token = uuid.uuid4().hex
        self._limits, self._hash_of, self._progress = limits, hash_of, progress
        self._character: Character | None = None
        self._plan: Plan | None = None
        self._segments: Segments | None = None
        self._gathered: Gathered | None = None
        self._fingerprint: dict[str, str] = {}
        self._began = 0.0
        self._before = self._most = 0
        self._telling = threading.Lock()

    def look(self) -> bool:
        """Look at what it needs; more than once is allowed.

        Returns:
            Whether there is something to do.

        Raises:
            GpupipeError: something is wrong with it.
        """
        self._began = time.perf_counter()
        if self.spec is not None:
            return True
        asked = self.asked
        _, model, said, writing = split(asked.options, JobKeywords, by="a job")
        video = is_video(asked.output)
        character = Character.load(asked.character, self._limits)
        # In which precision the model is run is the nodes' business.
        model = replace(model, precision="fp32")
        if asked.skip:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # what is odd is told once, below
                if is_complete(character, asked.output, {**asked.options, "precision": "fp32"}):
                    remove_left(asked.output, self._limits)
                    return False
        pixel_format = pixel_format_of(writing, video=video)
        plan = Plan.make(character, pixel_format, model, said, sound=said.sound and video)
        segments = Segments(plan.total, writing.segment_frames, writing.segments)
        whole = len(segments.chosen) > 1 and plan.total >= plan.order.period
        self._character, self._plan, self._segments = character, plan, segments
        self.spec = spec_of(self.id, character, asked.output, asked.options, whole=whole, hash_of=self._hash_of)
        return True

    @property
    def count(self) -> int:
        """How many segments it has, at most, once it was looked at."""
        return 0 if self._segments is None else len(self._segments.left)

    def begin(self, manifest: Manifest) -> tuple[int, ...]:
        """Open the output.

        Args:
            manifest: what a node says that it is known by.

        Returns:
            The segments that are to be drawn.

        Raises:
            OutputError: it exists, cannot be written, or was begun with something else.
        """
        assert self._plan is not None
        assert self._character is not None
        if self._gathered is not None:  # the engine that opened it was lost right after that
            return self._gathered.segments.left
        *_, writing = split(self.asked.options, JobKeywords, by="a job")
        sound = self._plan.speech.sound
        segments = self._segments
        assert segments is not None
        self._gathered = Gathered(
            self.asked.output,
            self._character.body,
            writing,
            segments=segments,
            manifest=replace(manifest, sound=None if sound is None else str(sound.resolve())),
            sound=sound,
            limits=self._limits,
        )
        self._fingerprint = dict(manifest.fingerprint)
        self._before = segments.total - segments.count_outputs(segments.left)
        self.mark.write_text(self.token, "ascii")
        return segments.left

    @property
    def fingerprint(self) -> dict[str, str]:
        """What every node must find, too."""
        return self._fingerprint

    @property
    def mark(self) -> Path:
        """A file beside the parts, which holds `token`: who sees it can put segments there."""
        return self.gathered.room("token").resolve()

    @property
    def gathered(self) -> Gathered:
        """The output, once it is begun."""
        assert self._gathered is not None, "it has been begun"
        return self._gathered

    def finish(self) -> ClusterStats:
        """Every segment is there: join them, or leave them to be joined if that is asked for.

        Raises:
            GpupipeError: the output cannot be written.
        """
        assert self._plan is not None
        assert self._character is not None
        *_, writing = split(self.asked.options, JobKeywords, by="a job")
        segments, notes = self.gathered.segments, []
        if writing.segments is None:
            self.gathered.commit()
        else:
            self.gathered.leave()
            notes.append(f"segments {writing.segments} of {len(segments.all)}, kept for `gpupipe join`")
        chosen = segments.count_outputs(segments.chosen)
        if (before := chosen - self.tally.frames) > 0:
            notes.append(f"{before} of {chosen} frames were finished before")
        spec = self._plan.order.spec
        return self.tally.stats(
            self._character,
            self.asked.output,
            total=self._plan.total,
            seconds=time.perf_counter() - self._began,
            size=(spec.width, spec.height),
            pixel_format=spec.pixel_format,
            notes=notes,
        )

    def leave(self) -> None:
        """Stop; what is finished stays, for who resumes."""
        if self._gathered is not None:
            self._gathered.leave()

    def tell(self, underway: Mapping[int, Underway]) -> None:
        """Tell how far it is, given how far each segment is that is being drawn; it never goes back."""
        if self._progress is None or self._plan is None or self._gathered is None:
            return
        seconds = time.perf_counter() - self._began
        at = self.tally.progress(self._before, self._plan.total, seconds, underway)
        with self._telling:
            if at.done > self._most:
                self._most = at.done
                self._progress(at)


OnEnd = Callable[[ClusterJob, GpupipeError | None, ClusterStats | None], None]
"""Told when a job has ended: with its error, or with what was done; with neither if there was nothing to do."""
