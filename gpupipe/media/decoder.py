"""The process that `isolate` starts: `python -m gpupipe.media.decoder`. Reads one question, answers, and ends."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from gpupipe.errors import GpupipeError, reason
from gpupipe.machine import cpu_count
from gpupipe.media.index import Start, index_frames
from gpupipe.media.limits import Limits
from gpupipe.media.sound import decode_sound
from gpupipe.media.sound_file import probe_sound
from gpupipe.media.video import probe, read_frames


def main(question: dict[str, Any], out: BinaryIO) -> None:
    """Answer a question of `isolate.isolated`: a length and JSON for each answer, then the bytes if it has a shape."""
    path, arguments, limits = Path(question["path"]), question["arguments"], Limits(**question["limits"])
    try:
        limit_self(question["memory"], question["cpu_seconds"])
        for answer in _answers(question["call"], path, limits, arguments):
            if isinstance(answer, np.ndarray):
                _tell(out, {"shape": answer.shape, "dtype": answer.dtype.str})
                out.write(np.ascontiguousarray(answer).data.cast("B"))
            else:
                _tell(out, {"value": answer})
        _tell(out, {})
    except MemoryError:
        _tell(out, {"error": {"what": "its decoder wants more memory than it may have", "remedy": "write it again"}})
    except GpupipeError as error:
        _tell(out, {"error": error.parts})
    except Exception as error:
        _tell(out, {"error": {"what": f"cannot be decoded: {reason(error)}", "remedy": "write it again"}})


def _answers(call: str, path: Path, limits: Limits, arguments: dict[str, Any]) -> Iterator[Any]:
    if call == "probe":
        yield asdict(replace(probe(path, limits), index=None))  # which `index_frames` is asked for where it is needed
    elif call == "read_frames":
        start = Start(**arguments["start"])
        yield from read_frames(path, arguments["pixel_format"], arguments["count"], limits, start)
    elif call == "index_frames":
        yield asdict(index_frames(path, limits))
    elif call == "probe_sound":
        yield asdict(probe_sound(path, limits))
    elif call == "decode_sound":
        yield from decode_sound(path, rate=arguments["rate"], layout=arguments["layout"], limits=limits)


def limit_self(memory: int, cpu_seconds: int) -> None:
    """Let this process take no more than it has and `memory` bytes; write no file; leave no dump of its memory.

    Of memory, Linux alone: Windows has no such limit, and macOS counts what all processes share. The processor time
    ends a process that hangs when the one that asked is gone.
    """
    if sys.platform == "win32":
        return
    import resource

    limits = [(resource.RLIMIT_CPU, cpu_seconds * cpu_count()), (resource.RLIMIT_FSIZE, 0), (resource.RLIMIT_CORE, 0)]
    if sys.platform == "linux":
        pages = int(Path("/proc/self/statm").read_text("ascii").split()[0])
        limits.append((resource.RLIMIT_AS, pages * resource.getpagesize() + memory))
    for kind, most in limits:
        _, hard = resource.getrlimit(kind)
        if hard == resource.RLIM_INFINITY or most < hard:
            resource.setrlimit(kind, (most, most))


def _tell(out: BinaryIO, told: dict[str, Any]) -> None:
    text = json.dumps(told, default=str).encode("ascii")
    out.write(len(text).to_bytes(4, "little") + text)
    out.flush()


if __name__ == "__main__":
    answers = sys.stdout.buffer
    sys.stdout = sys.stderr  # whatever is printed is no answer
    main(json.loads(sys.stdin.buffer.readline()), answers)
