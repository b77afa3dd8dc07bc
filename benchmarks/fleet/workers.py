"""A real worker: a process with an engine of its own, told by a pipe what to do, as `simulate` tells its nodes."""

from __future__ import annotations

import logging
import multiprocessing
import os
import tempfile
import threading
import time
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gpupipe import Character, Engine
from gpupipe.media.sound import read_pcm
from gpupipe.model.runtime import SessionOptions
from gpupipe.serve.limits import ServeLimits
from gpupipe.serve.order import TalkOrder
from gpupipe.serve.talk import Talk
from gpupipe.speech.encoder import AudioEncoder
from gpupipe.speech.rows import SpeechRows
from gpupipe.speech.stream import LIVE_BATCH, FeatureStream

RATE = 16_000
CHUNK_SECONDS = 0.04


class _Loads(logging.Handler):
    """Counts the characters that an engine loads."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def emit(self, record: logging.LogRecord) -> None:
        self.count += record.getMessage().startswith("frames loaded")


@dataclass
class Told:
    """What a worker says of a talk or a job that is over.

    Attributes:
        ready_seconds: from when a talk was asked for until its session was open; of a load, what it took.
        frames: of a talk's pictures, or of a job.
        late: of a talk's.
    """

    number: int
    ready_seconds: float
    frames: int
    late: int = 0
    error: str | None = None


@dataclass(frozen=True)
class Spent:
    """What a worker has used so far."""

    cpu_seconds: float
    loads: int


class Worker:
    """A worker, as its router has it.

    Args:
        people: the characters' folders.
        unused_bytes: for characters that nobody uses.
        cores: on which it runs; None: on all.
    """

    def __init__(self, people: list[Path], unused_bytes: int, cores: set[int] | None = None) -> None:
        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, people, unused_bytes, cores), daemon=True)
        self._process.start()
        theirs.close()
        assert self.pipe.recv() == "open"

    def tell(self, what: str, *details: Any) -> None:
        """Have it do something; `pipe` says when that is done."""
        self.pipe.send((what, *details))

    def spent(self) -> Spent:
        """What it has used; nothing else may be under way."""
        self.tell("spent")
        told = self.pipe.recv()
        assert isinstance(told, Spent), told
        return told

    def close(self) -> None:
        """End it, once."""
        if self.pipe.closed:
            return
        self.tell("end")
        self.pipe.close()
        self._process.join(30)
        if self._process.exitcode is None:
            self._process.kill()


@dataclass
class _Work:
    """A worker's own side."""

    pipe: Connection[Any, Any]
    engine: Engine
    people: list[Character]
    output: Path
    pcm: NDArray[np.float32]
    lock: threading.Lock = field(default_factory=threading.Lock)

    def say(self, told: Any) -> None:
        with self.lock:
            self.pipe.send(told)

    def talk(self, number: int, who: int, seconds: float) -> None:
        """Push sound as a microphone would, and take the pictures."""
        began = time.monotonic()
        order = TalkOrder(f"person_{who}", "nv12")
        pcm = np.resize(self.pcm, round(seconds * RATE))
        step = round(CHUNK_SECONDS * RATE)
        with Talk(self.engine, self.people[who], order, ServeLimits(), {}, number=number, ended=lambda _: None) as talk:
            opened = time.monotonic()

            def push() -> None:
                for first in range(0, len(pcm), step):
                    time.sleep(max(0.0, opened + first / RATE - time.monotonic()))
                    talk.push(pcm[first : first + step])
                talk.finish()

            pushing = threading.Thread(target=push)
            pushing.start()
            frames = sum(1 for _ in talk)
            pushing.join()
            # A talk all of whose frames were passed over has no picture to repeat.
            self.say(Told(number, opened - began, max(frames, talk.dropped), talk.late + talk.dropped))

    def job(self, number: int, who: int, frames: int) -> None:
        """Render a video."""
        said = np.random.default_rng(number).random((frames, 512), np.float32)
        path = self.output / f"{number}.mp4"
        self.engine.submit(self.people[who], path, features=said, sound=False).result()
        path.unlink()
        self.say(Told(number, 0.0, frames))

    def hear(self, number: int, seconds: float) -> None:
        """Make features of sound that comes as a talk's does."""
        opened = AudioEncoder(self.people[0].audio_encoder_path, SessionOptions(provider="cpu"), batch=LIVE_BATCH)
        stream = FeatureStream(opened, SpeechRows(), batch=opened.batch)
        pcm = np.resize(self.pcm, round(seconds * RATE))
        step = round(CHUNK_SECONDS * RATE)
        for first in range(0, len(pcm), step):
            stream.push(pcm[first : first + step])
        stream.finish()
        opened.close()
        self.say(Told(number, 0.0, round(seconds * 25)))

    def load(self, number: int, who: int) -> None:
        """Load all of a character, and let it go."""
        began = time.monotonic()
        self.engine.load(self.people[who])
        seconds = time.monotonic() - began
        self.engine.unload(self.people[who])
        self.say(Told(number, seconds, self.people[who].count))


def _serve(pipe: Connection[Any, Any], people: list[Path], unused_bytes: int, cores: set[int] | None) -> None:
    if cores is not None:
        os.sched_setaffinity(0, cores)
    loads = _Loads()
    log = logging.getLogger("gpupipe")
    log.addHandler(loads)
    log.setLevel(logging.INFO)
    with tempfile.TemporaryDirectory() as folder, Engine(yields=True, device="cpu", cache=unused_bytes) as engine:
        pcm = np.concatenate(list(read_pcm(people[0] / "aud.wav")))
        mine = _Work(pipe, engine, [Character.load(each) for each in people], Path(folder), pcm)
        engine.load(mine.people[0])  # the model is opened once, and stays
        engine.unload(mine.people[0])
        loads.count = 0
        pipe.send("open")
        while (told := pipe.recv())[0] != "end":
            what, *details = told
            if what == "spent":
                mine.say(Spent(time.process_time(), loads.count))
            else:
                threading.Thread(target=_guarded, args=(mine, what, details)).start()


def _guarded(mine: _Work, what: str, details: list[Any]) -> None:
    try:
        getattr(mine, what)(*details)
    except Exception as error:
        mine.say(Told(details[0], 0.0, 0, error=f"{type(error).__name__}: {error}"))
