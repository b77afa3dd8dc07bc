"""`gpupipe optimize`: a model in another precision, with its quality."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from gpupipe.character.folder import Character
from gpupipe.cli.arguments import add_options, given
from gpupipe.cli.show import check_folders, write_json, write_text
from gpupipe.doctor.optimised import report
from gpupipe.errors import OptionError, OutputError
from gpupipe.geometry import CropLayout
from gpupipe.log import Log
from gpupipe.media.limits import Limits
from gpupipe.model.fold import OPEN_SIZES
from gpupipe.model.graph import load_onnx, write_graph
from gpupipe.model.optimise import PRECISIONS, below_floor, optimise
from gpupipe.model.runtime import SessionOptions, open_session
from gpupipe.model.samples import SampleSet, noise_set
from gpupipe.model.signature import Signature
from gpupipe.options import LimitKeywords
from gpupipe.render.samples import FRAMES, sample_set
from gpupipe.report.optimised import html_page, lines

_log = Log(__name__)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Which model, what to make of it, and where that and the report go."""
    add = parser.add_argument
    add("source", type=Path, metavar="CHARACTER|MODEL", help="the character's folder, or an ONNX file alone")
    add("-o", "--output", type=Path, required=True, metavar="OUT.onnx", help="where the model goes")
    add("--precision", choices=PRECISIONS, default="fp32", help="fp32 folds the graph only")
    add("--model", type=Path, metavar="M.onnx", help="lip-sync model [default: the character's own]")
    add("--report", type=Path, metavar="FILE", help="write what was found: .html with pictures, or .json")
    add("--force", action="store_true", help="write the model even if it draws too badly")
    add("--overwrite", action="store_true", help="replace an existing file")
    add("--quiet", action="store_true", help="print nothing but warnings and errors")
    add_options(parser, LimitKeywords)


def run(options: argparse.Namespace) -> int:
    """Make the model, judge it, and tell what was found."""
    output: Path = options.output
    check_folders(output, options.report)
    _check(options)
    load_onnx()
    character, path, samples = _source(options)

    def told(line: str) -> None:
        if not options.quiet:
            print(line, file=sys.stderr, flush=True)

    with _log.timed("model made", path=path, precision=options.precision):
        made = optimise(path, options.precision, samples, told)
    told("judging it")
    found = report(made, path, options.precision, character)
    if options.report is not None and options.report.suffix == ".json":
        write_json(options.report, found.values)
    elif options.report is not None:
        write_text(options.report, html_page(found))
    if not made.quality.passes and not options.force:
        raise below_floor(made.quality, options.precision, path, "use another --precision, or --force")
    write_graph(made.model, output)
    if not options.quiet:
        print("\n".join([f"{output}: {options.precision}, {made.quality.summary()}", *lines(found)]))
    return 0


def _check(options: argparse.Namespace) -> None:
    if options.output.is_dir():
        raise OutputError("is a folder", file=options.output, field="output", remedy="give the name of a file")
    if options.output.exists() and not options.overwrite:
        raise OutputError(
            "exists already", file=options.output, field="output", remedy="use --overwrite or another name"
        )
    if options.report is not None and options.report.suffix not in (".html", ".json"):
        raise OptionError(
            "neither a page nor JSON", field="--report", value=str(options.report), remedy="end it in .html or .json"
        )


def _source(options: argparse.Namespace) -> tuple[Character | None, Path, SampleSet]:
    """The character, if there is one, the model's file, and what it is judged by."""
    if options.source.is_dir():
        character = Character.load(options.source, Limits(**given(options, LimitKeywords)))
        return character, options.model or character.model_path, sample_set(character)
    if options.model is not None:
        raise OptionError(
            "goes with a character's folder",
            field="--model",
            value=str(options.model),
            remedy="give that folder first, or one model alone",
        )
    size = Signature(options.source, open_session(options.source, SessionOptions())).size
    return None, options.source, noise_set(CropLayout(size or OPEN_SIZES[0]), FRAMES)
