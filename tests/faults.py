"""What the fault tests share: what is rendered, faults put in at a chosen call, and what must be true after each."""

from __future__ import annotations

import errno
import faulthandler
import os
import random
import shutil
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import small

from gpupipe.compose.cpu import CpuCompositor
from gpupipe.engine import flight
from gpupipe.engine.core import EngineCore
from gpupipe.engine.scheduler import Scheduler
from gpupipe.engine.session import Session
from gpupipe.errors import EngineClosed, GpupipeError
from gpupipe.filelock import FileLock
from gpupipe.media import join, video
from gpupipe.media.encode import VideoWriter
from gpupipe.model.model import Model
from gpupipe.render import image_output, parts, parts_lock, video_output
from gpupipe.render.durable import remove
from gpupipe.render.engine import Engine
from gpupipe.render.manifest import MANIFEST, read_manifest
from gpupipe.render.parts import Parts, parts_folder

FACTOR = int(os.environ.get("GPUPIPE_FAULTS", "1"))
"""How many times as many seeds are tried as `make test` does; `make faults` sets it."""

SECONDS = 30
"""How long a render may take before it counts as one that hangs."""

FRAMES, SEGMENT = 19, 5
OPTIONS: dict[str, Any] = {"segment_frames": SEGMENT, "batch": 4, "encoder_threads": 1}
OUTPUTS = ("talk.mp4", "talk.mkv", "images/", "existing/")


def seeds(number: int) -> range:
    """The seeds of a test that tries so many in `make test`."""
    return range(number * FACTOR)


def folder_of(path: Path) -> Path:
    """The character."""
    folder = small.small_character(path)
    np.save(folder / "aud_ave.npy", small.features(FRAMES))
    return folder


class Injected(Exception):
    """What nobody expects."""


@dataclass(frozen=True)
class Target:
    """Where a fault can be put in.

    Attributes:
        owner, name: of the function.
        late: whether it may also fail once it has done its work.
        ends: whether the engine ends with it.
        outputs: of which it is called.
    """

    owner: Any
    name: str
    late: bool = True
    ends: bool = False
    outputs: tuple[str, ...] = OUTPUTS


VIDEOS, IMAGES = OUTPUTS[:2], OUTPUTS[2:]

TARGETS = {
    "decoding": Target(video, "_nv12", outputs=VIDEOS),
    "decoding crops": Target(video, "_bgr24"),
    "prepare": Target(CpuCompositor, "prepare"),
    "model": Target(Model, "start"),
    "paste": Target(CpuCompositor, "paste"),
    "finish": Target(CpuCompositor, "finish"),
    "waiting for the model": Target(flight, "_on_host", ends=True),
    "scheduling": Target(Scheduler, "choose", ends=True),
    "delivery": Target(Session, "deliver", ends=True),
    "opening a session": Target(EngineCore, "open_session", late=False),
    "opening an encoder": Target(VideoWriter, "__init__", late=False, outputs=VIDEOS),
    "encoding": Target(VideoWriter, "_mux", outputs=VIDEOS),
    "writing": Target(VideoWriter, "write", outputs=VIDEOS),
    "closing an encoder": Target(VideoWriter, "close", outputs=VIDEOS),
    "writing images": Target(image_output, "write_image", outputs=IMAGES),
    "joining": Target(video_output, "join", outputs=VIDEOS),
    "reading parts": Target(join, "_in_one_time", outputs=VIDEOS),
    "joining images": Target(image_output, "join_images", outputs=IMAGES),
    "hashing": Target(parts, "hash_of"),
    "syncing": Target(os, "fsync"),
    "renaming": Target(Path, "replace"),
    "naming a part": Target(parts, "put_in_place"),
    "keeping a part": Target(Parts, "finish"),
    "writing the manifest": Target(Parts, "_write"),
    "locking": Target(FileLock, "acquire", late=False),
}

ERRORS: tuple[Callable[[], BaseException], ...] = (
    lambda: OSError(errno.ENOSPC, "No space left on device"),
    lambda: OSError(errno.EIO, "Input/output error"),
    lambda: Injected("a fault"),
    lambda: MemoryError("a fault"),
    lambda: av.error.InvalidDataError(1094995529, "Invalid data found when processing input"),
    KeyboardInterrupt,
)


@contextmanager
def calling(target: Target, wrapper: Callable[[Callable[..., Any]], Callable[..., Any]]) -> Iterator[None]:
    """A function is another one in the with block."""
    with pytest.MonkeyPatch.context() as patch:
        real = getattr(target.owner, target.name)
        patch.setattr(target.owner, target.name, wraps(real)(wrapper(real)))
        yield


@contextmanager
def failing(target: Target, number: int, error: BaseException, *, late: bool) -> Iterator[list[str]]:
    """The call of that number fails in the with block; what is given has the name of the thread then.

    Ctrl-C is raised in the thread that renders, and nowhere else.
    """
    calls = iter(range(sys.maxsize))
    fired: list[str] = []

    def wrapper(real: Callable[..., Any]) -> Callable[..., Any]:
        def failing(*given: Any, **named: Any) -> Any:
            mine = next(calls) >= number and not fired
            thread = threading.current_thread().name
            mine &= not isinstance(error, KeyboardInterrupt) or thread == RENDERING
            if mine:
                fired.append(thread)
            if mine and not late:
                raise error
            result = real(*given, **named)
            if mine:
                raise error
            return result

        return failing

    with calling(target, wrapper):
        yield fired


def counted(render: Callable[[], Any]) -> Counter[str]:
    """How often each function is called in a render."""
    counts: Counter[str] = Counter()

    def counting(what: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
        def wrapper(real: Callable[..., Any]) -> Callable[..., Any]:
            def call(*given: Any, **named: Any) -> Any:
                counts[what] += 1
                return real(*given, **named)

            return call

        return wrapper

    with pytest.MonkeyPatch.context() as patch:
        for what, target in TARGETS.items():
            real = getattr(target.owner, target.name)
            patch.setattr(target.owner, target.name, wraps(real)(counting(what)(real)))
        render()
    return counts


RENDERING = "rendering"
"""The name of the thread that renders."""


def ended(render: Callable[[], Any]) -> BaseException | None:
    """What a render raises, in a thread of its own; one that hangs is a failure that shows where."""
    raised: list[BaseException] = []

    def work() -> None:
        try:
            render()
        except BaseException as error:
            raised.append(error)

    thread = threading.Thread(target=work, name=RENDERING, daemon=True)
    thread.start()
    thread.join(SECONDS)
    if thread.is_alive():
        faulthandler.dump_traceback(2, all_threads=True)
        pytest.fail(f"hangs for {SECONDS} s", pytrace=False)
    return raised[0] if raised else None


class Scene:
    """An engine, a character, and what its renders must be.

    Args:
        path: an empty folder.
        device: of the engine, with its options.
        options: of every render, besides `OPTIONS`.
    """

    def __init__(self, path: Path, device: str = "cpu", **options: Any) -> None:
        self.folder = folder_of(path / "anna")
        self.work = path / "work"
        self.work.mkdir()
        self._device, self.options = device, OPTIONS | options
        self._engine: Engine | None = None
        self.whole: dict[str, Any] = {}
        self.counts: dict[str, Counter[str]] = {}
        for output in OUTPUTS:
            self.prepare(output)
            self.counts[output] = counted(lambda output=output: self.render(output))  # type: ignore[misc]
            self.whole[output] = self.content(output)
            self.clear()

    @property
    def engine(self) -> Engine:
        """The engine: another one once it has ended."""
        if self._engine is not None and self._engine._error is not None:
            self.close()
        if self._engine is None:
            self._engine = Engine(device=self._device, cache=0)  # so that each render decodes
        return self._engine

    def close(self) -> None:
        engine, self._engine = self._engine, None
        if engine is not None:
            assert ended(engine.close) is None

    def prepare(self, output: str) -> None:
        """What is there before the first render."""
        if output == "existing/":
            (self.work / output).mkdir()

    def render(self, output: str, **options: Any) -> None:
        """Render, in this thread."""
        self.engine.render(self.folder, f"{self.work}/{output}", **self.options | options)

    def content(self, output: str) -> Any:
        path = self.work / output
        return small.files_in(path) if path.is_dir() else path.read_bytes()

    def clear(self) -> None:
        for path in self.work.iterdir():
            remove(path)

    def parts(self, output: str) -> Path:
        path = self.work / output
        return parts_folder(image_output.parts_beside(path) if output.endswith("/") else path)

    def assert_whole(self, output: str) -> None:
        """The output is right, and nothing is beside it."""
        assert self.content(output) == self.whole[output]
        beside = {name for name in small.files_in(self.work) if not name.startswith(output.strip("/") + "/")}
        assert beside == ({output} if output in VIDEOS else set()), beside

    def assert_nothing_wrong(self, output: str, *, kept: bool = True) -> None:
        """After a fault: nothing has the output's name, or what has it is right; what is kept is whole, if it was
        cleaned up."""
        path = self.work / output
        if output == "existing/":
            found = {name: data for name, data in small.files_in(path).items() if parts.SUFFIX not in name}
            assert found.items() <= self.whole[output].items()
        elif path.exists():
            assert self.content(output) == self.whole[output]
        if kept:
            there, right = self.kept(output)
            assert there == right, there
        if kept and not output.endswith("/"):  # whose images are moved when they are joined
            assert parts.wrong_parts(self.work / output) == []

    def kept(self, output: str) -> tuple[set[str], set[str]]:
        """What is in the folder of the parts, and what is to be there; nothing in both if there is no folder."""
        folder = self.parts(output)
        if not folder.exists():
            return set(), set()
        manifest = read_manifest(folder)
        segments = {} if manifest is None else manifest.segments
        right = {parts_lock.LOCK, MANIFEST, *(one.name for one in segments.values())}
        return {one.name for one in folder.iterdir()}, right

    def assert_resumed(self, output: str) -> None:
        """What was interrupted goes on, to the same bytes."""
        # What was put in place, and could not remove its parts, is asked for again.
        path, begun = self.work / output, self.parts(output).exists()
        overwrite = path.exists() and (output in VIDEOS or not begun)
        error = ended(lambda: self.render(output, resume=True, overwrite=overwrite))
        assert error is None, f"does not go on: {error!r}"
        self.assert_whole(output)

    def assert_at_rest(self) -> None:
        """Nothing of a render is left in the engine, if it goes on."""
        engine = self._engine
        if engine is None or engine._error is not None:
            return

        def quiet() -> bool:
            lanes = [entry.opened.result() for entry in engine.holdings._lanes._entries.values()]
            return (
                engine.timetable.idle
                and not engine._sessions
                and not engine._handling
                and all(len(lane.free) == lane.slots for lane in lanes)
            )

        eventually(quiet, "batches or sessions are under way")


def eventually(true: Callable[[], bool], what: str) -> None:
    end = time.monotonic() + SECONDS
    while not true():
        assert time.monotonic() < end, what
        time.sleep(0.001)


def assert_told(error: BaseException, injected: BaseException) -> None:
    """An error is the one that was put in, or one clear line that comes of it."""
    causes: list[BaseException | None] = [error]
    while causes[-1] is not None:
        causes.append(causes[-1].__cause__ or causes[-1].__context__)
    # A stopped engine's error says what has stopped it, but does not hold it: its traceback holds device memory.
    stopped = isinstance(error, EngineClosed) and f"the engine has stopped: {injected}" in str(error)
    assert stopped or any(cause is injected for cause in causes), f"{error!r} does not come of {injected!r}"
    if isinstance(error, GpupipeError):
        assert str(error)
        assert "\n" not in str(error)


def draw(what: str, seed: int) -> random.Random:
    """The chances of a seed."""
    return random.Random(f"{what} {seed}")


class Disk:
    """What a disk would hold if the power went now: names and contents that were synced for sure, and of what was not
    synced, what chance lets it have.

    `os.fsync` of a file makes its content last, that of a folder the names in it, and nothing else does: so says POSIX,
    and file systems that write data late do no more (ext4(5), "data=writeback", "delalloc").

    Args:
        root: a folder, which with all that is in it is on the disk already.
    """

    def __init__(self, root: Path) -> None:
        self._root = root
        self._contents: dict[int, bytes] = {}
        self._names: dict[int, dict[str, int]] = {}
        self._open: list[int] = []  # an inode that is in use is no other file's
        self.calls = 0
        for path in (root, *root.rglob("*")):
            self._synced(path)

    @contextmanager
    def watched(self, cut_at: int) -> Iterator[None]:
        """Keep account in the with block, until the power goes before that call that changes or syncs something."""
        thread = threading.current_thread

        def before(real: Callable[..., Any]) -> Callable[..., Any]:
            @wraps(real)
            def call(*given: Any, **named: Any) -> Any:
                if thread().name == RENDERING:
                    if self.calls == cut_at:
                        raise PowerCut
                    self.calls += 1
                return real(*given, **named)

            return call

        fsync = os.fsync

        def synced(file: int) -> None:
            fsync(file)
            self._synced(Path(f"/proc/self/fd/{file}").readlink())

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(os, "fsync", before(synced))
            for name in ("replace", "mkdir", "unlink", "write_text"):
                patch.setattr(Path, name, before(getattr(Path, name)))
            patch.setattr(shutil, "rmtree", before(shutil.rmtree))
            patch.setattr(VideoWriter, "write", before(VideoWriter.write))
            patch.setattr(Parts, "leave", lambda parts: parts._lock.release())  # nobody cleans up
            yield

    def restore(self, chance: random.Random) -> None:
        """Leave under the root what the disk holds."""
        found = {path.stat().st_ino: path for path in self._root.rglob("*")}
        now = {inode: path.read_bytes() for inode, path in found.items() if path.is_file()}
        names = {
            folder.stat().st_ino: {path.name: path.stat().st_ino for path in folder.iterdir()}
            for folder in (self._root, *self._root.rglob("*"))
            if folder.is_dir()
        }
        folders = names.keys() | self._names.keys()
        held: list[tuple[Path, bytes | None]] = []

        def visit(folder: Path, inode: int, seen: frozenset[int]) -> None:
            synced, unsynced = self._names.get(inode, {}), names.get(inode, {})
            for name in sorted(synced.keys() | unsynced.keys()):
                either = [side[name] for side in (synced, unsynced) if name in side]
                if len(either) == 1 and chance.random() < 0.5:
                    continue  # made, or removed, and not synced
                child = chance.choice(either)
                if child in folders and child not in seen:
                    held.append((folder / name, None))
                    visit(folder / name, child, seen | {child})
                elif child not in folders:
                    held.append((folder / name, self._content(child, now.get(child, b""), chance)))

        visit(self._root, self._root.stat().st_ino, frozenset())
        for path in self._root.iterdir():
            remove(path)
        for path, content in held:
            if content is None:
                path.mkdir()
            else:
                path.write_bytes(content)

    def close(self) -> None:
        for file in self._open:
            os.close(file)

    def _content(self, inode: int, now: bytes, chance: random.Random) -> bytes:
        if inode in self._contents:
            return self._contents[inode]
        return chance.choice([b"", now, now[: chance.randrange(len(now) + 1)], bytes(len(now))])

    def _synced(self, path: Path) -> None:
        inode = path.stat().st_ino
        if path.is_dir():
            self._names[inode] = {each.name: each.stat().st_ino for each in path.iterdir()}
        else:
            self._contents[inode] = path.read_bytes()
        self._open.append(os.open(path, os.O_RDONLY))


class PowerCut(BaseException):
    """Ends a render as nothing else does."""
