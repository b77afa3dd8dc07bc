"""What runs on a node as an actor that holds a server: a process of its own, which ends with the actor."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Final, NamedTuple

from gpupipe.character.folder import BODY
from gpupipe.cluster.facts import NOT_THERE, facts_here
from gpupipe.cluster.inputs import character_files, model_files
from gpupipe.cluster.work import Failure
from gpupipe.errors import ClusterError, GpupipeError, reason
from gpupipe.machine import package_version
from gpupipe.render.fingerprint import GPU_PACKAGES
from gpupipe.serve.packages import require_packages

LINES: Final = 20
"""Of what a server has written last, that are kept to tell why it did not start."""
POLL_SECONDS: Final = 1.0
WRITTEN_SECONDS: Final = 5.0
"""In which the last lines of a server that has ended are read."""

Sizes = Mapping[str, Mapping[str, int]]
"""Bytes of each file by its name, of each character by its name; and of a model that an option names, by its path."""


@dataclass(frozen=True)
class Wanted:
    """What a node must have.

    Attributes:
        folder: of the characters, an absolute path.
        model: likewise, of a model that all characters have; None: each its own.
        device: where servers draw, "cuda" or "cpu".
        mark: a file that the router has written into the folder of jobs, and what it says; None: there are no jobs.
    """

    folder: str
    model: str | None
    device: str
    mark: tuple[str, str] | None


class Look(NamedTuple):
    """What a node has.

    Attributes:
        facts: that must be alike on all nodes.
        sizes: of the characters' files, which must be, too.
    """

    facts: dict[str, str]
    sizes: Sizes


class Started(NamedTuple):
    """A server that listens: its address, the port of its HTTP, its address for gRPC; and its process."""

    host: str
    port: int
    grpc: str
    pid: int


class ServerActor:
    """Holds one server. Its methods are called from several threads.

    Args:
        with_parent: end this process once its parent has: Ray's daemon on the node, which may be lost with the whole
            cluster.
    """

    def __init__(self, *, with_parent: bool = False) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._last: deque[str] = deque(maxlen=LINES)
        if with_parent:
            threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()

    def look(self, wanted: Wanted) -> Look | Failure:
        """See what this node has, before a server is started."""
        try:
            require_packages()
            facts = facts_here()
            if wanted.device == "cuda":
                facts |= {name: package_version(name) or NOT_THERE for name in GPU_PACKAGES}
            return Look(facts, sizes_of(wanted))
        except GpupipeError as error:
            return Failure.of(error)

    def open(
        self, arguments: Sequence[str], cores: int | None, part: tuple[int, int, int], tokens: str
    ) -> Started | Failure:
        """Start the server, and wait until it listens.

        Args:
            arguments: of its command line, after `gpupipe serve`, but for the tokens.
            cores: CPU cores that it has at most; None: all of its part.
            part: which part of the node's cores it has, of so many, and at which core they begin; see `pinned`.
            tokens: that it wants, one a line; none: an empty text.
        """
        try:
            return self._open(arguments, cores, part, tokens)
        except GpupipeError as error:
            return Failure.of(error)
        except OSError as error:
            return Failure.of(ClusterError(f"cannot start a server: {reason(error)}", remedy="look at the node"))

    def ended(self) -> int:
        """Wait for the server's end; its exit status."""
        assert self._process is not None, "it has been opened"
        return self._process.wait()

    def end(self) -> None:
        """Let it end, with its talks."""
        if self._process is not None and self._process.stdin is not None:
            self._process.stdin.close()

    def kill(self) -> None:
        """End it at once."""
        if self._process is not None:
            self._process.kill()

    def _open(self, arguments: Sequence[str], cores: int | None, part: tuple[int, int, int], tokens: str) -> Started:
        from gpupipe.serve.router.process import apart, command, listened

        with TokenFile(tokens) as told:
            self._process = process = subprocess.Popen(
                command([*arguments, *told], pinned(cores, *part)),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                **apart(),
            )
            assert process.stdout is not None
            assert process.stderr is not None
            reading = threading.Thread(target=self._read, args=(process.stderr,), daemon=True)
            reading.start()
            for line in process.stdout:
                if (place := listened(line)) is not None:
                    return Started(place.host, place.port, place.grpc, process.pid)
            status = process.wait()
        reading.join(WRITTEN_SECONDS)
        said = [line for line in self._last if line.startswith("error: ")] or list(self._last)
        why = said[-1].removeprefix("error: ") if said else f"status {status}"
        raise ClusterError(f"a server did not start: {why}")

    def _read(self, output: IO[bytes]) -> None:
        """What the server writes goes where Ray keeps what its workers write."""
        for line in output:
            text = line.decode("utf-8", "replace").rstrip()
            if text:
                self._last.append(text)
                sys.stderr.write(f"{text}\n")


def _end_with(parent: int) -> None:
    """End this process once its parent has; Windows does not tell."""
    while os.getppid() == parent:
        time.sleep(POLL_SECONDS)
    os._exit(1)


class TokenFile:
    """A file of tokens that nobody else on the node can read, for as long as a server starts, which reads it once."""

    def __init__(self, tokens: str) -> None:
        self._tokens = tokens
        self._folder: str | None = None

    def __enter__(self) -> list[str]:
        """Write it: the arguments that name it."""
        if not self._tokens:
            return []
        self._folder = tempfile.mkdtemp(prefix="gpupipe-")  # which is open to this user alone
        path = Path(self._folder) / "tokens"
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as file:
            file.write(self._tokens)
        return ["--token-file", str(path)]

    def __exit__(self, *_: object) -> None:
        """Remove it."""
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)


def pinned(cores: int | None, number: int, parts: int, first: int) -> set[int] | None:
    """The cores of one of so many servers on this node; None: any, where the system cannot be told.

    Args:
        cores: how many at most; None: all of its part.
        number: which server.
        parts: so many.
        first: the core to begin at, any number: another for each node, as several of them, in containers, may be one
            machine, of which each sees all cores.
    """
    if not hasattr(os, "sched_getaffinity"):
        return None
    every = sorted(os.sched_getaffinity(0))
    turned = every[first % len(every) :] + every[: first % len(every)]
    return set((turned[number::parts] or [turned[number % len(turned)]])[:cores])


def sizes_of(wanted: Wanted) -> Sizes:
    """The sizes of what a server is to use.

    Raises:
        ClusterError: a folder or file is not there, or is another one than the router's.
    """
    folder = Path(wanted.folder)
    try:
        if wanted.mark is not None and not _says(Path(wanted.mark[0]), wanted.mark[1]):
            raise ClusterError(
                "the folder of jobs is not the router's",
                file=Path(wanted.mark[0]).parent,
                field="--jobs",
                remedy="give one that all nodes share",
            )
        alone = (folder / BODY).is_file()
        people = [folder] if alone else sorted(each for each in folder.iterdir() if (each / BODY).is_file())
        found = {each.name: _sizes(each, character_files(each)) for each in people}
        if wanted.model is not None:
            model = Path(wanted.model)
            found[wanted.model] = _sizes(model.parent, model_files(model))
    except OSError as error:
        raise ClusterError(
            f"cannot be read: {reason(error)}",
            file=error.filename or folder,
            remedy="share it with all nodes, or copy it to the same path on each",
        ) from error
    return found


def _sizes(root: Path, names: Sequence[str]) -> dict[str, int]:
    return {name: (root / name).stat().st_size for name in names}


def _says(path: Path, text: str) -> bool:
    try:
        return path.read_text("ascii") == text
    except (OSError, ValueError):
        return False
