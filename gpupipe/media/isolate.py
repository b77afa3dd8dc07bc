"""Decoding in a process of its own, which may crash, hang or want any amount of memory without harm to this one.

The process is `decoder`. It is asked one thing and answers on a pipe: JSON and the bytes of arrays, and nothing that
could be more than data. It has this user's rights, but writes no file (its limit is 0 bytes). Its memory is limited on
Linux, where the system counts it a process; its time is limited everywhere.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from os import PathLike
from typing import IO, Any, Final, Literal, TypeVar

import numpy as np

from gpupipe.errors import MediaError, reason
from gpupipe.media.limits import Limits

T = TypeVar("T")

Call = Literal["probe", "read_frames", "index_frames", "probe_sound", "decode_sound"]

MEMORY: Final = 4 << 30
"""Bytes that a decoder may take where --max-memory says nothing: H.264 of 8K with 16 threads takes 2 GB."""
SECONDS = 60.0
"""How long the first answer may take, of a whole file's packets; each more gives SECONDS_AN_ANSWER."""
SECONDS_AN_ANSWER: Final = 1.0
LONGEST_HEADER: Final = 1 << 26
"""Bytes of JSON: the times of a million frames, each a keyframe, take 50 MB."""
COMMAND: Final = (sys.executable, "-P", "-m", "gpupipe.media.decoder")

_DTYPES: Final = {name: np.dtype(name) for name in ("|u1", "<f4")}
"""What arrays may hold: frames and samples."""
_NO_ANSWER: Final = "it says what is no answer"
_F_SETPIPE_SZ: Final = 1031  # Linux, fcntl.h; the module has its name since Python 3.10, but on Linux alone
_PIPE_BYTES: Final = 1 << 20  # the most that an unprivileged process gets (/proc/sys/fs/pipe-max-size)


def isolated(call: Call, path: str | PathLike[str], limits: Limits, **arguments: Any) -> Iterator[Any]:
    """Ask a process of its own.

    Args:
        call: what is asked for.
        path: the file.
        limits: what it may take.
        arguments: of the call, JSON values.

    Yields:
        The answers: arrays, or JSON values.

    Raises:
        MediaError: what it tells, or that it crashed, hung or ran out of memory.
    """
    child = _Child(path)
    try:
        memory = limits.max_memory or MEMORY
        child.ask(
            {
                "call": call,
                "path": os.fspath(path),
                "arguments": arguments,
                "limits": {"max_pixels": limits.max_pixels, "max_frames": limits.max_frames},
                "memory": memory,
                "cpu_seconds": int(SECONDS + SECONDS_AN_ANSWER * limits.max_frames),
            }
        )
        while (answer := child.answer()) is not None:
            yield answer
    finally:
        child.end()


def isolated_facts(call: Call, path: str | PathLike[str], limits: Limits, made: Callable[[dict[str, Any]], T]) -> T:
    """What a process of its own finds out about a file.

    Args:
        call, path, limits: as `isolated`.
        made: makes it of JSON values.

    Raises:
        MediaError: as `isolated`.
    """
    answers = list(isolated(call, path, limits))
    try:
        (told,) = answers
        return made(told)
    except (ValueError, TypeError, KeyError) as error:
        raise _failed(path, _NO_ANSWER) from error


def _failed(path: str | PathLike[str], how: str) -> MediaError:
    return MediaError(
        f"the process that decodes it failed: {how}",
        file=path,
        remedy="the file is damaged, or made to do harm: write it again",
    )


class _Child:
    """The process, its pipes, and the thread that ends it when it keeps us waiting."""

    def __init__(self, path: str | PathLike[str]) -> None:
        self._path = path
        self._left = SECONDS
        self._waiting_since: float | None = None
        self._late = False
        self._ended = threading.Event()
        # What this process can import, that one can; the current folder, which may be a stranger's, is not on its path.
        paths = os.pathsep.join(entry for entry in sys.path if entry)
        try:
            self._process = subprocess.Popen(
                COMMAND,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                bufsize=0,
                env=os.environ | {"PYTHONPATH": paths, "OPENBLAS_NUM_THREADS": "1"},
            )
        except OSError as error:
            raise MediaError(
                f"no process can be started that decodes it: {reason(error)}", file=path, remedy="end other programs"
            ) from error
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._in: IO[bytes] = self._process.stdin
        self._out: IO[bytes] = self._process.stdout
        if sys.platform == "linux":
            import fcntl

            with contextlib.suppress(OSError):  # a limit of this user's
                fcntl.fcntl(self._out, _F_SETPIPE_SZ, _PIPE_BYTES)
        self._watch = threading.Thread(target=self._end_when_late, name="decoder's time", daemon=True)
        self._watch.start()

    def ask(self, question: dict[str, Any]) -> None:
        """Send the question."""
        with contextlib.suppress(OSError):  # it is gone: reading tells how
            self._in.write(json.dumps(question).encode("ascii") + b"\n")
            self._in.close()

    def answer(self) -> Any:
        """The next answer; None after the last."""
        self._waiting_since = time.monotonic()
        try:
            try:
                told = dict(json.loads(self._read(self._size())))
                if "error" in told:
                    raise MediaError(file=self._path, **told["error"])
                if "shape" not in told:
                    return told.get("value")
                array = np.empty(told["shape"], _DTYPES[told["dtype"]])
            except (ValueError, TypeError, KeyError, MemoryError) as error:
                raise _failed(self._path, _NO_ANSWER) from error
            self._fill(array.data.cast("B"))
            return array
        finally:
            self._left += SECONDS_AN_ANSWER - (time.monotonic() - self._waiting_since)
            self._waiting_since = None

    def end(self) -> None:
        """End it, if it has not ended."""
        self._ended.set()
        self._process.kill()
        self._process.wait()
        self._watch.join()
        self._out.close()
        self._in.close()

    def _size(self) -> int:
        size = int.from_bytes(self._read(4), "little")
        if size > LONGEST_HEADER:
            raise _failed(self._path, _NO_ANSWER)
        return size

    def _read(self, size: int) -> bytes:
        buffer = bytearray(size)
        self._fill(memoryview(buffer))
        return bytes(buffer)

    def _fill(self, view: memoryview) -> None:
        while view.nbytes:
            count = self._out.readinto(view)  # type: ignore[attr-defined]
            if not count:
                raise _failed(self._path, self._how_it_ended())
            view = view[count:]

    def _how_it_ended(self) -> str:
        code = self._process.wait()
        if self._late:
            return "it took too long"
        if code >= 0:
            return f"it ended with status {code}"
        with contextlib.suppress(ValueError):
            return f"it was ended by {signal.Signals(-code).name}"
        return f"it was ended by signal {-code}"

    def _end_when_late(self) -> None:
        while not self._ended.wait(0.1):
            since = self._waiting_since
            if since is not None and time.monotonic() - since > self._left:
                self._late = True
                self._process.kill()
                return
