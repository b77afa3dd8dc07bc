"""The command line: arguments, progress, messages and exit codes. The only room that prints."""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Sequence
from io import TextIOWrapper
from pathlib import Path
from typing import Any

from gpupipe import __version__, bench, report
from gpupipe.character.folder import AUDIO_ENCODER, GpupipeWarning
from gpupipe.cli.arguments import Help, add_render, number, size
from gpupipe.cli.progress import LineProgress, TerminalProgress
from gpupipe.errors import GpupipeError, OutputError
from gpupipe.geometry import SPEECH_RATE
from gpupipe.render.render import RenderStats, render
from gpupipe.trace import Trace

INTERRUPTED = 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command.

    Returns:
        0; 1 with one line `error: …` on standard error; 2 for wrong usage; 130 if interrupted. A signal that ends the
        process gives 128 and its number (143 for SIGTERM), after what was half-written is removed.
    """
    options = _parser().parse_args(arguments)
    warnings.showwarning = _show_warning
    if isinstance(sys.stdout, TextIOWrapper):
        # A path may hold letters that the terminal's encoding does not have.
        sys.stdout.reconfigure(errors="backslashreplace")
    if threading.current_thread() is threading.main_thread():
        _clean_up_when_ended()
    try:
        command: Callable[[argparse.Namespace], int] = options.command
        return command(options)
    except GpupipeError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except MemoryError as error:
        print(f"error: out of memory: {error}; use nv12, a smaller --batch or fewer --frames", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        # Whoever read what is printed has gone (`| head`): what is left of it goes nowhere, and says nothing at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        # A path that the system refuses to look at: too long, or in a folder that may not be entered.
        print(f"error: {error.filename}: {error.strerror}; give another path", file=sys.stderr)
        return 1


def _clean_up_when_ended() -> None:
    """Ended from outside, or by its terminal's closing, a render cleans up as after any error."""
    for name in ("SIGTERM", "SIGHUP"):
        number = getattr(signal, name, None)  # Windows has no SIGHUP
        if number is not None and signal.getsignal(number) is not signal.SIG_IGN:  # as under nohup
            signal.signal(number, lambda number, _: sys.exit(128 + number))


def _show_warning(message: Warning | str, category: type[Warning], *_: Any, **__: Any) -> None:
    kind = "warning" if issubclass(category, GpupipeWarning) else category.__name__
    print(f"{kind}: {message}", file=sys.stderr)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("gpupipe", description="Render lip-synced avatar video.")
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def add(name: str, command: Callable[[argparse.Namespace], int], text: str) -> argparse.ArgumentParser:
        added = commands.add_parser(name, help=text, description=text, formatter_class=Help)
        added.set_defaults(command=command)
        return added

    add_render(add("render", _render, "render a character speaking into a video or a folder of images"))
    features = add("features", _features, "compute the speech features of a sound")
    features.add_argument("character", type=Path, metavar="CHARACTER", help="the character's folder")
    features.add_argument("audio", type=Path, metavar="SOUND", help="any sound or video file")
    features.add_argument(
        "-o", "--output", type=Path, required=True, metavar="F.npy", help="float32 [N, 512], 25 a second"
    )
    features.add_argument("--audio-encoder", type=Path, metavar="M.onnx", help="[default: the character's own]")
    features.add_argument(
        "--provider", choices=("cpu", "cuda", "tensorrt"), default="cpu", help="what runs the encoder"
    )
    features.add_argument("--overwrite", action="store_true", help="replace an existing file")
    demo = add("demo", _demo, "make a small character from nothing")
    demo.add_argument("folder", type=Path, metavar="DIR", help="where to make it")
    demo.add_argument("--model", choices=("tiny", "full"), default="tiny", help="the lip-sync model's cost")
    demo.add_argument("--frames", type=number(1), default=125, help="frames filmed")
    demo.add_argument("--size", type=size, default="1280x720", metavar="WxH", help="of the body video, pixels")
    demo.add_argument("--overwrite", action="store_true", help="replace an existing folder")
    inspect = add("inspect", _inspect, "tell what is in a character folder, and every fault in it")
    inspect.add_argument("character", type=Path, metavar="CHARACTER")
    inspect.add_argument("--json", action="store_true", help="as JSON")
    doctor = add("doctor", _doctor, "tell what this machine can do, and what is missing")
    doctor.add_argument("--json", action="store_true", help="as JSON")
    bench.add_arguments(add("bench", _bench, "compare the ways to render on this machine"))
    report.add_arguments(add("report", _report, "show and compare what `gpupipe bench --json` wrote"))
    return parser


def _render(options: argparse.Namespace) -> int:
    chosen = vars(options)
    own = ("command", "stats", "trace", "quiet", "character", "output")
    for path in (options.stats, options.trace):
        if path is not None and not path.parent.is_dir():
            raise OutputError("no such folder", file=path.parent, remedy="create it first")
        if path is not None and path.is_dir():
            raise OutputError("is a folder", file=path, remedy="give the name of a file")
        if path is not None and path.resolve() == Path(options.output).resolve():
            raise OutputError("is the output itself", file=path, remedy="give the name of another file")
    trace = Trace(spans=options.trace is not None)
    progress = None
    if not options.quiet:
        progress = TerminalProgress() if sys.stderr.isatty() else LineProgress(lambda line: print(line, flush=True))
    try:
        stats = render(
            options.character,
            options.output,
            trace=trace,
            progress=progress,
            **{name: value for name, value in chosen.items() if name not in own},
        )
    finally:
        if progress is not None:
            progress.close()
    if options.stats is not None:
        _write_json(options.stats, stats.as_dict())
    if options.trace is not None:
        _write_json(options.trace, trace.chrome())
    if not options.quiet:
        print(summary(stats))
    return 0


def _bench(options: argparse.Namespace) -> int:
    _check_folders(options.json, options.html)
    chosen = {name: value for name, value in vars(options).items() if name not in ("command", "json", "html")}
    result = bench.run(bench.BenchOptions(**chosen), lambda line: print(line, file=sys.stderr, flush=True))
    if options.json is not None:
        _write_json(options.json, result)
    if options.html is not None:
        _write_text(options.html, report.html_page([(result["character"]["name"], result)]))
    print(report.text([(result["character"]["name"], result)]))
    return 1 if report.wrong(result) else 0


def _report(options: argparse.Namespace) -> int:
    _check_folders(options.html)
    results = report.load_all(options.measurements)
    if options.html is not None:
        _write_text(options.html, report.html_page(results))
    print(report.text(results))
    return 1 if report.failures(results, options.fail_above) else 0


def _check_folders(*paths: Path | None) -> None:
    for path in paths:
        if path is not None and not path.parent.is_dir():
            raise OutputError("no such folder", file=path.parent, remedy="create it first")


def _write_json(path: Path, value: Any) -> None:
    _write_text(path, json.dumps(value, indent=1) + "\n")


def _write_text(path: Path, content: str) -> None:
    try:
        path.write_text(content, "utf-8")
    except OSError as error:
        raise OutputError(f"cannot be written: {error.strerror}", file=path, remedy="use another folder") from error


def summary(stats: RenderStats) -> str:
    """What a render did, for people."""
    infer, composite, save = (stats.stages[name] for name in ("inference", "composite", "save"))
    return (
        f"{stats.output}: {stats.frames} frames of {stats.width}x{stats.height} in {stats.total_seconds:.2f} s, "
        f"{stats.fps:.1f} FPS ({stats.load_seconds:.2f} s loading)\n"
        f"  composited on {stats.device}, model on {stats.provider}, batch {stats.batch}, {stats.pixel_format}\n"
        f"  a frame: inference {infer.mean_ms:.2f} ms, composite {composite.mean_ms:.2f} ms, "
        f"save {save.mean_ms:.2f} ms\n"
        f"  inference alone: {stats.inference_fps:.1f} FPS; "
        f"peak memory {stats.peak_rss_bytes / 1e6:.0f} MB, of it {stats.cache_bytes / 1e6:.0f} MB cached frames"
        + "".join(f"\n  {note}" for note in stats.notes)
    )


def _features(options: argparse.Namespace) -> int:
    from gpupipe.speech.speech import write_features

    encoder = options.audio_encoder or options.character / AUDIO_ENCODER
    rows = write_features(
        options.output, options.audio, encoder, provider=options.provider, overwrite=options.overwrite
    )
    print(f"{options.output}: {rows} rows of speech features, {rows / SPEECH_RATE:.2f} s")
    return 0


def _demo(options: argparse.Namespace) -> int:
    from gpupipe.demo import make_demo

    folder = make_demo(
        options.folder, model=options.model, frames=options.frames, size=options.size, overwrite=options.overwrite
    )
    print(f"{folder}: a character of {options.frames} frames; render it with: gpupipe render {folder} -o talk.mp4")
    return 0


def _inspect(options: argparse.Namespace) -> int:
    from gpupipe.doctor.inspection import inspect

    found = inspect(options.character)
    if options.json:
        print(json.dumps(found, indent=1))
    else:
        print("\n".join(_lines({k: v for k, v in found.items() if k not in ("faults", "notes") and v is not None})))
        for note in found["notes"]:
            print(f"warning: {note}", file=sys.stderr)
    for fault in found["faults"]:
        print(f"error: {fault}", file=sys.stderr)
    return 1 if found["faults"] else 0


def _doctor(options: argparse.Namespace) -> int:
    from gpupipe.doctor.inspection import doctor

    found = doctor()
    if options.json:
        print(json.dumps(found, indent=1))
        return 0
    for group in ("providers", "encoders"):
        found[group] = {
            name: "opens" if problem is None else f"no: {problem}" for name, problem in found[group].items()
        }
    print("\n".join(_lines(found)))
    return 0


def _lines(value: Any, indent: str = "") -> list[str]:
    """Nested JSON values as indented lines; bytes in megabytes."""
    lines = []
    for name, entry in value.items() if isinstance(value, dict) else ():
        if isinstance(entry, dict):
            lines += [f"{indent}{name}:", *_lines(entry, indent + "  ")]
        elif isinstance(entry, list) and any(isinstance(item, (dict, str)) for item in entry):
            lines.append(f"{indent}{name}:")
            for item in entry:
                lines += _lines(item, indent + "  ") if isinstance(item, dict) else [f"{indent}  {item}"]
        else:
            size = isinstance(entry, int) and ("bytes" in name or name in ("nv12", "bgr24"))
            lines.append(f"{indent}{name}: {f'{entry / 1e6:.1f} MB' if size else 'none' if entry is None else entry}")
    return lines
