"""What is told of a render on a cluster: the whole, and each node's share."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from gpupipe.character.folder import Character
from gpupipe.cluster.work import Drawn, Telling, Underway
from gpupipe.render.stats import Progress, RenderStats
from gpupipe.trace import StageTimes

STAGES: Final = ("inference", "composite", "save")


@dataclass(frozen=True)
class NodeStats:
    """What a node did for a render.

    Attributes:
        node: its name.
        engines: that drew on it.
        frames: output frames.
        segments: that it has drawn.
        seconds: that they took, added up: of several at a time, more than have passed.
        retries: segments that were lost on it, and drawn again there or elsewhere.
        backups: segments that it began a second time, since another engine was slow at them; whoever was first is
            counted above.
    """

    node: str
    engines: int
    frames: int
    segments: int
    seconds: float
    retries: int
    backups: int = 0


@dataclass(frozen=True)
class ClusterStats(RenderStats):
    """What a render on a cluster did.

    Attributes:
        nodes: what each node did.
    """

    nodes: tuple[NodeStats, ...] = ()


class Tally:
    """Adds up what is told of a job's segments. Used from any thread."""

    def __init__(self) -> None:
        self._drawn: dict[int, tuple[str, str, Drawn]] = {}
        self._lost: list[str] = []
        self._backups: list[str] = []
        self._lock = threading.Lock()

    def add(self, node: str, engine: str, segment: int, drawn: Drawn) -> None:
        """An engine on a node has drawn a segment; of two that have, the first counts."""
        with self._lock:
            self._drawn.setdefault(segment, (node, engine, drawn))

    def lose(self, node: str) -> None:
        """A segment was lost on a node."""
        with self._lock:
            self._lost.append(node)

    def back_up(self, node: str) -> None:
        """A node has begun a segment that another engine is slow at."""
        with self._lock:
            self._backups.append(node)

    @property
    def frames(self) -> int:
        """Frames of the segments that are there."""
        with self._lock:
            return sum(drawn.frames for _, _, drawn in self._drawn.values())

    @property
    def nodes(self) -> tuple[NodeStats, ...]:
        """What each node did."""
        with self._lock:
            found = []
            drawn_by = list(self._drawn.values())
            for name in sorted({node for node, _, _ in drawn_by} | {*self._lost, *self._backups}):
                mine = [(engine, drawn) for node, engine, drawn in drawn_by if node == name]
                found.append(
                    NodeStats(
                        name,
                        engines=len({engine for engine, _ in mine}),
                        frames=sum(drawn.frames for _, drawn in mine),
                        segments=len(mine),
                        seconds=round(sum(drawn.told.seconds for _, drawn in mine), 3),
                        retries=self._lost.count(name),
                        backups=self._backups.count(name),
                    )
                )
            return tuple(found)

    def progress(self, before: int, total: int, seconds: float, underway: Mapping[int, Underway]) -> Progress:
        """How far a job is.

        Args:
            before: frames that were finished before.
            total: output frames.
            seconds: since it was begun.
            underway: how far each segment is that is being drawn; of one that is there, nothing counts.
        """
        with self._lock:
            under = [each for segment, each in underway.items() if segment not in self._drawn]
            told = [drawn.told for _, _, drawn in self._drawn.values()]
            frames = sum(drawn.frames for _, _, drawn in self._drawn.values())
        done = min(total, before + frames + sum(each.frames for each in under))
        if told or not under:
            means = [_added(told, stage).mean_ms for stage in STAGES]
        else:
            means = [under[0].inference_ms, under[0].composite_ms, under[0].save_ms]
        return Progress(done, total, seconds, *means)

    def stats(
        self,
        character: Character,
        output: Path | str,
        *,
        total: int,
        seconds: float,
        size: tuple[int, int],
        pixel_format: Any,
        notes: Sequence[str],
    ) -> ClusterStats:
        """What a finished job did.

        Args:
            character: whom.
            output: where.
            total: output frames.
            seconds: that it took.
            size: of a frame, pixels.
            pixel_format: of the frames.
            notes: what to say of the whole.
        """
        nodes = self.nodes
        with self._lock:
            drawn = [each for _, _, each in self._drawn.values()]
        told = [each.told for each in drawn]
        facts: Mapping[str, Any] = told[0].facts if told else {}
        stages = {name: _added(told, name) for name in STAGES}
        frames, infer = sum(each.frames for each in drawn), stages["inference"]
        said = dict.fromkeys(note for each in told for note in each.notes)
        return ClusterStats(
            output=str(output),
            frames=total,
            width=size[0],
            height=size[1],
            pixel_format=pixel_format,
            device=", ".join(dict.fromkeys(str(each.facts["device"]) for each in told)) or "none",
            provider=facts.get("provider", "none"),
            batch=facts.get("batch", 0),
            runs=facts.get("runs", 0),
            workers=facts.get("workers", 0),
            inference_threads=facts.get("inference_threads", 0),
            total_seconds=seconds,
            load_seconds=sum(each.load_seconds for each in told),
            first_frame_seconds=min((s for each in told if (s := each.first_frame_seconds) is not None), default=None),
            fps=frames / seconds if seconds else 0.0,
            inference_fps=infer.frames / infer.total_seconds if infer.total_seconds else 0.0,
            stages=stages,
            peak_rss_bytes=max((each.facts["peak_rss_bytes"] for each in told), default=0),
            cache_bytes=max((each.facts["cache_bytes"] for each in told), default=0),
            warnings=character.notes,
            notes=(*notes, *said),
            nodes=nodes,
        )


def _added(told: Iterable[Telling], stage: str) -> StageTimes:
    """A stage's times in several segments, taken together; median and percentile are means of theirs, by frames."""
    each = [one.stages[stage] for one in told if one.stages[stage].frames]
    frames, seconds = sum(one.frames for one in each), sum(one.total_seconds for one in each)
    if not frames:
        return StageTimes(0.0, 0.0, 0.0, 0.0, 0)
    median = sum(one.median_ms * one.frames for one in each) / frames
    p95 = sum(one.p95_ms * one.frames for one in each) / frames
    return StageTimes(seconds / frames * 1e3, median, p95, seconds, frames)
