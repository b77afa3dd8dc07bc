"""`gpupipe batch`: many renders, listed in a file, on one engine a device."""

from __future__ import annotations

import argparse
import json
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any, TextIO, cast

from gpupipe.cli import ray
from gpupipe.cli.arguments import add_options, given, number, reader
from gpupipe.cli.progress import JobsProgress
from gpupipe.cli.show import check_folders
from gpupipe.errors import OutputError, reason
from gpupipe.options import EngineKeywords, EngineOptions, declared
from gpupipe.render.engine import PARALLEL
from gpupipe.render.jobfile import read_jobs
from gpupipe.render.queue import JobReport, run_jobs

OWN = ("device",)
"""Of the engine's options, what is declared here: a list."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Which jobs, and on what."""
    add = parser.add_argument
    add(
        "jobs",
        type=Path,
        metavar="JOBS.jsonl",
        help="a JSON object a line: character, output, and the options of `gpupipe render` by their names in Python; "
        "paths are relative to the file's folder",
    )
    add("--overwrite", action="store_true", help="redo outputs that are complete, instead of skipping them")
    add("--report", type=Path, metavar="FILE.jsonl", help="write what became of each job, a line each, as it ends")
    add("--quiet", action="store_true", help="print nothing but warnings and errors")
    add_options(parser, EngineKeywords, but=OWN)
    machine = parser.add_argument_group("where")
    machine.add_argument(
        "--device",
        type=_devices,
        default="auto",
        metavar="DEVICE,…",
        help="where frames are composited: auto, cpu, cuda, or several GPUs such as cuda:0,cuda:1, which get the jobs "
        "as they become free",
    )
    machine.add_argument(
        "--parallel",
        type=number(1),
        default=PARALLEL,
        metavar="N",
        help="jobs at a time on each device, whose frames share batches; on a cluster, segments",
    )
    ray.add_arguments(parser)


def run(options: argparse.Namespace) -> int:
    """Render the jobs, and tell of each; 1 if any failed."""
    check_folders(options.report)
    ray.check(options)
    jobs, faults = read_jobs(options.jobs, confined=options.isolate)
    total = len(jobs) + len(faults)
    failed = len(faults)
    for fault in faults.values():
        print(f"error: {fault}", file=sys.stderr)
    ended = failed
    with ExitStack() as closing:
        report: TextIO | None = None
        if options.report is not None:
            try:
                report = closing.enter_context(options.report.open("w", encoding="utf-8"))
            except OSError as error:
                raise OutputError(f"cannot be written: {reason(error)}", file=options.report) from error
        for line, fault in faults.items():
            _write(report, {"line": line, "output": None, "status": "failed", "error": str(fault), "stats": None})
        shown = closing.enter_context(JobsProgress(show=not options.quiet and sys.stderr.isatty()))

        def told(ending: JobReport) -> None:
            nonlocal ended, failed
            ended += 1
            failed += ending.status == "failed"
            shown.end(ending.job)
            _write(report, ending.as_dict())
            line = f"[{ended}/{total}] {_told(ending)}"
            if ending.error is not None:
                print(line, file=sys.stderr, flush=True)
            elif not options.quiet:
                print(line, flush=True)

        engine = cast(EngineKeywords, given(options, EngineKeywords, but=OWN))
        if options.ray is None:
            run_jobs(
                jobs,
                options.device,
                engine,
                parallel=options.parallel,
                overwrite=options.overwrite,
                told=told,
                progress=shown,
            )
        else:
            from gpupipe.cluster.render import run_jobs_on_cluster

            run_jobs_on_cluster(
                jobs,
                {**engine, "device": ",".join(options.device)},
                address=options.ray,
                cores=options.ray_cores,
                keep_minutes=options.ray_keep,
                parallel=options.parallel,
                overwrite=options.overwrite,
                told=told,
                progress=shown,
            )
    if not options.quiet:
        print(f"{total - failed} of {total} jobs are complete")
    return 1 if failed else 0


def _write(report: TextIO | None, values: dict[str, Any]) -> None:
    if report is not None:
        report.write(json.dumps(values) + "\n")
        report.flush()  # a run that is ended from outside has told of what was done


def _told(ending: JobReport) -> str:
    """What became of a job, in a line."""
    job, stats = ending.job, ending.stats
    if ending.error is not None:
        return f"{job.output}: error: {ending.error}"
    if stats is None:
        return f"{job.output}: complete already"
    return (
        f"{job.output}: {stats.frames} frames in {stats.total_seconds:.2f} s, {stats.fps:.1f} FPS on {stats.device}"
        + "".join(f"; {note}" for note in stats.notes)
    )


def _devices(text: str) -> list[str]:
    read = reader(declared(EngineOptions)["device"])
    return [read(part) for part in text.split(",")]
