"""`python -m gpupipe.serve.client`: asks a server, and writes what comes."""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, cast

from gpupipe.cli.arguments import Help
from gpupipe.errors import GpupipeError, OptionError, OutputError, reason
from gpupipe.machine import package_version
from gpupipe.media.images import image_name
from gpupipe.media.sound import read_pcm
from gpupipe.serve.client.rest import Rest

if TYPE_CHECKING:  # it needs grpcio, which who asks over HTTP need not have
    from gpupipe.serve.client.rpc import Rpc, RpcOutput

URL: Final = "http://127.0.0.1:8500"
ADDRESS: Final = "127.0.0.1:8501"
TOKEN: Final = "GPUPIPE_TOKEN"
"""The environment variable with the token, which other users of the machine do not see as they see arguments."""

SUFFIXES: Final[dict[str, RpcOutput]] = {".h264": "h264", ".hevc": "hevc", ".nv12": "nv12"}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run it; 0, or 1 with a line `error: …` on standard error."""
    options = _parser().parse_args(arguments)
    options.token = options.token or os.environ.get(TOKEN)  # which is no default, for the help would show it
    try:
        return int(options.run(options))
    except GpupipeError as error:
        print(f"error: {error.on_command_line()}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "python -m gpupipe.serve.client", description="Ask a server that was started with `gpupipe serve`."
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    listing = commands.add_parser("list", help="list the characters", formatter_class=Help)
    speak = commands.add_parser("speak", help="have a character say a sound", formatter_class=Help)
    for added, run in ((listing, _list), (speak, _speak)):
        added.set_defaults(run=run)
        where = added.add_mutually_exclusive_group()
        where.add_argument("--url", default=URL, help="the server, over HTTP")
        where.add_argument("--grpc", metavar="HOST:PORT", help=f"the server, over gRPC, such as {ADDRESS}")
        added.add_argument("--token", help=f"if it wants one; better in ${TOKEN}")
    add = speak.add_argument
    add("character", metavar="CHARACTER", help="its name")
    add("sound", type=Path, metavar="SOUND", help="any sound file")
    add(
        "-o",
        "--output",
        required=True,
        help="over HTTP an .mp4; over gRPC an .h264, .hevc or .nv12 stream, or for images a folder, ending in /",
    )
    add("--realtime", action="store_true", help="each frame in its time, or not at all")
    add("--delay", type=float, metavar="S", help="seconds from a frame's time to when it is due, in real time")
    add("--start-frame", type=int, default=0, metavar="N", help="where in the ping-pong order to start")
    add("--overwrite", action="store_true", help="replace what is there")
    return parser


def _rpc(options: argparse.Namespace) -> Rpc:
    if package_version("grpcio") is None:
        raise OptionError(
            "needs grpcio", field="--grpc", value=options.grpc, remedy="install it with pip install 'gpupipe[serve]'"
        )
    from gpupipe.serve.client.rpc import Rpc

    return Rpc(options.grpc, options.token)


def _list(options: argparse.Namespace) -> int:
    if options.grpc is not None:
        with _rpc(options) as rpc:
            found = [(each.name, each.width, each.height, each.fps, each.frames) for each in rpc.characters()]
    else:
        names = ("id", "width", "height", "fps", "frames")
        found = [
            cast(Any, tuple(each[name] for name in names)) for each in Rest(options.url, options.token).characters()
        ]
    for name, width, height, fps, frames in found:
        print(f"{name}: {width}x{height}, {fps:g} fps, {frames} frames")
    return 0


def _speak(options: argparse.Namespace) -> int:
    if not options.sound.is_file():
        raise GpupipeError("no such file", file=options.sound, remedy="give a sound file")
    began = time.monotonic()
    told = _over_http(options) if options.grpc is None else _over_grpc(options)
    print(f"{options.output}: {told}, {time.monotonic() - began:.1f} s")
    return 0


def _over_http(options: argparse.Namespace) -> str:
    path = Path(options.output)
    if path.suffix != ".mp4":
        raise OptionError("must be an .mp4 over HTTP", field="--output", value=options.output, remedy="or use --grpc")
    rest = Rest(options.url, options.token)
    given = {"realtime": options.realtime or None, "delay": options.delay, "start_frame": options.start_frame or None}
    written = _written(
        path, options.overwrite, lambda file: rest.video(options.character, options.sound, file, **given)
    )
    return f"{written / 1e6:.2f} MB"


def _over_grpc(options: argparse.Namespace) -> str:
    path = Path(options.output)
    images = options.output.endswith(("/", os.sep))
    output = "jpeg" if images else SUFFIXES.get(path.suffix)
    if output is None:
        raise OptionError(
            f"must end in {', '.join(SUFFIXES)} or / over gRPC",
            field="--output",
            value=options.output,
            remedy="or leave --grpc out, for an .mp4",
        )
    with _rpc(options) as rpc:
        spoken = rpc.speak(
            options.character,
            read_pcm(options.sound),
            output,
            realtime=options.realtime,
            delay=options.delay,
            start_frame=options.start_frame,
        )
        if images:
            _images(path, options.overwrite, spoken)
        else:
            _written(path, options.overwrite, lambda file: _stream(file, spoken, packets=output != "nv12"))
    told = spoken.summary
    return f"{told.frames} frames, {told.late} late, {told.repeated} repeated"


def _images(folder: Path, overwrite: bool, spoken: Any) -> None:
    if folder.exists() and not overwrite:
        raise OutputError("exists already", file=folder, remedy="use --overwrite or another name")
    before = b""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for frame in spoken:
            before = frame.data or before
            (folder / image_name(frame.index, "jpg")).write_bytes(before)
    except OSError as error:
        raise OutputError(f"cannot be written: {reason(error)}", file=folder, remedy="use another folder") from error


def _stream(file: Any, spoken: Any, *, packets: bool) -> int:
    """Packets one after the other; of frames as they are drawn, one that repeats is that before once more."""
    before, written = b"", 0
    for frame in spoken:
        before = frame.data if packets else frame.data or before
        written += file.write(before)
    return written


def _written(path: Path, overwrite: bool, write: Callable[[Any], int]) -> int:
    """Write a file that is there when it is complete."""
    if path.exists() and not overwrite:
        raise OutputError("exists already", file=path, remedy="use --overwrite or another name")
    part = path.with_name(f".{path.name}.partial")
    try:
        with part.open("wb") as file:
            written = write(file)
        part.replace(path)
    except OSError as error:
        raise OutputError(f"cannot be written: {reason(error)}", file=path, remedy="use another folder") from error
    finally:
        part.unlink(missing_ok=True)
    return written
