"""A render, and many jobs, on a cluster."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final, Unpack

from gpupipe.cluster.fleet import LOCAL, connected, nodes
from gpupipe.cluster.job import Asked, ClusterJob, OnEnd
from gpupipe.cluster.places import Places
from gpupipe.cluster.run import Run
from gpupipe.cluster.stats import ClusterStats
from gpupipe.engine.shelf import Digests
from gpupipe.errors import GpupipeError, OptionError
from gpupipe.media.limits import Limits
from gpupipe.options import EngineKeywords, JobKeywords, RenderKeywords, divided, documented, split
from gpupipe.render.engine import PARALLEL
from gpupipe.render.jobfile import JobLine
from gpupipe.render.output import is_video
from gpupipe.render.queue import JobReport, OnJobProgress, Status, Told
from gpupipe.render.stats import OnProgress

DEVICES: Final = ("auto", "cpu", "cuda")


@documented(RenderKeywords)
def render_on_cluster(
    character: Path | str,
    output: Path | str,
    *,
    address: str = LOCAL,
    cores: int | None = None,
    keep_minutes: float | None = None,
    progress: OnProgress | None = None,
    shared: bool = True,
    **options: Unpack[RenderKeywords],
) -> ClusterStats:
    """Render a character speaking on a Ray cluster, into a video or a folder of images.

    Args:
        character: its folder.
        output: a video (`.mp4`, `.mkv`), or a folder (existing, or ending in `/`) for images.
        address: of the cluster: `auto`, `host:port` or `ray://host:port`; `local` starts one on this machine.
        cores: CPU cores of each engine, where frames are composited on the CPU; None: up to 4.
        keep_minutes: how long engines stay on the cluster without work, for later renders with the same options; None:
            they end with this one.
        progress: told now and then how far it is.
        shared: whether files that nodes find in the same folders, with the same content, are used; else all are sent.

    Returns:
        What was done, with each node's share.

    Raises:
        GpupipeError: one of its kinds; what is finished of the output is kept beside it, for `resume`.
    """
    engine, job = divided(options, RenderKeywords, by="render_on_cluster()")
    is_video(output)  # or a folder, or an error, before a cluster is asked
    ended: list[tuple[GpupipeError | None, ClusterStats | None]] = []
    asked = Asked(Path(character), output, job)
    _run(
        [asked],
        engine,
        address,
        cores=cores,
        keep_minutes=keep_minutes,
        slots=PARALLEL,
        shared=shared,
        progress=[progress],
        ended=lambda _, error, stats: ended.append((error, stats)),
    )
    error, stats = ended[0]
    if error is not None:
        raise error
    assert stats is not None
    return stats


def run_jobs_on_cluster(
    jobs: Sequence[JobLine],
    engine: EngineKeywords,
    *,
    address: str = LOCAL,
    cores: int | None = None,
    keep_minutes: float | None = None,
    parallel: int | None = None,
    overwrite: bool = False,
    told: Told,
    progress: OnJobProgress | None = None,
    shared: bool = True,
) -> None:
    """Render jobs on a cluster; see `render.queue.run_jobs`. Returns when every job has been told of.

    Args:
        jobs: in order.
        engine: the engines' options.
        address, cores, keep_minutes, shared: see `render_on_cluster`.
        parallel: segments at a time on each engine; None for 2.
        overwrite: replace outputs; else those that are complete are skipped, and those that were begun gone on with.
        told: given each job's report, one at a time, in any thread.
        progress: given each job's progress, in any thread.

    Raises:
        GpupipeError: the cluster cannot be used, or fails as a whole.
    """

    def of(job: JobLine) -> OnProgress | None:
        return None if progress is None else (lambda at, job=job: progress(job, at))  # type: ignore[misc]

    def ended(job: ClusterJob, error: GpupipeError | None, stats: ClusterStats | None) -> None:
        status: Status = "failed" if error is not None else "skipped" if stats is None else "done"
        told(JobReport(jobs[job.number], status, error, stats))

    asked = []
    for job in jobs:
        replaces = overwrite or job.options.get("overwrite", False)
        options: JobKeywords = {**job.options, "overwrite": replaces, "resume": not replaces}
        asked.append(Asked(job.character, job.output, options, skip=not replaces))
    slots = parallel or PARALLEL
    _run(
        asked,
        engine,
        address,
        cores=cores,
        keep_minutes=keep_minutes,
        slots=slots,
        shared=shared,
        progress=[of(job) for job in jobs],
        ended=ended,
    )


def _run(
    asked: Sequence[Asked],
    options: EngineKeywords,
    address: str,
    *,
    cores: int | None,
    keep_minutes: float | None,
    slots: int,
    shared: bool,
    progress: Sequence[OnProgress | None],
    ended: OnEnd,
) -> None:
    device = options.get("device") or "auto"
    if device not in DEVICES:
        raise OptionError(
            "names a GPU of one machine",
            field="--device",
            value=device,
            remedy="give auto, cpu or cuda: Ray picks GPUs",
        )
    if address == LOCAL and keep_minutes is not None:
        remedy = "start one with `ray start --head`, and give --ray auto"
        raise OptionError("a Ray that is started for a render ends with it", field="--ray-keep", remedy=remedy)
    chosen, *_ = split(options, EngineKeywords, by="a cluster")
    if not asked:
        return
    with connected(address) as first:
        hash_of = Digests().sha256
        limits = Limits.of(chosen)
        jobs = [
            ClusterJob(number, each, limits, hash_of, progress=told)
            for number, (each, told) in enumerate(zip(asked, progress, strict=True))
        ]
        keep = None if keep_minutes is None else keep_minutes * 60.0
        places = Places(first, options, cores=cores, slots=slots, keep_seconds=keep)
        remotes = places.take(first, wanted(jobs, places.count))
        more = None if address == LOCAL else lambda most: places.take(nodes(), most)
        Run(jobs, remotes, ended, shared=shared, more=more).run()


def wanted(jobs: Sequence[ClusterJob], most: int) -> int:
    """How many engines have something to do, of so many: one a segment; and one where there is none, to tell why."""
    count = 0
    for job in jobs:
        if count >= most:
            break
        with suppress(GpupipeError, OSError):  # who opens it is told again
            job.look()
        count += job.count
    return max(1, min(count, most))
