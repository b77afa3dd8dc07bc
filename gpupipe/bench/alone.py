"""Talks without a server: a process for each, which draws frame by frame in real time, as people do it today.

Each decodes the character for itself, opens a model and an audio encoder of its own with all cores, and composites one
frame after the other with OpenCV. Frames go as nv12 to nobody, or to an encoder.
"""

from __future__ import annotations

import multiprocessing
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from gpupipe.bench.algorithm import Floats, composite_bgr24, visual_input
from gpupipe.bench.handover import OpencvNv12
from gpupipe.bench.scene import Runner
from gpupipe.character.folder import Character
from gpupipe.errors import OptionError
from gpupipe.geometry import SPEECH_ROWS, SPEECH_SHAPE, SPEECH_WIDTH, frame_at, speech_position
from gpupipe.machine import cpu_count
from gpupipe.media.live_encoder import LiveCodec, LiveEncoder
from gpupipe.media.sound import read_pcm
from gpupipe.media.video import read_frames
from gpupipe.model.runtime import SessionOptions
from gpupipe.serve.load.talker import CHUNK_SECONDS, Heard, Said
from gpupipe.serve.order import DELAY_SECONDS
from gpupipe.speech.encoder import AudioEncoder
from gpupipe.speech.rows import SpeechRows
from gpupipe.speech.stream import FeatureStream

READY_SECONDS: Final = 120.0
"""In which a process must have opened what it needs."""


@dataclass(frozen=True)
class Alone:
    """What a process is to do.

    Attributes:
        character: the folder.
        codec: of its encoder; None: frames go nowhere.
        seconds: of speech.
        start_frame: of its frames.
        offset: seconds after the others' start at which it starts.
    """

    character: Path
    codec: LiveCodec | None
    seconds: float
    start_frame: int
    offset: float


def crowd_alone(character: Path, codec: LiveCodec | None, seconds: float, clients: int, spread: int) -> list[Heard]:
    """Let processes talk at a time.

    Args:
        character: the folder.
        codec: of their encoders; None: frames go nowhere.
        seconds: of speech.
        clients: how many.
        spread: by how many frames each begins further on than the one before.
    """
    context = multiprocessing.get_context("spawn")
    told: Any = context.Queue()
    ready, go = context.Barrier(clients + 1), context.Event()
    workers = [
        context.Process(
            target=_work,
            args=(Alone(character, codec, seconds, number * spread, number / clients), ready, go, told),
            daemon=True,
        )
        for number in range(clients)
    ]
    for worker in workers:
        worker.start()
    try:
        ready.wait(READY_SECONDS)
        go.set()
        return [told.get(timeout=seconds * 10 + READY_SECONDS) for _ in workers]
    finally:
        for worker in workers:
            worker.join(5)
            worker.kill()


def _work(alone: Alone, ready: Any, go: Any, told: Any) -> None:
    talker = _Talker(alone)
    ready.wait()
    go.wait()
    told.put(talker.talk())


class _Talker:
    def __init__(self, alone: Alone) -> None:
        self._alone = alone
        self._character = character = Character.load(alone.character)
        self._body = list(read_frames(character.body.path, "bgr24", count=character.count))
        self._crops = list(read_frames(character.crops.path, "bgr24", count=character.count))
        self._runner = Runner(character.model_path, cpu_count())
        self._encoder = AudioEncoder(character.audio_encoder_path, SessionOptions("cpu", threads=cpu_count()), batch=1)
        pcm = np.concatenate(list(read_pcm(character.sound_path or character.path)))
        self._said = Said(character.path.name, "nv12", pcm, alone.seconds, float(character.body.fps))
        info = character.body
        self._to_nv12 = OpencvNv12() if OpencvNv12.fits(info.colour, info.width, info.height) else None
        self._video = (
            None
            if alone.codec is None
            else LiveEncoder(alone.codec, width=info.width, height=info.height, fps=info.fps, colour=info.colour)
        )

    def talk(self) -> Heard:
        """Speak in real time; frames whose time is over are passed over."""
        fps, rows, heard, pushed = self._character.body.fps, SpeechRows(), Heard(), 0
        stream = FeatureStream(self._encoder, rows, batch=self._encoder.batch)
        window = np.empty((SPEECH_ROWS, SPEECH_WIDTH), np.float32)
        start = time.monotonic() + self._alone.offset
        for index in range(int(self._alone.seconds * fps)):
            row, fraction = speech_position(index, fps)
            while not rows.ready(row, fraction):
                time.sleep(max(0.0, start + (pushed + 1) * CHUNK_SECONDS - time.monotonic()))
                stream.push(self._said.chunk(pushed))
                pushed += 1
            own = start + float(index / fps)
            heard.frames += 1
            if time.monotonic() > own + DELAY_SECONDS:
                heard.late += 1
                continue
            rows.window(row, fraction, window)
            self._draw(frame_at(self._alone.start_frame + index, self._character.count), window)
            latency = time.monotonic() - own
            heard.late += latency > DELAY_SECONDS
            heard.latencies.append(latency)
        return heard

    def _draw(self, source: int, window: Floats) -> None:
        character = self._character
        crop, layout = self._crops[source], character.layout
        (prediction,) = self._runner(visual_input(crop, layout)[None], window.reshape(1, *SPEECH_SHAPE))
        frame = composite_bgr24(prediction, crop, self._body[source], character.rects[source], layout)
        if self._to_nv12 is None:
            raise OptionError("this comparison takes BT.601 characters of a height divisible by 4 only")
        pixels = self._to_nv12(frame)
        if self._video is not None:
            self._video.encode(pixels)
