"""An engine on a node, and what it can be asked; it is told, and tells, plain data. Knows nothing of Ray."""

from __future__ import annotations

import logging
import shutil
import threading
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from gpupipe.cluster.begun import Begun, NodeEngine, errors_of_the_system, in_users_words
from gpupipe.cluster.facts import facts_here, require_same_inputs
from gpupipe.cluster.store import Store
from gpupipe.cluster.work import Bundle, Content, Drawn, JobSpec, Telling, Underway
from gpupipe.errors import Cancelled, ClusterError
from gpupipe.log import Log
from gpupipe.options import EngineKeywords, JobKeywords
from gpupipe.render.durable import remove
from gpupipe.render.job import Job
from gpupipe.render.manifest import Manifest, read_manifest
from gpupipe.render.parts import parts_folder
from gpupipe.render.segments import Segments
from gpupipe.render.stats import RenderStats

_log = Log(__name__)

THIS_NODE: Final = "this node"
"""What a node calls itself, whose name it does not know."""

TOLD: Final = (
    "width",
    "height",
    "pixel_format",
    "device",
    "provider",
    "batch",
    "runs",
    "workers",
    "inference_threads",
    "peak_rss_bytes",
    "cache_bytes",
)
"""Of a segment's stats, what is passed on as it is."""


class Node:
    """One engine, and the files that it was sent. Used from several threads.

    Args:
        options: of the engine.
        slots: segments that it draws at a time.
        cores: CPU cores that it may use.
        store: where files go; None: in the user's cache folder.
    """

    def __init__(self, options: EngineKeywords, slots: int, cores: int, store: Store | None = None) -> None:
        self._cores = max(1, cores)
        self._store = store or Store()
        try:
            self._engine = NodeEngine(parallel=slots, **options)
        except BaseException:
            self._store.close()
            raise
        self._begun: dict[str, Begun] = {}
        self._running: dict[tuple[str, int], Job] = {}
        self._called_off: set[tuple[str, int]] = set()
        self._drawn: dict[str, Path] = {}
        self._lock = threading.Lock()

    def facts(self) -> dict[str, str]:
        """What it has that must be alike on all nodes."""
        return facts_here(self._engine)

    def lacks(self, bundle: Bundle, *, shared: bool) -> bool:
        """Whether a bundle must be sent: it was not, and it is not in the same place here.

        Args:
            bundle: what is wanted.
            shared: whether a folder of that name here may be the same one.
        """
        return self._find(bundle, shared=shared) is None

    def write(self, bundle: Bundle, name: str, offset: int, piece: bytes) -> None:
        """Take a piece of a file; see `Store.write`."""
        self._store.write(bundle, name, offset, piece)

    def seal(self, bundle: Bundle) -> None:
        """A bundle has been sent; see `Store.seal`."""
        self._store.seal(bundle)

    def begin(self, spec: JobSpec, *, shared: bool) -> Manifest:
        """Look at a job, whose bundles are all there.

        Returns:
            What its output is known by; no segment is finished.

        Raises:
            GpupipeError: something is wrong with it.
        """
        with self._lock:
            if spec.job in self._begun:
                return self._begun[spec.job].manifest
        roots = {bundle.key: self._find(bundle, shared=shared) for bundle in spec.bundles}
        found = {key: root for key, root in roots.items() if root is not None}
        if len(found) < len(roots):
            raise ClusterError("was not sent", file=spec.character.root)
        begun = Begun.of(spec, found, self._engine, self._cores)
        with self._lock:
            return self._begun.setdefault(spec.job, begun).manifest

    def draw(self, job: str, segment: int, fingerprint: dict[str, str]) -> Drawn:
        """Draw and encode a segment of a job that was begun here; it is kept until `discard`.

        Args:
            job: which.
            segment: its number.
            fingerprint: of the job, which must be what this node gives it.

        Raises:
            ClusterError: the fingerprints differ; before, or by what has been drawn.
            Cancelled: `call_off` or `end` was called.
            GpupipeError: it cannot be drawn.
        """
        if (begun := self._begun.get(job)) is None:
            raise Cancelled("the job was called off")
        require_same_inputs(THIS_NODE, begun.manifest.fingerprint, fingerprint)
        ticket = uuid.uuid4().hex
        folder = self._store.work / ticket
        folder.mkdir()
        output = folder / f"output{begun.spec.output}"
        try:
            with in_users_words(begun.spec, begun.roots), errors_of_the_system():
                begun.load(self._engine)
                stats = self._render(begun, segment, f"{output}{'/' * (begun.spec.output == '/')}")
            return self._kept(ticket, output, segment, stats, fingerprint)
        except BaseException:
            remove(folder)
            raise

    def underway(self) -> dict[tuple[str, int], Underway]:
        """How far each segment is that is being drawn, by job and segment."""
        with self._lock:
            running = {work: (job.progress, self._begun.get(work[0])) for work, job in self._running.items()}
        found = {}
        for work, (at, begun) in running.items():
            if at is not None and begun is not None:
                # All but the segment counts as done.
                mine = Segments(at.total, begun.manifest.segment_frames).outputs(work[1])
                frames = len(mine) - (at.total - at.done)
                found[work] = Underway(frames, at.inference_ms, at.composite_ms, at.save_ms)
        return found

    def sees(self, path: str, text: str) -> bool:
        """Whether a file that somebody else wrote is here too, with that text."""
        try:
            return Path(path).read_text("ascii") == text
        except (OSError, ValueError):
            return False

    def deliver(self, ticket: str, path: str) -> bool:
        """Copy a drawn segment to a path that is seen from here; whether that could be done."""
        drawn = self._drawn[ticket]
        try:
            if drawn.is_dir():
                Path(path).mkdir()  # not the folders above it: they go when the output is complete
                shutil.copytree(drawn, path, dirs_exist_ok=True)
            else:
                shutil.copyfile(drawn, path)
        except OSError as error:  # it is asked for in pieces then
            _log.event("segment not delivered", logging.WARNING, path=path, error=str(error))
            return False
        return True

    def read(self, ticket: str, name: str, offset: int, size: int) -> bytes:
        """A piece of a file of a drawn segment."""
        drawn = self._drawn[ticket]
        with (drawn / name if drawn.is_dir() else drawn).open("rb") as file:
            file.seek(offset)
            return file.read(size)

    def discard(self, ticket: str) -> None:
        """A drawn segment is not needed any more."""
        if (drawn := self._drawn.pop(ticket, None)) is not None:
            remove(self._store.work / ticket)
            assert drawn.is_relative_to(self._store.work)

    def call_off(self, job: str, segment: int) -> None:
        """Draw a segment no further, or not at all: another engine has."""
        with self._lock:
            if job in self._begun:
                self._called_off.add((job, segment))
            running = self._running.get((job, segment))
        if running is not None:
            running.cancel()

    def end(self, job: str) -> None:
        """Call off what is under way of a job, and forget it."""
        with self._lock:
            self._begun.pop(job, None)
            self._called_off = {work for work in self._called_off if work[0] != job}
            running = [one for work, one in self._running.items() if work[0] == job]
        for one in running:
            one.cancel()

    def close(self) -> None:
        """End everything, and leave nothing but what the store keeps."""
        self._engine.close()
        self._store.close()

    def _find(self, bundle: Bundle, *, shared: bool) -> Path | None:
        root = Path(bundle.root)
        if shared and self._is_here(bundle, root):
            return root
        return self._store.find(bundle)

    def _is_here(self, bundle: Bundle, root: Path) -> bool:
        """Whether a folder of the same name has the same files."""

        def same(each: Content) -> bool:
            path = root / each.name
            return path.stat().st_size == each.size and self._engine.holdings.digests.sha256(path) == each.sha256

        try:
            return not any((root / name).exists() for name in bundle.absent) and all(map(same, bundle.files))
        except OSError:
            return False

    def _render(self, begun: Begun, segment: int, output: str) -> RenderStats:
        options: JobKeywords = {**begun.options, "segments": str(segment), "encoders": 1}
        work = (begun.spec.job, segment)
        with self._lock:
            if begun.spec.job not in self._begun or work in self._called_off:
                raise Cancelled("the job was called off")
            job = self._engine.submit(begun.character, output, **options)
            self._running[work] = job
        try:
            return job.result()
        finally:
            with self._lock:
                del self._running[work]

    def _kept(
        self, ticket: str, output: Path, segment: int, stats: RenderStats, fingerprint: Mapping[str, str]
    ) -> Drawn:
        parts = parts_folder(output)
        manifest = read_manifest(parts)
        assert manifest is not None, "a render of a segment leaves a manifest"
        require_same_inputs(THIS_NODE, manifest.fingerprint, fingerprint)  # files may have changed since
        one = manifest.segments[segment]
        path = self._drawn[ticket] = parts / one.name
        files = sorted(path.iterdir()) if path.is_dir() else [path]
        told = Telling(
            stats.total_seconds,
            stats.load_seconds,
            stats.first_frame_seconds,
            stats.stages,
            {name: getattr(stats, name) for name in TOLD},
            tuple(note for note in stats.notes if not note.startswith("segments ")),
        )
        sizes = tuple((file.name, file.stat().st_size) for file in files)
        return Drawn(ticket, sizes, path.is_dir(), one.sha256, one.stop - one.start, told)
