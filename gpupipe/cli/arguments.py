"""The command line's arguments: their names, types, defaults and help."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

from gpupipe.options import MAX_BATCH


class Help(argparse.HelpFormatter):
    """Adds the default of an option that takes a value and has one."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        if action.nargs == 0 or action.default is None:
            return action.help
        return f"{action.help} [default: %(default)s]"


def add_render(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `gpupipe render`: the parameters of `render.render`, and where what was measured goes."""
    add = parser.add_argument
    add("character", type=Path, metavar="CHARACTER", help="the character's folder")
    add("-o", "--output", required=True, metavar="OUT", help="FILE.mp4, FILE.mkv, or a folder (ending in /) for images")
    add("--audio", type=Path, metavar="FILE", help="the speech: any sound or video file [default: the character's own]")
    add("--audio-encoder", type=Path, metavar="M.onnx", help="makes features of --audio [default: the character's own]")
    add(
        "--features",
        type=Path,
        metavar="F.npy",
        help="speech features [default: made of --audio, or the character's own]",
    )
    add("--no-audio", dest="sound", action="store_false", help="leave the sound out of a video")
    add("--model", type=Path, metavar="M.onnx", help="lip-sync model [default: the character's own]")
    add("--device", default="auto", help="where frames are composited")
    add("--provider", choices=("auto", "cpu", "cuda", "tensorrt"), default="auto", help="what runs the model")
    add("--batch", type=number(1, MAX_BATCH), default=8, help="frames in a batch")
    add("--workers", type=number(1), metavar="N", help="compositing threads [default: one a core, 4 at most]")
    add("--inference-threads", type=number(1), metavar="N", help="CPU threads for the model [default: one a core]")
    add("--tf32", action="store_true", help="let the CUDA provider round matrix products to TF32")
    add("--fp16", action="store_true", help="let TensorRT compute in float16")
    add("--frames", type=number(1), metavar="N", help="the most frames to render [default: all of the speech]")
    add("--start-frame", type=number(0), default=0, metavar="K", help="position in the ping-pong order to start at")
    add("--encoder", default="libx264", help="video encoder; see `gpupipe doctor`")
    add("--crf", type=number(0), help="constant quality, lower is better [default: 20 for libx264]")
    add("--preset", help="encoding speed [default: veryfast for libx264]")
    add("--encoder-threads", type=number(1), metavar="N", help="encoder threads [default: 4 on every machine]")
    add("--segment-frames", type=number(1), default=250, metavar="N", help="frames encoded on their own")
    add("--pixel-format", choices=("nv12", "bgr24"), help="of finished frames [default: nv12 for video, else bgr24]")
    add("--image-format", choices=("jpg", "png"), default="jpg", help="of images")
    add("--jpeg-quality", type=number(1, 100), default=95, metavar="Q", help="1 to 100")
    add("--masked-video", action="store_true", help="take the model's inputs from the recorded videos")
    add("--overwrite", action="store_true", help="replace an existing output")
    add("--stats", type=Path, metavar="FILE.json", help="write what was measured")
    add("--trace", type=Path, metavar="FILE.json", help="write a trace for chrome://tracing or Perfetto")
    add("--quiet", action="store_true", help="print nothing but warnings and errors")


def number(least: int, most: int | None = None) -> Callable[[str], int]:
    """The type of a whole number of at least `least` and at most `most`."""

    def number(text: str) -> int:
        if int(text) < least:
            raise argparse.ArgumentTypeError(f"{text} is less than {least}")
        if most is not None and int(text) > most:
            raise argparse.ArgumentTypeError(f"{text} is more than {most}")
        return int(text)

    return number


def size(text: str) -> tuple[int, int]:
    """The type of a picture's width and height, such as 1280x720."""
    width, cross, height = text.partition("x")
    if not (cross and width.isdecimal() and height.isdecimal() and int(width) and int(height)):
        raise argparse.ArgumentTypeError(f"{text!r} is not of the form 1280x720")
    return int(width), int(height)
