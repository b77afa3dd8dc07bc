"""`gpupipe render`: a character and speech in, a video or a folder of images out."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import cast

from gpupipe.cli import ray
from gpupipe.cli.arguments import add_options, given
from gpupipe.cli.progress import LineProgress, TerminalProgress
from gpupipe.cli.show import check_folders, write_json
from gpupipe.errors import OptionError, OutputError
from gpupipe.options import RenderKeywords
from gpupipe.render.image_output import parts_beside
from gpupipe.render.parts import resumable
from gpupipe.render.render import render
from gpupipe.render.stats import OnProgress, RenderStats
from gpupipe.trace import Trace


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The parameters of `render.render`, and where what was measured goes."""
    add = parser.add_argument
    add("character", type=Path, metavar="CHARACTER", help="the character's folder")
    add("-o", "--output", required=True, metavar="OUT", help="FILE.mp4, FILE.mkv, or a folder (ending in /) for images")
    add_options(parser, RenderKeywords)
    ray.add_arguments(parser)
    told = parser.add_argument_group("what is told").add_argument
    told("--stats", type=Path, metavar="FILE.json", help="write what was measured")
    told("--trace", type=Path, metavar="FILE.json", help="write a trace for chrome://tracing or Perfetto")
    told("--quiet", action="store_true", help="print nothing but warnings and errors")


def run(options: argparse.Namespace) -> int:
    """Render, and tell how far it is and what was done."""
    for path in (options.stats, options.trace):
        check_folders(path)
        if path is not None and path.is_dir():
            raise OutputError("is a folder", file=path, remedy="give the name of a file")
        if path is not None and path.resolve() == Path(options.output).resolve():
            raise OutputError("is the output itself", file=path, remedy="give the name of another file")
    ray.check(options)
    if options.ray is not None and options.trace is not None:
        raise OptionError("is of one machine", field="--trace", value=str(options.trace), remedy="leave --ray out")
    trace = Trace(spans=options.trace is not None)
    progress = None
    if not options.quiet:
        progress = TerminalProgress() if sys.stderr.isatty() else LineProgress(lambda line: print(line, flush=True))
    try:
        stats = _rendered(options, trace, progress)
    except BaseException:
        if (left := what_is_left(options.output)) is not None:
            print(left, file=sys.stderr)
        raise
    finally:
        if progress is not None:
            progress.close()
    if options.stats is not None:
        write_json(options.stats, stats.as_dict())
    if options.trace is not None:
        write_json(options.trace, trace.chrome())
    if not options.quiet:
        print(summary(stats))
    return 0


def _rendered(options: argparse.Namespace, trace: Trace, progress: OnProgress | None) -> RenderStats:
    keywords = cast(RenderKeywords, given(options, RenderKeywords))
    if options.ray is None:
        return render(options.character, options.output, trace=trace, progress=progress, **keywords)
    from gpupipe.cluster.render import render_on_cluster

    return render_on_cluster(
        options.character,
        options.output,
        address=options.ray,
        cores=options.ray_cores,
        keep_minutes=options.ray_keep,
        progress=progress,
        **keywords,
    )


def what_is_left(output: str) -> str | None:
    """What to say of an output that was not finished: how it can be."""
    path = Path(output)
    return resumable(path) or resumable(parts_beside(path))


def summary(stats: RenderStats) -> str:
    """What a render did, for people."""
    infer, composite, save = (stats.stages[name] for name in ("inference", "composite", "save"))
    first = stats.first_frame_seconds
    said = f"{stats.load_seconds:.2f} s loading" + ("" if first is None else f", first frame after {first:.2f} s")
    return (
        f"{stats.output}: {stats.frames} frames of {stats.width}x{stats.height} in {stats.total_seconds:.2f} s, "
        f"{stats.fps:.1f} FPS ({said})\n"
        f"  composited on {stats.device}, model on {stats.provider}, batch {stats.batch}, {stats.pixel_format}\n"
        f"  a frame: inference {infer.mean_ms:.2f} ms, composite {composite.mean_ms:.2f} ms, "
        f"save {save.mean_ms:.2f} ms\n"
        f"  inference alone: {stats.inference_fps:.1f} FPS; "
        f"peak memory {stats.peak_rss_bytes / 1e6:.0f} MB, of it {stats.cache_bytes / 1e6:.0f} MB cached frames"
        + "".join(f"\n  {line}" for line in (*_nodes(stats), *stats.notes))
    )


def _nodes(stats: RenderStats) -> list[str]:
    """What each node of a cluster did, a line each; none on one machine."""
    return [
        f"{node.node}: {node.frames} frames, {node.segments} segments in {node.seconds:.2f} s"
        + (f", {node.retries} lost" if node.retries else "")
        + (f", {node.backups} begun since others were slow" if node.backups else "")
        for node in getattr(stats, "nodes", ())
    ]
